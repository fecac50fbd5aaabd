# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""How Softmax-1 models are published; see `hf_methods.hub`."""

from pathlib import Path

from huggingface_hub import ModelCardData
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_methods.cards import dataset_names, eval_results
from hf_methods.hub import RepositoryRecipe
from hf_methods.softmax1.pipeline_softmax1 import TASK, Softmax1TextGenerationPipeline


MODEL_TYPES = ("softmax1_gpt2", "softmax1_llama")
CORPORA = {  # of hf_methods.data, as (type, name) of a data set in a model index
    "python": ("python-standard-library", "the source text of Python's standard library (PSF licence)"),
    "shakespeare": ("shakespeare", "the works of Shakespeare"),
}
METRICS = {
    "perplexity": ("perplexity", "perplexity"),
    "first_token_mass_pct": ("first_token_mass_pct", "attention on the first token, %"),
    "kurtosis_first": ("kurtosis_first", "kurtosis of the first token's activations"),
}


def save_repository(checkpoint: str, folder: Path) -> None:
    """Write model, tokenizer and code of a softmax-1 checkpoint.

    Raises:
        ValueError: another kind of model, or a quantised one, which needs this package to load.
    """
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    if model.config.model_type not in MODEL_TYPES:
        raise ValueError(
            f"{checkpoint} has model_type {model.config.model_type!r}; this is for {', '.join(MODEL_TYPES)}."
        )
    if getattr(model.config, "quantization_config", None):
        raise ValueError(f"{checkpoint} is quantised, and would load with this package only: give the original.")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    for name in ("local_files_only", "is_local"):  # how it was loaded here, which transformers would store
        tokenizer.init_kwargs.pop(name, None)
    Softmax1TextGenerationPipeline(model=model, tokenizer=tokenizer).save_pretrained(folder)


def card_data(results: dict, config: dict) -> ModelCardData:
    """Metadata of a softmax-1 card."""
    arm, split = results["arm"], results["settings"]["split"]
    corpus = results["settings"]["train"]["corpus"]
    names = dataset_names(corpus, CORPORA, local=("text", "local text files"))
    summary = results["summary_mean_and_sd"][arm]
    return ModelCardData(
        model_name=f"{arm}, {config['model_type'].removeprefix('softmax1_')}",
        library_name="transformers",
        pipeline_tag="text-generation",
        license="apache-2.0",
        language="en",
        datasets=[names[0]],
        metrics=["perplexity"],
        tags=["hf_methods", "softmax1", "attention-sink", "outlier-activations", "quantization"],
        eval_results=eval_results("text-generation", names, split, summary, METRICS, digits=2),
    )


RECIPE = RepositoryRecipe(
    method="softmax1",
    save=save_repository,
    task=TASK,
    example={
        "args": [["import os\n\n\ndef main(", "class Node:\n    def __init__(self, "]],
        # "hole" cuts the prompt of models with few positions
        "kwargs": {
            "max_new_tokens": 16,
            "do_sample": False,
            "return_attention_shares": True,
            "handle_long_generation": "hole",
        },
    },
    card_data=card_data,
    space_checkpoints=("softmax-adamw", "softmax1-orthoadam"),
)
