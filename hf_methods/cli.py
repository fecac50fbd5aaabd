# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The command `hf-methods`."""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
# click's class, by way of typer: newer versions of typer carry a click of their own
UsageError: type[typer.BadParameter] = typer.BadParameter.__base__  # type: ignore[assignment]

METHODS = ("softmax1", "cpe", "subpt", "cross_teaching", "mbf")  # those that can be shown and published
Method = Annotated[str, typer.Argument(help=f"{' or '.join(METHODS)}.")]
Model = Annotated[str, typer.Argument(help="Folder or Hub id of a causal language model.")]


@app.callback()
def hf_methods(
    traceback: Annotated[bool, typer.Option("--traceback", help="Show the traceback of an error.")] = False,
):
    """Published methods on the Hugging Face stack: inspect, train, quantise, and see a demo."""


@app.command()
def demo(
    method: Annotated[str | None, typer.Argument(help=f"{' or '.join(METHODS)}; all of them by default.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the reports, one folder a method.")] = Path("runs/demo"),
    steps: Annotated[int | None, typer.Option(help="Training steps, instead of the method's own.", min=1)] = None,
) -> None:
    """Run a method on real data: a table here and an HTML report with plots."""
    import importlib

    for name in [_known(method)] if method else METHODS:
        module = importlib.import_module(f"hf_methods.{name}.demo_{name}")
        print(module.run_demo(out / name, steps or module.STEPS))


@app.command()
def inspect(
    model: Model,
    text: Annotated[str, typer.Option(help="A text file, 'python', 'shakespeare' or a Hub data set id.")],
    out: Annotated[Path, typer.Option(help="Folder for report.json and the plots.", file_okay=False)],
    quant: Annotated[str | None, typer.Option(help="'all' or names of quantisation schemes, comma separated.")] = None,
    seq_len: Annotated[
        int | None, typer.Option(help="Tokens in a block; default 256, or the model's positions if fewer.", min=2)
    ] = None,
    blocks: Annotated[int, typer.Option(help="Largest number of blocks.", min=1)] = 64,
    add_bos: Annotated[bool, typer.Option(help="Begin each block with the BOS token.")] = False,
) -> None:
    """Measure a model's attention on the first token, outlier activations, perplexity and quantisation damage.

    The w8a8 schemes take the scales of activations from training text of the corpus; with a text file, from each batch.
    """
    from hf_methods.softmax1 import QUANT_SCHEMES, inspect_model, quantization_report
    from hf_methods.softmax1.data_softmax1 import token_blocks

    schemes = list(QUANT_SCHEMES) if quant == "all" else [name.strip() for name in quant.split(",")] if quant else []
    if unknown := [name for name in schemes if name not in QUANT_SCHEMES]:
        raise ValueError(f"--quant must be 'all' or of {', '.join(QUANT_SCHEMES)}, got {', '.join(unknown)}.")
    loaded, tokenizer = _load(model, unquantized=bool(schemes))
    evaluation, training = _texts(text)
    if seq_len is None:
        seq_len = min(256, getattr(loaded.config.get_text_config(), "max_position_embeddings", None) or 256)
    ids = token_blocks(evaluation, tokenizer, seq_len, add_bos)[:blocks]
    report = inspect_model(loaded, ids, max_blocks=blocks)
    if schemes:
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
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder for the quantised checkpoint; new or empty.", file_okay=False)],
    bits: Annotated[int, typer.Option(help="2 to 8.")] = 4,
    scheme: Annotated[str, typer.Option(help="'zeropoint' or 'absmax'.")] = "zeropoint",
    granularity: Annotated[str, typer.Option(help="'tensor', 'channel' or 'group'.")] = "channel",
    group_size: Annotated[int, typer.Option(help="Entries in a group.")] = 128,
) -> None:
    """Write a checkpoint whose linear layers hold packed integers."""
    from hf_methods.checkpoints import atomic_save
    from hf_methods.softmax1 import RoundToNearestConfig

    config = RoundToNearestConfig(bits, scheme, granularity, group_size)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"--out {out} is not empty; remove it or give a new folder.")
    quantized, tokenizer = _load(model, unquantized=True, quantization_config=config)

    def save(folder: Path) -> None:
        quantized.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    atomic_save(out, save)
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    print(f"written: {out}, {size / 1e6:.2f} MB of weights")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(
    context: typer.Context,
    method: Method,
) -> None:
    """Run training/METHOD/train.py of a checkout with the options behind METHOD (see also `accelerate launch`)."""
    import runpy

    script = Path("training") / method / "train.py"
    if not script.exists():
        raise ValueError(f"{script} does not exist: run in a checkout of hf_methods, with a method of training/.")
    sys.argv = [str(script), *context.args]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")


