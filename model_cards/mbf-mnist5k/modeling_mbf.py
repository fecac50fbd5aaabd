# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""A detector of adversarial inputs on Benford-Fourier features, after arXiv 2005.05552.

A support vector machine on the standardised features, trained with scikit-learn and kept as tensors: what is saved is
one safetensors file and a JSON configuration, and its decision function is differentiable.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoModelForImageClassification, PreTrainedModel
from transformers.utils import ModelOutput, logging

from .configuration_mbf import MBFConfig
from .extraction_mbf import MBFFeatureExtractor, unwrap
from .svm_mbf import conformal_threshold, fit_calibration, fit_svm, svm_decision


logger = logging.get_logger(__name__)
CLASSIFIER_FOLDER = "classifier"  # of a detector whose classifier is not on the Hub by itself


@dataclass
class MBFDetectorOutput(ModelOutput):
    """What the detector says of a batch.

    Args:
        scores: (batch,) float64, the decision function: larger is more adversarial.
        probabilities: (batch,) float64, calibrated probability of "adversarial" at the class shares of the training data.
        logits: (batch, classes) of the classifier.
        features: (batch, features) magnitudes.
    """

    scores: Tensor = None  # type: ignore[assignment]
    probabilities: Tensor = None  # type: ignore[assignment]
    logits: Tensor = None  # type: ignore[assignment]
    features: Tensor = None  # type: ignore[assignment]


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over names, shapes, dtypes and bytes of the model's weights and buffers; counters of batches left out."""
    digest = hashlib.sha256()
    for name, tensor in sorted(unwrap(model).state_dict().items()):
        if torch.is_tensor(tensor) and not name.endswith("num_batches_tracked"):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\0".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def weights_dtype(model: nn.Module) -> str:
    """Name of the dtype of the model's first floating-point weight, such as "float32"."""
    dtypes = (tensor.dtype for tensor in unwrap(model).state_dict().values() if tensor.is_floating_point())
    return str(next(dtypes, torch.float32)).removeprefix("torch.")


