# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The Label Rectification Module and weighted boxes fusion, as pure functions on batches.

Ma et al., "Cross Teaching" (arXiv 2201.10734 v1) and "CrossRectify" (v2, Pattern Recognition 137:109280): where the box of
another detector overlaps an own box and is more confident, it takes the own box's place. The released code has four such
rules; three work on boxes (`BOX_RULES`) and SSD300's works on anchors (`rectify_anchors`). Released code has two detectors;
with more, the most confident of all that match wins.

Ragged detections are lists of `dict(boxes (n, 4) xyxy, scores (n,), labels (n,))`, as torchvision gives them; the batched
functions take `PaddedDetections` and neither wait for the device nor change shapes with the data.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.utils import logging


logger = logging.get_logger(__name__)

# How each released rule treats IoU at the threshold, boxes without a partner, empty sides and equal scores.
BOX_RULES: dict[str, dict[str, Any]] = {
    # Faster R-CNN on VOC, v1: detectron2 trainer
    "ct_v1": dict(inclusive=True, unmatched_own="drop", unmatched_other="drop", on_empty="skip", tie="own"),
    # Faster R-CNN on VOC, v2
    "crossrectify_voc": dict(inclusive=True, unmatched_own="drop", unmatched_other="add", on_empty="skip", tie="own"),
    # Faster R-CNN on COCO, v2: mmdetection
    "crossrectify_coco": dict(
        inclusive=False, unmatched_own="keep", unmatched_other="drop", on_empty="keep_own", tie="other"
    ),
}
ANCHOR_RULE = "ssd_anchor"
OPTIONS = {
    "unmatched_own": ("drop", "keep"),
    "unmatched_other": ("drop", "add"),
    "on_empty": ("skip", "keep_own"),
    "tie": ("own", "other"),
}
# IoU tables of more elements than this leave the cache of a CPU, and are made image by image.
CACHED_PAIRS = 1 << 18


class PaddedDetections(NamedTuple):
    """Detections of a batch, padded to one number N: `valid` says which are there."""

    boxes: Tensor  # (..., N, 4) xyxy
    scores: Tensor  # (..., N)
    labels: Tensor  # (..., N) int64
    valid: Tensor  # (..., N) bool


