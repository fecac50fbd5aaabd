# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""NFL's losses and templates: hand-computed cases, torch's CosineEmbeddingLoss, open_clip's templates."""

import math

import pytest
import torch

from hf_methods.subpt.losses_subpt import average_templates, nfl_loss
from hf_methods.subpt.templates_subpt import DATASET_TEMPLATES, IMAGENET_TEMPLATES


def test_a_case_by_hand():
    features, targets = torch.tensor([[3.0, 4.0], [2.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 5.0]])
    # cosines 3/5 and 0; squared distances 2 - 2 cos
    assert float(nfl_loss(features, targets)) == pytest.approx((0.4 + 1) / 2)
    assert float(nfl_loss(features, targets, "l2")) == pytest.approx((0.8 + 2) / 2 / 2)


def test_the_cosine_loss_is_torchs_cosine_embedding_loss_with_gradient():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(7, 16, dtype=torch.float64, generator=generator, requires_grad=True)
    targets = torch.randn(7, 16, dtype=torch.float64, generator=generator)
    oracle = torch.nn.CosineEmbeddingLoss()(features, targets, torch.ones(7))
    loss = nfl_loss(features, targets)
    torch.testing.assert_close(loss, oracle)
    torch.testing.assert_close(*(torch.autograd.grad(x, features)[0] for x in (loss, oracle)))
    torch.testing.assert_close(nfl_loss(features, targets, "l2"), 2 / 16 * loss)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    features, targets = torch.randn(5, 8).to(dtype), torch.randn(5, 8).to(dtype)
    loss = nfl_loss(features, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), nfl_loss(features.double(), targets.double()))


def test_features_at_their_targets_cost_nothing_and_have_no_gradient():
    features = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    for kind in ("cosine", "l2"):
        loss = nfl_loss(features, 3 * features.detach(), kind)
        assert float(loss.detach()) == pytest.approx(0, abs=1e-15)
        assert torch.autograd.grad(loss, features)[0].abs().max() < 1e-15


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="one of cosine, l2, got 'l1'"):
        nfl_loss(torch.ones(2, 3), torch.ones(2, 3), "l1")
    with pytest.raises(ValueError, match=r"alike with n >= 1, got \(2, 3\) and \(3, 3\)"):
        nfl_loss(torch.ones(2, 3), torch.ones(3, 3))
    with pytest.raises(ValueError, match="n >= 1"):
        nfl_loss(torch.ones(0, 3), torch.ones(0, 3))


def test_the_target_of_a_name_is_the_direction_of_the_mean_direction():
    features = torch.tensor([[[2.0, 0.0]], [[0.0, 7.0]]])  # two templates of one name
    torch.testing.assert_close(average_templates(features), torch.full((1, 2), math.sqrt(0.5)))


def test_the_templates_are_openais():
    metadata = pytest.importorskip("open_clip.zero_shot_metadata")
    assert [template("{}") for template in metadata.OPENAI_IMAGENET_TEMPLATES] == list(IMAGENET_TEMPLATES)
    assert len(DATASET_TEMPLATES) == 11
    for template in (*IMAGENET_TEMPLATES, *DATASET_TEMPLATES.values()):
        assert template.count("{}") == 1 and template.endswith(".")
