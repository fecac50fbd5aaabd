# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The import rule, the public names, and what importing the package costs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hf_methods


PACKAGE = Path(hf_methods.__file__).parent
METHODS = {"softmax1", "ortho_adam", "cpe", "subpt", "cross_teaching", "mbf"}
TRAVELS = ("configuration_", "modeling_", "image_processing_", "processing_", "pipeline_")
ALL_METHODS_SEEN_BY = {"cli.py", "__init__.py"}  # in the package's root
# The lines that transformers takes for relative imports, docstrings included.
RELATIVE_LINE = re.compile(r"^\s*(?:from\s+\.|import\s+\.)", re.MULTILINE)


def imports(source):
    """(line, level, module, names) of each import, wherever it stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, 0, alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.level, node.module or "", [alias.name for alias in node.names]


def travelling_files(folder):
    """A method's files that go into a checkpoint: by their role, or because one of these imports them."""
    names = {path.name for path in folder.glob("*.py") if path.name.startswith(TRAVELS)}
    todo = list(names)
    while todo:
        for _, level, module, _ in imports((folder / todo.pop()).read_text()):
            name = f"{module}.py"
            if level and name not in names and (folder / name).exists():
                names.add(name)
                todo.append(name)
    return names


def travelling_errors(source, method, siblings):
    """Breaches of the rule in a travelling file of `method`, whose travelling files are `siblings`."""
    errors = []
    relative = 0
    for line, level, module, names in imports(source):
        if level:
            relative += 1
            if level > 1 or f"{module}.py" not in siblings or not module.endswith(f"_{method}"):
                errors.append(f"{line}: only `from .<travelling file>_{method} import names`")
        elif module.split(".")[0] == "hf_methods":
            errors.append(f"{line}: a travelling file can't import hf_methods")
        if any(part.startswith("_") for name in [module, *names] for part in name.split(".")):
            errors.append(f"{line}: private names change between versions")
    if relative != len(RELATIVE_LINE.findall(source)):
        errors.append("a relative import must be at the start of a line, and no other line may look like one")
    return errors


def staying_errors(source, method, is_entrance=False):
    """Breaches of the rule in a staying file of `method` (None: a shared one); entrances may import all methods."""
    errors = []
    for line, level, module, _ in imports(source):
        if level:
            errors.append(f"{line}: staying files use full names")
        if module == "hf_methods":
            errors.append(f"{line}: the package's own files name the module, not the package")
        top, *rest = module.split(".")
        imported = rest[0] if rest else None
        if top == "hf_methods" and imported in METHODS - {method} and not is_entrance:
            errors.append(f"{line}: imports the method {imported}")
        if top == "hf_methods" and imported == "cli":
            errors.append(f"{line}: nothing imports the command line")
        if top in ("training", "tests", "spaces"):
            errors.append(f"{line}: imports {top}/ of a checkout")
    return errors


def package_files():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).parts
        yield pytest.param(path, parts[0] if len(parts) > 1 else None, id="/".join(parts))


@pytest.mark.parametrize(("path", "method"), package_files())
def test_each_file_keeps_the_import_rule(path, method):
    siblings = travelling_files(path.parent) if method else set()
    if path.name in siblings:
        errors = travelling_errors(path.read_text(), method, siblings)
    else:
        errors = staying_errors(path.read_text(), method, method is None and path.name in ALL_METHODS_SEEN_BY)
    assert not errors


def test_the_files_that_travel_are_known():
    assert travelling_files(PACKAGE / "softmax1") == {
        "attention_softmax1.py",
        "configuration_softmax1.py",
        "modeling_softmax1.py",
        "pipeline_softmax1.py",
    }
    assert travelling_files(PACKAGE / "ortho_adam") == set()
    assert travelling_files(PACKAGE / "cpe") == {
        "configuration_cpe.py",
        "image_processing_cpe.py",
        "losses_cpe.py",
        "modeling_cpe.py",
        "normalization_cpe.py",
        "pipeline_cpe.py",
    }
    assert travelling_files(PACKAGE / "subpt") == {
        "configuration_subpt.py",
        "modeling_subpt.py",
        "pipeline_subpt.py",
    }
    assert travelling_files(PACKAGE / "cross_teaching") == {
        "anchor_step_cross_teaching.py",
        "architectures_cross_teaching.py",
        "box_step_cross_teaching.py",
        "configuration_cross_teaching.py",
        "detections_cross_teaching.py",
        "detectors_cross_teaching.py",
        "fusion_cross_teaching.py",
        "image_processing_cross_teaching.py",
        "modeling_cross_teaching.py",
        "modeling_detectors_cross_teaching.py",
        "modeling_inference_cross_teaching.py",
        "pipeline_cross_teaching.py",
        "pseudo_labels_cross_teaching.py",
        "rectification_cross_teaching.py",
        "uncertainty_cross_teaching.py",
    }
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()} <= METHODS


