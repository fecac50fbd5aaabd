# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Dataclasses from a YAML file and the command line."""

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser


CONFIG_HELP = "YAML file with any of these options; the command line wins."


def parse_args_and_config(dataclass_types: Sequence[type], argv: list[str] | None = None) -> tuple:
    """One instance of each dataclass, from `--config FILE.yaml` and then from the command line, which wins.

    Values of the file go the way of the command line, so that a field gets its own type: PyYAML reads `3e-2` as text.

    Args:
        dataclass_types: dataclasses whose fields become options; required fields may come from the file.
        argv: arguments, default those of the process.

    Raises:
        ValueError: the file is missing, no YAML or no mapping, has keys that no dataclass has, or a value that its
            field can't take; or the command line has unknown options.
        SystemExit: a usage error, such as a missing required option or text where a number belongs.
    """
    parser = HfArgumentParser(dataclass_types, allow_abbrev=False)  # type: ignore[arg-type]
    parser.add_argument("--config", help=CONFIG_HELP)
    first = ArgumentParser(prog=parser.prog, add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path, help=CONFIG_HELP)
    known, rest = first.parse_known_args(argv if argv is not None else sys.argv[1:])
    options: list[str] = []
    if known.config is not None:
        hints = {f.name: get_type_hints(cls)[f.name] for cls in dataclass_types for f in fields(cls) if f.init}
        for name, value in _read_mapping(known.config, list(hints)).items():
            words = _as_words(f"{known.config}: `{name}`", value, hints[name])
            if words is None:
                parser.set_defaults(**{name: value})
            else:
                options += [f"--{name}", *words] if isinstance(value, list) else [f"--{name}={words[0]}"]
    *instances, _ = parser.parse_args_into_dataclasses([*options, *rest], look_for_args_file=False)
    return tuple(instances)


def _read_mapping(path: Path, names: list[str]) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"--config {path} is no file; give the path of a YAML file.")
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no valid YAML: {error}") from error
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ValueError(f"{path} must be a mapping of options to values, got {type(values).__name__}.")  # noqa: TRY004
    if unknown := [str(key) for key in values if key not in names]:
        close = {key: get_close_matches(key, names, 1) for key in unknown}
        described = [f"{key} (did you mean {match[0]}?)" if match else key for key, match in close.items()]
        raise ValueError(f"{path} has unknown keys: {', '.join(described)}; see `--help` for the known ones.")
    return values


def _as_words(where: str, value: Any, hint: Any) -> list[str] | None:
    """The words of a command line that give `value`, or None where no command line can say it."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = tuple(get_origin(kind) or kind for kind in kinds)
    is_list = isinstance(value, list)
    for item in value if is_list else [value]:
        if isinstance(item, (bool, NoneType, dict, list)) and (is_list or type(item) not in kinds):
            raise ValueError(f"{where} can't be {item!r}. Quote words that YAML reads as values: 'no', 'on', 'null'.")
    if is_list and list not in kinds:
        raise ValueError(f"{where} takes one value, got the list {value!r}.")
    if isinstance(value, (NoneType, dict)) or is_list and (str in kinds or not value):
        return None
    return [str(item) for item in value] if is_list else [str(value)]