class MBFDetector(PreTrainedModel):
    """Says whether an image was crafted against an image classifier.

    No detector of this kind withstands an attacker who knows it: use it as one signal among others.

    Args:
        config: an `MBFConfig`; `fit` completes it.
        classifier: the classifier to guard, of transformers, timm or your own: called with `pixel_values` alone. Later a
            detector works with this one only: its digest is stored.

    Example:

    ```python
    >>> detector = MBFDetector(MBFConfig(), classifier).fit(attacked_images)
    >>> detector.predict_proba(pixel_values)[:, 1]
    >>> detector.save_pretrained("detector")
    >>> MBFDetector.from_pretrained("detector")  # with the classifier, checked
    ```
    """

    config: MBFConfig
    config_class = MBFConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    scaler_mean: Tensor
    scaler_scale: Tensor
    benign_mean: Tensor
    benign_std: Tensor
    support_vectors: Tensor
    dual_coefficients: Tensor
    intercept: Tensor
    calibration: Tensor
    benign_scores: Tensor

    def __init__(self, config: MBFConfig, classifier: nn.Module | None = None):
        super().__init__(config)
        features, vectors, scores = config.num_features, config.num_support_vectors, config.num_benign_scores
        sizes = {
            "scaler_mean": (features,),
            "scaler_scale": (features,),
            "benign_mean": (features,),
            "benign_std": (features,),
            "support_vectors": (vectors, features),
            "dual_coefficients": (vectors,),
            "intercept": (),
            "calibration": (2,),  # probability = sigmoid(slope * score + offset)
            "benign_scores": (scores,),  # held out, ascending: thresholds
        }
        for name, size in sizes.items():
            self.register_buffer(name, torch.zeros(size, dtype=torch.float64))
        self.classifier: nn.Module | None = None
        self.extractor: MBFFeatureExtractor | None = None
        self.post_init()
        if classifier is not None:
            self.bind(classifier)

    # --- the classifier -------------------------------------------------------------------------------------------

    def bind(self, classifier: nn.Module) -> "MBFDetector":
        """Guard `classifier`; a trained detector takes only the one that it was trained for.

        Raises:
            ValueError: other weights than those of training. Weights of another dtype, or quantised ones, only warn: the
                features drift, and rates measured before no longer hold.
        """
        inner = unwrap(classifier)
        digest, dtype = weights_digest(inner), weights_dtype(inner)
        config = self.config
        if config.classifier_digest is None:
            config.classifier_digest, config.classifier_dtype = digest, dtype
        elif digest != config.classifier_digest:
            is_quantized = getattr(getattr(inner, "config", None), "quantization_config", None) is not None
            if dtype == config.classifier_dtype and not is_quantized:
                raise ValueError(
                    f"the classifier's weights have the digest {digest[:16]}, but this detector was trained for "
                    f"{config.classifier_digest[:16]} ({config.classifier_id or 'no Hub id'}): load that classifier, or "
                    "train a detector for this one."
                )
            kind = "quantised" if is_quantized else dtype
            logger.warning(
                f"the classifier is {kind}, the detector was trained with {config.classifier_dtype}: its weights can't be "
                "checked, and scores and false-positive rates drift. Train a detector with this classifier."
            )
        extractor = MBFFeatureExtractor(inner, config)
        if config.num_features and len(extractor.feature_names) != config.num_features:
            raise ValueError(
                f"the layers give {len(extractor.feature_names)} features, the detector has {config.num_features}: its "
                "config.json was changed."
            )
        self.extractor, self.classifier = extractor, inner
        return self

    def _require(self, *, fitted: bool = True) -> MBFFeatureExtractor:
        if fitted and self.config.num_support_vectors == 0:
            raise ValueError("this MBFDetector is not fitted: call `fit` first.")
        if self.extractor is None:
            raise ValueError("this MBFDetector has no classifier: call `bind(classifier)` first.")
        return self.extractor

    # --- training -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def extract(self, dataset: Iterable, batch_size: int = 32) -> tuple[Tensor, Tensor, Tensor]:
        """Features of a data set whose rows have `pixel_values` (channels, height, width), `is_adversarial` and `source`.

        Returns:
            Features float64 (rows, features), `is_adversarial` int64 (rows,) and `source` int64 (rows,), on the CPU.

        Raises:
            ValueError: a row without these columns.
        """
        extractor = self._require(fitted=False)
        features, labels, sources = [], [], []
        for batch in DataLoader(dataset, batch_size=batch_size):  # type: ignore[arg-type]
            if missing := [name for name in ("pixel_values", "is_adversarial", "source") if name not in batch]:
                raise ValueError(f"rows need {', '.join(missing)}, they have {', '.join(batch)}.")
            features.append(extractor(batch["pixel_values"].to(self.device)).features.double().cpu())
            labels.append(batch["is_adversarial"].long().cpu())
            sources.append(batch["source"].long().cpu())
        if not features:
            raise ValueError("the data set has no rows.")
        return torch.cat(features), torch.cat(labels), torch.cat(sources)

    def fit(self, dataset: Iterable, batch_size: int = 32, **kwargs) -> "MBFDetector":
        """Train on a data set, see `extract` for its columns and `fit_features` for the other arguments."""
        return self.fit_features(*self.extract(dataset, batch_size), **kwargs)

    def fit_features(
        self,
        features: Tensor,
        is_adversarial: Tensor,
        source: Tensor,
        *,
        c: Iterable[float] = (1.0, 10.0, 100.0),
        gamma: Iterable[float] = (0.3, 1.0, 3.0),
        num_folds: int = 5,
        seed: int = 0,
    ) -> "MBFDetector":
        """Choose C and gamma, train the support vector machine, calibrate it and its thresholds.

        All by cross-validation in which an image and what was made of it are never in different folds. Needs scikit-learn.

        Args:
            features: (rows, features) of the bound classifier.
            is_adversarial: (rows,) 1 for attacked images; 0 for clean ones and those with mere noise.
            source: (rows,) which image a row was made from.
            c: candidates for C; classes are weighted by their inverse share.
            gamma: candidates for gamma, in units of 1 / number of features.
            num_folds: folds, at most the number of sources.
            seed: of the folds.

        Returns:
            self, with the fitted scikit-learn pipeline as `estimator_` until the process ends.

        Raises:
            ValueError: fewer than 10 rows or one class only; rows that do not fit together; too few sources.
        """
        x, y, groups = (torch.as_tensor(value).cpu().numpy() for value in (features, is_adversarial, source))
        extractor = self._require(fitted=False)
        if x.ndim == 2 and x.shape[1] != len(extractor.feature_names):
            raise ValueError(f"`features` has {x.shape[1]} columns, the layers give {len(extractor.feature_names)}.")
        self.estimator_, held_out = fit_svm(x, y, groups, c=c, gamma=gamma, num_folds=num_folds, seed=seed)
        slope, offset = fit_calibration(held_out, y)
        scaler, svm = (step for _, step in self.estimator_.steps)
        arrays = {
            "scaler_mean": scaler.mean_,
            "scaler_scale": scaler.scale_,
            "benign_mean": x[y == 0].mean(0),
            "benign_std": x[y == 0].std(0),
            "support_vectors": svm.support_vectors_,
            "dual_coefficients": svm.dual_coef_[0],
            "intercept": svm.intercept_[0],
            "calibration": [slope, offset],
            "benign_scores": sorted(held_out[y == 0]),
        }
        for name, array in arrays.items():
            setattr(self, name, torch.as_tensor(array, dtype=torch.float64).to(self.intercept.device))
        config = self.config
        config.layers, config.num_coefficients = extractor.layers, extractor.num_coefficients
        assert extractor.channel_groups is not None  # `feature_names` knew them
        config.channel_groups = extractor.channel_groups
        config.num_features, config.num_support_vectors = x.shape[1], len(svm.support_vectors_)
        config.num_benign_scores = int((y == 0).sum())
        config.svm_c, config.svm_gamma = float(svm.C), float(svm.gamma)
        return self

    # --- scores ---------------------------------------------------------------------------------------------------

    def score_features(self, features: Tensor) -> Tensor:
        """Decision function (batch,) float64 of features (batch, features); equal to scikit-learn's, differentiable.

        Raises:
            ValueError: not fitted, or another number of features.
        """
        if self.config.num_support_vectors == 0:
            raise ValueError("this MBFDetector is not fitted: call `fit` first.")
        if features.ndim != 2 or features.shape[1] != self.config.num_features:
            raise ValueError(f"`features` must be (batch, {self.config.num_features}), got {tuple(features.shape)}.")
        u = (features.to(self.scaler_mean) - self.scaler_mean) / self.scaler_scale
        return svm_decision(u, self.support_vectors, self.dual_coefficients, self.intercept, self.config.svm_gamma)

    def probability_of_scores(self, scores: Tensor) -> Tensor:
        """Calibrated probability of "adversarial" (batch,) for decision values (batch,)."""
        return torch.sigmoid(self.calibration[0] * scores + self.calibration[1])

    def forward(self, pixel_values: Tensor) -> MBFDetectorOutput:
        """Scores, probabilities, the classifier's logits and the features of `pixel_values`, from one forward pass.

        Differentiable with respect to `pixel_values`; under `torch.no_grad()` no response is kept.
        """
        output = self._require()(pixel_values)
        scores = self.score_features(output.features)
        return MBFDetectorOutput(scores, self.probability_of_scores(scores), output.logits, output.features)

    def decision_function(self, pixel_values: Tensor) -> Tensor:
        """(batch,) float64: larger is more adversarial; see `forward`."""
        return self(pixel_values).scores

    @torch.no_grad()
    def predict_proba(self, pixel_values: Tensor) -> Tensor:
        """(batch, 2) float64: calibrated probabilities of benign and adversarial."""
        probability = self(pixel_values).probabilities
        return torch.stack([1 - probability, probability], 1)

    @torch.no_grad()
    def predict(self, pixel_values: Tensor, fpr: float | None = None) -> Tensor:
        """(batch,) int64: 1 where the score is above `threshold(fpr)`."""
        return (self(pixel_values).scores > self.threshold(fpr)).long()

    def threshold(self, fpr: float | None = None) -> float:
        """The score above which an image is called adversarial.

        A new benign image, drawn as those of training, is above it with probability at most `fpr`; see
        `conformal_threshold`.

        Args:
            fpr: false-positive rate, default the configuration's `target_fpr`.

        Raises:
            ValueError: `fpr` outside (0, 1).
        """
        fpr = self.config.target_fpr if fpr is None else fpr
        self._require()
        return conformal_threshold(self.benign_scores.cpu().numpy(), fpr)

    # --- explanations ---------------------------------------------------------------------------------------------

    def layer_z_scores(self, features: Tensor) -> Tensor:
        """(batch, layers): how many standard deviations a layer's features are from their mean over benign images.

        Of a layer's features the one that is furthest, with its sign.
        """
        z = (features.to(self.benign_mean) - self.benign_mean) / self.benign_std.clamp_min(1e-12)
        columns = [z[:, self._columns(index)] for index in range(len(self._require().layers))]
        return torch.stack([c.gather(1, c.abs().argmax(1, keepdim=True))[:, 0] for c in columns], 1)

    def layer_contributions(self, features: Tensor) -> Tensor:
        """(batch, layers): by how much the score falls when a layer's features are replaced by their benign means."""
        features = features.to(self.benign_mean)
        scores = self.score_features(features)
        without = []
        for index in range(len(self._require().layers)):
            columns = self._columns(index)
            changed = features.clone()
            changed[:, columns] = self.benign_mean[columns]
            without.append(self.score_features(changed))
        return scores[:, None] - torch.stack(without, 1)

    def _columns(self, layer: int) -> Tensor:
        return (self._require().layer_of_feature == layer).nonzero()[:, 0].to(self.benign_mean.device)

    @torch.no_grad()
    def explain(self, pixel_values: Tensor) -> list[dict[str, dict[str, float]]]:
        """For each image and layer `z_score` and `contribution`; see `layer_z_scores` and `layer_contributions`."""
        features = self(pixel_values).features
        pairs = zip(self.layer_z_scores(features).tolist(), self.layer_contributions(features).tolist())
        layers = self._require().layers
        return [{layer: {"z_score": z, "contribution": c} for layer, z, c in zip(layers, *rows)} for rows in pairs]

    # --- files ----------------------------------------------------------------------------------------------------

    def save_pretrained(  # type: ignore[override]
        self, save_directory, *, include_classifier: bool | None = None, **kwargs
    ) -> None:
        """Write config.json, the tensors as safetensors and the code; nothing is pickled.

        Args:
            save_directory: the folder.
            include_classifier: also write the classifier, into the folder `classifier`. Default: where
                `classifier_id` is not set and it is a model of transformers.

        Raises:
            ValueError: not fitted, or a classifier that can't be saved.
        """
        if self.config.num_support_vectors == 0:
            raise ValueError("this MBFDetector is not fitted: call `fit` first.")
        if kwargs.pop("push_to_hub", False):
            raise ValueError("`push_to_hub=True` would leave out the classifier: call `push_to_hub` instead.")
        can_save = isinstance(self.classifier, PreTrainedModel)
        if include_classifier and not can_save:
            raise ValueError("`include_classifier=True` needs a classifier of transformers.")
        kwargs["state_dict"] = dict(self.named_buffers(recurse=False))
        super().save_pretrained(save_directory, **kwargs)
        if include_classifier or include_classifier is None and can_save and self.config.classifier_id is None:
            assert isinstance(self.classifier, PreTrainedModel)
            self.classifier.save_pretrained(Path(save_directory) / CLASSIFIER_FOLDER)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, classifier: nn.Module | None = None, **kwargs):
        """Load a detector and the classifier that it guards.

        Args:
            pretrained_model_name_or_path: folder or Hub id.
            classifier: the classifier; default that of `classifier_id`, else of the repository's folder `classifier`.
            dtype: for the classifier's weights; the detector's are float64.

        Raises:
            ValueError: tensors that are missing, foreign, of another shape, not finite or such as no training leaves; no
                digest of the classifier; a classifier with other weights.
            OSError: nothing there, or no safetensors file; pickles are never read.
        """
        dtype = kwargs.pop("dtype", None) or kwargs.pop("torch_dtype", None) or "auto"
        kwargs.update(dtype=torch.float64, use_safetensors=True, output_loading_info=True)
        path = pretrained_model_name_or_path
        try:
            loaded: Any = super().from_pretrained(path, *args, **kwargs)
        except SafetensorError as error:
            raise ValueError(f"{path}: model.safetensors is no safetensors file: {error}") from error
        except RuntimeError as error:
            raise ValueError(f"{path}: the tensors do not fit its config.json: {error}") from error
        detector, info = loaded
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if info[kind]:
                raise ValueError(
                    f"{path} is no complete MBF detector, {kind.replace('_', ' ')}: {sorted(info[kind])}."
                )
        detector._check_values(path)
        if classifier is None:
            hub = {
                name: kwargs[name] for name in ("revision", "token", "cache_dir", "local_files_only") if name in kwargs
            }
            classifier = detector._load_classifier(path, dtype, hub)
        return detector.bind(classifier)

    def _check_values(self, path) -> None:
        """Raise ValueError for what no training leaves: a damaged or changed file."""
        if self.config.num_support_vectors and self.config.classifier_digest is None:
            raise ValueError(f"{path}: config.json has no `classifier_digest`, so that any classifier would do.")
        for name, tensor in self.named_buffers(recurse=False):
            if not tensor.isfinite().all():
                raise ValueError(f"{path}: `{name}` holds NaN or infinite values: the file is damaged.")
        if not (self.scaler_scale > 0).all() or (self.benign_scores.diff() < 0).any():
            raise ValueError(
                f"{path}: `scaler_scale` must be positive and `benign_scores` ascending: the file is damaged."
            )

    def _load_classifier(self, path, dtype, hub: dict) -> nn.Module:
        config = self.config
        options = {"dtype": dtype, "use_safetensors": True}
        if config.classifier_id is not None:
            hub = {**hub, "revision": config.classifier_revision}
            return AutoModelForImageClassification.from_pretrained(config.classifier_id, **options, **hub).eval()
        try:
            return AutoModelForImageClassification.from_pretrained(
                path, subfolder=CLASSIFIER_FOLDER, **options, **hub
            ).eval()
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{path} holds no classifier: pass the one it was trained for, `from_pretrained(..., classifier=...)`."
            ) from error
