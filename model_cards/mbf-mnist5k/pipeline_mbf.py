# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Pipeline: was this image crafted against the classifier? Written against transformers 5.24 (`Pipeline`)."""

from PIL import Image, UnidentifiedImageError
from transformers import Pipeline
from transformers.image_utils import load_image


TASK = "adversarial-detection"


class AdversarialDetectionPipeline(Pipeline):
    """Verdict, probability, the classifier's answer, and the layers that spoke, for one image or a list.

    Args:
        fpr (`float`, *optional*): share of benign images that may be called adversarial; default the detector's
            `target_fpr`. It decides `label`, not `score`.
        top_k_layers (`int`, *optional*, defaults to 3): how many layers are listed.
        return_coefficients (`bool`, *optional*, defaults to `False`): add to each listed layer `coefficients`, its
            Benford-Fourier magnitudes in the order of the extractor's `feature_names`, and `benign_mean` and `benign_std`,
            their mean and standard deviation over the benign images of the detector's training.

    Images are a path, an URL, or a PIL image of any mode and size; transparency is left out. Each gives a dictionary with
    `label` ("adversarial" or "benign"), `score` (the calibrated probability of "adversarial"), `class` and `class_score`
    (the classifier's first class and its probability) and `layers`: those that contribute most to the score, each with
    `layer`, `contribution` and `z_score` (see `MBFDetector.explain`).

    Raises:
        ValueError: a file that is no image, a `fpr` outside (0, 1), a negative `top_k_layers`, or an image processor that
            gives other channels than the classifier takes.

    Example:

    ```python
    >>> detect = pipeline("adversarial-detection", model=repo_id, trust_remote_code=True)
    >>> detect("cat.png")
    {'label': 'benign', 'score': 0.03, 'class': 'tabby', 'class_score': 0.81, 'layers': [...]}
    ```
    """

    _load_processor = False  # type: ignore[assignment]
    _load_image_processor = True  # type: ignore[assignment]
    _load_feature_extractor = False  # type: ignore[assignment]
    _load_tokenizer = False  # type: ignore[assignment]

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # Not by class: remote code may be loaded twice, as two classes of one name.
        if self.model.config.model_type != "mbf":
            raise TypeError(f"the pipeline {TASK} needs an MBFDetector, got {type(self.model).__name__}.")
        if self.image_processor is None:
            raise ValueError(f"the pipeline {TASK} needs the classifier's `image_processor`.")

    def _sanitize_parameters(self, fpr=None, top_k_layers=None, return_coefficients=None, timeout=None):
        postprocess = {}
        if fpr is not None:
            self.model.threshold(fpr)  # a bad rate is an error before any image is read
            postprocess["fpr"] = fpr
        if top_k_layers is not None:
            if top_k_layers < 0:
                raise ValueError(f"`top_k_layers` can't be negative, got {top_k_layers}.")
            postprocess["top_k_layers"] = top_k_layers
        if return_coefficients is not None:
            postprocess["return_coefficients"] = return_coefficients
        return {} if timeout is None else {"timeout": timeout}, {}, postprocess

    def preprocess(self, image, timeout=None):
        try:
            # `load_image` makes RGB of what it opens
            image = image if isinstance(image, Image.Image) else load_image(image, timeout)
            if not image.width or not image.height:
                raise ValueError("the image has no pixels.")
            image = image.convert("L" if self._num_channels() == 1 else "RGB")
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            name = image if isinstance(image, str) and len(image) < 200 else type(image).__name__
            raise ValueError(f"{name} can't be read as an image: {error}") from error
        inputs = self.image_processor(images=image, return_tensors="pt")
        pixel_values = inputs["pixel_values"]
        if pixel_values.shape[1] != self._num_channels():
            raise ValueError(
                f"the image processor gives {pixel_values.shape[1]} channels, the classifier takes {self._num_channels()}."
            )
        return {"pixel_values": pixel_values.to(self.model.dtype)}

    def _num_channels(self) -> int:
        return getattr(getattr(self.model.classifier, "config", None), "num_channels", 3)

    def _forward(self, model_inputs):
        return self.model(**model_inputs)

    def postprocess(self, model_outputs, fpr=None, top_k_layers=3, return_coefficients=False):
        detector = self.model
        probabilities = model_outputs["logits"][0].float().softmax(0)
        class_score, index = probabilities.max(0)
        labels = getattr(getattr(detector.classifier, "config", None), "id2label", None) or {}
        features = model_outputs["features"].to(detector.benign_mean)
        contributions = detector.layer_contributions(features)[0].tolist()
        z_scores = detector.layer_z_scores(features)[0].tolist()
        layers = [
            {"layer": layer, "contribution": contribution, "z_score": z}
            for layer, contribution, z in zip(detector.extractor.layers, contributions, z_scores)
        ]
        if return_coefficients:
            layer_of_feature = detector.extractor.layer_of_feature
            for number, layer in enumerate(layers):
                at = (layer_of_feature == number).to(features.device)
                columns = (features[0], detector.benign_mean, detector.benign_std)
                names = ("coefficients", "benign_mean", "benign_std")
                layer |= {name: column[at].tolist() for name, column in zip(names, columns)}
        is_adversarial = model_outputs["scores"].item() > detector.threshold(fpr)
        return {
            "label": detector.config.id2label[int(is_adversarial)],
            "score": model_outputs["probabilities"].item(),
            "class": labels.get(index.item(), str(index.item())),
            "class_score": class_score.item(),
            "layers": sorted(layers, key=lambda layer: -layer["contribution"])[:top_k_layers],
        }
