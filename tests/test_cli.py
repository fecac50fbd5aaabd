# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The command line, as a user calls it: results on good input, one line on bad input."""

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

from hf_methods import cli
from hf_methods.checkpoints import environment
from hf_methods.softmax1 import (
    QUANT_SCHEMES,
    Softmax1GPT2Config,
    Softmax1GPT2LMHeadModel,
    convert_to_softmax1,
    inspect_model,
    load_softmax1,
    quantization_report,
    quantize_tensor,
)
from hf_methods.softmax1.data_softmax1 import token_blocks, train_tokenizer
from hf_methods.softmax1.quantization_softmax1 import block_linears


TEXT = "the cat sat on the mat and the dog ran away. " * 60
SIZES = dict(vocab_size=270, n_positions=32, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3)
COMMANDS = ["bench", "demo", "env", "inspect", "publish", "quantize", "space", "train"]


def save(model, folder):
    folder.mkdir(exist_ok=True)
    model.save_pretrained(folder)
    train_tokenizer([TEXT], 270).save_pretrained(folder)
    (folder / "text.txt").write_text(TEXT)
    return folder


def plain_model():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**SIZES, bos_token_id=0, eos_token_id=0))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model and a text file of plain transformers."""
    return save(plain_model(), tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The same weights, converted to softmax-1: the class alone does not tell it."""
    return save(convert_to_softmax1(plain_model()), tmp_path_factory.mktemp("converted"))


def run(*arguments):
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def run_inspect(folder, out, *options):
    output = run("inspect", folder, "--text", folder / "text.txt", "--out", out, *options)
    return output, json.loads((out / "report.json").read_text(), parse_constant=pytest.fail)