@app.command()
def publish(
    method: Method,
    repo_id: Annotated[str, typer.Option(help="ORG/NAME on the Hub; made if it is not there.")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="Folder of a trained model with its results.json.", file_okay=False)
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    revision: Annotated[str, typer.Option(help="Branch to commit to.")] = "main",
    tag: Annotated[str, typer.Option(help="Name of the version.")] = f"v{version('hf_methods')}",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Build and verify, send nothing.")] = False,
    out: Annotated[Path, typer.Option(help="Folder to build in.", file_okay=False)] = Path("runs/publish"),
    space: Annotated[bool, typer.Option("--space", help="Publish the method's Space, which shows --model.")] = False,
    model: Annotated[list[str], typer.Option(help="With --space: id of a published model; may be repeated.")] = [],  # noqa: B006
) -> None:
    """Publish a trained model, or the method's Space, on the Hub: build, verify in a fresh process, commit, tag."""
    from hf_methods.hub import build_repository, build_space, check_access, plan_upload, upload, verify_repository

    recipe, folder = _recipe(method), out / repo_id.replace("/", "--")
    if repo_id.count("/") != 1:
        raise ValueError(f"--repo-id must be ORG/NAME, got {repo_id!r}.")
    if space == (checkpoint is not None):
        raise ValueError("give either --checkpoint FOLDER, for a model, or --space.")
    kind = "space" if space else "model"
    if not dry_run:
        check_access(repo_id, repo_type=kind, private=private)
    if space:
        build_space(method, folder, model)
    else:
        build_repository(recipe, str(checkpoint), folder, repo_id)
        verify_repository(recipe, folder)
        print(f"verified: a process with only {', '.join(recipe.all_requirements)} gives the same answers")
    if dry_run:
        _print_plan(folder)(plan_upload(folder, {}))
        print(f"dry run: {folder} is what {repo_id} would hold; nothing was sent")
        return
    commit = upload(
        folder, repo_id, tag=tag, repo_type=kind, private=private, revision=revision, show=_print_plan(folder)
    )
    print(f"published: {repo_id}, version {tag}, commit {commit}")


@app.command()
def space(
    method: Method,
    model: Annotated[list[str], typer.Option(help="Folder or Hub id; may be repeated. Default: model_cards/.")] = [],  # noqa: B006
    port: Annotated[int, typer.Option(help="Port on this machine.", min=1, max=65535)] = 7860,
) -> None:
    """Run a method's Space on this machine, in the browser at http://127.0.0.1:PORT."""
    import os

    app_file = Path("spaces") / method / "app.py"
    recipe = _recipe(method)
    if not app_file.exists():
        raise ValueError(f"{app_file} does not exist: run in a checkout of hf_methods.")
    models = model or [str(Path("model_cards", name)) for name in recipe.space_checkpoints]
    env = {"MODEL_IDS": ",".join(models), "GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"}
    # In place of this process, which has the package's classes: a Space has the repositories' code only.
    os.execve(sys.executable, [sys.executable, str(app_file)], {**os.environ, **env})


