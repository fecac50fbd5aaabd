# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Object detection by several detectors that taught each other: each one's boxes, their ensemble, and what a rule changes.

Written against transformers 5.24 (`ObjectDetectionPipeline`).
"""

from string import ascii_uppercase
from typing import Any

import torch
from torch import Tensor
from transformers import ObjectDetectionPipeline
from transformers.utils import ModelOutput

from .detections_cross_teaching import pad_detections, stack_detections
from .fusion_cross_teaching import weighted_boxes_fusion
from .rectification_cross_teaching import BOX_RULES, label_rectification


TASK = "cross-teaching-object-detection"  # stock `object-detection` stays what it is
ENSEMBLE, ALL = "ensemble", "all"


class CrossTeachingDetectionPipeline(ObjectDetectionPipeline):
    """`object-detection` with the choice of the detector.

    Args:
        detector (`str`, *optional*, defaults to `"ensemble"`): whose boxes: "ensemble" (weighted boxes fusion of all), one of
            "A", "B", ..., or "all" of these in turn, the ensemble last. Each record has the key `detector`.
        rule (`str`, *optional*): "ct_v1", "crossrectify_voc" or "crossrectify_coco": tell instead what the rule makes of each
            detector's boxes above `threshold`, as pseudo labels in training. Each record has the key `change`: "kept",
            "replaced" (with the detector's own box as `own`), "added" or "dropped". For one or all detectors.
        fusion_iou_threshold (`float`, *optional*, defaults to 0.6): IoU with a fused box above which a box joins it.
        threshold (`float`, *optional*, defaults to 0.5): records have scores above it.

    Everything else is as in `ObjectDetectionPipeline`.

    Raises:
        ValueError: an unknown detector or rule, or a rule for the ensemble or for a single detector.

    Example:

    ```python
    >>> detect = pipeline("cross-teaching-object-detection", model=repo_id, trust_remote_code=True)
    >>> detect("scene.png")
    [{'score': 0.94, 'label': '3', 'box': {'xmin': 9, 'ymin': 30, 'xmax': 29, 'ymax': 52}, 'detector': 'ensemble'}]
    >>> detect("scene.png", detector="all", rule="crossrectify_voc")[0]["change"]
    'replaced'
    ```
    """

    def check_model_type(self, supported_models):
        """Nothing: transformers' table has its own models only."""

    @property
    def names(self) -> list[str]:
        """Of the detectors."""
        return list(ascii_uppercase[: len(self.model.detectors)])  # type: ignore[arg-type]

    def _sanitize_parameters(self, detector=None, rule=None, fusion_iou_threshold=None, **kwargs):
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        if detector is not None:
            if detector not in (*self.names, ENSEMBLE, ALL):
                allowed = ", ".join((*self.names, ENSEMBLE, ALL))
                raise ValueError(f"`detector` must be one of {allowed}, got {detector!r}.")
            postprocess["detector"] = detector
        if rule is not None:
            if rule not in BOX_RULES:
                raise ValueError(f"`rule` must be one of {', '.join(BOX_RULES)}, got {rule!r}.")
            if len(self.names) == 1:
                raise ValueError("`rule` needs detectors that rectify each other, and this model has one.")
            postprocess["rule"] = rule
        if fusion_iou_threshold is not None:
            if not 0 <= fusion_iou_threshold <= 1:
                raise ValueError(f"`fusion_iou_threshold` must be between 0 and 1, got {fusion_iou_threshold}.")
            postprocess["fusion_iou_threshold"] = fusion_iou_threshold
        return preprocess, forward, postprocess

    def _forward(self, model_inputs):
        outputs = {"target_size": model_inputs.pop("target_size")}
        for number, name in enumerate(self.names):
            output = self.model(**model_inputs, detector=number)
            outputs |= {f"logits_{name}": output.logits, f"pred_boxes_{name}": output.pred_boxes}
        return outputs

    def postprocess(self, model_outputs, threshold=0.5, detector=ENSEMBLE, rule=None, fusion_iou_threshold=0.6):
        if rule is not None and detector == ENSEMBLE:
            raise ValueError("`rule` is for one detector or detector='all': the ensemble is not rectified.")
        # Fusion hears boxes of little confidence, too: one that all detectors have counts for more.
        least = getattr(self.model.config.detector, "score_threshold", 0.0)
        found = {}
        for name in self.names:
            output = ModelOutput(
                logits=model_outputs[f"logits_{name}"].float(), pred_boxes=model_outputs[f"pred_boxes_{name}"].float()
            )
            (found[name],) = self.image_processor.post_process_object_detection(
                output, min(least, threshold), model_outputs["target_size"]
            )
        above = {name: _above(image, threshold) for name, image in found.items()}
        asked = self.names if detector == ALL else [name for name in self.names if name == detector]
        if rule is not None:
            return [record for name in asked for record in self._rectified(name, above, rule)]
        records = [record for name in asked for record in self._records(above[name], name)]
        if detector in (ENSEMBLE, ALL):
            (fused,) = weighted_boxes_fusion([[image] for image in found.values()], fusion_iou_threshold)
            records += self._records(_above(fused, threshold), ENSEMBLE)
        return records

    def _records(self, image: dict[str, Tensor], name: str) -> list[dict[str, Any]]:
        rows = zip(image["scores"].tolist(), image["labels"].tolist(), image["boxes"])
        return [
            {
                "score": score,
                "label": self.model.config.id2label[label],  # type: ignore[index]
                "box": self._get_bounding_box(box),
                "detector": name,
            }
            for score, label, box in rows
        ]

    def _rectified(self, name: str, above: dict[str, dict[str, Tensor]], rule: str) -> list[dict[str, Any]]:
        own = pad_detections([above[name]])[0]
        others = stack_detections([pad_detections([image])[0] for peer, image in above.items() if peer != name])
        result = label_rectification(own, others, **BOX_RULES[rule])
        before = self._records(above[name], name)
        after = self._records({key: getattr(result, key)[0] for key in ("boxes", "scores", "labels")}, name)
        records = []
        for row, (valid, source) in enumerate(zip(result.valid[0].tolist(), result.source[0].tolist())):
            if row >= len(before):
                records += [{**after[row], "change": "added"}] if valid else []
            elif not valid:
                records.append({**before[row], "change": "dropped"})
            elif source == 0:
                records.append({**after[row], "change": "kept"})
            else:
                records.append({**after[row], "change": "replaced", "own": before[row]})
        return records


def _above(image: dict[str, Tensor], threshold: float) -> dict[str, Tensor]:
    keep = torch.as_tensor(image["scores"] > threshold)
    return {key: value[keep] for key, value in image.items()}