def fail(monkeypatch, capsys, *arguments):
    """The exit code and the one line of stderr of a call that fails."""
    monkeypatch.setattr("sys.argv", ["hf-methods", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line and "it/s]" not in line]  # progress bars may come before
    assert out == "" and len(lines) == 1 and lines[0].startswith("hf-methods: "), err
    return exit_info.value.code, lines[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_says_what_it_does_and_names_its_options(command):
    callback = getattr(cli, command)
    output = " ".join(run(command, "--help").replace("│", " ").split())
    assert " ".join(callback.__doc__.splitlines()[0].split()) in output
    for name in callback.__annotations__:
        if name not in ("context", "return", "model", "method", "name"):
            assert f"--{name.replace('_', '-')}" in output


def test_help_lists_every_command(monkeypatch, capsys):
    assert sorted(command.callback.__name__ for command in cli.app.registered_commands) == sorted(COMMANDS)
    for arguments in ([], ["--help"]):
        monkeypatch.setattr("sys.argv", ["hf-methods", *arguments])
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        output = capsys.readouterr().out
        assert not exit_info.value.code and all(f" {command} " in output for command in COMMANDS)


def test_inspect_writes_and_prints_what_inspect_model_measures(checkpoint, tmp_path):
    output, report = run_inspect(checkpoint, tmp_path, "--seq-len", "16", "--blocks", "4", "--add-bos")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    blocks = token_blocks([TEXT], tokenizer, 16, add_bos=True)[:4]
    expected = inspect_model(AutoModelForCausalLM.from_pretrained(checkpoint), blocks).to_dict()
    assert (blocks[:, 0] == tokenizer.bos_token_id).all() and list(report) == list(expected)
    figures = {name: value for name, value in expected.items() if isinstance(value, (int, float))}
    assert {name: report[name] for name in figures} == pytest.approx(figures)
    snapshots = (torch.tensor(values["attention_snapshot"]) for values in (report, expected))
    torch.testing.assert_close(*snapshots)
    printed = dict(line.split()[:2] for line in output.splitlines()[:-1])
    assert {name: float(text) for name, text in printed.items()} == pytest.approx(figures, rel=1e-3)
    for name in ("attention", "first_token", "kurtosis", "maxabs"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "quantization.png").exists() and report["quantization"] == []


def test_blocks_are_no_longer_than_the_models_positions(checkpoint, tmp_path):
    assert run_inspect(checkpoint, tmp_path)[1]["seq_len"] == 32


def test_inspect_with_all_schemes_takes_scales_of_each_batch_for_a_text_file(checkpoint, tmp_path):
    output, report = run_inspect(checkpoint, tmp_path, "--blocks", "6", "--quant", "all")
    blocks = token_blocks([TEXT], AutoTokenizer.from_pretrained(checkpoint), 32)[:6]
    expected = quantization_report(AutoModelForCausalLM.from_pretrained(checkpoint), blocks, dynamic=True)
    assert [row["scheme"] for row in report["quantization"]] == list(QUANT_SCHEMES)
    for row, wanted in zip(report["quantization"], expected, strict=True):
        assert row["perplexity_after"] == pytest.approx(wanted["perplexity_after"])
        assert f"{row['perplexity_after']:.4g} ({row['delta']:+.3g})" in output
    assert (tmp_path / "quantization.png").read_bytes().startswith(b"\x89PNG")


def test_bytes_of_a_text_file_that_are_no_utf8_are_counted(tmp_path, capsys):
    (tmp_path / "text.txt").write_bytes("a \ufffd".encode() + b"\xff b \xe4")
    assert cli._texts(str(tmp_path / "text.txt")) == (["a \ufffd\ufffd b \ufffd"], [])
    assert "2 places in" in capsys.readouterr().err
    (tmp_path / "text.txt").write_text("ä \ufffd")
    cli._texts(str(tmp_path / "text.txt"))
    assert capsys.readouterr().err == ""


def test_inspect_of_a_corpus_calibrates_on_its_training_text(checkpoint, tmp_path, monkeypatch):
    corpus = {"test": {"text": [TEXT[:600]]}, "train": {"text": ["a dog sat away. " * 40]}}
    monkeypatch.setattr("hf_methods.data.load_text_corpus", lambda name: {"mine": corpus}[name])
    run("inspect", checkpoint, "--text", "mine", "--out", tmp_path, "--quant", "w8a8-coarse, w4-absmax")
    rows = json.loads((tmp_path / "report.json").read_text())["quantization"]
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    blocks, calibration = (token_blocks(corpus[split]["text"], tokenizer, 32) for split in ("test", "train"))
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    expected = quantization_report(model, blocks, calibration, ["w8a8-coarse", "w4-absmax"])
    assert [row["delta"] for row in rows] == pytest.approx([row["delta"] for row in expected])
    dynamic = quantization_report(model, blocks, schemes=["w8a8-coarse"], dynamic=True)
    assert rows[0]["delta"] != pytest.approx(dynamic[0]["delta"])


def test_inspect_of_a_converted_model_measures_softmax1(checkpoint, converted, tmp_path):
    plain, softmax1 = (run_inspect(folder, tmp_path / folder.name)[1] for folder in (checkpoint, converted))
    blocks = token_blocks([TEXT], AutoTokenizer.from_pretrained(converted), 32)[:64]
    expected = inspect_model(load_softmax1(str(converted)), blocks)
    assert softmax1["null_mass_pct"] == pytest.approx(expected.null_mass_pct) and expected.null_mass_pct > 1
    assert softmax1["perplexity"] == pytest.approx(expected.perplexity)
    assert plain["null_mass_pct"] < 1e-3 and plain["perplexity"] != pytest.approx(softmax1["perplexity"], rel=1e-4)


def test_figures_that_do_not_exist_are_null_in_the_report(tmp_path):
    model = plain_model()
    for param in model.transformer.parameters():
        torch.nn.init.zeros_(param)
    output, report = run_inspect(save(model, tmp_path / "zeros"), tmp_path / "out")
    assert report["kurtosis_first"] is None and report["perplexity"] == pytest.approx(270, rel=1e-4)
    assert "nan" in output and (tmp_path / "out" / "kurtosis.png").exists()


def test_quantize_writes_a_smaller_checkpoint_with_the_rounded_weights(checkpoint, tmp_path):
    output = run("quantize", checkpoint, "--out", tmp_path / "q", "--bits", "4", "--scheme", "absmax")
    size = (tmp_path / "q" / "model.safetensors").stat().st_size
    assert size < 0.6 * (checkpoint / "model.safetensors").stat().st_size and f"{size / 1e6:.2f} MB" in output
    assert [path.name for path in tmp_path.iterdir()] == ["q"]
    quantized, model = (AutoModelForCausalLM.from_pretrained(folder) for folder in (tmp_path / "q", checkpoint))
    assert quantized.config.quantization_config.scheme == "absmax"
    with torch.no_grad():
        for _, module in block_linears(model):
            module.weight.copy_(quantize_tensor(module.weight, 4, "absmax", "channel", axis=1)[0])  # Conv1D
    ids = token_blocks([TEXT], AutoTokenizer.from_pretrained(tmp_path / "q"), 32)[:2]
    torch.testing.assert_close(quantized(ids).logits, model(ids).logits, rtol=0, atol=1e-4)


def test_quantize_keeps_softmax1_of_a_converted_model(converted, tmp_path):
    run("quantize", converted, "--out", tmp_path / "q", "--bits", "8")
    ids = token_blocks([TEXT], AutoTokenizer.from_pretrained(converted), 32)[:2]
    eight_bit = load_softmax1(str(tmp_path / "q"))(ids).logits
    full, plain = load_softmax1(str(converted))(ids).logits, plain_model().eval()(ids).logits
    assert (eight_bit - full).abs().mean() < 0.2 * (full - plain).abs().mean()


def test_quantize_of_an_own_model_keeps_its_code_files(tmp_path):
    torch.manual_seed(0)
    model = Softmax1GPT2LMHeadModel(Softmax1GPT2Config(**SIZES, bos_token_id=0, eos_token_id=0))
    run("quantize", save(model, tmp_path / "m"), "--out", tmp_path / "q")
    assert (tmp_path / "q" / "modeling_softmax1.py").exists()
    assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path / "q"), Softmax1GPT2LMHeadModel)


