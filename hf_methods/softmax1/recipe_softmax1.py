# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The model and the data that a recipe describes, and the figures of what was trained."""

from dataclasses import dataclass, field

from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_methods.data import load_text_corpus, stream_text_corpus, text_digest
from hf_methods.softmax1.arguments_softmax1 import Softmax1TrainingArguments
from hf_methods.softmax1.configuration_softmax1 import Softmax1GPT2Config, Softmax1LlamaConfig
from hf_methods.softmax1.data_softmax1 import blocks_dataset, stream_blocks, token_blocks, train_tokenizer
from hf_methods.softmax1.inspection_softmax1 import inspect_model
from hf_methods.softmax1.modeling_softmax1 import Softmax1GPT2LMHeadModel, Softmax1LlamaForCausalLM
from hf_methods.softmax1.quantization_softmax1 import quantization_report


@dataclass
class ModelArguments:
    """A GPT-2 or Llama trained from scratch."""

    architecture: str = field(default="gpt2", metadata={"help": "'gpt2' or 'llama'."})
    attention: str = field(default="softmax1", metadata={"help": "'softmax1' or 'softmax'."})
    norm: str = field(
        default="rmsnorm_single", metadata={"help": "'rmsnorm_single', or 'layernorm' (gpt2), 'rmsnorm' (llama)."}
    )
    hidden_size: int = field(default=512, metadata={"help": "Features of the residual stream."})
    intermediate_size: int | None = field(default=None, metadata={"help": "Features inside the MLP; default 4x."})
    num_layers: int = field(default=12, metadata={"help": "Number of blocks."})
    num_heads: int = field(default=8, metadata={"help": "Attention heads."})

    def __post_init__(self):
        if self.architecture not in ("gpt2", "llama"):
            raise ValueError(f"`architecture` must be 'gpt2' or 'llama', got {self.architecture!r}.")
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"`hidden_size` must be a multiple of `num_heads`, got {self.hidden_size} and {self.num_heads}."
            )


@dataclass
class DataArguments:
    """Text, tokenizer and block length."""

    corpus: str = field(metadata={"help": "'python', 'shakespeare', a Hub id or a folder; see hf_methods.data."})
    corpus_config: str | None = field(default=None, metadata={"help": "Configuration of the Hub data set."})
    streaming: bool = field(default=False, metadata={"help": "Read the Hub data set while training; needs max_steps."})
    seq_len: int = field(default=256, metadata={"help": "Tokens in a block."})
    vocab_size: int = field(default=4096, metadata={"help": "Tokens of the BPE trained on the training split."})
    tokenizer: str | None = field(default=None, metadata={"help": "Use this tokenizer instead of training one."})
    eval_blocks: int = field(default=512, metadata={"help": "Blocks of the validation split to evaluate on."})

    def __post_init__(self):
        if self.streaming and not self.tokenizer:
            raise ValueError("`streaming=True` needs `tokenizer`: none can be trained on a stream.")


def load_data(args: DataArguments, seed: int):
    """The tokenizer, the blocks of the training and the validation split as data sets, and digests of the texts."""
    if args.streaming:
        tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
        train_texts = stream_text_corpus(args.corpus, args.corpus_config, "train").shuffle(seed, buffer_size=10_000)
        eval_texts = stream_text_corpus(args.corpus, args.corpus_config, "validation")
        train_blocks = stream_blocks(train_texts, tokenizer, args.seq_len, add_bos=True)
        eval_blocks = stream_blocks(eval_texts, tokenizer, args.seq_len, add_bos=True).take(args.eval_blocks)
        return tokenizer, train_blocks, eval_blocks, {}
    corpus = load_text_corpus(args.corpus, args.corpus_config)
    if args.tokenizer:
        tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    else:
        tokenizer = train_tokenizer(corpus["train"]["text"], args.vocab_size)
    train_blocks = token_blocks(corpus["train"]["text"], tokenizer, args.seq_len, add_bos=True)
    eval_blocks = token_blocks(corpus["validation"]["text"], tokenizer, args.seq_len, add_bos=True)
    digests = {split: text_digest(corpus[split]) for split in ("train", "validation")}
    return tokenizer, blocks_dataset(train_blocks), blocks_dataset(eval_blocks[: args.eval_blocks]), digests


def build_model(
    args: ModelArguments, tokenizer: PreTrainedTokenizerBase, seq_len: int
) -> Softmax1GPT2LMHeadModel | Softmax1LlamaForCausalLM:
    """A randomly initialised model without dropout, with tied embeddings."""
    intermediate_size = args.intermediate_size or 4 * args.hidden_size
    common = {
        "vocab_size": len(tokenizer),
        "attention_softmax": args.attention,
        "norm_type": args.norm,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model: Softmax1GPT2LMHeadModel | Softmax1LlamaForCausalLM
    if args.architecture == "llama":
        model = Softmax1LlamaForCausalLM(
            Softmax1LlamaConfig(
                hidden_size=args.hidden_size,
                intermediate_size=intermediate_size,
                num_hidden_layers=args.num_layers,
                num_attention_heads=args.num_heads,
                max_position_embeddings=seq_len,
                **common,
            )
        )
    else:
        model = Softmax1GPT2LMHeadModel(
            Softmax1GPT2Config(
                n_embd=args.hidden_size,
                n_inner=intermediate_size,
                n_layer=args.num_layers,
                n_head=args.num_heads,
                n_positions=seq_len,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                **common,
            )
        )
    # `pipeline` generates 256 tokens by default, past the end of short models
    model.generation_config.max_new_tokens = min(256, seq_len // 2)  # type: ignore[union-attr]
    return model


LABELS = {"softmax": "softmax", "softmax1": "softmax-1", "adamw": "AdamW", "orthoadam": "OrthoAdam"}


def name_of_arm(model_args: ModelArguments, args: Softmax1TrainingArguments) -> str:
    """What the settings are called in tables."""
    return f"{LABELS[model_args.attention]} + {LABELS[args.optimizer]}"


FIGURES = (
    "perplexity", "first_token_mass_pct", "null_mass_pct", "first_token_argmax_pct", "heads_first_token_max_pct",
    "kurtosis_first", "kurtosis_rest", "maxabs_first", "maxabs_rest", "maxabs_global",
)  # fmt: skip


def compute_figures(model: PreTrainedModel, blocks: Tensor, calibration_blocks: Tensor) -> dict[str, float]:
    """The figures that results.json and the cards give of a trained model.

    Args:
        model: any causal language model.
        blocks: token ids (blocks, seq_len) of held-out text.
        calibration_blocks: token ids of training text, for the scales of quantised activations.

    Returns:
        The fields `FIGURES` of `ModelReport`, and the perplexity that each quantisation scheme adds, as `delta_<scheme>`.
    """
    report = inspect_model(model, blocks, max_blocks=len(blocks), batch_size=64)
    rows = quantization_report(model, blocks, calibration_blocks, batch_size=64)
    figures = {name: getattr(report, name) for name in FIGURES}
    return {**figures, **{f"delta_{row['scheme']}": row["delta"] for row in rows}}
