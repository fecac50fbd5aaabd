# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The rectification rules against a plain-Python reading of the spec's table, box by box."""

import math

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_methods import rectify, weighted_boxes_fusion
from hf_methods.cross_teaching import detections_cross_teaching
from hf_methods.cross_teaching.detections_cross_teaching import (
    PaddedDetections,
    box_iou,
    greedy_nms,
    is_sound_box,
    pad_detections,
    peers_of,
    stack_detections,
    unpad_detections,
)
from hf_methods.cross_teaching.rectification_cross_teaching import (
    BOX_RULES,
    CACHED_PAIRS,
    label_rectification,
    rectify_anchors,
)


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inter = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    return inter / union if union > 0 else 0.0


def oracle(own, others, *, iou_threshold=0.5, inclusive, class_aware=False, unmatched_own, unmatched_other, on_empty, tie,
           dedupe=False):  # fmt: skip
    """Rows (box, score, label, source, index) of one image; own and others are lists of (box, score, label)."""
    if not own or not any(others):
        kept = own if on_empty == "keep_own" else []
        return [(*row, 0, n) for n, row in enumerate(kept)]
    rows, partners = [], set()
    for n, row in enumerate(own):
        candidates = []  # (row, source, index)
        for k, other in enumerate(others):
            best, at = -1, None
            for j, peer in enumerate(other):
                if class_aware and peer[2] != row[2]:
                    continue
                if iou(row[0], peer[0]) > best:
                    best, at = iou(row[0], peer[0]), j
            if at is not None and (best >= iou_threshold if inclusive else best > iou_threshold):
                candidates.append((other[at], k + 1, at))
                partners.add((k, at))
        if not candidates and unmatched_own == "drop":
            continue
        mine = [(row, 0, n)]
        winner, source, index = max(
            mine + candidates if tie == "own" else candidates + mine, key=lambda item: item[0][1]
        )  # max takes the first of equals
        if dedupe and any(r[3:] == (source, index) for r in rows):
            continue
        rows.append((*winner, source, index))
    if unmatched_other == "add":
        added = [
            (*peer, k + 1, j)
            for k, other in enumerate(others)
            for j, peer in enumerate(other)
            if (k, j) not in partners
        ]
        if len(others) > 1:
            kept = []
            for row in sorted(added, key=lambda row: -row[1]):
                if all(iou(row[0], earlier[0]) <= 0.5 for earlier in kept):
                    kept.append(row)
            added = [row for row in added if row in kept]
        rows += added
    return rows


def as_detections(rows, dtype=torch.float32):
    return {
        "boxes": torch.tensor([row[0] for row in rows], dtype=dtype).reshape(-1, 4),
        "scores": torch.tensor([row[1] for row in rows], dtype=dtype),
        "labels": torch.tensor([row[2] for row in rows], dtype=torch.long),
    }


def stack(detectors):
    return stack_detections([pad_detections(images)[0] for images in detectors])


def as_rows(rectified, image):
    keep = rectified.valid[image]
    fields = (rectified.boxes, rectified.scores, rectified.labels, rectified.source, rectified.row)
    boxes, *rest = (field[image][keep].tolist() for field in fields)
    return [(tuple(box), *values) for box, *values in zip(boxes, *rest)]


# Whole coordinates on a coarse grid and scores in quarters: IoU at the threshold, equal IoU and equal scores are common.
box = st.tuples(*[st.integers(0, 4)] * 2, *[st.integers(1, 4)] * 2).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)
row = st.tuples(box, st.sampled_from([0.25, 0.5, 0.75, 1.0]), st.integers(1, 2))
image = st.lists(row, max_size=5)
choices = st.fixed_dictionaries(
    {
        "inclusive": st.booleans(),
        "class_aware": st.booleans(),
        "unmatched_own": st.sampled_from(["drop", "keep"]),
        "unmatched_other": st.sampled_from(["drop", "add"]),
        "on_empty": st.sampled_from(["skip", "keep_own"]),
        "tie": st.sampled_from(["own", "other"]),
        "dedupe": st.booleans(),
        "iou_threshold": st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    }
)