def test_a_folder_that_holds_something_is_never_replaced(checkpoint, tmp_path, monkeypatch, capsys):
    (tmp_path / "q").mkdir()
    run("quantize", checkpoint, "--out", tmp_path / "q")  # an empty one is used
    before = (tmp_path / "q" / "model.safetensors").read_bytes()
    for folder in (tmp_path / "q", tmp_path, checkpoint):
        code, line = fail(monkeypatch, capsys, "quantize", checkpoint, "--out", folder, "--bits", "8")
        assert code == 1 and "is not empty" in line
    assert (tmp_path / "q" / "model.safetensors").read_bytes() == before


def test_a_failing_quantize_leaves_nothing(checkpoint, tmp_path, monkeypatch, capsys):
    def broken(self, folder):
        (folder / "half").write_text("x")
        raise OSError("disk full")

    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", broken)
    assert "disk full" in fail(monkeypatch, capsys, "quantize", checkpoint, "--out", tmp_path / "q")[1]
    assert list(tmp_path.iterdir()) == []


def test_env_prints_the_environment_as_json():
    assert json.loads(run("env")) == environment()


def test_train_runs_the_script_of_the_method_with_the_rest_as_its_options(tmp_path, monkeypatch):
    folder = tmp_path / "training" / "mine"
    folder.mkdir(parents=True)
    (folder / "neighbour.py").write_text("NAME = 'beside'")
    (folder / "train.py").write_text(
        "import sys, neighbour\nassert __name__ == '__main__'\n"
        "open('seen', 'w').write(' '.join([*sys.argv, neighbour.NAME]))"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [])
    monkeypatch.setattr("sys.path", list(sys.path))
    run("train", "mine", "--config", "a.yaml", "--seed=3")
    assert (tmp_path / "seen").read_text() == "training/mine/train.py --config a.yaml --seed=3 beside"
    del sys.modules["neighbour"]


