# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The Label Rectification Module, as pure functions on batches.

Ma et al., "Cross Teaching" (arXiv 2201.10734 v1) and "CrossRectify" (v2, Pattern Recognition 137:109280): where the box of
another detector overlaps an own box and is more confident, it takes the own box's place. The released code has four such
rules; three work on boxes (`BOX_RULES`) and SSD300's works on anchors (`rectify_anchors`). Released code has two detectors;
with more, the most confident of all that match wins.

The batched functions take `PaddedDetections` and neither wait for the device nor change shapes with the data.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.utils import logging

from .detections_cross_teaching import (
    PaddedDetections,
    box_iou,
    greedy_nms,
    pad_detections,
    stack_detections,
    unpad_detections,
)


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


class Rectified(NamedTuple):
    """Rectified detections; each is row `row` of detector `source`: 0 is own, k + 1 is `others[k]`."""

    boxes: Tensor  # (..., N', 4)
    scores: Tensor  # (..., N')
    labels: Tensor  # (..., N')
    valid: Tensor  # (..., N') bool
    source: Tensor  # (..., N') int64
    row: Tensor  # (..., N') int64


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
        ValueError: an unknown option, or a threshold outside of [0, 1].
    """
    for name, value in (
        ("unmatched_own", unmatched_own), ("unmatched_other", unmatched_other), ("on_empty", on_empty), ("tie", tie)
    ):  # fmt: skip
        if value not in OPTIONS[name]:
            raise ValueError(f"`{name}` must be one of {', '.join(OPTIONS[name])}, got {value!r}.")
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"`iou_threshold` must be between 0 and 1, got {iou_threshold}.")
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


@torch.no_grad()  # detections made without it have gradients, which pseudo labels don't pass on
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
    boxes: Tensor  # (B, K, 4) xyxy, the own offsets decoded
    own_score: Tensor  # (B, K), of the own label


def rectify_anchors(
    own_logits: Tensor,
    own_offsets: Tensor,
    peer_logits: Tensor,
    peer_offsets: Tensor,
    anchors: Tensor,
    decode: Callable[[Tensor, Tensor], Tensor],
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
        anchors: (A, 4), the default boxes.
        decode: offsets (B, K, 4) and the default boxes that they belong to (B, K, 4) -> boxes (B, K, 4) xyxy, clipped.
        score_threshold: foreground probability above which an anchor is used.
        top_k: anchors that enter non-maximum suppression.
        nms_threshold: boxes whose IoU is above it are suppressed.
        box_target: "peer" or "winner".

    Raises:
        ValueError: an unknown `box_target`.
    """
    if box_target not in ("peer", "winner"):
        raise ValueError(f"`box_target` must be 'peer' or 'winner', got {box_target!r}.")
    # A softmax (B, C + 1, A) over few classes is quicker where anchors lie side by side, and in place.
    exponentials = own_logits.float().transpose(1, 2).clone(memory_format=torch.contiguous_format)
    exponentials -= exponentials.amax(1, keepdim=True)
    exponentials.exp_()
    foreground = exponentials[:, 1:].amax(1) / exponentials.sum(1)  # (B, A)
    best, anchor = foreground.topk(min(top_k, foreground.shape[-1]), dim=-1)  # (B, K), sorted

    def at_anchors(values: Tensor) -> Tensor:
        index = anchor[..., None].expand(*values.shape[:-3], *anchor.shape, values.shape[-1])
        return values.gather(-2, index)

    boxes = decode(at_anchors(own_offsets), anchors[anchor])
    valid = greedy_nms(boxes, best, best > score_threshold, nms_threshold)
    own_score, own_label = at_anchors(own_logits).float().softmax(-1).max(-1)  # (B, K)
    peer_scores, peer_labels = at_anchors(peer_logits).float().softmax(-1).max(-1)  # (peers, B, K)
    peer = peer_scores.argmax(0, keepdim=True)  # the first of equals
    replaced = ~(own_score > peer_scores.gather(0, peer)[0])
    label = torch.where(replaced, peer_labels.gather(0, peer)[0], own_label)
    offsets = at_anchors(peer_offsets).gather(0, peer[..., None].expand(-1, -1, -1, 4))[0]
    if box_target == "winner":
        offsets = torch.where(replaced[..., None], offsets, at_anchors(own_offsets))
    return RectifiedAnchors(
        anchor.masked_fill(~valid, 0), label.masked_fill(~valid, 0), offsets.masked_fill(~valid[..., None], 0),
        valid, own_label.masked_fill(~valid, 0), replaced & valid, boxes.masked_fill(~valid[..., None], 0),
        own_score.masked_fill(~valid, 0),
    )  # fmt: skip
