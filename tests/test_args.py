# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""YAML and command line: which wins, what each field becomes, and what is refused."""

import importlib.util
import sys
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from transformers import TrainingArguments

from hf_methods.args import parse_args_and_config
from hf_methods.cpe import CPETrainingArguments, recipe_cpe
from hf_methods.cross_teaching import recipe_cross_teaching
from hf_methods.cross_teaching.arguments_cross_teaching import CrossTeachingTrainingArguments
from hf_methods.mbf import recipe_mbf
from hf_methods.mbf.arguments_mbf import MBFTrainingArguments
from hf_methods.softmax1 import recipe_softmax1
from hf_methods.softmax1.arguments_softmax1 import Softmax1TrainingArguments
from hf_methods.subpt import SubPTTrainingArguments, recipe_subpt


TRAINING = Path(__file__).parent.parent / "training"
CONFIGS = sorted(path for path in TRAINING.glob("*/*.yaml") if path.parent.name != "accelerate")  # launcher's own


@dataclass
class Settings:
    name: str = field(metadata={"help": "Required."})
    rate: float = 0.1
    steps: int = 1
    limit: float | None = 1.0
    keep: bool = True
    sizes: list[int] = field(default_factory=lambda: [1])
    words: list[str] | None = None
    options: dict | str | None = None


@dataclass
class More:
    depth: int = 2


def parse(tmp_path, text, *argv, types=(Settings,)):
    (tmp_path / "c.yaml").write_text(text)
    return parse_args_and_config(types, ["--config", str(tmp_path / "c.yaml"), *argv])


def test_the_command_line_wins_over_the_file_and_the_file_over_defaults(tmp_path):
    text = "name: a\nsteps: 5\nkeep: false\nsizes: [2, 3]\nwords: [x]\ndepth: 7"
    argv = ["--name", "b", "--sizes", "4", "5", "--no_keep", "--keep"]
    settings, more = parse(tmp_path, text, *argv, types=(Settings, More))
    assert settings == Settings("b", steps=5, keep=True, sizes=[4, 5], words=["x"])
    assert more == More(7)


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("rate: 3e-2", "rate", 0.03),  # PyYAML reads this as text
        ("rate: -1", "rate", -1.0),
        ("steps: '12'", "steps", 12),
        ("limit: null", "limit", None),
        ("limit: 1e3", "limit", 1000.0),
        ("keep: false", "keep", False),
        ("keep: 'no'", "keep", False),
        ("sizes: 4", "sizes", [4]),
        ("sizes: [-1, 2]", "sizes", [-1, 2]),
        ("sizes: []", "sizes", []),
        ("words: [none, auto]", "words", ["none", "auto"]),
        ("options: {a: 1e-3, b: [no]}", "options", {"a": "1e-3", "b": [False]}),
        ("name: -x", "name", "-x"),
        ("name: ''", "name", ""),
        ("name: 3", "name", "3"),
    ],
)
def test_values_of_the_file_get_their_fields_type(tmp_path, text, name, expected):
    (settings,) = parse(tmp_path, text if name == "name" else f"name: a\n{text}")
    value = getattr(settings, name)
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize("form", ["--config {}", "--config={}", "--rate 0.5 --config {}", "--config={} --rate 0.5"])
def test_every_form_of_the_option_reads_the_file(tmp_path, form):
    (tmp_path / "c.yaml").write_text("name: a\nsteps: 9")
    (settings,) = parse_args_and_config((Settings,), form.format(tmp_path / "c.yaml").split())
    assert (settings.name, settings.steps) == ("a", 9) and settings.rate == (0.5 if "rate" in form else 0.1)


def test_arguments_of_the_process_are_the_default(monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py", "--name", "b", "--steps", "3"])
    assert parse_args_and_config((Settings,)) == (Settings("b", steps=3),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nratte: 1\nzz: 2", r"c\.yaml has unknown keys: ratte \(did you mean rate\?\), zz; see `--help`"),
        ("name: a\nconfig: x", "unknown keys: config"),
        ("name: a\nno: 1", "unknown keys: False"),
        ("- a", r"c\.yaml must be a mapping of options to values, got list"),
        ("just text", "got str"),
        ("name: [a", r"c\.yaml is no valid YAML"),
        ("name: no", "`name` can't be False. Quote"),
        ("name: a\nrate:", "`rate` can't be None"),
        ("name: a\nsizes: [on]", "`sizes` can't be True"),
        ("name: a\nwords: [null]", "`words` can't be None"),
        ("name: a\nrate: {x: 1}", "`rate` can't be {'x': 1}"),
        ("name: a\nrate: [1, 2]", r"`rate` takes one value, got the list \[1, 2\]"),
    ],
)
def test_a_bad_file_is_a_value_error_that_names_the_field(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        parse(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "argv", "message"),
    [
        ("rate: 1", [], "required: --name"),
        ("name: a\nrate: fast", [], "--rate: invalid float value: 'fast'"),
        ("name: a\nsteps: 2.5", [], "--steps: invalid int value: '2.5'"),
        ("name: a\nsizes: [1, x]", [], "--sizes: invalid int value: 'x'"),
        ("name: a", ["--rate", "fast"], "--rate: invalid float value: 'fast'"),
        ("name: a", ["--config"], "--config: expected one argument"),
        ("name: a", ["--config", "--rate", "1"], "--config: expected one argument"),
    ],
)
def test_a_usage_error_names_the_option(tmp_path, capsys, text, argv, message):
    with pytest.raises(SystemExit) as exit_info:
        parse(tmp_path, text, *argv)
    assert exit_info.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("form", ["--config nowhere.yaml", "--config=nowhere.yaml", "--config ."])
