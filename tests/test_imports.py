# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The import rule, and the public names."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hf_methods


PACKAGE = Path(hf_methods.__file__).parent
METHODS = {"softmax1", "ortho_adam", "cpe", "subpt", "cross_teaching", "mbf"}
TRAVELS = ("configuration_", "modeling_", "image_processing_", "processing_", "pipeline_", "attention_")


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, 0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.level, node.module or ""


def files(condition):
    return [path for path in sorted(PACKAGE.rglob("*.py")) if condition(path)]


def method_of(path):
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else None


@pytest.mark.parametrize("path", files(lambda p: p.name.startswith(TRAVELS)), ids=lambda p: p.name)
def test_travelling_files_import_third_party_and_travelling_siblings(path):
    for line, level, module in imports(path):
        assert not module.startswith("hf_methods"), f"{path}:{line}"
        if level:
            assert level == 1 and "." not in module and module.startswith(TRAVELS), f"{path}:{line}"


@pytest.mark.parametrize("path", files(lambda p: not p.name.startswith(TRAVELS)), ids=lambda p: p.stem)
def test_staying_files_use_full_names_and_no_other_method(path):
    own = method_of(path)
    for line, level, module in imports(path):
        assert level == 0, f"{path}:{line}: staying files use full names"
        other = module.split(".")[1] if module.startswith("hf_methods.") else None
        if other in METHODS and path.name not in ("cli.py", "__init__.py"):
            assert other == own, f"{path}:{line}: shared files and other methods don't import {other}"


def test_importing_the_package_does_not_import_optional_or_slow_packages():
    code = "import hf_methods, sys; print(sorted({'matplotlib', 'gradio', 'optimum', 'typer'} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"


@pytest.mark.parametrize("name", hf_methods.__all__)
def test_public_names_resolve_and_have_a_docstring(name):
    assert getattr(hf_methods, name).__doc__
