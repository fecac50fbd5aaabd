# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Who is trained on which rows, and tested on which, with features whose answer is known; and once on real digits."""

import numpy as np
import pytest
import torch

from hf_methods.mbf.attacks_mbf import predict_classes
from hf_methods.mbf.configuration_mbf import MBFConfig
from hf_methods.mbf.data_mbf import select_attacks, stack_images, with_pixel_values
from hf_methods.mbf.modeling_mbf import MBFDetector
from hf_methods.mbf.protocol_mbf import (
    compare_detectors,
    compute_feature_sets,
    measure_adaptive,
    row_columns,
    rows_of_few_sources,
    summarize_records,
)
from hf_methods.mbf.svm_mbf import conformal_threshold


ATTACKS = ("a", "b", "c")


def make_rows(num_sources, seed):
    """Columns of clean rows, and of adversarial and noisy ones of each attack; feature k is 4 for attack k."""
    rows, features = [], []
    generator = np.random.default_rng(seed)
    for source in range(num_sources):
        kinds = [("none", 0), *((attack, label) for attack in ATTACKS for label in (0, 1))]
        for attack, label in kinds:
            rows.append((attack, label, source))
            feature = generator.normal(size=len(ATTACKS))
            feature[ATTACKS.index(attack) if label else 0] += 4 * label
            features.append(feature)
    columns = zip(("attack", "is_adversarial", "source"), zip(*rows, strict=True), strict=True)
    columns = {name: np.array(column) for name, column in columns}
    kinds = {
        ("none", 0): "clean",
        **{(a, label): ("gaussian", "adversarial")[label] for a in ATTACKS for label in (0, 1)},
    }
    columns["kind"] = np.array([kinds[attack, label] for attack, label, _ in rows])
    return columns, np.array(features)


@pytest.fixture(scope="module")
def records():
    (train, x_train), (test, x_test), (other, x_other) = make_rows(40, 0), make_rows(40, 1), make_rows(40, 2)
    x_other += 3 * (1 - other["is_adversarial"][:, None])  # benign images of the other source look like attacks
    sets = {
        "mbf": {"train": x_train, "test": x_test, "other": x_other},
        "max_softmax": {"train": x_train[:, :1], "test": x_test[:, :1], "other": x_other[:, :1]},
    }
    return compare_detectors(sets, train, test, other, num_samples=50, c=[1.0], gamma=[1.0], num_folds=3)


def test_each_setting_trains_and_tests_on_its_attacks(records):
    mbf = [record for record in records if record["detector"] == "mbf"]
    seen = {(record["setting"], tuple(record["train"]), record["test"]) for record in mbf}
    assert seen == {
        *(("known", (a,), a) for a in ATTACKS),
        *(("transfer", (a,), b) for a in ATTACKS for b in ATTACKS if a != b),
        *(("other_source", (a,), a) for a in ATTACKS),
        *(("leave_one_out", tuple(b for b in ATTACKS if b != a), a) for a in ATTACKS),
    }
    assert len(mbf) == len(seen)


def test_what_can_be_known_is_detected_and_what_can_not_is_chance(records):
    for record in (record for record in records if record["setting"] != "other_source"):
        auroc, low, high = record["metrics"]["auroc"]
        assert low <= auroc <= high
        if record["detector"] == "max_softmax":  # sees attack a only, and is never trained
            assert (auroc > 0.95) == (record["test"] == "a")
        elif record["setting"] == "known":
            assert auroc > 0.9
    mean = {
        is_known: np.mean(
            [
                r["metrics"]["auroc"][0]
                for r in records
                if r["detector"] == "mbf" and r["setting"] != "other_source" and (r["setting"] == "known") == is_known
            ]
        )
        for is_known in (True, False)
    }
    assert mean[False] < mean[True] - 0.05  # what tells one attack says less of another
    rates = [record["fpr"] for record in records if record["setting"] == "known"]
    assert np.mean([[rate["clean"], rate["gaussian"]] for rate in rates]) == pytest.approx(0.05, abs=0.03)
    assert all(rate["uniform"] is None for rate in rates)  # there is no such row


def test_images_of_another_source_are_tested_only(records):
    other = [record for record in records if record["setting"] == "other_source" and record["detector"] == "mbf"]
    assert all(record["fpr"]["clean"] > 0.15 for record in other)  # they look like attacks
    summary = summarize_records(records)["mbf"]
    assert summary["other_source_auroc"] == np.mean([record["metrics"]["auroc"][0] for record in other])
    known = [r for r in records if r["setting"] == "known" and r["detector"] == "mbf"]
    assert summary["fpr_gaussian"] == pytest.approx(np.mean([record["fpr"]["gaussian"] for record in known]))
    assert "fpr_uniform" not in summary and summary["known_auroc"] > summary["leave_one_out_auroc"]