@pytest.mark.parametrize(
    "line",
    [
        "from ..args import x",
        "from . import modeling_cpe",
        "from .data_cpe import x",
        "from .modeling_mbf import x",
        "from .sub.modeling_cpe import x",
        "import hf_methods",
        "import torch, hf_methods.args",
        "from hf_methods.cpe.modeling_cpe import x",
        "def f():\n    from hf_methods import args",
        "from transformers.masking_utils import _private",
        "from torch._inductor import config",
        '"""Text\nfrom .modeling_cpe import x\n"""',
        "x = 1; from .modeling_cpe import x",
    ],
)
def test_a_breach_in_a_travelling_file_is_found(line):
    siblings = {"modeling_cpe.py", "modeling_mbf.py", "losses_cpe.py"}
    good = (
        "import torch\nfrom transformers import X\nfrom .modeling_cpe import y\nfrom .losses_cpe import (\n    z,\n)\n"
    )
    assert travelling_errors(good, "cpe", siblings) == []
    assert travelling_errors(good + line, "cpe", siblings)


@pytest.mark.parametrize(
    ("method", "line"),
    [
        ("cpe", "from .modeling_cpe import x"),
        ("cpe", "from hf_methods.mbf import x"),
        ("cpe", "import hf_methods.mbf.modeling_mbf"),
        ("cpe", "from hf_methods import mbf"),
        ("cpe", "def f():\n    from hf_methods.ortho_adam import OrthoAdam"),
        ("cpe", "from hf_methods.cli import app"),
        ("cpe", "import training.cpe.train"),
        (None, "from hf_methods.cpe import x"),
        (None, "from hf_methods import x"),
    ],
)
def test_a_breach_in_a_staying_file_is_found(method, line):
    good = "import torch\nfrom hf_methods.args import parse_args_and_config\n"
    own = "from hf_methods.cpe.modeling_cpe import x\n" if method else ""
    assert staying_errors(good + own, method) == []
    assert staying_errors(good + own + line, method)


OPTIONAL = {
    "matplotlib", "gradio", "optimum", "scipy", "open_clip", "peft", "typer", "torchmetrics", "pycocotools", "timm", "evaluate",
    "datasets",
}  # fmt: skip
IMPORT_CODE = f"""
import sys
import torch
from transformers import PreTrainedModel  # has scipy in its train where that is installed
before = set(sys.modules)
import hf_methods
print(sorted({OPTIONAL} & (set(sys.modules) - before)))
import hf_methods.subpt
print(sorted({{"datasets", "transformers.trainer"}} & set(sys.modules)))
"""


def test_importing_the_package_imports_no_optional_or_slow_package():
    output = subprocess.run([sys.executable, "-c", IMPORT_CODE], capture_output=True, text=True, check=True)
    assert output.stdout.split() == ["[]", "[]"]


@pytest.mark.parametrize("name", hf_methods.__all__)
def test_a_public_name_resolves_and_has_a_docstring_of_its_own(name):
    value = getattr(hf_methods, name)
    bases = value.__mro__[1:] if isinstance(value, type) else ()
    assert value.__doc__.strip() and value.__doc__ not in [base.__doc__ for base in bases]
    assert value.__module__.startswith("hf_methods.")


def test_public_names_are_sorted_and_unique():
    assert list(hf_methods.__all__) == sorted(set(hf_methods.__all__))


# In two pieces, so that this file does not find itself.
MACHINE_PATHS = re.compile(
    "|".join(["/ho" + r"me/\w", "/ro" + r"ot\b", "/Us" + r"ers/\w", r"\b[A-Z]:\\\\?Us" + "ers"])
)


def repository_files():
    root = PACKAGE.parent
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listing = subprocess.run(command, cwd=root, capture_output=True, check=True).stdout.decode()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not in a git checkout")
    return [root / name for name in listing.split("\0") if name and (root / name).is_file()]


def test_no_file_of_the_repository_names_a_folder_of_a_machine():
    files = repository_files()
    assert PACKAGE / "args.py" in files
    for path in files:
        text = path.read_bytes().decode("utf-8", errors="replace")
        found = MACHINE_PATHS.search(text)
        assert not found and str(PACKAGE.parent) not in text, f"{path}: {found}"


@pytest.mark.parametrize(
    "path", ["/ho" + "me/me/x", "see '/ro" + "ot/.cache'", "/Us" + "ers/me", "C:" + "\\Users\\me"]
)
def test_folders_of_a_machine_are_recognised(path):
    assert MACHINE_PATHS.search(path) and not MACHINE_PATHS.search("https://x.org/homepage /rootless user/s")
