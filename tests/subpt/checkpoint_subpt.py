# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""A checkpoint with the layout of those that training/subpt/ writes, of a tiny random CLIP."""

import json
import shutil
from pathlib import Path

from tiny_subpt import image_processor, make_model

from hf_methods.subpt import export_merged


ARM = "SubPT + NFL, unrelated names"
EPOCHS = [1, 2, 3, 4]
SUMMARY = {
    "zero-shot CLIP": {"base": [20.5, None], "novel": [28.25, None], "harmonic_mean": [23.759, None]},
    "CoOp": {"base": [19.5, 1.25], "novel": [22.125, 2.5], "harmonic_mean": [20.729, 1.5]},
    ARM: {"base": [21.75, 1.0], "novel": [29.375, 0.5], "harmonic_mean": [24.994, 0.75]},
}
TRAIN = {
    "base_model": "model_cards/clip-emoji", "dataset": "emoji", "template": "a picture of a {}.", "ctx_init": None,
    "n_ctx": 4, "num_shots": 8, "nfl_protocol": "inductive", "views": 8, "subspace_rank": 5, "subspace_epochs": 16,
    "nfl_weight": 1.0, "nfl_names": ["ghost", "books"], "learning_rate": 0.02, "num_train_epochs": 80.0,
    "base_to_novel": True,
}  # fmt: skip
RESULTS = {
    "command": "python training/subpt/grid.py --config training/subpt/grid.yaml",
    "environment": {"torch": "2.14.1", "transformers": "5.24.0", "machine": "Linux x86_64, 2 cores, CPU"},
    "seeds": [0, 1, 2],
    "data": {"train": "0123456789abcdef"},
    "wall_seconds": 600.0,
    "settings": {"split": "test", "train": TRAIN},
    "summary_mean_and_sd": SUMMARY,
    "curves": {
        "CoOp": {"epoch": EPOCHS, "base": [20.5, 21, 20, 19.5], "novel": [28.25, 29, 25, 22.125]},
        ARM: {"epoch": EPOCHS, "base": [20.5, 21, 22, 21.75], "novel": [28.25, 29, 30, 29.375]},
    },
    "arm": ARM,
}


def make_checkpoint(folder: Path) -> Path:
    """Write merged model, both adapters and results.json into `folder`."""
    scratch = folder.with_name(f"{folder.name}-adapters")
    for seed, name in enumerate(("adapter_coop", "adapter")):
        model = make_model(seed=seed).eval()
        model.save_pretrained(scratch / name)
    export_merged(model, folder, image_processor())
    shutil.copytree(scratch, folder, dirs_exist_ok=True)
    (folder / "results.json").write_text(json.dumps(RESULTS))
    return folder
