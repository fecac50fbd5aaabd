# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""YAML and command line."""

from dataclasses import dataclass, field

import pytest

from hf_methods.args import parse_args_and_config


@dataclass
class Settings:
    name: str = field(metadata={"help": "Required."})
    rate: float = 0.1
    sizes: list[int] = field(default_factory=lambda: [1])


def parse(tmp_path, text, *argv):
    (tmp_path / "c.yaml").write_text(text)
    return parse_args_and_config((Settings,), ["--config", str(tmp_path / "c.yaml"), *argv])[0]


def test_yaml_gives_values_and_the_command_line_wins(tmp_path):
    settings = parse(tmp_path, "name: a\nrate: 3e-2\nsizes: [2, 3]", "--name", "b")
    assert settings == Settings("b", 0.03, [2, 3]) and isinstance(settings.rate, float)


def test_unknown_keys_are_errors_with_their_name(tmp_path):
    with pytest.raises(ValueError, match="ratte"):
        parse(tmp_path, "name: a\nratte: 1")


def test_a_file_that_is_no_mapping_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="mapping"):
        parse(tmp_path, "- a")


def test_a_missing_required_field_is_an_error(tmp_path):
    with pytest.raises(SystemExit):
        parse(tmp_path, "rate: 1")