class Rectified(NamedTuple):
    """Rectified detections; each is row `row` of detector `source`: 0 is own, k + 1 is `others[k]`."""

    boxes: Tensor  # (..., N', 4)
    scores: Tensor  # (..., N')
    labels: Tensor  # (..., N')
    valid: Tensor  # (..., N') bool
    source: Tensor  # (..., N') int64
    row: Tensor  # (..., N') int64


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of each box of `a` with each of `b`, 0 where the union has no area.

    Args:
        a: (..., N, 4) xyxy, any float type; half precision is computed in float32, whose areas can't overflow.
        b: (..., K, 4).

    Returns:
        (..., N, K), float32 or float64.
    """
    a, b = (boxes if boxes.dtype == torch.float64 else boxes.float() for boxes in (a, b))
    a, b = a[..., :, None, :], b[..., None, :, :]
    # Side by side and in place: the tables are the whole cost.
    width = torch.minimum(a[..., 2], b[..., 2]).sub_(torch.maximum(a[..., 0], b[..., 0])).clamp_(min=0)
    height = torch.minimum(a[..., 3], b[..., 3]).sub_(torch.maximum(a[..., 1], b[..., 1])).clamp_(min=0)
    intersection = width.mul_(height)  # (..., N, K)
    area_a, area_b = ((boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1]) for boxes in (a, b))
    union = torch.add(area_a, area_b, out=height).sub_(intersection)
    return intersection.div_(union.clamp_(min=torch.finfo(union.dtype).tiny))


def is_sound_box(boxes: Tensor, scores: Tensor | None = None, image_size: tuple[int, int] | None = None) -> Tensor:
    """Which boxes have an area and finite numbers, and are not wholly outside the image.

    Args:
        boxes: (..., 4) xyxy.
        scores: (...,), finite for a sound box; optional.
        image_size: (height, width) in the unit of the boxes; None: boxes may be anywhere.

    Returns:
        bool (...,).
    """
    low, high = boxes[..., :2], boxes[..., 2:]
    sound = boxes.isfinite().all(-1) & (high > low).all(-1)
    if scores is not None:
        sound = sound & scores.isfinite()
    if image_size is not None:
        size = boxes.new_tensor((image_size[1], image_size[0]))
        sound = sound & (high > 0).all(-1) & (low < size).all(-1)
    return sound


def greedy_nms(boxes: Tensor, scores: Tensor, valid: Tensor, iou_threshold: float) -> Tensor:
    """Class-agnostic greedy non-maximum suppression of a batch, without waiting for the device.

    Of two boxes whose IoU is above `iou_threshold`, the one with the lower score goes; of equal scores, the later one.

    Args:
        boxes: (..., N, 4) xyxy.
        scores: (..., N).
        valid: (..., N) bool.
        iou_threshold: between 0 and 1.

    Returns:
        bool (..., N), True for valid boxes that stay.
    """
    order = scores.masked_fill(~valid, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    everything = torch.zeros_like(valid)
    if valid.device.type == "cpu":  # where looking costs nothing: valid boxes come first
        order = order[..., : int(valid.sum(-1).max()) if valid.numel() else 0]
    boxes = boxes.gather(-2, order[..., None].expand(*order.shape, 4))
    valid = valid.gather(-1, order)
    # (..., suppressed, by): only a box that comes before, in the order of scores, suppresses
    suppresses = (box_iou(boxes, boxes) > iou_threshold).tril_(-1).float()
    keep = valid
    # Each round settles at least one more box for good; on a CPU, where looking costs nothing, stop when all are.
    for _ in range(boxes.shape[-2]):
        settled = valid & ((suppresses @ keep.float()[..., None]).squeeze(-1) == 0)
        if keep.device.type == "cpu" and torch.equal(settled, keep):
            break
        keep = settled
    return everything.scatter(-1, order, keep)


def _best_partner(own: PaddedDetections, others: PaddedDetections, class_aware: bool) -> tuple[Tensor, Tensor]:
    """IoU with, and index of, the best box of each other detector for each own box: (K, ..., N) both; -1: none."""
    iou = box_iou(own.boxes, others.boxes)  # (K, ..., N, N')
    iou.masked_fill_(~others.valid[..., None, :], -1.0)
    if class_aware:
        iou.masked_fill_(own.labels[..., :, None] != others.labels[..., None, :], -1.0)
    best, index = iou.max(-1)  # the first of equals
    return best.masked_fill_(~own.valid, -1.0), index


def _image(detections: PaddedDetections, dim: int, image: int) -> PaddedDetections:
    return PaddedDetections(*(field.narrow(dim, image, 1) for field in detections))


def label_rectification(
    own: PaddedDetections,
    others: PaddedDetections,
    *,
    iou_threshold: float = 0.5,
    inclusive: bool = True,
    class_aware: bool = False,
    unmatched_own: str = "drop",
    unmatched_other: str = "add",
    on_empty: str = "skip",
    tie: str = "own",
    dedupe: bool = False,
) -> Rectified:
    """Rectify the boxes of one detector by those of the others; the defaults are CrossRectify's on VOC.

    The partner of an own box in another detector is that detector's box of highest IoU (the first of equals), if the IoU
    passes the threshold. Of the own box and its partners the one of highest score is taken whole: box, label and score.

    Args:
        own: N detections of each image, any leading dimensions (...).
        others: K other detectors, stacked in front: boxes (K, ..., N', 4) and so on.
        iou_threshold: IoU that a partner needs.
        inclusive: whether an IoU exactly at the threshold passes.
        class_aware: only boxes of one label are partners. The published rules arbitrate between labels: False.
        unmatched_own: "drop" or "keep" own boxes without a partner.
        unmatched_other: "drop" or "add" boxes of others that are no own box's partner. With K > 1 the added ones go
            through non-maximum suppression at IoU 0.5, since two detectors may add one object (our extension).
        on_empty: where own detections, or those of all others, are none: "skip" the image (no detections), or "keep_own".
        tie: of equal scores, "own" or "other" wins; among others the first.
        dedupe: of own boxes that became the same box of another, keep the first. The released code keeps all.

    Returns:
        N rows (own boxes, perhaps replaced), and with "add" K * N' rows more. Rows that are not `valid` hold zeros.

    Raises:
        ValueError: an unknown option.
    """
    for name, value in (
        ("unmatched_own", unmatched_own), ("unmatched_other", unmatched_other), ("on_empty", on_empty), ("tie", tie)
    ):  # fmt: skip
        if value not in OPTIONS[name]:
            raise ValueError(f"`{name}` must be one of {', '.join(OPTIONS[name])}, got {value!r}.")
    num_others, num_other_boxes = others.scores.shape[0], others.scores.shape[-1]
    num_own = own.scores.shape[-1]
    others_empty = ~others.valid.any(-1).any(0) if num_other_boxes else torch.ones_like(own.valid[..., 0:1]).any(-1)
    if num_own and num_other_boxes:
        chunk_dim = own.scores.dim() - 2  # the images, or none
        pairs = num_others * own.scores.numel() * num_other_boxes
        if chunk_dim < 0 or own.boxes.is_cuda or pairs <= CACHED_PAIRS:
            iou, partner = _best_partner(own, others, class_aware)
        else:
            chunks = [
                _best_partner(_image(own, chunk_dim, i), _image(others, chunk_dim + 1, i), class_aware)
                for i in range(own.scores.shape[chunk_dim])
            ]
            iou, partner = (torch.cat(parts, chunk_dim + 1) for parts in zip(*chunks))
        # The threshold in the table's own precision: 0.3 as float32 is not above 0.3.
        threshold = torch.tensor(iou_threshold, dtype=iou.dtype)
        matched = (iou >= threshold if inclusive else iou > threshold) & (iou >= 0)
        partner_scores = others.scores.gather(-1, partner).masked_fill(~matched, -torch.inf)  # (K, ..., N)
        candidates = [own.scores[None], partner_scores] if tie == "own" else [partner_scores, own.scores[None]]
        winner = torch.cat(candidates).argmax(0)  # the first of equals
        source = winner if tie == "own" else (winner + 1) % (num_others + 1)
        replaced = source > 0
        chosen = (source - 1).clamp_min(0)[None]
        partner_of_winner = partner.gather(0, chosen).squeeze(0)  # (..., N)
        flat = chosen * num_other_boxes + partner_of_winner  # into the detectors' boxes, side by side
        by_image = [field.movedim(0, own.scores.dim() - 1).flatten(own.scores.dim() - 1, own.scores.dim())
                    for field in others]  # (..., K * N')  # fmt: skip
        flat = flat.squeeze(0)
        boxes = torch.where(
            replaced[..., None], by_image[0].gather(-2, flat[..., None].expand(*flat.shape, 4)), own.boxes
        )
        scores = torch.where(replaced, by_image[1].gather(-1, flat), own.scores)
        labels = torch.where(replaced, by_image[2].gather(-1, flat), own.labels)
        index = torch.where(replaced, partner_of_winner, torch.arange(num_own, device=source.device))
        valid = own.valid & (matched.any(0) if unmatched_own == "drop" else True)
    else:
        boxes, scores, labels = own.boxes, own.scores, own.labels
        source = torch.zeros_like(own.labels)
        index = torch.arange(num_own, device=source.device).expand_as(source)
        valid = own.valid & (unmatched_own == "keep")
        matched, partner = None, None
    if dedupe:
        same = (source[..., :, None] == source[..., None, :]) & (index[..., :, None] == index[..., None, :])
        earlier = (same & valid[..., None, :]).tril(-1).any(-1)
        valid = valid & ~earlier
    own_empty = ~own.valid.any(-1)
    empty = (own_empty | others_empty)[..., None]  # (..., 1)
    if on_empty == "skip":
        valid = valid & ~empty
    else:
        valid = torch.where(empty, own.valid, valid)
    rows = [boxes, scores, labels, valid, source, index]
    if unmatched_other == "add" and num_other_boxes:
        added = others.valid  # (K, ..., N')
        if matched is not None and partner is not None:
            is_partner = torch.zeros(others.valid.shape, dtype=torch.int32, device=source.device)
            is_partner = is_partner.scatter_add(-1, partner, matched.int())
            added = added & (is_partner == 0)
        added = added & ~empty
        last = own.scores.dim() - 1
        extra = [
            field.movedim(0, last).flatten(last, last + 1) for field in (others.boxes, others.scores, others.labels)
        ]
        added = added.movedim(0, last).flatten(last, last + 1)
        if num_others > 1:
            added = greedy_nms(extra[0], extra[1], added, 0.5)
        detector = torch.arange(num_others, device=source.device).repeat_interleave(num_other_boxes) + 1
        position = torch.arange(num_other_boxes, device=source.device).repeat(num_others)
        extra += [added, detector.expand_as(added), position.expand_as(added)]
        # (..., N + K * N'); the boxes have one dimension more, behind
        rows = [torch.cat([row, more.to(row.dtype)], last) for row, more in zip(rows, extra)]
    boxes, scores, labels, valid, source, index = rows
    return Rectified(
        boxes.masked_fill(~valid[..., None], 0), scores.masked_fill(~valid, 0), labels.masked_fill(~valid, 0),
        valid, source.masked_fill(~valid, 0), index.masked_fill(~valid, 0),
    )  # fmt: skip


def peers_of(detections: PaddedDetections) -> PaddedDetections:
    """The peers of each of M detectors: (M, ...) becomes (M - 1, M, ...), in the order of the detectors.

    With it one call rectifies all detectors: `label_rectification(detections, peers_of(detections))`.
    """
    num = detections.scores.shape[0]
    # (M - 1, M): row k has, for each detector, its k-th peer
    others = torch.tensor([[j for j in range(num) if j != i] for i in range(num)], dtype=torch.long).view(num, -1).T
    others = others.to(detections.scores.device)
    return PaddedDetections(*(field[others] for field in detections))


def stack_detections(detections: Sequence[PaddedDetections]) -> PaddedDetections:
    """Several detectors' detections of the same images, padded to one number of rows, stacked in front."""
    num_rows = max(padded.scores.shape[-1] for padded in detections)

    def grow(field: Tensor, dim: int) -> Tensor:
        shape = list(field.shape)
        shape[dim] = num_rows - shape[dim]
        return torch.cat([field, field.new_zeros(shape)], dim)

    grown = [
        PaddedDetections(grow(boxes, -2), grow(scores, -1), grow(labels, -1), grow(valid, -1))
        for boxes, scores, labels, valid in detections
    ]
    return PaddedDetections(*(torch.stack(fields) for fields in zip(*grown)))


def pad_detections(detections: list[dict[str, Tensor]], num_rows: int | None = None) -> tuple[PaddedDetections, int]:
    """Detections of a batch of images in one tensor each; boxes without area or with NaN are left out and counted.

    Args:
        detections: one dict(boxes (n, 4) xyxy, scores (n,), labels (n,) of any integer type) an image.
        num_rows: rows to pad to; default the largest n.

    Returns:
        Fields (B, N, ...), boxes and scores at least float32, and the number of boxes that were left out.

    Raises:
        ValueError: fields that are missing or of other shapes.
    """
    for number, image in enumerate(detections):
        if missing := {"boxes", "scores", "labels"} - image.keys():
            raise ValueError(f"detections of image {number} have no {', '.join(sorted(missing))}.")
        boxes, scores, labels = image["boxes"], image["scores"], image["labels"]
        if boxes.dim() != 2 or boxes.shape[1] != 4 or not (len(boxes) == len(scores) == len(labels)):
            raise ValueError(
                f"detections of image {number} must have boxes (n, 4), scores (n,) and labels (n,), got "
                f"{tuple(boxes.shape)}, {tuple(scores.shape)} and {tuple(labels.shape)}."
            )
        if labels.is_floating_point():
            raise ValueError(f"labels of image {number} must be integers, got {labels.dtype}.")
    num_rows = max((len(image["scores"]) for image in detections), default=0) if num_rows is None else num_rows
    if not detections:
        empty = torch.zeros(0, num_rows)
        return PaddedDetections(empty[..., None].expand(-1, -1, 4), empty, empty.long(), empty.bool()), 0
    dtype = torch.float64 if any(image["boxes"].dtype == torch.float64 for image in detections) else torch.float32
    boxes = torch.cat([image["boxes"] for image in detections]).to(dtype)
    scores = torch.cat([image["scores"] for image in detections]).to(dtype)
    labels = torch.cat([image["labels"] for image in detections]).long()
    sound = is_sound_box(boxes, scores)
    # NaN would spread through the sums that are masked afterwards
    boxes, scores = boxes.masked_fill(~sound[:, None], 0), scores.masked_fill(~sound, 0)
    counts = [len(image["scores"]) for image in detections]
    # where each detection goes, known without asking the device
    rows = torch.tensor(
        [row * num_rows + n for row, count in enumerate(counts) for n in range(count)], dtype=torch.long
    )
    rows = rows.to(boxes.device)
    shape = (len(detections), num_rows)
    flat = boxes.new_zeros(len(detections) * num_rows, 4)
    padded = PaddedDetections(
        flat.index_copy(0, rows, boxes).view(*shape, 4),
        flat[:, 0].index_copy(0, rows, scores).view(shape),
        torch.zeros_like(flat[:, 0], dtype=torch.long).index_copy(0, rows, labels).view(shape),
        torch.zeros_like(flat[:, 0], dtype=torch.bool).index_copy(0, rows, sound).view(shape),
    )
    return padded, len(sound) - int(sound.sum())


def unpad_detections(padded: PaddedDetections | Rectified) -> list[dict[str, Tensor]]:
    """The valid rows of each image as dict(boxes, scores, labels), in order; waits for the device."""
    return [
        {"boxes": boxes[valid], "scores": scores[valid], "labels": labels[valid]}
        for boxes, scores, labels, valid in zip(padded.boxes, padded.scores, padded.labels, padded.valid)
    ]


def rectify(
    own: list[dict[str, Tensor]],
    others: list[list[dict[str, Tensor]]],
    rule: str = "crossrectify_coco",
    **options: Any,
) -> list[dict[str, Tensor]]:
    """Rectify the detections of one detector by those of its peers.

    Args:
        own: torchvision detections, one dict(boxes (n, 4) xyxy, scores (n,), labels (n,)) an image.
        others: for each peer the like, of the same images. No peers: `own` comes back, with a warning.
        rule: "ct_v1", "crossrectify_voc" or "crossrectify_coco" (see `BOX_RULES`).
        options: arguments of `label_rectification` in place of the rule's.

    Returns:
        The form, dtypes and devices of `own`; boxes without area or with NaN, own or others', are left out with a warning.

    Raises:
        ValueError: an unknown rule or option, peers with another number of images, detections without the three fields.

    Example:

    ```python
    >>> box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    >>> own = [dict(boxes=box, scores=torch.tensor([0.6]), labels=torch.tensor([1]))]
    >>> peer = [dict(boxes=box + 1, scores=torch.tensor([0.9]), labels=torch.tensor([2]))]
    >>> rectify(own, [peer])[0]["labels"]
    tensor([2])
    ```
    """
    if rule not in BOX_RULES:
        hint = "; for anchors see `rectify_anchors`" if rule == ANCHOR_RULE else ""
        raise ValueError(f"`rule` must be one of {', '.join(BOX_RULES)}, got {rule!r}{hint}.")
    if lengths := [len(peer) for peer in others if len(peer) != len(own)]:
        raise ValueError(f"each of `others` must have the {len(own)} images of `own`, got one with {lengths[0]}.")
    if not own:
        return []
    padded, dropped = pad_detections(own)
    dtypes = [{name: image[name].dtype for name in ("boxes", "scores", "labels")} for image in own]
    if not others:
        logger.warning("`rectify` has no peers: the own detections stay as they are.")
        rectified: PaddedDetections | Rectified = padded
    else:
        peers = [pad_detections(peer) for peer in others]
        dropped += sum(count for _, count in peers)
        stacked = stack_detections([peer for peer, _ in peers])
        stacked = stacked._replace(boxes=stacked.boxes.to(padded.boxes), scores=stacked.scores.to(padded.scores))
        rectified = label_rectification(padded, stacked, **{**BOX_RULES[rule], **options})
    if dropped:
        logger.warning(f"`rectify` left out {dropped} boxes without area or with numbers that are not finite.")
    return [
        {name: value.to(dtype[name]) for name, value in image.items()}
        for image, dtype in zip(unpad_detections(rectified), dtypes)
    ]


class RectifiedAnchors(NamedTuple):
    """Pseudo labels on anchors; rows that are not `valid` hold zeros."""

    anchor: Tensor  # (B, K) int64, which anchor
    label: Tensor  # (B, K) int64, 0 is the background
    offsets: Tensor  # (B, K, 4), the box target
    valid: Tensor  # (B, K) bool
    own_label: Tensor  # (B, K) int64, before rectification
    replaced: Tensor  # (B, K) bool, a peer's label was taken


def rectify_anchors(
    own_logits: Tensor,
    own_offsets: Tensor,
    peer_logits: Tensor,
    peer_offsets: Tensor,
    own_boxes: Tensor,
    *,
    score_threshold: float = 0.5,
    top_k: int = 20,
    nms_threshold: float = 0.5,
    box_target: str = "peer",
) -> RectifiedAnchors:
    """The rule of SSD300 ("ssd_anchor"): the label of an anchor is that of the more confident detector.

    Anchors whose own best foreground probability is above `score_threshold`, of these the `top_k` best, of these what
    class-agnostic non-maximum suppression leaves. There the own label wins if its probability, over all classes with the
    background, is strictly above the peer's; the result may be the background. The box target is the peer's, whoever won:
    so the released code has it; `box_target="winner"` follows the label. Of several peers the most confident counts.

    Args:
        own_logits: (B, A, C + 1), background first.
        own_offsets: (B, A, 4), encoded.
        peer_logits: (K, B, A, C + 1), at least one peer.
        peer_offsets: (K, B, A, 4).
        own_boxes: (B, A, 4) xyxy, the own offsets decoded and clipped.
        score_threshold: foreground probability above which an anchor is used.
        top_k: anchors that enter non-maximum suppression.
        nms_threshold: boxes whose IoU is above it are suppressed.
        box_target: "peer" or "winner".

    Raises:
        ValueError: an unknown `box_target`.
    """
    if box_target not in ("peer", "winner"):
        raise ValueError(f"`box_target` must be 'peer' or 'winner', got {box_target!r}.")
    probabilities = own_logits.float().softmax(-1)
    foreground = probabilities[..., 1:].amax(-1)  # (B, A)
    best, anchor = foreground.topk(min(top_k, foreground.shape[-1]), dim=-1)  # (B, K), sorted
    boxes = own_boxes.gather(1, anchor[..., None].expand(-1, -1, 4))
    valid = greedy_nms(boxes, best, best > score_threshold, nms_threshold)

    def at_anchors(values: Tensor) -> Tensor:
        index = anchor[..., None].expand(*values.shape[:-3], *anchor.shape, values.shape[-1])
        return values.gather(-2, index)

    own_score, own_label = at_anchors(probabilities).max(-1)  # (B, K)
    peer_scores, peer_labels = at_anchors(peer_logits).float().softmax(-1).max(-1)  # (peers, B, K)
    peer = peer_scores.argmax(0, keepdim=True)  # the first of equals
    replaced = ~(own_score > peer_scores.gather(0, peer)[0])
    label = torch.where(replaced, peer_labels.gather(0, peer)[0], own_label)
    offsets = at_anchors(peer_offsets).gather(0, peer[..., None].expand(-1, -1, -1, 4))[0]
    if box_target == "winner":
        offsets = torch.where(replaced[..., None], offsets, at_anchors(own_offsets))
    return RectifiedAnchors(
        anchor.masked_fill(~valid, 0), label.masked_fill(~valid, 0), offsets.masked_fill(~valid[..., None], 0),
        valid, own_label.masked_fill(~valid, 0), replaced & valid,
    )  # fmt: skip


def weighted_boxes_fusion(
    detections: list[list[dict[str, Tensor]]],
    iou_threshold: float = 0.6,
    skip_score: float = 1e-4,
    weights: list[float] | None = None,
) -> list[dict[str, Tensor]]:
    """Fuse the detections of several models into one set (Solovyev et al., arXiv 1910.13302); defaults of CrossRectify.

    In the order of scores, a box joins the fused box of its label with the highest IoU above `iou_threshold`, or begins a
    new one. A fused box is the mean of its boxes, weighted by their scores; its score is their mean times
    min(number of boxes, W) / W, with W the sum of the weights, so that what only one model saw counts less.

    Args:
        detections: for each model, one dict(boxes (n, 4) xyxy, scores (n,), labels (n,)) an image.
        iou_threshold: IoU with a fused box above which a box joins it.
        skip_score: boxes with a score below it are left out.
        weights: of the models; default 1 each.

    Returns:
        One dict an image, sorted by score, with the dtypes and device of the first model's.

    Raises:
        ValueError: no model, another number of images or weights, or a weight that is not positive.
    """
    if not detections:
        raise ValueError("`detections` must have those of at least one model.")
    if lengths := [len(model) for model in detections if len(model) != len(detections[0])]:
        raise ValueError(f"all models must have the same images, got {len(detections[0])} and {lengths[0]}.")
    weights = [1.0] * len(detections) if weights is None else weights
    if len(weights) != len(detections) or min(weights) <= 0:
        raise ValueError(f"`weights` must be {len(detections)} positive numbers, got {weights}.")
    return [_fuse_image(models, iou_threshold, skip_score, weights) for models in zip(*detections)]


def _fuse_image(models, iou_threshold: float, skip_score: float, weights: list[float]) -> dict[str, Tensor]:
    rows = []  # (weighted score, label, box)
    for image, weight in zip(models, weights):
        sound = is_sound_box(image["boxes"], image["scores"]) & (image["scores"] >= skip_score)
        scores, labels = (image["scores"][sound].double() * weight).tolist(), image["labels"][sound].tolist()
        rows += list(zip(scores, labels, image["boxes"][sound].double().tolist()))
    rows.sort(key=lambda row: -row[0])
    clusters: dict[int, list[list]] = {}  # of each label: [sum of scores, number, sum of score * box, fused box]
    for score, label, box in rows:
        of_label = clusters.setdefault(label, [])
        overlaps = [_iou(box, cluster[3]) for cluster in of_label]
        best = max(range(len(overlaps)), key=overlaps.__getitem__, default=None)  # the first of equals
        if best is None or overlaps[best] <= iou_threshold:
            of_label.append([score, 1, [score * x for x in box], box])
        else:
            cluster = of_label[best]
            cluster[0], cluster[1] = cluster[0] + score, cluster[1] + 1
            cluster[2] = [total + score * x for total, x in zip(cluster[2], box)]
            cluster[3] = [x / cluster[0] for x in cluster[2]] if cluster[0] > 0 else cluster[3]
    total = sum(weights)
    fused = [
        (scores / number * min(number, total) / total, label, box)
        for label, of_label in clusters.items()
        for scores, number, _, box in of_label
    ]
    fused.sort(key=lambda row: -row[0])
    first = models[0]
    return {
        "boxes": first["boxes"].new_tensor([box for *_, box in fused]).reshape(-1, 4),
        "scores": first["scores"].new_tensor([score for score, *_ in fused]),
        "labels": first["labels"].new_tensor([label for _, label, _ in fused]),
    }


def _iou(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    intersection = width * height
    return intersection / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection)
