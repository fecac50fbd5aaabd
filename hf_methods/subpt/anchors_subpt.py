# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Names whose learned features stay near fixed targets: what NFL adds to a training step."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_methods.subpt.losses_subpt import nfl_loss
from hf_methods.subpt.prompts_subpt import check_class_names


class Anchors(nn.Module):
    """Prompts and targets of anchored names, as buffers: they move with the model and are not stored.

    Names that are classes share the features of the classes, so that they cost nothing more.

    Args:
        names: the names.
        targets: (len(names), dim), frozen features.
        class_names, class_input_ids: the set classes and their prompts (classes, length).
        prompt_ids: names -> token ids (n, length), for names that are no classes.
        weight: lambda.
        kind: "cosine" or "l2".
        per_step: names drawn at random for each step; None: all.

    Raises:
        ValueError: bad names, a negative weight, targets of another number, `per_step` below 1, or an unknown loss.
    """

    def __init__(
        self,
        names: Sequence[str],
        targets: Tensor | None,
        class_names: Sequence[str],
        class_input_ids: Tensor,
        prompt_ids: Callable[[list[str]], Tensor],
        *,
        weight: float,
        kind: str,
        per_step: int | None,
    ):
        super().__init__()
        names = check_class_names(names, "names")
        if weight < 0:
            raise ValueError(f"the weight of NFL can't be negative, got {weight}.")
        if targets is None or len(targets) != len(names):
            raise ValueError(f"there are {len(names)} names and {0 if targets is None else len(targets)} targets.")
        if per_step is not None and per_step < 1:
            raise ValueError(f"`per_step` must be at least 1, got {per_step}.")
        nfl_loss(targets[:1], targets[:1], kind)
        self.names, self.weight, self.kind, self.per_step = names, float(weight), kind, per_step
        position = {name: index for index, name in enumerate(class_names)}
        of_class = torch.tensor([position.get(name, -1) for name in names], device=class_input_ids.device)
        # Class-specific contexts have ids for the classes only, whose rows are never read here.
        new = [name for name in names if name not in position]
        ids = class_input_ids.new_zeros(len(names), 1)
        if new:
            new_ids = prompt_ids(new)
            ids = ids.expand(-1, new_ids.shape[1]).clone()
            ids[of_class < 0] = new_ids
        self.input_ids: Tensor
        self.new_input_ids: (
            Tensor  # of names that are no classes: picked here, as compiled code can't tell their number
        )
        self.of_class: Tensor
        self.targets: Tensor
        self.register_buffer("input_ids", ids, persistent=False)
        self.register_buffer("new_input_ids", ids[of_class < 0], persistent=False)
        self.register_buffer("of_class", of_class, persistent=False)
        self.register_buffer("targets", targets.detach().to(ids.device, torch.float32), persistent=False)

    def encode(
        self, class_input_ids: Tensor, encode_prompts: Callable[[Tensor, int | None], Tensor], chunk_size: int | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Features of the classes, and features and targets of this step's anchors, in one pass of the text tower.

        Args:
            class_input_ids: (classes, length).
            encode_prompts: token ids (n, length) and `chunk_size` -> features (n, dim).
            chunk_size: prompts at once; None: all.

        Returns:
            (classes, dim), (anchors, dim) and (anchors, dim).
        """
        new_ids, of_class, targets = self.new_input_ids, self.of_class, self.targets
        if self.per_step is not None and self.per_step < len(of_class):
            chosen = torch.randperm(len(of_class))[: self.per_step].to(of_class.device)
            of_class, targets = of_class[chosen], targets[chosen]
            new_ids = self.input_ids[chosen][of_class < 0]
        num_classes, length = len(class_input_ids), max(class_input_ids.shape[1], new_ids.shape[1])
        # A row may be filled up with anything behind its end of text: its last token is there already.
        rows = [F.pad(part, (0, length - part.shape[1])) for part in (class_input_ids, new_ids)]
        features = encode_prompts(torch.cat(rows), chunk_size)
        is_new = of_class.lt(0)
        where = torch.where(is_new, num_classes - 1 + is_new.cumsum(0), of_class)
        return features[:num_classes], features[where], targets