def test_rows_of_few_sources_are_all_of_theirs():
    columns, _ = make_rows(40, 0)
    rows = columns["attack"] != "b"  # five of each source
    few = rows_of_few_sources(columns, rows, 52, seed=3)
    assert few.sum() == 50 and not (few & ~rows).any()
    assert set(np.bincount(columns["source"][few], minlength=40)) == {0, 5}
    assert np.array_equal(few, rows_of_few_sources(columns, rows, 52, seed=3))
    assert not np.array_equal(few, rows_of_few_sources(columns, rows, 52, seed=4))
    assert rows_of_few_sources(columns, rows, None, 0) is rows and rows_of_few_sources(columns, rows, 200, 0) is rows
    with pytest.raises(ValueError, match="`max_rows` must hold one source's rows at least, got 4"):
        rows_of_few_sources(columns, rows, 4, 0)


def test_the_threshold_is_the_score_of_its_rank():
    assert conformal_threshold(np.arange(1.0, 100.0), 0.05) == 95  # ceil(100 * 0.95)
    assert conformal_threshold(np.arange(1.0, 20.0), 0.05) == 19
    with pytest.raises(ValueError, match="`fpr` must be"):
        conformal_threshold(np.arange(3.0), 1.0)


@pytest.fixture(scope="module")
def sets(attacked, digits, digit_classifier):
    images = stack_images(list(digits["classifier_train"]["image"]))[:200]
    labels = torch.tensor(digits["classifier_train"]["label"])[:200]
    splits = {"train": attacked[0], "test": attacked[1]}
    return compute_feature_sets(digit_classifier, MBFConfig(num_coefficients=4), splits, images, labels)


def test_every_detector_measures_every_row(sets, attacked):
    layers = 7  # three convolutions, three norms and the linear layer of 128
    columns = {
        "mbf": 28,
        "mbf_debiased": 28,
        "mbf_logits": 2,
        "moments": 3 * layers,
        "lid": layers,
        "mahalanobis": layers,
    }
    expected = {**columns, "max_softmax": 1, "feature_squeezing": 1}
    assert {name: values["train"].shape for name, values in sets.items()} == {
        name: (len(attacked[0]), number) for name, number in expected.items()
    }
    assert all(np.isfinite(values[split]).all() for values in sets.values() for split in ("train", "test"))
    assert (sets["mbf_debiased"]["test"] <= sets["mbf"]["test"] + 1e-6).all()
    assert 0.1 < sets["mbf_logits"]["test"].mean() < 0.5  # ten numbers: about 1 / sqrt(10) whatever their shape


@pytest.mark.slow
def test_known_attacks_on_digits_are_told_from_noise(sets, attacked):
    train, test = (row_columns(dataset) for dataset in attacked[:2])
    chosen = {name: sets[name] for name in ("mbf", "moments", "mahalanobis")}
    records = compare_detectors(chosen, train, test, num_samples=20, c=[10.0], gamma=[1.0])
    auroc = {(record["detector"], record["test"]): record["metrics"]["auroc"][0] for record in records if record["setting"] == "known"}  # fmt: skip
    assert set(auroc) == {(name, attack) for name in chosen for attack in ("fgsm", "pgd")}
    assert min(value for (name, _), value in auroc.items() if name != "mbf") > 0.8
    assert min(auroc.values()) > 0.55  # 128 to 2,048 responses a layer are few for MBF
    assert not any(record["setting"] == "leave_one_out" for record in records)  # two attacks: that is transfer


def test_adaptive_attackers_are_counted(attacked, digits, digit_classifier):
    rows = with_pixel_values(select_attacks(attacked[0], ["fgsm"]), digit_classifier)
    detector = MBFDetector(MBFConfig(), digit_classifier.classifier).fit(rows, c=[10.0], gamma=[1.0])
    images, labels = stack_images(list(digits["validation"]["image"])), torch.tensor(digits["validation"]["label"])
    is_right = predict_classes(digit_classifier, images) == labels
    images, labels = images[is_right][:20], labels[is_right][:20]
    results = measure_adaptive(detector, digit_classifier, images, labels, eps=0.25, max_iter=15)
    assert set(results) == {"adaptive", "feature_matching"}
    for result in results.values():
        assert result["evaded"] == pytest.approx(result["fooled"] * (1 - result["detected"]))
    assert results["adaptive"]["evaded"] > 0.5