@settings(max_examples=250, deadline=None)
@given(st.integers(2, 4).flatmap(lambda m: st.lists(st.lists(image, min_size=m, max_size=m), min_size=1, max_size=3)),
       choices | st.sampled_from(list(BOX_RULES.values())))  # fmt: skip
def test_every_rule_is_the_plain_reading_of_it(images, options):
    num_detectors = len(images[0])
    detectors = [[as_detections(image[d]) for image in images] for d in range(num_detectors)]
    padded = stack(detectors)
    everybody = label_rectification(padded, peers_of(padded), **options)
    for own in range(num_detectors):
        others = [d for d in range(num_detectors) if d != own]
        alone = label_rectification(
            PaddedDetections(*(field[own] for field in padded)),
            PaddedDetections(*(field[others] for field in padded)),
            **options,
        )
        for number, per_image in enumerate(images):
            expected = oracle(per_image[own], [per_image[d] for d in others], **options)
            expected = [(tuple(map(float, row[0])), *row[1:]) for row in expected]
            assert as_rows(alone, number) == expected
            mine = type(everybody)(*(field[own] for field in everybody))
            assert as_rows(mine, number) == expected


@pytest.mark.parametrize("num_detectors", [2, 3])
def test_the_cached_path_for_large_tables_gives_the_same(num_detectors, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(num_detectors, 4, 60, 2, generator=generator) * 50
    padded = PaddedDetections(
        torch.cat([corner, corner + 5 + 20 * torch.rand(corner.shape, generator=generator)], -1),
        torch.rand(num_detectors, 4, 60, generator=generator),
        torch.randint(1, 4, (num_detectors, 4, 60), generator=generator),
        torch.rand(num_detectors, 4, 60, generator=generator) > 0.2,
    )
    name = "hf_methods.cross_teaching.rectification_cross_teaching.CACHED_PAIRS"
    assert CACHED_PAIRS > 4 * 60 * 60
    whole = label_rectification(padded, peers_of(padded))
    monkeypatch.setattr(name, 1)
    chunked = label_rectification(padded, peers_of(padded))
    assert all(torch.equal(a, b) for a, b in zip(whole, chunked)) and (whole.source > 0).any()


# (own, peer, what each rule gives); one own box A and perhaps others, IoU of A and A_HALF is exactly 1/2
A, A_HALF, FAR = (0, 0, 4, 4), (0, 0, 4, 2), (20, 20, 24, 24)
CASES = {
    "peer is more confident": (
        [(A, 0.5, 1)], [(A, 0.75, 2)],
        {"ct_v1": [(A, 2)], "crossrectify_voc": [(A, 2)], "crossrectify_coco": [(A, 2)]},
    ),
    "own is more confident": (
        [(A, 0.75, 1)], [(A, 0.5, 2)],
        {"ct_v1": [(A, 1)], "crossrectify_voc": [(A, 1)], "crossrectify_coco": [(A, 1)]},
    ),
    "equal scores": (
        [(A, 0.5, 1)], [(A, 0.5, 2)],
        {"ct_v1": [(A, 1)], "crossrectify_voc": [(A, 1)], "crossrectify_coco": [(A, 2)]},
    ),
    "IoU at the threshold": (
        [(A, 0.5, 1)], [(A_HALF, 0.75, 2)],
        {"ct_v1": [(A_HALF, 2)], "crossrectify_voc": [(A_HALF, 2)], "crossrectify_coco": [(A, 1)]},
    ),
    "nothing matches": (
        [(A, 0.5, 1)], [(FAR, 0.75, 2)],
        {"ct_v1": [], "crossrectify_voc": [(FAR, 2)], "crossrectify_coco": [(A, 1)]},
    ),
    "own is empty": ([], [(A, 0.5, 2)], {"ct_v1": [], "crossrectify_voc": [], "crossrectify_coco": []}),
    "peer is empty": ([(A, 0.5, 1)], [], {"ct_v1": [], "crossrectify_voc": [], "crossrectify_coco": [(A, 1)]}),
    "two own boxes, one peer": (
        [(A, 0.5, 1), (A_HALF, 0.6, 1)], [((0, 0, 4, 3), 0.9, 2)],
        {rule: [((0, 0, 4, 3), 2)] * 2 for rule in BOX_RULES},
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", BOX_RULES)
@pytest.mark.parametrize("case", CASES)
def test_the_published_rules_on_hand_made_cases(case, rule):
    own, peer, expected = CASES[case]
    (result,) = rectify([as_detections(own)], [[as_detections(peer)]], rule)
    found = list(zip(map(tuple, result["boxes"].int().tolist()), result["labels"].tolist()))
    assert found == expected[rule]


def test_duplicates_of_one_peer_box_can_be_left_out():
    own, peer, _ = CASES["two own boxes, one peer"]
    (result,) = rectify([as_detections(own)], [[as_detections(peer)]], "ct_v1", dedupe=True)
    assert result["labels"].tolist() == [2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_half_precision_boxes_do_not_overflow_and_keep_their_type(dtype):
    big = torch.tensor([[0.0, 0.0, 1024.0, 1024.0]], dtype=dtype)  # an area past float16
    own = {"boxes": big, "scores": torch.tensor([0.5], dtype=dtype), "labels": torch.tensor([1], dtype=torch.int32)}
    peer = {**own, "scores": torch.tensor([0.75], dtype=dtype), "labels": torch.tensor([2], dtype=torch.int32)}
    (result,) = rectify([own], [[peer]])
    assert result["labels"].tolist() == [2] and result["boxes"].dtype == result["scores"].dtype == dtype
    assert result["labels"].dtype == torch.int32


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.uint8])
def test_labels_of_every_integer_type_come_back_in_their_own(dtype):
    box = torch.tensor([[0.0, 0, 10, 10]])
    own = [dict(boxes=box, scores=torch.tensor([0.5]), labels=torch.tensor([1], dtype=dtype))]
    peer = [dict(boxes=box, scores=torch.tensor([0.9]), labels=torch.tensor([7], dtype=torch.int32))]
    (image,) = rectify(own, [peer])
    assert image["labels"].dtype == dtype and image["labels"].tolist() == [7]


def test_iou_is_torchvisions_and_zero_for_boxes_without_area():
    generator = torch.Generator().manual_seed(1)
    boxes = torch.rand(2, 30, 4, generator=generator).cumsum(-1)
    assert torch.equal(box_iou(boxes[0], boxes[1]), torchvision.ops.box_iou(boxes[0], boxes[1]))
    nothing = torch.zeros(2, 4)
    assert torch.equal(box_iou(nothing, nothing), torch.zeros(2, 2))


@settings(max_examples=60, deadline=None)
# torchvision compares float32 with a double: there an IoU of exactly 0.3 is above 0.3
@given(st.lists(image, min_size=1, max_size=3), st.sampled_from([0.0, 0.25, 0.5]))
def test_batched_nms_is_torchvisions(images, threshold):
    padded, _ = pad_detections([as_detections(image) for image in images])
    scores = padded.scores + 1e-4 * torch.arange(padded.scores.shape[1])  # torchvision's order of equals is its own
    keep = greedy_nms(padded.boxes, scores, padded.valid, threshold)
    for number, rows in enumerate(images):
        num = len(rows)
        expected = torchvision.ops.nms(padded.boxes[number, :num], scores[number, :num], threshold)
        assert keep[number].nonzero().flatten().tolist() == sorted(expected.tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("shape", [(100,), (3, 100), (2, 3, 100)])
def test_many_boxes_go_image_by_image_and_give_the_same(shape, dtype, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    low = torch.randint(
        0, 40, (*shape, 2), generator=generator
    )  # whole numbers: IoUs at the threshold, and equal scores
    boxes = torch.cat([low, low + torch.randint(1, 12, (*shape, 2), generator=generator)], -1).to(dtype)
    scores = torch.randint(0, 5, shape, generator=generator).to(dtype)
    valid = torch.rand(shape, generator=generator) < 0.9
    valid.view(-1, shape[-1])[-1] = len(shape) == 1  # an image without boxes
    for threshold in (0.0, 0.25, 0.3, 0.5):
        many = greedy_nms(boxes, scores, valid, threshold)
        with monkeypatch.context() as patch:
            patch.setattr(detections_cross_teaching, "TABLE_ROWS", 1000)
            assert torch.equal(greedy_nms(boxes, scores, valid, threshold), many)
        assert many.any() and not (many & ~valid).any()


@pytest.mark.parametrize(
    ("bad", "score"),
    [((4, 0, 4, 4), 0.9), ((4, 4, 0, 0), 0.9), ((0, 0, math.nan, 4), 0.9), ((0, 0, math.inf, 4), 0.9), (A, math.nan)],
)
@pytest.mark.parametrize("side", ["own", "peer"])
def test_unsound_boxes_are_left_out_and_counted(bad, score, side, caplog):
    own, peer = [(A, 0.5, 1)], [(A, 0.25, 2)]
    (own if side == "own" else peer).append((bad, score, 3))
    (result,) = rectify([as_detections(own)], [[as_detections(peer)]])
    assert result["labels"].tolist() == [1] and result["boxes"].isfinite().all()
    _, dropped = pad_detections([as_detections(own)])
    assert dropped == (1 if side == "own" else 0)


def test_an_iou_of_exactly_the_threshold_is_not_above_it():
    boxes = torch.tensor([[0.0, 0, 1, 4], [0, 0, 3, 3]])  # 3 / 10
    assert greedy_nms(boxes, torch.tensor([0.5, 0.4]), torch.ones(2, dtype=torch.bool), 0.3).all()
    own, peer = ([as_detections([(box, score, 1)])] for box, score in (((0, 0, 1, 4), 0.5), ((0, 0, 3, 3), 0.9)))
    assert rectify(own, [peer], "ct_v1", iou_threshold=0.3)[0]["scores"].item() == pytest.approx(0.9)
    assert rectify(own, [peer], "crossrectify_coco", iou_threshold=0.3)[0]["scores"].item() == 0.5


def test_boxes_wholly_outside_the_image_are_unsound():
    boxes = torch.tensor([[-5.0, 0, -1, 4], [9, 0, 12, 4], [11, 0, 12, 4], [0, 21, 4, 22]])
    assert is_sound_box(boxes, image_size=(20, 10)).tolist() == [False, True, False, False]


def test_unsorted_scores_and_scores_above_one_keep_their_order():
    own = [(FAR, 0.1, 1), (A, 7.0, 2)]
    (result,) = rectify([as_detections(own)], [[as_detections([(A, 3.0, 3)])]])
    assert result["scores"].tolist() == pytest.approx([0.1, 7.0])


def test_no_peers_leaves_the_detections_and_no_images_are_no_images():
    own = [as_detections([(A, 0.5, 1)])]
    assert torch.equal(rectify(own, [])[0]["boxes"], own[0]["boxes"])
    assert rectify([], [[]]) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(rule="voc"), "`rule` must be one of ct_v1, .*'voc'"),
        (dict(rule="ssd_anchor"), "see `rectify_anchors`"),
        (dict(others=[[]]), "the 1 images of `own`, got one with 0"),
        (dict(tie="both"), "`tie` must be one of own, other, got 'both'"),
        (dict(own=[{"boxes": torch.zeros(1, 4), "scores": torch.zeros(1)}]), "image 0 have no labels"),
        (dict(own=[{**as_detections([(A, 1, 1)]), "scores": torch.zeros(2)}]), r"\(1, 4\), \(2,\) and \(1,\)"),
        (dict(own=[{**as_detections([(A, 1, 1)]), "labels": torch.zeros(1)}]), "must be integers, got torch.float32"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    arguments = {"own": [as_detections([(A, 0.5, 1)])], "others": [[as_detections([(A, 0.5, 1)])]], **arguments}
    with pytest.raises(ValueError, match=message):
        rectify(**arguments)


def test_the_batched_rules_run_on_tensors_that_hold_no_data():
    # A host sync (`.item()`, a shape that depends on the data) fails on the meta device.
    shape = (3, 2, 5)
    meta = PaddedDetections(
        torch.empty(*shape, 4, device="meta"), torch.empty(shape, device="meta"),
        torch.empty(shape, dtype=torch.long, device="meta"), torch.empty(shape, dtype=torch.bool, device="meta"),
    )  # fmt: skip
    for options in BOX_RULES.values():
        if options["unmatched_other"] == "drop":  # nms looks at a CPU's (and meta's) data to stop early
            assert label_rectification(meta, peers_of(meta), **options).boxes.shape == (3, 2, 5, 4)


def test_padding_and_back_keeps_every_detection():
    images = [as_detections([(A, 0.5, 1), (FAR, 0.25, 2)]), as_detections([]), as_detections([(A, 1.0, 1)])]
    for before, after in zip(images, unpad_detections(pad_detections(images)[0])):
        assert all(torch.equal(before[name], after[name]) for name in before)


def anchor_oracle(own, own_loc, peers, peer_locs, boxes, threshold, top_k, nms_threshold, box_target):
    """One image: {anchor: (label, offsets)}, after the formulas of the spec, section 1.3."""
    softmax = [[math.exp(x) / sum(map(math.exp, row)) for x in row] for row in own]
    foreground = [max(row[1:]) for row in softmax]
    order = sorted((a for a in range(len(own)) if foreground[a] > threshold), key=lambda a: -foreground[a])[:top_k]
    kept = []
    for a in order:
        if all(iou(boxes[a], boxes[b]) <= nms_threshold for b in kept):
            kept.append(a)
    result = {}
    for a in kept:
        confidences = [
            (max(math.exp(x) / sum(map(math.exp, peer[a])) for x in peer[a]), -k) for k, peer in enumerate(peers)
        ]
        score, k = max(confidences)
        own_wins = max(softmax[a]) > score
        label = own[a].index(max(own[a])) if own_wins else peers[-k][a].index(max(peers[-k][a]))
        offsets = own_loc[a] if own_wins and box_target == "winner" else peer_locs[-k][a]
        result[a] = (label, offsets)
    return result


def decoded(boxes):
    """`anchors` and `decode` where the boxes of all anchors (B, A, 4) are there: anchors are their numbers."""
    numbers = torch.arange(boxes.shape[1])[:, None].expand(-1, 4)
    return numbers, lambda offsets, number: boxes.gather(1, number)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3), st.sampled_from(["peer", "winner"]), st.integers(1, 8))
def test_anchor_rectification_is_the_plain_reading_of_it(seed, num_peers, box_target, top_k):
    generator = torch.Generator().manual_seed(seed)
    own, peers = (3 * torch.randn(*lead, 2, 12, 4, generator=generator).double() for lead in ((), (num_peers,)))
    own_loc, peer_locs = (
        torch.randn(2, 12, 4, generator=generator),
        torch.randn(num_peers, 2, 12, 4, generator=generator),
    )
    corner = torch.randint(0, 6, (2, 12, 2), generator=generator).float()
    boxes = torch.cat([corner, corner + torch.randint(1, 6, corner.shape, generator=generator)], -1)
    own, peers = own.float(), peers.float()
    result = rectify_anchors(own, own_loc, peers, peer_locs, *decoded(boxes), top_k=top_k, box_target=box_target)
    for b in range(2):
        expected = anchor_oracle(
            own[b].tolist(), own_loc[b].tolist(), peers[:, b].tolist(), peer_locs[:, b].tolist(), boxes[b].tolist(),
            0.5, top_k, 0.5, box_target,
        )  # fmt: skip
        keep = result.valid[b]
        assert torch.equal(result.boxes[b][keep], boxes[b][result.anchor[b][keep]])
        torch.testing.assert_close(result.own_score[b], own[b].softmax(-1).amax(-1)[result.anchor[b]] * keep)
        rows = zip(result.anchor[b][keep].tolist(), result.label[b][keep].tolist(), result.offsets[b][keep].tolist())
        assert {anchor: (label, offsets) for anchor, label, offsets in rows} == expected
        assert torch.equal(result.replaced[b] & (result.label[b] == 0), result.label[b].eq(0) & keep)


def test_a_peer_with_the_same_prediction_wins_the_tie_and_changes_no_label():
    generator = torch.Generator().manual_seed(0)
    own, loc = 4 * torch.randn(2, 30, 3, generator=generator), torch.randn(2, 30, 4, generator=generator)
    boxes = torch.rand(2, 30, 4, generator=generator).cumsum(-1)
    result = rectify_anchors(own, loc, own[None], loc[None], *decoded(boxes))
    assert torch.equal(result.label, result.own_label) and torch.equal(result.replaced, result.valid)


def test_a_confident_background_of_the_peer_makes_the_anchor_background():
    own, peer = torch.tensor([[[0.0, 2.0, 0.0]]]), torch.tensor([[[[9.0, 0.0, 0.0]]]])
    loc = torch.zeros(1, 1, 4)
    result = rectify_anchors(own, loc, peer, loc[None] + 1, *decoded(torch.tensor([[[0.0, 0, 4, 4]]])))
    assert (result.label.item(), result.own_label.item(), result.valid.item()) == (0, 1, True)
    assert torch.equal(result.offsets, loc + 1)
    with pytest.raises(ValueError, match="`box_target` must be 'peer' or 'winner', got 'own'"):
        rectify_anchors(own, loc, peer, loc[None], *decoded(loc), box_target="own")


def test_fusion_of_hand_made_boxes():
    first = as_detections([((0, 0, 10, 10), 0.8, 1), (FAR, 0.5, 1)], torch.float64)
    second = as_detections([((0, 0, 10, 12), 0.4, 1), ((0, 0, 10, 10), 0.9, 2)], torch.float64)
    (fused,) = weighted_boxes_fusion([[first], [second]])
    # label 1: mean weighted by the scores, score (0.8 + 0.4) / 2; alone: score times 1 / 2
    assert fused["labels"].tolist() == [1, 2, 1]
    assert fused["scores"].tolist() == pytest.approx([0.6, 0.45, 0.25])
    assert fused["boxes"][0].tolist() == pytest.approx([0, 0, 10, (0.8 * 10 + 0.4 * 12) / 1.2])


def test_fusion_of_a_model_with_itself_is_the_model():
    own = as_detections([(A, 0.8, 1), (FAR, 0.5, 2)])
    (fused,) = weighted_boxes_fusion([[own], [own]], weights=[2.0, 2.0])
    # weights 2, 2: scores doubled, times min(2, 4) / 4
    assert fused["scores"].tolist() == pytest.approx([0.8, 0.5]) and fused["boxes"].dtype == torch.float32
    assert torch.equal(fused["boxes"], own["boxes"]) and torch.equal(fused["labels"], own["labels"])


def test_fusion_needs_an_iou_above_the_threshold_and_skips_low_scores_and_bad_boxes():
    low = as_detections([(A, 0.5, 1), (A_HALF, 0.5, 1), (FAR, 1e-5, 1), ((0, 0, math.nan, 1), 0.9, 1)])
    (fused,) = weighted_boxes_fusion([[low]], iou_threshold=0.5)
    assert len(fused["scores"]) == 2
    (fused,) = weighted_boxes_fusion([[low]], iou_threshold=0.49)
    assert len(fused["scores"]) == 1
    (empty,) = weighted_boxes_fusion([[as_detections([])], [as_detections([])]])
    assert empty["boxes"].shape == (0, 4) and empty["labels"].dtype == torch.long


@pytest.mark.parametrize(
    ("detections", "weights", "message"),
    [
        ([], None, "at least one model"),
        ([[], [as_detections([])]], None, "got 0 and 1"),
        ([[], []], [1.0], "must be 2 positive numbers"),
        ([[], []], [1.0, 0.0], "must be 2 positive numbers"),
    ],
)
def test_fusion_names_bad_arguments(detections, weights, message):
    with pytest.raises(ValueError, match=message):
        weighted_boxes_fusion(detections, weights=weights)
