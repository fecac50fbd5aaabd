# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The losses against loops over experts, branches and images in float64, written from the paper's formulas."""

import math

import pytest
import torch

from hf_methods.cpe.losses_cpe import (
    class_ranks,
    classwise_consistency_loss,
    classwise_weights,
    log_class_prior,
    logit_adjusted_cross_entropy,
    select_pseudo_labels,
    shift_to_prior,
)


COUNTS = [50, 30, 20, 9, 4, 1]
TAUS = (0.0, 2.0, 4.0)
CUTS = (2, 4)


def random_logits(*shape, scale=4.0, seed=0):
    return scale * torch.randn(*shape, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def cross_entropy(logits, label):
    """-log softmax in plain Python."""
    logits = [float(value) for value in logits]
    return math.log(sum(math.exp(value - max(logits)) for value in logits)) + max(logits) - logits[label]


def test_the_supervised_loss_is_the_cross_entropy_of_logits_plus_tau_log_prior():
    logits, labels = random_logits(7, 3), torch.tensor([0, 1, 5, 2, 0, 4, 3])
    losses = logit_adjusted_cross_entropy(logits, labels, log_class_prior(COUNTS), TAUS)
    for e, tau in enumerate(TAUS):
        adjusted = [
            [float(logits[i, e, k]) + tau * math.log(COUNTS[k] / sum(COUNTS)) for k in range(6)] for i in range(7)
        ]
        expected = sum(cross_entropy(row, int(label)) for row, label in zip(adjusted, labels)) / 7
        assert float(losses[e]) == pytest.approx(expected, abs=1e-12)


def test_a_uniform_prior_gives_every_expert_plain_cross_entropy():
    logits, labels = random_logits(5, 1).expand(-1, 3, -1), torch.tensor([0, 1, 2, 3, 4])
    losses = logit_adjusted_cross_entropy(logits, labels, log_class_prior([7] * 6), TAUS)
    expected = torch.nn.functional.cross_entropy(logits[:, 0], labels)
    torch.testing.assert_close(losses, expected.expand(3))


def test_ignored_labels_leave_the_mean():
    logits, labels = random_logits(4, 3), torch.tensor([1, -100, 2, -100])
    prior = log_class_prior(COUNTS)
    losses = logit_adjusted_cross_entropy(logits, labels, prior, TAUS)
    torch.testing.assert_close(losses, logit_adjusted_cross_entropy(logits[::2], labels[::2], prior, TAUS))
    assert logit_adjusted_cross_entropy(logits, torch.full((4,), -100), prior, TAUS).tolist() == [0, 0, 0]


def official_consistency(weak, strong, threshold):
    """The unsupervised loss of the experts, image by image."""
    losses, num_images = [], len(weak)
    for e in range(weak.shape[1]):
        total, selected = 0.0, 0
        for j in range(num_images):
            probabilities = weak[j, e].softmax(-1)
            label = int(probabilities.argmax())
            if probabilities[label] < threshold:
                continue
            for branch, cut in enumerate((0, *CUTS)):
                if label >= cut:  # the counts are sorted here, so a label is its rank
                    total, selected = total + cross_entropy(strong[j, e, branch], label), selected + 1
        losses.append((total / (selected + 1e-12), total / (num_images * 3), selected))
    return losses


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.95])
def test_each_expert_learns_its_own_sure_labels_in_the_branches_of_their_class(threshold):
    weak, strong = random_logits(40, 3), random_logits(40, 3, 3, seed=1)
    labels, mask = select_pseudo_labels(weak, threshold)
    weights = classwise_weights(labels, mask, class_ranks(COUNTS), CUTS)
    selected = classwise_consistency_loss(strong, labels, weights)
    batch = classwise_consistency_loss(strong, labels, weights, "batch")
    for e, (by_selected, by_batch, count) in enumerate(official_consistency(weak, strong, threshold)):
        assert float(weights[:, e].sum()) == count > 0
        assert float(selected[e]) == pytest.approx(by_selected, abs=1e-10)
        assert float(batch[e]) == pytest.approx(by_batch, abs=1e-10)


def test_with_one_expert_and_one_branch_the_batch_reduction_is_fixmatch():
    weak, strong = random_logits(20, 1), random_logits(20, 1, 1, seed=1)
    labels, mask = select_pseudo_labels(weak, 0.9)
    weights = classwise_weights(labels, mask, class_ranks(COUNTS), CUTS, num_groups=1)
    losses = torch.nn.functional.cross_entropy(strong[:, 0, 0], labels[:, 0], reduction="none")
    expected = (losses * mask[:, 0]).mean()
    assert 0 < mask.sum() < 20
    torch.testing.assert_close(classwise_consistency_loss(strong, labels, weights, "batch"), expected[None])


