# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Numbers of pseudo-labels against a loop."""

import numpy as np
import pytest
import torch

from hf_methods.cpe.diagnostics_cpe import PseudoLabelCounter


def test_diagnostics_count_what_a_loop_counts():
    generator = torch.Generator().manual_seed(0)
    counter = PseudoLabelCounter(2, 3, torch.device("cpu"))
    used, known, right = (np.zeros((2, 3)) for _ in range(3))
    of_class, images = np.zeros(3), 0
    for _ in range(4):
        labels = torch.randint(0, 3, (10, 2), generator=generator)
        mask, true = torch.rand(10, 2, generator=generator) < 0.6, torch.randint(-1, 3, (10,), generator=generator)
        counter.update(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.25]), labels, mask, true)
        images += 10
        for j in range(10):
            of_class[true[j]] += int(true[j] >= 0)
            for e in range(2):
                used[e, labels[j, e]] += int(mask[j, e])
                known[e, labels[j, e]] += int(mask[j, e] and true[j] >= 0)
                right[e, labels[j, e]] += int(mask[j, e] and true[j] == labels[j, e])
    logs, tables = counter.read()
    assert tables["pseudo_label_counts"] == used.tolist()
    np.testing.assert_allclose(tables["pseudo_label_precision"], right / known, rtol=1e-6)
    np.testing.assert_allclose(tables["pseudo_label_recall"], right / of_class, rtol=1e-6)
    for e in range(2):
        assert logs[f"expert{e}/utilization"] == pytest.approx(used[e].sum() / images)
        assert logs[f"expert{e}/precision"] == pytest.approx(right[e].sum() / known[e].sum())
    assert logs["expert1/supervised_loss"] == 2 and logs["expert0/unsupervised_loss"] == 0.5
    assert counter.read() == ({}, {})  # counting began anew
