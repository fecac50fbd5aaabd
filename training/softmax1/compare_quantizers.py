# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Perplexity of the checkpoints behind our rounding and behind the quantisers of torchao and optimum-quanto.

python training/softmax1/compare_quantizers.py --results training/softmax1/results/quantizers.json

Both libraries convert `nn.Linear` only: on GPT-2, whose layers are `Conv1D`, transformers' integrations of them leave the
model as it is (quanto warns, torchao does not). So the layers are first written as `nn.Linear` here.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from optimum.quanto import freeze, qint4, qint8
from optimum.quanto import quantize as quanto_quantize
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
from torchao.quantization.granularity import PerAxis, PerGroup
from torchao.quantization.quant_primitives import MappingType
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_methods.args import parse_args_and_config
from hf_methods.checkpoints import write_results
from hf_methods.data import load_text_corpus, text_digest
from hf_methods.softmax1 import RoundToNearestConfig, perplexity
from hf_methods.softmax1.data_softmax1 import token_blocks
from hf_methods.softmax1.quantization_softmax1 import RoundToNearestLinear, block_linears


@dataclass
class CompareArguments:
    """What `compare_quantizers.py` runs."""

    results: str = field(metadata={"help": "JSON file to write."})
    checkpoints: str = field(default="model_cards", metadata={"help": "Folder with the checkpoints softmax*."})
    corpus: str = field(default="python", metadata={"help": "Text; its test split is measured."})
    eval_blocks: int = field(default=512, metadata={"help": "Blocks of the figures."})


def with_linears(model: PreTrainedModel) -> PreTrainedModel:
    """The model with each `Conv1D` of its blocks as an `nn.Linear`, in place."""
    for name, module in list(block_linears(model)):
        if isinstance(module, Conv1D):
            linear = nn.Linear(module.nx, module.nf)
            linear.weight.data, linear.bias.data = module.weight.data.T.contiguous(), module.bias.data
            model.set_submodule(name, linear)
    return model


def round_to_nearest(model: PreTrainedModel, names: list[str], **options) -> None:
    """Ours."""
    for name in names:
        linear = model.get_submodule(name)
        model.set_submodule(name, RoundToNearestLinear.from_linear(linear, RoundToNearestConfig(**options)))


def torchao(model: PreTrainedModel, names: list[str], config) -> None:
    """torchao's weight-only quantisers."""
    quantize_(model, config, filter_fn=lambda module, name: name in names)


def quanto(model: PreTrainedModel, names: list[str], weights) -> None:
    """optimum-quanto's weight-only quantisers."""
    quanto_quantize(model, weights=weights, include=names)
    freeze(model)


INT4_CHANNEL = IntxWeightOnlyConfig(torch.int4, PerAxis(0), mapping_type=MappingType.ASYMMETRIC)
QUANTIZERS: dict[str, Callable[[PreTrainedModel, list[str]], None]] = {
    "8-bit absmax, channel (ours)": lambda m, n: round_to_nearest(m, n, bits=8, scheme="absmax"),
    "8-bit (torchao)": lambda m, n: torchao(m, n, Int8WeightOnlyConfig()),
    "8-bit (quanto)": lambda m, n: quanto(m, n, qint8),
    "4-bit zero-point, channel (ours)": lambda m, n: round_to_nearest(m, n, bits=4),
    "4-bit asymmetric, channel (torchao)": lambda m, n: torchao(m, n, INT4_CHANNEL),
    "4-bit zero-point, group 64 (ours)": lambda m, n: round_to_nearest(
        m, n, bits=4, granularity="group", group_size=64
    ),
    "4-bit symmetric, group 64 (torchao)": lambda m, n: torchao(m, n, IntxWeightOnlyConfig(torch.int4, PerGroup(64))),
    "4-bit group 128 (quanto)": lambda m, n: quanto(m, n, qint4),
    "3-bit zero-point, channel (ours)": lambda m, n: round_to_nearest(m, n, bits=3),
}


def main(args: CompareArguments) -> None:
    start = time.time()
    corpus = load_text_corpus(args.corpus)
    folders = sorted(path.parent for path in Path(args.checkpoints).glob("softmax*/config.json"))
    table: dict[str, dict[str, float]] = {}
    for folder in tqdm(folders, desc="checkpoints"):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = with_linears(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())
        names = [name for name, _ in block_linears(model)]
        seq_len = model.config.max_position_embeddings
        blocks = token_blocks(corpus["test"]["text"], tokenizer, seq_len, add_bos=True)[: args.eval_blocks]
        before = perplexity(model, blocks, batch_size=64)
        table[folder.name] = {"perplexity": before}
        for label, quantize in QUANTIZERS.items():
            quantized = copy.deepcopy(model)
            quantize(quantized, names)
            table[folder.name][f"delta, {label}"] = perplexity(quantized, blocks, batch_size=64) - before
    write_results(
        args.results, seeds=[0], data={"test": text_digest(corpus["test"])}, wall_seconds=time.time() - start, table=table
    )  # fmt: skip


if __name__ == "__main__":
    main(*parse_args_and_config((CompareArguments,)))