def test_pseudo_labels_get_no_gradient():
    weak = random_logits(4, 3).requires_grad_()
    labels, mask = select_pseudo_labels(weak, 0.5)
    assert not labels.requires_grad and not mask.requires_grad


def test_without_a_sure_label_loss_and_gradient_are_exactly_zero():
    strong = random_logits(5, 3, 3).requires_grad_()
    labels, mask = select_pseudo_labels(torch.zeros(5, 3, 6), 0.95)
    for reduction in ("selected", "batch"):
        loss = classwise_consistency_loss(
            strong, labels, classwise_weights(labels, mask, class_ranks(COUNTS), CUTS), reduction
        )
        (gradient,) = torch.autograd.grad(loss.sum(), strong)
        assert loss.tolist() == [0, 0, 0] and not gradient.any()


def test_a_threshold_of_one_over_k_takes_all_and_one_above_one_none():
    logits = random_logits(50, 3, scale=0.1)
    assert select_pseudo_labels(logits, 1 / 6)[1].all()
    assert not select_pseudo_labels(100 * logits, 1.01)[1].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    logits, labels = random_logits(8, 3).to(dtype), torch.arange(8) % 6
    prior = log_class_prior([10**6, 10**5, 10**4, 1000, 100, 1]).float()  # 4 log prior = -55
    losses = logit_adjusted_cross_entropy(logits, labels, prior, TAUS)
    torch.testing.assert_close(losses, logit_adjusted_cross_entropy(logits.float(), labels, prior, TAUS))
    # 0.9501 rounds to 0.949 in bfloat16: the comparison must not be made there.
    sure = torch.tensor([[[math.log(0.9501 / 0.0499 * 5), 0, 0, 0, 0, 0]]]).to(dtype)
    assert bool(select_pseudo_labels(sure, 0.95)[1]) == bool(sure.float().softmax(-1).max() >= 0.95)


def test_ranks_follow_the_counts_and_ties_the_label():
    assert class_ranks([5, 9, 5, 1, 9]).tolist() == [2, 0, 3, 4, 1]


def test_renaming_the_classes_renames_the_losses():
    order = torch.tensor([3, 0, 5, 1, 4, 2])  # the class at position i was order[i]
    inverse = order.argsort()
    weak, strong, labels = random_logits(30, 3), random_logits(30, 3, 3, seed=1), torch.arange(30) % 6
    results = []
    for counts, weak_logits, strong_logits, ids in (
        (COUNTS, weak, strong, labels),
        ([COUNTS[i] for i in order], weak[..., order], strong[..., order], inverse[labels]),
    ):
        pseudo, mask = select_pseudo_labels(weak_logits, 0.6)
        weights = classwise_weights(pseudo, mask, class_ranks(counts), CUTS)
        supervised = logit_adjusted_cross_entropy(weak_logits, ids, log_class_prior(counts), TAUS)
        results.append((supervised, classwise_consistency_loss(strong_logits, pseudo, weights)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)


def test_shifting_a_balanced_posterior_to_a_prior_is_bayes_rule():
    probabilities = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    shifted = shift_to_prior(probabilities.log(), torch.tensor([1.0, 2.0, 5.0])).softmax(-1)
    torch.testing.assert_close(shifted, torch.tensor([0.5, 0.6, 1.0], dtype=torch.float64) / 2.1)
    torch.testing.assert_close(shift_to_prior(probabilities, torch.ones(3)), probabilities)
    assert shift_to_prior(probabilities, torch.tensor([0.0, 1, 1])).argmax() == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: log_class_prior([3, 0, 2, 0]), r"`class_counts` is 0 for the classes \[1, 3\].*allow_empty_classes"),
        (lambda: log_class_prior([3, -1]), r"positive sum, got \[3, -1\]"),
        (lambda: log_class_prior([0, 0], 1e-12), "positive sum"),
        (lambda: log_class_prior([]), "positive sum"),
        (lambda: classwise_consistency_loss(torch.zeros(1, 1, 1, 2), *torch.zeros(2, 1, 1).long(), "sum"), "'sum'"),
        (lambda: shift_to_prior(torch.zeros(3), torch.ones(2)), r"3 classes, got \[2\]"),
        (lambda: shift_to_prior(torch.zeros(2), torch.tensor([1.0, -1])), r"non-negative.*\[1.0, -1.0\]"),
        (lambda: shift_to_prior(torch.zeros(2), torch.tensor([1.0, math.nan])), "non-negative"),
        (lambda: shift_to_prior(torch.zeros(2), torch.zeros(2)), "positive sum"),
    ],
)
def test_bad_input_raises(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_empty_class_may_have_a_floor():
    torch.testing.assert_close(log_class_prior([1, 0, 1], 1e-12).exp(), torch.tensor([0.5, 1e-12, 0.5]).double())
