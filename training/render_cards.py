# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Build each folder of model_cards/ anew from its weights and results.json: code, card, licence, requirements.

Base models, which come without a method's pipeline, stay as they are.

python training/render_cards.py
"""

import importlib
from pathlib import Path

from hf_methods.hub import build_repository


CARDS = Path(__file__).parents[1] / "model_cards"


def recipe_of(checkpoint: Path):
    """The recipe of the method whose pipeline lies in `checkpoint`."""
    (path,) = checkpoint.glob("pipeline_*.py")
    method = path.stem.removeprefix("pipeline_")
    return importlib.import_module(f"hf_methods.{method}.publishing_{method}").RECIPE


if __name__ == "__main__":
    for pipeline in sorted(CARDS.glob("*/pipeline_*.py")):
        folder = pipeline.parent
        build_repository(recipe_of(folder), str(folder), folder, f"model_cards/{folder.name}")
