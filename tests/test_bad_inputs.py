# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Public functions with what nobody should give them: an error that names the argument, or a result that is defined.

Files are in test_robustness.py, images of a data set in test_data.py, checkpoints of a training in test_resume.py; what only one
method knows is in its own tests.
"""

import math
from functools import cache

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hf_methods import (
    CPEConfig,
    CPEForImageClassification,
    CPETrainingArguments,
    OrthoAdam,
    Softmax1GPT2Config,
    Softmax1GPT2LMHeadModel,
    SubPTTrainingArguments,
    SubspaceProjector,
    TorchvisionDetectorConfig,
    TorchvisionDetectorForObjectDetection,
    compute_basis,
    generalized_gaussian_mbf,
    inspect_model,
    make_longtail_ssl_splits,
    mbf,
    ortho_adam_parameter_groups,
    rectify,
    softmax1,
    weighted_boxes_fusion,
)
from hf_methods.mbf import estimate_shape
from hf_methods.mbf.arguments_mbf import MBFTrainingArguments
from hf_methods.metrics import long_tailed_classification, token_perplexity, voc07_average_precision
from hf_methods.softmax1 import perplexity, quantize_tensor
from hf_methods.subpt.data_subpt import few_shot_indices


NAN, INF = math.nan, math.inf
NOT_FLOATS = {
    "integers": torch.ones(3, 4, dtype=torch.long), "bools": torch.ones(3, 4) > 0, "complex": torch.ones(3, 4) * 1j,
    "list": [[1.0, 2.0]], "array": np.ones((3, 4)), "none": None, "text": "x",
}  # fmt: skip
TAKES_FLOATS = {
    "softmax1": (softmax1, "floating-point tensor"),
    "mbf": (lambda x: mbf(x, 2), "`x` must be a tensor of real floating-point numbers"),
    "compute_basis": (lambda x: compute_basis(x, 1), "`snapshots` must be a floating-point tensor"),
    "quantize_tensor": (lambda x: quantize_tensor(x, 8), "floating-point tensor"),
    "CPE": (lambda x: cpe()(x), "`pixel_values` must be normalised floats"),
}


@cache
def cpe():
    config = CPEConfig(depth=10, widen_factor=1, num_labels=3, class_counts=[5, 3, 1], image_size=8)
    return CPEForImageClassification(config).eval()


@cache
def gpt2():
    config = Softmax1GPT2Config(n_layer=1, n_embd=16, n_head=2, n_positions=16, vocab_size=300)
    return Softmax1GPT2LMHeadModel(config).eval()


@cache
def detector():
    return TorchvisionDetectorForObjectDetection(TorchvisionDetectorConfig(architecture="ssd_tiny", num_labels=3))


@pytest.mark.parametrize("kind", NOT_FLOATS)
@pytest.mark.parametrize("name", TAKES_FLOATS)
def test_what_is_no_tensor_of_floats_is_refused_by_name(name, kind):
    call, message = TAKES_FLOATS[name]
    got = NOT_FLOATS[kind]
    named = str(got.dtype) if torch.is_tensor(got) else type(got).__name__
    with pytest.raises(TypeError, match=f"{message}.*{named}"):
        call(got)


def found(boxes, scores=None, labels=None):
    boxes = torch.as_tensor(boxes, dtype=torch.float32)
    scores = torch.full((len(boxes),), 0.5) if scores is None else torch.as_tensor(scores)
    return dict(
        boxes=boxes, scores=scores, labels=torch.ones(len(boxes), dtype=torch.long) if labels is None else labels
    )


BOX = [[0.0, 0.0, 4.0, 4.0]]
GOOD = found(BOX)
NO_DETECTIONS = {  # what an image's detections may not be, and what the error says
    "none": (None, "image 0 must be a dict.*NoneType"),
    "no labels": ({"boxes": GOOD["boxes"], "scores": GOOD["scores"]}, "image 0 have no labels"),
    "lists": ({"boxes": BOX, "scores": [0.5], "labels": [1]}, "image 0 must be tensors"),
    "more boxes than scores": (found(BOX * 2, [0.5]), r"scores \(n,\).*\(2, 4\), \(1,\)"),
    "one box of one axis": (found(BOX[0], [0.5], torch.ones(1, dtype=torch.long)), r"boxes \(n, 4\)"),
    "a column of scores": (found(BOX, [[0.5]]), r"scores \(n,\)"),
    "labels of floats": (found(BOX, labels=torch.ones(1)), "labels of image 0 must be integers, got torch.float32"),
}  # fmt: skip
TAKES_DETECTIONS = {
    "fusion": lambda image: weighted_boxes_fusion([[image], [GOOD]]),
    "fusion, second model": lambda image: weighted_boxes_fusion([[GOOD], [image]]),
    "rectify, own": lambda image: rectify([image], [[GOOD]]),
    "rectify, peer": lambda image: rectify([GOOD], [[image]]),
}


@pytest.mark.parametrize("kind", NO_DETECTIONS)
@pytest.mark.parametrize("name", TAKES_DETECTIONS)
def test_what_are_no_detections_is_refused_by_image_and_field(name, kind):
    image, message = NO_DETECTIONS[kind]
    with pytest.raises(ValueError, match=message):
        TAKES_DETECTIONS[name](image)


IDS = torch.arange(24).view(3, 8)
ONES = torch.ones(3, 8)
LABELS = Dataset.from_dict({"label": [0] * 20 + [1] * 20})


def splits(dataset=LABELS, **options):
    return make_longtail_ssl_splits(dataset, **{"n1": 4, "gamma_l": 2, "m1": 4, **options})


def param(*shape):
    return nn.Parameter(torch.ones(shape))


def projector(**options):
    basis = compute_basis(torch.eye(4), 2)
    return SubspaceProjector(param(4), basis, "update", torch.optim.SGD([param(4)], 1.0), **options)


def detection_loss(box):
    labels = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([box])}]
    return detector().train()(pixel_values=torch.zeros(1, 3, 64, 64), labels=labels).loss


def arguments(cls, **options):
    return cls("unused", use_cpu=True, report_to="none", **options)


REFUSED = {  # call, and what the ValueError says
    "mbf, no orders": (lambda: mbf(torch.ones(3), 0), "`num_coefficients`.*got 0"),
    "mbf, orders of floats": (lambda: mbf(torch.ones(3), 2.0), "`num_coefficients`.*got 2.0"),
    "mbf, a dimension that is not there": (lambda: mbf(torch.ones(3, 4), 2, dim=2), "`dim` must name.*got 2"),
    "mbf, a negative one": (lambda: mbf(torch.ones(3, 4), 2, dim=(0, -3)), "`dim` must name.*got"),
    "shape 0": (lambda: generalized_gaussian_mbf(0.0, 2), "`shape` must be positive, got 0.0"),
    "shape NaN": (lambda: generalized_gaussian_mbf([1.0, NAN], 2), "`shape` must be positive, got nan"),
    "basis of one axis": (lambda: compute_basis(torch.ones(3), 1), r"`snapshots` must be \(T, d\), got \(3,\)"),
    "basis of nothing": (lambda: compute_basis(torch.zeros(0, 3), 1), "`rank` must be in"),
    "basis of NaN": (lambda: compute_basis(torch.tensor([[1.0], [NAN]]), 1), r"snapshots \[1\] hold NaN"),
    "basis without directions": (lambda: compute_basis(torch.ones(4, 3), 1), "span 0 directions"),
    "projector of another parameter": (lambda: projector().attach(), "`optimizer` does not hold `param`"),
    "quantised NaN": (lambda: quantize_tensor(torch.tensor([1.0, NAN]), 8), "finite values; 1 are not"),
    "quantised nothing": (lambda: quantize_tensor(torch.zeros(0, 4), 8), r"needs values, got the shape \(0, 4\)"),
    "half a bit": (lambda: quantize_tensor(torch.ones(3), 4.5), "`bits`.*got 4.5"),
    "bits as text": (lambda: quantize_tensor(torch.ones(3), "8"), "`bits`.*got '8'"),
    "learning rate NaN": (lambda: OrthoAdam([param(2)], lr=NAN), "`lr`.*got nan"),
    "weight decay NaN": (lambda: OrthoAdam([param(2)], weight_decay=NAN), "`weight_decay`.*got nan"),
    "one beta": (lambda: OrthoAdam([param(2)], betas=(0.9,)), r"`betas` must be two numbers, got \(0.9,\)"),
    "beta NaN": (lambda: OrthoAdam([param(2)], betas=(NAN, 0.9)), r"`betas`.*got \(nan, 0.9\)"),
    "no parameters": (lambda: OrthoAdam([]), "empty parameter list"),
    "rotations of no parameter": (
        lambda: ortho_adam_parameter_groups(nn.Linear(2, 2), 0.1, {"wte": "none"}), "`rotations`: wte"
    ),
    "fusion of no model": (lambda: weighted_boxes_fusion([]), "at least one model"),
    "fusion of images that differ": (lambda: weighted_boxes_fusion([[GOOD], []]), "the same images, got 1 and 0"),
    "fusion above IoU NaN": (lambda: weighted_boxes_fusion([[GOOD]], NAN), "`iou_threshold`.*nan"),
    "fusion above IoU 2": (lambda: weighted_boxes_fusion([[GOOD]], 2.0), "`iou_threshold`.*2.0"),
    "fusion above score NaN": (lambda: weighted_boxes_fusion([[GOOD]], skip_score=NAN), "`skip_score`.*nan"),
    "a model of weight NaN": (lambda: weighted_boxes_fusion([[GOOD]], weights=[NAN]), r"`weights`.*\[nan\]"),
    "a model of infinite weight": (lambda: weighted_boxes_fusion([[GOOD]], weights=[INF]), r"`weights`.*\[inf\]"),
    "rectified above IoU NaN": (lambda: rectify([GOOD], [[GOOD]], iou_threshold=NAN), "`iou_threshold`.*nan"),
    "rectified by no rule": (lambda: rectify([GOOD], [[GOOD]], rule="x"), "`rule` must be one of.*'x'"),
    "peers of other images": (lambda: rectify([GOOD], [[]]), "1 images of `own`, got one with 0"),
    "gamma NaN": (lambda: splits(gamma_l=NAN), "gamma must be at least 1.*got nan"),
    "infinite gamma": (lambda: splits(gamma_l=INF), "gamma must be at least 1.*got inf"),
    "NaN images": (lambda: splits(n1=NAN), "number of images must be finite, got nan"),
    "no images": (lambda: splits(n1=0), "n=0 and gamma=2 leave classes without an image"),
    "more images than there are": (lambda: splits(n1=10**18), r"more images asked for than there are.*of 20\)"),
    "no training split": (lambda: splits(DatasetDict(test=LABELS)), "no split 'train', only test"),
    "no rows": (lambda: splits(LABELS.select([])), "'label' must hold class ids, got"),
    "class ids of floats": (lambda: splits(Dataset.from_dict({"label": [0.0, NAN]})), "must hold class ids, got"),
    "class ids of text": (lambda: splits(Dataset.from_dict({"label": ["a", "b"]})), "must hold class ids, got"),
    "a huge class id": (lambda: splits(Dataset.from_dict({"label": [0, 2**40]})), "the class id 1099511627776"),
    "shots of a huge class id": (
        lambda: few_shot_indices([0, 2, 2**40], 1, 0), r"\[1, 3, 4, 5, 6\] and 1099511627769 more have no example"
    ),
    "logits NaN": (lambda: long_tailed_classification([[NAN, 0.0], [0.0, 1.0]], [0, 1], 2), "1 of 2 `predictions`"),
    "tokens of no text": (lambda: token_perplexity([], []), "`num_tokens`.*got 0"),
    "a truth that no label is": (
        lambda: voc07_average_precision([GOOD], [found(BOX, labels=torch.tensor([7]))], 2), "image 0 must be from 0 to 1"
    ),
    "scores NaN": (lambda: voc07_average_precision([found(BOX, [NAN])], [GOOD], 2), "scores of image 0 are NaN"),
    "token ids past the vocabulary": (lambda: inspect_model(gpt2(), IDS + 290), "from 0 to 299, got 290 to 313"),
    "negative token ids": (lambda: perplexity(gpt2(), IDS - 1), "from 0 to 299, got -1 to 22"),
    "token ids of floats": (lambda: inspect_model(gpt2(), IDS.float()), "token ids must be integers.*float32"),
    "token ids of bools": (lambda: inspect_model(gpt2(), IDS.bool()), "token ids must be integers.*bool"),
    "no blocks": (lambda: inspect_model(gpt2(), IDS[:0]), "there are no blocks"),
    "perplexity of no blocks": (lambda: perplexity(gpt2(), IDS[:0]), "there are no blocks"),
    "fewer than no blocks": (lambda: inspect_model(gpt2(), IDS, max_blocks=-1), "`max_blocks`.*got -1"),
    "batches of nothing": (lambda: inspect_model(gpt2(), IDS, batch_size=0), "`batch_size`.*got 64 and 0"),
    "a text for texts": (lambda: inspect_model(gpt2(), "one text", tokenizer=object()), "`dataset` must.*a str"),
    "splits for texts": (lambda: inspect_model(gpt2(), DatasetDict(), tokenizer=object()), "`dataset` must.*DatasetDict"),
    "an added mask": (
        lambda: inspect_model(gpt2(), IDS, attention_mask=ONES.tril() * -1e9), "attention_mask must hold 0 and 1"
    ),
    "a mask of nothing": (
        lambda: inspect_model(gpt2(), IDS, attention_mask=ONES * torch.tensor([[1], [1], [0]])), "at least one 1 for each"
    ),
    "a box in pixels": (lambda: detection_loss([32.0, 32.0, 9.0, 9.0]), "image 0 has the box .*shares.*not pixels"),
    "a box without area": (lambda: detection_loss([0.5, 0.5, 0.0, 0.1]), "sides must be above 0"),
    "a box of NaN": (lambda: detection_loss([NAN, 0.5, 0.1, 0.1]), "image 0 has the box .nan"),
    "a threshold of NaN": (lambda: arguments(CPETrainingArguments, threshold=NAN), "`threshold`.*got nan"),
    "a loss of weight NaN": (lambda: arguments(CPETrainingArguments, lambda_u=NAN), "`lambda_u`.*got nan"),
    "NFL of weight NaN": (lambda: arguments(SubPTTrainingArguments, nfl_weight=NAN), "`nfl_weight`.*got nan"),
    "prompts by none": (lambda: arguments(SubPTTrainingArguments, class_chunk_size=0), "`class_chunk_size`.*got 0"),
    "C of NaN": (lambda: arguments(MBFTrainingArguments, svm_c=[1.0, NAN]), r"`svm_c`.*\[1.0, nan\]"),
    "gamma below 0": (lambda: arguments(MBFTrainingArguments, svm_gamma=[-1.0]), r"`svm_gamma`.*\[-1.0\]"),
    "no samples": (lambda: arguments(MBFTrainingArguments, bootstrap_samples=0), "`bootstrap_samples`.*got 0"),
    "a radius of NaN": (lambda: arguments(MBFTrainingArguments, adaptive_eps=NAN), "`adaptive_eps`.*nan"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_bad_values_are_refused_by_name(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_types_are_refused_by_name():
    with pytest.raises(TypeError, match="floating-point `dtype`.*torch.int64"):
        softmax1(torch.ones(2), dtype=torch.long)  # all weights would be 0
    with pytest.raises(TypeError, match="complex"):
        generalized_gaussian_mbf(1j, 1)
    for model in (None, nn.Linear(2, 2)):
        with pytest.raises(
            TypeError, match=f"causal language model of transformers is needed, got {type(model).__name__}"
        ):
            inspect_model(model, IDS)


DEFINED = {  # call, and its result
    "softmax1 of nothing": (lambda: softmax1(torch.zeros(2, 0)), torch.zeros(2, 0)),
    "softmax1 of no rows": (lambda: softmax1(torch.zeros(0, 2)), torch.zeros(0, 2)),
    "softmax1 of a number": (lambda: softmax1(torch.tensor(0.0)), torch.tensor(0.5)),
    "softmax1 of -inf": (lambda: softmax1(torch.full((2,), -INF)), torch.zeros(2)),
    "softmax1 of huge numbers": (lambda: softmax1(torch.tensor([1e30, 1e30])), torch.tensor([0.5, 0.5])),
    "mbf of nothing": (lambda: mbf(torch.zeros(0), 2), torch.zeros(2)),
    "mbf of no rows": (lambda: mbf(torch.zeros(0, 5), 2, dim=1), torch.zeros(0, 2)),
    "mbf of a number": (lambda: mbf(torch.tensor(-3.0), 2), torch.ones(2)),
    "mbf of zeros": (lambda: mbf(torch.zeros(3, 4), 2, dim=1), torch.zeros(3, 2)),
    "mbf of NaN": (lambda: mbf(torch.tensor([1.0, NAN]), 2), torch.full((2,), NAN)),
    "mbf of infinity": (lambda: mbf(torch.tensor([1.0, INF]), 2), torch.full((2,), NAN)),
    "mbf of one half number, debiased": (lambda: mbf(torch.ones(1).half(), 1, debias=True), torch.zeros(1)),
    "closed form of no shapes": (lambda: generalized_gaussian_mbf([], 2), torch.zeros(0, 2).double()),
    "closed form near 0": (lambda: generalized_gaussian_mbf(1e-300, 2), torch.zeros(2).double()),
    "shape of NaN": (lambda: estimate_shape(NAN), torch.tensor(NAN).double()),
    "shape above the uniform's": (lambda: estimate_shape(2.0), torch.tensor(INF).double()),
    "CPE of no images": (lambda: cpe()(torch.zeros(0, 3, 8, 8)).logits, torch.zeros(0, 3)),
    "no groups of frozen parameters": (
        lambda: torch.tensor(len(ortho_adam_parameter_groups(nn.Linear(2, 2).requires_grad_(False), 0.1))),
        torch.tensor(0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DEFINED)
def test_edges_have_a_defined_result(name):
    call, expected = DEFINED[name]
    with torch.no_grad():
        torch.testing.assert_close(call(), expected, equal_nan=True)


def test_a_closed_form_keeps_the_digits_of_a_python_number():
    """The Laplace density has a formula of its own; 0.3 as float32 is 0.30000001."""
    t = 2 * math.pi / math.log(10)
    assert generalized_gaussian_mbf(1, 1).item() == pytest.approx(
        math.sqrt(math.pi * t / math.sinh(math.pi * t)), rel=1e-12
    )
    assert (
        generalized_gaussian_mbf(0.3, 1).item()
        == generalized_gaussian_mbf(torch.tensor(0.3, dtype=torch.float64), 1).item()
    )


quick = settings(max_examples=40, derandomize=True, deadline=None)
odd_floats = st.sampled_from([NAN, INF, -INF, 0.0, -0.0, 1e30, -1e30, 1e-30, 1.0, -1.0, 88.0, 1e-45])


@quick
@given(st.lists(odd_floats, min_size=1, max_size=6))
def test_softmax1_is_its_formula_or_nan(values):
    weights = softmax1(torch.tensor(values))
    if any(math.isnan(x) or x == INF for x in values):
        assert weights.isnan().all()  # as of torch's softmax
        return
    numbers = np.array(values, dtype=np.float32).astype(np.float64)
    largest = max(0.0, numbers.max())
    expected = np.exp(numbers - largest) / (np.exp(-largest) + np.exp(numbers - largest).sum())
    np.testing.assert_allclose(weights.double().numpy(), expected, atol=1e-6)


@quick
@given(st.lists(odd_floats, min_size=1, max_size=6), st.integers(1, 4))
def test_mbf_is_its_formula_or_nan(values, num_coefficients):
    magnitudes = mbf(torch.tensor(values, dtype=torch.float64), num_coefficients)
    numbers = [abs(x) for x in values if not abs(x) < 1e-30]
    if not all(map(math.isfinite, numbers)):
        assert magnitudes.isnan().all()
        return
    phases = [[np.exp(-2j * np.pi * n * math.log10(x)) for x in numbers] for n in range(1, num_coefficients + 1)]
    expected = [abs(np.mean(row)) if row else 0.0 for row in phases]
    np.testing.assert_allclose(magnitudes.numpy(), expected, atol=1e-7)


side = st.sampled_from([0.0, 1.0, 4.0, 9.0, -3.0, 1e30, NAN, INF])
detection = st.tuples(side, side, side, side, st.sampled_from([0.1, 0.5, 0.9, NAN, INF]), st.integers(0, 2))


def as_image(rows):
    rows = list(rows)
    boxes = torch.tensor([row[:4] for row in rows]).reshape(-1, 4)
    return found(boxes, [row[4] for row in rows], torch.tensor([row[5] for row in rows], dtype=torch.long))


def is_sound(row):
    return all(map(math.isfinite, row[:5])) and row[2] > row[0] and row[3] > row[1]


@quick
@given(st.lists(st.lists(detection, max_size=5), min_size=2, max_size=3))
def test_boxes_that_are_none_are_as_if_they_were_not_there(models):
    images, sound = ([as_image(filter(keep, rows)) for rows in models] for keep in (lambda row: True, is_sound))
    for combine in (
        lambda own, *others: weighted_boxes_fusion([[own], *([image] for image in others)]),
        lambda own, *others: rectify([own], [[image] for image in others]),
        lambda own, *others: rectify([own], [[image] for image in others], rule="crossrectify_voc"),
    ):
        (result,), (expected,) = combine(*images), combine(*sound)
        torch.testing.assert_close(result, expected)
        assert all(value.isfinite().all() for value in result.values())


@pytest.mark.parametrize("combine", [lambda a, b: weighted_boxes_fusion([[a], [b]]), lambda a, b: rectify([a], [[b]])])
def test_boxes_that_are_left_out_are_counted_in_a_warning(combine, monkeypatch):
    warnings = []
    for module in ("fusion", "rectification"):
        logger = f"hf_methods.cross_teaching.{module}_cross_teaching.logger.warning"
        monkeypatch.setattr(logger, warnings.append)
    combine(found([[0.0, 0, 0, 4], [0, 0, 4, 4]]), found([[NAN, 0, 1, 4], [0, 0, 4, 4]]))
    assert len(warnings) == 1 and "left out 2 boxes without area" in warnings[0]


@pytest.mark.parametrize("combine", [lambda a, b: weighted_boxes_fusion([[a], [b]]), lambda a, b: rectify([a], [[b]])])
def test_detections_with_gradients_are_taken_without_them(combine):
    with_gradients = {**GOOD, "boxes": GOOD["boxes"].clone().requires_grad_()}
    (result,) = combine(with_gradients, with_gradients)
    torch.testing.assert_close(result["boxes"], GOOD["boxes"])
    assert not result["boxes"].requires_grad