def test_a_missing_file_is_an_error_that_names_it(form, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"--config (nowhere\.yaml|\.) is no file; give the path"):
        parse_args_and_config((Settings,), [*form.split(), "--name", "a"])


@pytest.mark.parametrize("argv", [["--nam", "b"], ["--conf", "x.yaml"], ["--other", "1"]])
def test_unknown_and_abbreviated_options_are_errors(argv):
    with pytest.raises(ValueError, match=argv[0]):
        parse_args_and_config((Settings,), ["--name", "a", *argv])


TYPES = {
    "softmax1": (recipe_softmax1.ModelArguments, recipe_softmax1.DataArguments, Softmax1TrainingArguments),
    "cpe": (recipe_cpe.ModelArguments, recipe_cpe.DataArguments, CPETrainingArguments),
    "cross_teaching": (
        recipe_cross_teaching.ModelArguments,
        recipe_cross_teaching.DataArguments,
        CrossTeachingTrainingArguments,
    ),
    "mbf": (recipe_mbf.ClassifierArguments, recipe_mbf.DataArguments, MBFTrainingArguments),
    "subpt": (recipe_subpt.ModelArguments, recipe_subpt.DataArguments, SubPTTrainingArguments),
}


def types_of(config):
    """The dataclasses that the script of a YAML parses into: those of the script itself, or of arguments_<m>.py and recipe_<m>.py."""
    script = config.with_name("grid.py" if "\ntrain_config:" in config.read_text() else f"{config.stem}.py")
    script = script if script.exists() else config.with_name("train.py")
    if script.name == "train.py":
        return TYPES[config.parent.name]
    spec = importlib.util.spec_from_file_location(f"script_{script.stem}", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    classes = [value for value in vars(module).values() if isinstance(value, type) and is_dataclass(value)]
    return tuple(cls for cls in classes if cls.__module__ == module.__name__ and cls.__name__.endswith("Arguments"))


def number_kinds(hint):
    """The types of a field that holds numbers only, flat; none for other fields."""
    kinds = {kind for part in get_args(hint) or (hint,) for kind in get_args(part) or (part,)}
    return kinds if kinds & {int, float} and kinds <= {int, float, type(None)} else set()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_training_yaml_parses_with_numbers_as_numbers(config, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(config.parent))  # scripts import their neighbours
    for script in config.parent.glob("*.py"):
        monkeypatch.delitem(sys.modules, script.stem, raising=False)
    types = types_of(config)
    names = {f.name for cls in types for f in fields(cls)}
    values = {"output_dir": tmp_path / "o", "results": tmp_path / "r.json", "use_cpu": "true"}
    argv = [word for name, value in values.items() if name in names for word in (f"--{name}", str(value))]
    settings = parse_args_and_config(types, ["--config", str(config), *argv])
    checked = 0
    for instance in settings:
        for name, hint in get_type_hints(type(instance)).items():
            if kinds := number_kinds(hint):
                value = getattr(instance, name)
                for number in value if isinstance(value, list) else [value]:
                    assert type(number) in {int, float} or number is None and type(None) in kinds, name
                    checked += 1
    assert checked
    for path in (value for instance in settings for name, value in vars(instance).items() if name.endswith("_config")):
        assert not str(path).endswith(".yaml") or (TRAINING.parent / path).exists()


def test_a_yaml_belongs_to_the_script_of_its_name_or_to_train():
    assert {"smoke", "grid"} <= {path.stem for path in CONFIGS}
    for method in TYPES:
        assert issubclass(types_of(TRAINING / method / "smoke.yaml")[2], TrainingArguments)
    assert [cls.__name__ for cls in types_of(TRAINING / "softmax1" / "grid.yaml")] == ["GridArguments"]
