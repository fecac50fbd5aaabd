# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""What the experts make of the unlabelled images, counted on the device."""

from typing import Any

import torch
from torch import Tensor


class PseudoLabelCounter:
    """Sums over training steps that wait for the device only when they are read.

    Args:
        num_experts: E.
        num_classes: K.
        device: where the sums are.
    """

    def __init__(self, num_experts: int, num_classes: int, device: torch.device):
        self.num_experts, self.num_classes = num_experts, num_classes
        # Per expert and class: labels used, those of an image whose class is known, the right ones among these.
        self.by_label = torch.zeros(3, num_experts, num_classes, device=device)
        self.known_of_class = torch.zeros(num_classes, device=device)
        self.by_expert = torch.zeros(2, num_experts, device=device)  # both losses
        self.counts = torch.zeros(2, device=device)  # steps, unlabelled images

    @torch.no_grad()
    def update(
        self,
        supervised_loss: Tensor,
        unsupervised_loss: Tensor | None,
        pseudo_labels: Tensor | None,
        mask: Tensor | None,
        true_labels: Tensor | None = None,
    ) -> None:
        """Add a step.

        Args:
            supervised_loss, unsupervised_loss: (E,).
            pseudo_labels: int64 (M, E).
            mask: bool (M, E), the labels that were used.
            true_labels: int64 (M,), -1 where unknown. They are counted here and nowhere else.
        """
        self.counts[0] += 1
        self.by_expert[0] += supervised_loss
        if unsupervised_loss is None or pseudo_labels is None or mask is None:
            return
        self.by_expert[1] += unsupervised_loss
        self.counts[1] += len(pseudo_labels)
        experts = torch.arange(self.num_experts, device=mask.device) * self.num_classes
        cells = (experts + pseudo_labels).flatten()  # of the (E, K) table
        used = mask.to(self.by_label.dtype)
        self.by_label[0].view(-1).index_add_(0, cells, used.flatten())
        if true_labels is not None:
            known = (true_labels >= 0).to(used.dtype)
            used = used * known[:, None]
            right = used * (pseudo_labels == true_labels[:, None])
            self.by_label[1].view(-1).index_add_(0, cells, used.flatten())
            self.by_label[2].view(-1).index_add_(0, cells, right.flatten())
            self.known_of_class.index_add_(0, true_labels.clamp_min(0), known)

    def read(self, accelerator=None) -> tuple[dict[str, float], dict[str, Any]]:
        """Numbers since the last reading, after which counting begins anew.

        Args:
            accelerator: sums over its processes if it has several; then each of them must call this.

        Returns:
            Numbers to log: `expert<e>/supervised_loss`, `expert<e>/unsupervised_loss`, `expert<e>/utilization` (share of
            pseudo-labels that were used) and, where true labels are known, `expert<e>/precision`. And tables (E, K) as
            lists: `pseudo_label_counts`, and `pseudo_label_precision` and `pseudo_label_recall` (used and right, of all
            unlabelled images of the class), NaN where there is nothing to divide by.
        """
        parts = [self.by_label, self.known_of_class, self.by_expert, self.counts]
        flat = torch.cat([part.flatten() for part in parts])
        if accelerator is not None and accelerator.num_processes > 1:
            flat = accelerator.reduce(flat, "sum")
        by_label, known_of_class, by_expert, counts = (
            values.view(part.shape) for values, part in zip(flat.cpu().split([part.numel() for part in parts]), parts)
        )
        for part in parts:
            part.zero_()
        steps, images = counts.tolist()
        if steps == 0:
            return {}, {}
        used, known, right = by_label
        logs: dict[str, float] = {}
        for e in range(self.num_experts):
            logs[f"expert{e}/supervised_loss"] = float(by_expert[0, e] / steps)
            if images:
                logs[f"expert{e}/unsupervised_loss"] = float(by_expert[1, e] / steps)
                logs[f"expert{e}/utilization"] = float(used[e].sum() / images)
            if float(known[e].sum()):
                logs[f"expert{e}/precision"] = float(right[e].sum() / known[e].sum())
        tables = {"pseudo_label_counts": used.long().tolist()} if images else {}
        if float(known_of_class.sum()):
            tables["pseudo_label_precision"] = (right / known).tolist()
            tables["pseudo_label_recall"] = (right / known_of_class).tolist()
        return logs, tables
