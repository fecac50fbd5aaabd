# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Emoji as a small offline benchmark of prompt tuning: Twemoji to tune and test on, other artwork to pre-train with.

A class is a subcategory of Unicode's emoji, such as "animal bird", with 8 emoji or more: 68 classes, of which the first 34
by name are base classes and the others novel ones. The emoji of the splits "validation" and "test" are in no style part of
the pre-training; the others are, under other artists' pens, and so are the names of all classes, as they are for CLIP.
The images are Twemoji, copyright Twitter, Inc and other contributors, CC-BY 4.0, made smaller and with fewer colours.
"""

import os
from pathlib import Path

from datasets import Dataset, load_dataset

from hf_methods.subpt.data_subpt import image_digest


TWEMOJI_FILE = Path(__file__).parents[2] / "training" / "subpt" / "data" / "twemoji.parquet"
PRETRAIN_FILE = (
    Path(os.environ.get("HF_METHODS_DATA", "~/.cache/hf_methods")).expanduser() / "emoji" / "pretrain.parquet"
)
IMAGE_SIZE = 48
EMOJI_DIGESTS = {"train": "e994833295836b56", "validation": "4ca0c1a60b007684", "test": "6d08375dcc3bf4ad"}


def load_emoji(split: str, file: str | Path = TWEMOJI_FILE) -> Dataset:
    """Twemoji of one split.

    Args:
        split: "train" (the pool of the few shots), "validation" or "test".
        file: the Parquet file, default that of the repository.

    Returns:
        Features `image` (48 x 48, on white), `label` (`ClassLabel` of 68 names), `name`, `code` (code points) and `split`.

    Raises:
        ValueError: an unknown split, or images that are not those of the published figures.
        FileNotFoundError: no such file, as where the package was installed without its repository.
    """
    if split not in EMOJI_DIGESTS:
        raise ValueError(f"`split` must be one of {', '.join(EMOJI_DIGESTS)}, got {split!r}.")
    dataset = _read(file).filter(lambda name: name == split, input_columns="split")
    if (digest := image_digest(dataset)) != EMOJI_DIGESTS[split]:
        raise ValueError(
            f"the images of {split!r} in {file} have the digest {digest}, not {EMOJI_DIGESTS[split]}; take the file of the "
            "repository, or make it with training/subpt/fetch_emoji.py."
        )
    return dataset


def load_pretrain_emoji(file: str | Path = PRETRAIN_FILE) -> Dataset:
    """The artwork of the pre-training: Noto, Noto's older blobs, and Fluent flat and in 3D.

    Args:
        file: the Parquet file that `training/subpt/fetch_emoji.py` writes.

    Returns:
        Features `image` (48 x 48, RGBA), `name`, `short_name`, `subcategory`, `category`, `code` and `style`.

    Raises:
        FileNotFoundError: no such file.
    """
    return _read(file)


def _read(file: str | Path) -> Dataset:
    if not Path(file).is_file():
        raise FileNotFoundError(f"there is no {file}; make it with training/subpt/fetch_emoji.py of the repository.")
    return load_dataset("parquet", data_files=str(file), split="train")