@app.command()
def bench(
    name: Annotated[str | None, typer.Argument(help="A script of tests/benchmarks/; all of them by default.")] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Compare with the committed files; exit with 1 if worse in each of three runs."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the new files; default: the committed ones, with --check runs/bench.", file_okay=False
        ),
    ] = None,
) -> None:
    """Run the benchmarks of a checkout, one after the other, each in a process of its own."""
    from tqdm import tqdm

    from hf_methods.benchmarks import (
        BENCHMARKS,
        RUNS,
        benchmark_names,
        compare,
        confirm,
        load_comparisons,
        load_results,
        run_benchmark,
    )

    chosen, committed = benchmark_names(name), BENCHMARKS / "results"
    out = out or (Path("runs/bench") if check else committed)
    if check and out.resolve() == committed.resolve():
        raise ValueError(f"--check leaves {committed} as it is; give another folder as --out.")
    before = {one: (load_results(committed / f"{one}.json"), load_comparisons(one)) for one in chosen if check}
    num_failed = 0
    for one in (bar := tqdm(chosen, unit="benchmark")):
        bar.set_description(one)
        path = run_benchmark(one, out)
        bar.write(f"written: {path}")
        if check:
            changes = compare(before[one][0], load_results(path), before[one][1])
            for _ in range(RUNS - 1):
                if any(change.failed for change in changes):
                    run_benchmark(one, out)
                    changes = confirm(changes, compare(before[one][0], load_results(path), before[one][1]))
            for change in changes:
                if change.kind != "same":
                    bar.write(str(change))
            num_failed += sum(change.failed for change in changes)
    if check:
        print(f"ratios that are worse or missing: {num_failed}")
        raise typer.Exit(num_failed > 0)


@app.command()
def env() -> None:
    """Print versions and the kind of machine, for a bug report."""
    from hf_methods.checkpoints import environment

    print(json.dumps(environment(), indent=1))


def _known(method: str) -> str:
    if method not in METHODS:
        raise ValueError(f"METHOD must be one of {', '.join(METHODS)}, got {method!r}.")
    return method


def _recipe(method: str):
    """How a method's repositories are built."""
    import importlib

    return importlib.import_module(f"hf_methods.{_known(method)}.publishing_{method}").RECIPE


def _print_plan(folder: Path):
    """A function that prints an upload plan for `folder`."""

    def show(plan) -> None:
        for change in ("added", "changed", "unchanged", "deleted"):
            for name in getattr(plan, change):
                path = folder / name
                size = f"{path.stat().st_size / 1e3:10.1f} kB" if path.exists() else " " * 13
                print(f"{change:10s} {size}  {name}")

    return show


def _load(model: str, unquantized: bool, **kwargs):
    """The model, with softmax-1 also where `convert_to_softmax1` put it, and its tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from hf_methods.softmax1 import load_softmax1

    try:
        config, tokenizer = AutoConfig.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    except Exception as error:  # foreign files fail in many ways
        raise ValueError(f"{model} can't be loaded as a folder or Hub id: {error}") from error
    if unquantized and getattr(config, "quantization_config", None):
        raise ValueError(f"{model} is quantised already; give the checkpoint that it was made of.")
    is_softmax1 = getattr(config, "attention_softmax", None) == "softmax1"
    load = load_softmax1 if is_softmax1 else AutoModelForCausalLM.from_pretrained
    try:
        return load(model, **kwargs), tokenizer
    except Exception as error:
        raise ValueError(f"the weights of {model} can't be loaded: {error}") from error


def _texts(text: str) -> tuple[list[str], list[str]]:
    """Texts to measure on, and training texts for calibration (none for a file)."""
    if Path(text).is_file():
        content = Path(text).read_text("utf-8", errors="replace")
        if bad := content.count("\ufffd") - Path(text).read_bytes().count("\ufffd".encode()):
            print(f"hf-methods: {bad} places in {text} are no UTF-8 and are read as U+FFFD.", file=sys.stderr)
        return [content], []
    from hf_methods.data import load_text_corpus

    try:
        corpus = load_text_corpus(text)
    except Exception as error:
        raise ValueError(f"--text {text} is no file, and as a corpus: {error}") from error
    return corpus["test"]["text"], corpus["train"]["text"][:50]


def main() -> None:
    """Entry point: an error of the user's input is one line, not a traceback (`--traceback` shows it)."""
    try:
        sys.exit(app(sys.argv[1:] or ["--help"], standalone_mode=False))
    except UsageError as error:
        message, code = error.format_message(), 2
    except (ValueError, TypeError, OSError) as error:
        if "--traceback" in sys.argv:
            raise
        message, code = str(error), 1
    print(f"hf-methods: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
