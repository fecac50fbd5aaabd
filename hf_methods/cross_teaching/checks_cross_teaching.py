# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""What is seen to before a training begins or goes on."""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_methods.cross_teaching.configuration_cross_teaching import CrossTeachingConfig
from hf_methods.cross_teaching.data_cross_teaching import MAX_HASHED_IMAGES, image_digests, label_names
from hf_methods.cross_teaching.modeling_cross_teaching import CrossTeachingModel


logger = logging.get_logger(__name__)

RUN_FILE = "cross_teaching_run.json"


def check_resume(folder: Path, config: CrossTeachingConfig, run_settings: dict[str, Any]) -> None:
    """See that a checkpoint is of this run.

    Args:
        folder: the checkpoint.
        config: of the model.
        run_settings: of the run; those of the checkpoint are in its `cross_teaching_run.json`.

    Raises:
        ValueError: another configuration, seed or data.
    """
    before, now = CrossTeachingConfig.from_pretrained(folder).to_dict(), config.to_dict()
    if (folder / RUN_FILE).is_file():
        before |= json.loads((folder / RUN_FILE).read_text("utf-8"))
        now |= run_settings
    ignored = {"_name_or_path", "transformers_version", "architectures", "auto_map", "dtype", "use_cache"}
    different = [key for key in sorted(now) if key not in ignored and before.get(key) != now[key]]
    different = [key for key in different if key != "detector" or _differ(before[key], now[key])]
    if different:
        values = ", ".join(f"{key}: {before.get(key)!r} then, {now[key]!r} now" for key in different)
        raise ValueError(f"{folder} is of another run ({values}). Set them back, or begin in another output_dir.")


def _differ(before: dict[str, Any], now: dict[str, Any]) -> bool:
    keys = (before.keys() | now.keys()) - {
        "_name_or_path",
        "transformers_version",
        "architectures",
        "auto_map",
        "dtype",
    }
    return any(before.get(key) != now.get(key) for key in keys)


def check_run(
    model: PreTrainedModel, args, labeled: Dataset, unlabeled: Dataset | None, evaluated: Dataset | None
) -> None:
    """See that model, settings and data fit each other.

    Raises:
        TypeError: another kind of model.
        ValueError: what does not fit, and how to mend it.
    """
    if not isinstance(model, CrossTeachingModel):
        raise TypeError(
            f"`model` must be a CrossTeachingModel, got {type(model).__name__}; see CrossTeachingModel.from_detectors."
        )
    config = model.config
    if args.max_steps < 1:
        raise ValueError("`max_steps` must be given: burn-in, ramp and the order of samples are in steps.")
    if config.arm != "sup" and args.max_steps <= config.burn_in_steps:
        raise ValueError(
            f"`max_steps` must be above `burn_in_steps`, got {args.max_steps} and {config.burn_in_steps}; to train on "
            "labelled images only use arm='sup'."
        )
    if config.arm != "sup" and unlabeled is None:
        raise ValueError(f"arm={config.arm!r} needs an `unlabeled_dataset`; use arm='sup' without.")
    if config.arm in ("ct", "mutual") and config.num_detectors == 1:
        logger.warning(f"arm={config.arm!r} with one detector is arm='self': it has no peer.")
    names = [name for _, name in sorted((config.id2label or {}).items())]
    for kind, dataset in (("labeled_dataset", labeled), ("eval_dataset", evaluated)):
        if dataset is None:
            continue
        if not len(dataset) or not any(dataset["is_labeled"]):
            raise ValueError(f"`{kind}` has no labelled image.")
        found = label_names(dataset)
        generic = all(name.startswith("LABEL_") for name in names)
        if len(found) != len(names) or not generic and found != names:
            raise ValueError(
                f"`{kind}` has the labels {', '.join(found[:10])}, but the model has {', '.join(names[:10])}. Give the "
                "detector's configuration the data set's `id2label`."
            )
    is_small = unlabeled is not None and evaluated is not None and len(unlabeled) + len(evaluated) <= MAX_HASHED_IMAGES
    if is_small and (same := len(image_digests(unlabeled) & image_digests(evaluated))):  # type: ignore[arg-type]
        logger.warning(f"{same} images of `unlabeled_dataset` are in `eval_dataset` too: its figures are too good.")
