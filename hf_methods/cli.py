# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The command `hf-methods`."""

import json
from pathlib import Path
from typing import Annotated

import typer


app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def hf_methods() -> None:
    """Published methods on the Hugging Face stack: inspect, train, quantise, and see a demo."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("runs/demo"),
    steps: Annotated[int, typer.Option(help="Training steps of the recipe's demonstration.")] = 150,
) -> None:
    """Run every method on real data: a table here and an HTML report with plots."""
    from hf_methods.softmax1.demo_softmax1 import run_demo

    print(run_demo(out, steps))


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a causal language model.")],
    text: Annotated[str, typer.Option(help="A text file, 'python', 'shakespeare' or a Hub data set id.")],
    out: Annotated[Path, typer.Option(help="Folder for report.json and the plots.")],
    quant: Annotated[str | None, typer.Option(help="'all' or names of quantisation schemes, comma separated.")] = None,
    seq_len: Annotated[int, typer.Option(help="Tokens in a block.")] = 256,
    blocks: Annotated[int, typer.Option(help="Largest number of blocks.")] = 64,
    add_bos: Annotated[bool, typer.Option(help="Begin each block with the BOS token.")] = False,
) -> None:
    """Measure a model's attention on the first token, outlier activations, perplexity and quantisation damage."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from hf_methods.softmax1 import QUANT_SCHEMES, inspect_model, quantization_report
    from hf_methods.softmax1.data_softmax1 import token_blocks

    evaluation, training = _texts(text)
    tokenizer, loaded = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    ids = token_blocks(evaluation, tokenizer, seq_len, add_bos)[:blocks]
    report = inspect_model(loaded, ids, max_blocks=blocks)
    if quant:
        schemes = list(QUANT_SCHEMES) if quant == "all" else quant.split(",")
        calibration = token_blocks(training, tokenizer, seq_len, add_bos)[:128] if training else None
        report.quantization = quantization_report(loaded, ids, calibration, schemes, dynamic=calibration is None)
    report.save_json(out / "report.json")
    report.plot(out)
    for name, value in report.to_dict().items():
        if isinstance(value, (int, float)):
            print(f"{name:28s} {value:.4g}")
    for row in report.quantization:
        print(f"{row['scheme']:28s} perplexity {row['perplexity_after']:.4g} ({row['delta']:+.3g})")
    print(f"written: {out}/report.json and plots")


@app.command()
def quantize(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a causal language model.")],
    out: Annotated[Path, typer.Option(help="Folder for the quantised checkpoint.")],
    bits: Annotated[int, typer.Option(help="2 to 8.")] = 4,
    scheme: Annotated[str, typer.Option(help="'zeropoint' or 'absmax'.")] = "zeropoint",
    granularity: Annotated[str, typer.Option(help="'tensor', 'channel' or 'group'.")] = "channel",
    group_size: Annotated[int, typer.Option(help="Entries in a group.")] = 128,
) -> None:
    """Write a checkpoint whose linear layers hold packed integers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from hf_methods.checkpoints import atomic_save
    from hf_methods.softmax1 import RoundToNearestConfig

    config = RoundToNearestConfig(bits, scheme, granularity, group_size)
    quantized = AutoModelForCausalLM.from_pretrained(model, quantization_config=config)
    tokenizer = AutoTokenizer.from_pretrained(model)

    def save(folder: Path) -> None:
        quantized.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    atomic_save(out, save)
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    print(f"written: {out}, {size / 1e6:.2f} MB of weights")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(
    context: typer.Context,
    method: Annotated[str, typer.Argument(help="'softmax1'.")],
) -> None:
    """Run training/METHOD/train.py of a checkout with the options behind METHOD (see also `accelerate launch`)."""
    import runpy
    import sys

    script = Path("training") / method / "train.py"
    if not script.exists():
        raise ValueError(f"{script} does not exist: run in a checkout of hf_methods, with a method of training/.")
    sys.argv = [str(script), *context.args]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")


@app.command()
def env() -> None:
    """Print versions and the kind of machine, for a bug report."""
    from hf_methods.checkpoints import environment

    print(json.dumps(environment(), indent=1))


def _texts(text: str) -> tuple[list[str], list[str]]:
    """Texts to measure on, and training texts for calibration (none for a file)."""
    if Path(text).is_file():
        return [Path(text).read_text("utf-8", errors="replace")], []
    from hf_methods.data import load_text_corpus

    corpus = load_text_corpus(text)
    return corpus["test"]["text"], corpus["train"]["text"][:50]


def main() -> None:
    """Entry point: errors of the user's input are one line, not a traceback."""
    try:
        app()
    except (ValueError, TypeError, OSError) as error:
        raise SystemExit(f"hf-methods: {' '.join(str(error).split())}") from error


if __name__ == "__main__":
    main()
