# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Dataclasses from a YAML file and the command line."""

import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from transformers import HfArgumentParser


def parse_args_and_config(dataclass_types: Sequence[type], argv: list[str] | None = None) -> tuple:
    """One instance of each dataclass, from `--config FILE.yaml` and then from the command line, which wins.

    Args:
        dataclass_types: dataclasses whose fields become options; required fields may come from the file.
        argv: arguments, default those of the process.

    Raises:
        ValueError: the file has keys that no dataclass has, or is not a mapping.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = HfArgumentParser(dataclass_types)  # type: ignore[arg-type]
    parser.add_argument("--config", help="YAML file with any of these options; the command line wins.")
    if "--config" in argv[:-1]:
        at = argv.index("--config")
        path = Path(argv[at + 1])
        del argv[at : at + 2]
        values = yaml.safe_load(path.read_text()) or {}
        if not isinstance(values, dict):
            raise ValueError(f"{path} must be a mapping of options to values, got {type(values).__name__}.")
        actions = {action.dest: action for action in parser._actions}
        if unknown := sorted(set(values) - set(actions)):
            raise ValueError(f"{path} has unknown keys {', '.join(unknown)}; see `--help` for the known ones.")
        for name, value in values.items():
            actions[name].default = value  # a string goes through the field's type: YAML reads 3e-2 as a string
            actions[name].required = False
    *instances, _ = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    return tuple(instances)
