# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""What the repositories of several methods say and do alike: data sets, results, the image that proves a pipeline."""

from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import EvalResult


# A grey picture of 28 x 28 with a white bar, which every process has: the verification needs the same image twice.
EXAMPLE_IMAGE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAABwAAAAcCAAAAABXZoBIAAAAHElEQVR42mNgGEqAEYX3H1WACZ/OUcnBKDm0AACl"
    "WQEgw484FAAAAABJRU5ErkJggg=="
)
LOCAL_IMAGES = ("images", "local images")


def is_hub_id(name: str) -> bool:
    """Whether `name` is ORG/NAME, and no folder of this machine or of a checkout's `model_cards/`."""
    return name.count("/") == 1 and not name.startswith("model_cards/") and not Path(name).exists()


def dataset_names(
    name: str, known: Mapping[str, tuple[str, str]], local: tuple[str, str] = LOCAL_IMAGES
) -> tuple[str, str]:
    """Type and name of a data set in a model index, which never tell a folder of this machine.

    Args:
        name: as the recipe has it.
        known: (type, name) of those that are no Hub ids.
        local: (type, name) of a folder.
    """
    return known.get(name, (name, name) if is_hub_id(name) else local)


def eval_results(
    task: str,
    dataset: tuple[str, str],
    split: str,
    summary: Mapping[str, list],
    metrics: Mapping[str, tuple[str, str]],
    digits: int = 4,
) -> list[EvalResult]:
    """The figures of a model index.

    Args:
        task: type of the task.
        dataset: of `dataset_names`.
        split: of the data set.
        summary: {figure: [mean, standard deviation]}, of results.json.
        metrics: {figure: (type, name)}.
        digits: behind the point.

    Raises:
        KeyError: `summary` lacks a figure.
    """
    return [
        EvalResult(
            task_type=task,
            dataset_type=dataset[0],
            dataset_name=dataset[1],
            dataset_split=split,
            metric_type=metric_type,
            metric_name=name,
            metric_value=round(summary[figure][0], digits),
        )
        for figure, (metric_type, name) in metrics.items()
    ]
