# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The fitted scikit-learn pipeline of a detector as a file, for who wants that."""

from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from hf_methods.mbf.modeling_mbf import MBFDetector


ESTIMATOR_TYPES = {
    "sklearn.pipeline.Pipeline",
    "sklearn.preprocessing._data.StandardScaler",
    "sklearn.svm._classes.SVC",
}


def save_estimator(detector: MBFDetector, path: str | Path) -> None:
    """Write the scikit-learn pipeline of a detector that was fitted in this process, in skops' format: no pickle.

    Raises:
        ValueError: the detector was loaded and not fitted here: its file holds tensors, not scikit-learn's objects.
        ImportError: skops is not installed.
    """
    import skops.io

    if not hasattr(detector, "estimator_"):
        raise ValueError("only a detector that was fitted in this process has a scikit-learn pipeline: call `fit`.")
    skops.io.dump(detector.estimator_, path)


def load_estimator(path: str | Path) -> Any:
    """The scikit-learn pipeline of `save_estimator`: features -> decision function.

    Raises:
        ValueError: the file holds anything else than a scaler and a support vector machine.
        ImportError: skops is not installed.
    """
    import skops.io
    from sklearn.pipeline import Pipeline

    try:
        if untrusted := skops.io.get_untrusted_types(file=path):
            raise ValueError(f"{path} holds {', '.join(untrusted)}, which no file of `save_estimator` does.")
        estimator = skops.io.load(path, trusted=[])
    except (KeyError, OSError, BadZipFile) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path} is no file of `save_estimator`: {error}") from error
    steps = [estimator, *(step for _, step in estimator.steps)] if isinstance(estimator, Pipeline) else [estimator]
    kinds = {f"{type(step).__module__}.{type(step).__qualname__}" for step in steps}
    if kinds != ESTIMATOR_TYPES:
        raise ValueError(f"{path} holds {', '.join(sorted(kinds))}, not a scaler and a support vector machine.")
    return estimator
