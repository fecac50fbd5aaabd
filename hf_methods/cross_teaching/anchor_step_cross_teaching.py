# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The losses of one student on default boxes: the rule of SSD300."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_cross_teaching import CrossTeachingConfig
from .modeling_detectors_cross_teaching import sum_of_parts
from .pseudo_labels_cross_teaching import count_right, log_pseudo_labels, padded_truth
from .rectification_cross_teaching import RectifiedAnchors, rectify_anchors


class AnchorStepMixin:
    """What `CrossTeachingModel` does in a step with `mode="anchor"`."""

    config: CrossTeachingConfig
    students: nn.ModuleList
    teachers: nn.ModuleList

    def _anchor_step(self, number: int, labeled: dict, batch: dict | None, logs: dict, cache: dict) -> tuple[Any, Any]:
        student: Any = self.students[number]
        images = labeled["pixel_values"]
        size = (images.shape[-2], images.shape[-1])
        num_labeled = len(images)
        if batch is not None:
            images = torch.cat([images, batch["strong"]])
        targets = student.prepare_targets(labeled["labels"], size)
        logits, offsets, anchors = student.ssd_heads(student.extract_features(images), size)
        losses = student.ssd_losses(logits[:num_labeled], offsets[:num_labeled], anchors, targets)
        loss_sup = sum_of_parts(losses, ("cls", "box"))
        if batch is None:
            return loss_sup, None
        logits, offsets = logits[num_labeled:], offsets[num_labeled:]
        pseudo = self._pseudo_anchors(number, logits.detach(), offsets.detach(), anchors, batch, size, logs, cache)
        count = pseudo.valid.sum().clamp_min(1)
        rows = torch.arange(len(logits), device=logits.device)[:, None].expand_as(pseudo.anchor)
        loss_cls = F.cross_entropy(logits[rows, pseudo.anchor].transpose(1, 2), pseudo.label, reduction="none")
        loss = (loss_cls * pseudo.valid).sum() / count
        if self.config.unsup_box_loss != "none":
            distance = (offsets[rows, pseudo.anchor] - pseudo.offsets).square().mean(-1)
            loss = loss + (distance * pseudo.valid).sum() / count
        return loss_sup, loss

    @torch.no_grad()
    def _pseudo_anchors(
        self, number: int, logits: Tensor, offsets: Tensor, anchors: Tensor, batch: dict, size, logs: dict, cache: dict
    ) -> RectifiedAnchors:
        def by_teacher(index: int) -> tuple[Tensor, Tensor]:
            if index not in cache:
                teacher: Any = self.teachers[index]
                cache[index] = teacher.ssd_heads(teacher.extract_features(batch["strong"]), size)[:2]
            return cache[index]

        peers = [by_teacher(peer) for peer in self.config.peers(number)]
        own = (logits, offsets) if self.config.own_source == "student" else by_teacher(number)
        if self.config.arm == "mutual" and peers:  # the peer's predictions as they are
            own = peers[0]
        peer_logits, peer_offsets = (torch.stack(parts) for parts in zip(*(peers or [own])))
        student: Any = self.students[number]
        pseudo = rectify_anchors(
            *own, peer_logits, peer_offsets, anchors, partial(student.decode, image_size=size),
            score_threshold=self.config.score_threshold or 0.0,
            top_k=self.config.max_pseudo_boxes or 20,
            nms_threshold=self.config.nms_threshold,
            box_target="winner" if self.config.unsup_box_loss == "winner" else "peer",
        )  # fmt: skip
        changed = (pseudo.label != pseudo.own_label) & pseudo.valid
        log_pseudo_labels(logs, number, pseudo.valid, pseudo.own_score, changed)
        if "truth" in batch:
            truth = padded_truth(batch["truth"])
            for when, labels in (("_own", pseudo.own_label), ("", pseudo.label)):
                logs[f"right{when}_{number}"] = count_right(pseudo.boxes, labels - 1, pseudo.valid, truth)
                logs[f"used{when}_{number}"] = pseudo.valid.sum()
        return pseudo