INSPECT = ["inspect", "{model}", "--out", "x", "--text"]
QUANTIZE = ["quantize", "{model}", "--out", "x"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["inspekt"], 2, "No such command 'inspekt'"),
        (["--bits"], 2, "No such option"),
        (["inspect"], 2, "Missing argument"),
        (["inspect", "{model}", "--out", "x"], 2, "Missing option '--text'"),
        ([*INSPECT, "{model}/text.txt", "--blocks", "many"], 2, "--blocks"),
        ([*INSPECT, "{model}/text.txt", "--blocks", "0"], 2, "--blocks"),
        ([*INSPECT, "{model}/text.txt", "--seq-len", "1"], 2, "--seq-len"),
        ([*INSPECT, "{model}/text.txt", "--out", "{model}/text.txt"], 2, "is a file"),
        ([*INSPECT, "{model}/text.txt", "--seq-len", "33"], 1, "seq_len=33 is more than the model's 32 positions"),
        ([*INSPECT, "{model}/text.txt", "--quant", "w4-absmax,w3"], 1, "w4-group64, got w3"),
        ([*INSPECT, "{model}/text.txt", "--quant", "w4-absmax,"], 1, "--quant must be"),
        ([*INSPECT, "nothing"], 1, "--text nothing is no file, and as a corpus: "),
        ([*INSPECT, "no/text.txt"], 1, "--text no/text.txt is no file, and as a corpus: "),
        (["inspect", "no-such-folder", "--text", "python", "--out", "x"], 1, "no-such-folder can't be loaded"),
        (["inspect", ".", "--text", "python", "--out", "x"], 1, ". can't be loaded"),
        (["quantize", "no-such-folder", "--out", "x"], 1, "no-such-folder can't be loaded"),
        ([*QUANTIZE, "--bits", "9"], 1, "`bits` must be 2 to 8, got 9"),
        ([*QUANTIZE, "--scheme", "float"], 1, "`scheme` must be one of absmax, zeropoint, got 'float'"),
        ([*QUANTIZE, "--granularity", "row"], 1, "tensor, channel, group, got 'row'"),
        ([*QUANTIZE, "--group-size", "0"], 1, "`group_size`"),
        (["train"], 2, "Missing argument"),
        (["train", "no_method"], 1, "training/no_method/train.py does not exist"),
        (["demo", "--steps", "0"], 2, "--steps"),
        (["demo", "no_method"], 1, "METHOD must be one of"),
        (["space", "no_method"], 1, "METHOD must be one of"),
        (["space", "softmax1"], 1, "spaces/softmax1/app.py does not exist: run in a checkout"),
        (["space", "softmax1", "--port", "0"], 2, "--port"),
        (["bench"], 1, "tests/benchmarks/comparisons/ has no files: run in a checkout"),
        (["bench", "--out", "{model}/text.txt"], 2, "is a file"),
    ],
    ids=lambda value: " ".join(value).replace("{model}", "MODEL") if isinstance(value, list) else "",
)
def test_bad_input_gives_one_line_that_names_it(arguments, code, message, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = [argument.format(model=checkpoint) for argument in arguments]
    assert fail(monkeypatch, capsys, *arguments)[0] == code
    assert list(tmp_path.iterdir()) == []


def test_a_data_set_that_fails_in_its_own_way_gives_one_line(checkpoint, tmp_path, monkeypatch, capsys):
    def broken(name):
        raise RuntimeError("no parquet")  # what `datasets` raises has its own base class

    monkeypatch.setattr("hf_methods.data.load_text_corpus", broken)
    code, line = fail(monkeypatch, capsys, "inspect", checkpoint, "--text", "a/b", "--out", tmp_path / "x")
    assert code == 1 and "--text a/b is no file, and as a corpus: no parquet" in line


def break_config(folder):
    (folder / "config.json").write_text("{")


def break_weights(folder):
    (folder / "model.safetensors").write_text("x" * 100)


def break_choice(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "softmax1_gpt2", "attention_softmax": "softmax2"}
    (folder / "config.json").write_text(json.dumps(config))


def remove_weights(folder):
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("damage", [break_config, break_weights, break_choice, remove_weights])
def test_a_damaged_checkpoint_gives_one_line(damage, checkpoint, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(checkpoint, tmp_path / "m")
    damage(folder)
    code, line = fail(monkeypatch, capsys, "inspect", folder, "--text", folder / "text.txt", "--out", tmp_path / "x")
    assert code == 1 and "can't be loaded" in line and str(folder) in line


def test_a_quantised_checkpoint_is_not_quantised_again(checkpoint, tmp_path, monkeypatch, capsys):
    run("quantize", checkpoint, "--out", tmp_path / "q")
    text = ["--text", checkpoint / "text.txt"]
    for arguments in (["quantize", tmp_path / "q"], ["inspect", tmp_path / "q", *text, "--quant", "all"]):
        code, line = fail(monkeypatch, capsys, *arguments, "--out", tmp_path / "x")
        assert code == 1 and "quantised already" in line
    run("inspect", tmp_path / "q", *text, "--out", tmp_path / "x")
    assert json.loads((tmp_path / "x" / "report.json").read_text())["perplexity"] > 1


def test_the_traceback_is_shown_on_demand(monkeypatch):
    monkeypatch.setattr("sys.argv", ["hf-methods", "--traceback", "train", "no_method"])
    with pytest.raises(ValueError, match="no_method"):
        cli.main()


def test_a_process_gives_one_line_and_no_traceback(tmp_path):
    command = [sys.executable, "-m", "hf_methods.cli", "inspect", "no-such-folder", "--text", "python", "--out", "x"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 1 and result.stdout == ""
    # torchao, where it is installed, makes torch log deprecations when transformers imports it
    (line,) = (line for line in result.stderr.splitlines() if "torch/utils/_pytree.py" not in line)
    assert line.startswith("hf-methods: no-such-folder can't be loaded as a folder or Hub id: ")


@pytest.mark.parametrize("models", [[], ["a/b", "folder"]])
def test_space_starts_the_app_of_a_method_on_its_checkpoints(models, monkeypatch):
    started = []
    monkeypatch.setattr("os.execve", lambda *arguments: started.append(arguments))
    monkeypatch.chdir(Path(__file__).parents[1])
    options = [option for model in models for option in ("--model", model)]
    monkeypatch.setattr("sys.argv", ["hf-methods", "space", "softmax1", "--port", "7999", *options])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    ((python, command, env),) = started
    assert not stop.value.code and command == [python, str(Path("spaces", "softmax1", "app.py"))]
    defaults = [str(Path("model_cards", name)) for name in ("softmax-adamw", "softmax1-orthoadam")]
    assert env["MODEL_IDS"] == ",".join(models or defaults) and env["GRADIO_SERVER_PORT"] == "7999"


@pytest.mark.parametrize("arguments", [[], ["cpe"], ["cpe", "--steps", "7", "--out", "elsewhere"]])
def test_demo_runs_each_method_into_a_folder_of_its_own(arguments, monkeypatch, capsys):
    calls = []
    for name in cli.METHODS:
        module = importlib.import_module(f"hf_methods.{name}.demo_{name}")
        monkeypatch.setattr(module, "run_demo", lambda out, steps, name=name: calls.append((name, out, steps)) or name)
        monkeypatch.setattr(module, "STEPS", 5)
    monkeypatch.setattr("sys.argv", ["hf-methods", "demo", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    steps, out = (7, "elsewhere") if "--steps" in arguments else (5, "runs/demo")
    names = ["cpe"] if arguments else cli.METHODS
    assert calls == [(name, Path(out, name), steps) for name in names]
    assert capsys.readouterr().out.split() == list(names)
