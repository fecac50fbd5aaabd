# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The detector's scores are scikit-learn's; its files hold no pickle and go with one classifier."""

import json
import math
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from models_mbf import make_classifier
from safetensors.torch import load_file, save_file
from transformers import AutoModel
from transformers.utils import logging

import hf_methods.mbf  # noqa: F401  registers
from hf_methods.mbf.configuration_mbf import MBFConfig
from hf_methods.mbf.estimator_mbf import load_estimator, save_estimator
from hf_methods.mbf.modeling_mbf import MBFDetector, weights_digest, weights_dtype
from hf_methods.mbf.svm_mbf import svm_decision


CODE_FILES = ["configuration_mbf.py", "extraction_mbf.py", "features_mbf.py", "modeling_mbf.py", "svm_mbf.py"]


def make_rows(num_images=60):
    """Images, and the same with noise for "attacked" ones."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(num_images, 1, 28, 28, generator=generator)
    noisy = clean + 0.3 * torch.randn(clean.shape, generator=generator)
    return [
        {"pixel_values": image, "is_adversarial": label, "source": source}
        for label, images in enumerate((clean, noisy))
        for source, image in enumerate(images)
    ]


ROWS = make_rows()
CONVOLUTIONS = "*convolution"
IMAGES = torch.stack([row["pixel_values"] for row in ROWS])


@pytest.fixture(scope="module")
def detector():
    return MBFDetector(MBFConfig(layers=CONVOLUTIONS, attacks=["noise"]), make_classifier("resnet")).fit(ROWS)


@pytest.fixture(scope="module")
def features(detector):
    return detector.extract(ROWS)


@pytest.fixture
def saved(detector, tmp_path):
    detector.save_pretrained(tmp_path / "detector")
    return tmp_path / "detector"


@pytest.fixture
def warnings_text(caplog):
    logging.enable_propagation()
    yield lambda: caplog.text
    logging.disable_propagation()


def test_scores_are_scikit_learns(detector, features):
    x = torch.cat([features[0], features[0] + torch.randn_like(features[0])])  # near and far
    expected = torch.tensor(detector.estimator_.decision_function(x.numpy()))
    torch.testing.assert_close(detector.score_features(x), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(detector.score_features(x.float()), expected, rtol=0, atol=1e-5)
    assert expected[: len(ROWS)].std() > 0.1


def test_the_pixels_give_what_the_features_give(detector, features):
    with torch.no_grad():
        output = detector(IMAGES[:5])
    scores = output.scores
    torch.testing.assert_close(scores, detector.score_features(features[0][:5]), rtol=0, atol=1e-4)
    differentiable = detector.decision_function(IMAGES[:5])  # computed, where the others come from a table
    torch.testing.assert_close(differentiable, scores, rtol=2e-3, atol=1e-3)
    torch.testing.assert_close(output.logits, detector.classifier(IMAGES[:5]).logits)
    probabilities = detector.predict_proba(IMAGES[:5])
    torch.testing.assert_close(probabilities[:, 1], output.probabilities)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(5, dtype=torch.float64))


def test_the_scores_gradient_is_that_of_finite_differences(detector):
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.randn(n, 4, dtype=torch.float64, generator=generator).requires_grad_() for n in (3, 5))
    dual = torch.randn(5, dtype=torch.float64, generator=generator)
    assert torch.autograd.gradcheck(lambda u, v: svm_decision(u, v, dual, dual[0], 0.3), (u, v))
    image = IMAGES[:1].clone().requires_grad_()
    detector.decision_function(image).sum().backward()
    assert image.grad.isfinite().all() and image.grad.abs().max() > 0


def test_it_detects_what_it_was_trained_on_and_says_so_with_calibrated_probabilities(detector, features):
    scores, labels = detector.score_features(features[0]), features[1]
    assert (scores[labels == 1].mean() - scores[labels == 0].mean()) > 0.5
    probabilities = detector.probability_of_scores(scores)
    order = scores.argsort()
    assert (probabilities[order].diff() >= 0).all()
    # Held-out scores: over them the calibration has no bias, and it is not surer than they warrant.
    assert probabilities.mean().item() == pytest.approx(0.5, abs=0.1)


def test_an_image_and_what_was_made_of_it_are_in_one_fold(features, monkeypatch):
    import sklearn.model_selection

    seen = []

    class Spy(sklearn.model_selection.StratifiedGroupKFold):
        def split(self, x, y=None, groups=None):
            for train, test in super().split(x, y, groups):
                assert not set(groups[train]) & set(groups[test])
                seen.append(sorted(set(groups[test])))
                yield train, test

    monkeypatch.setattr(sklearn.model_selection, "StratifiedGroupKFold", Spy)
    MBFDetector(MBFConfig(layers=CONVOLUTIONS, num_coefficients=2), make_classifier("resnet")).fit_features(
        *features, c=[1], gamma=[1]
    )
    assert len(seen) == 10 and sorted(source for fold in seen[:5] for source in fold) == list(range(60))


def test_fitting_is_reproducible_and_follows_the_seed(features):
    def fit(seed):
        detector = MBFDetector(MBFConfig(layers=CONVOLUTIONS, num_coefficients=2), make_classifier("resnet"))
        return detector.fit_features(*features, seed=seed).benign_scores

    assert torch.equal(fit(1), fit(1)) and not torch.equal(fit(1), fit(2))


def test_a_threshold_is_the_benign_score_of_its_rank(detector, features, warnings_text):
    assert len(detector.benign_scores) == 60 and (detector.benign_scores.diff() >= 0).all()
    for fpr, rank in ((0.5, 31), (0.1, 55), (0.05, 58), (1 / 61, 60)):  # ceil(61 (1 - fpr))
        assert detector.threshold(fpr) == detector.benign_scores[rank - 1].item()
    assert detector.threshold() == detector.threshold(0.05)
    assert detector.threshold(0.01) == detector.benign_scores[-1].item()
    assert "60 held-out benign scores are too few for a false-positive rate of 0.01" in warnings_text()
    verdicts = detector.predict(IMAGES, fpr=0.5)
    assert torch.equal(verdicts, (detector.decision_function(IMAGES) > detector.threshold(0.5)).long())
    for fpr in (0, 1, -0.1, math.nan):
        with pytest.raises(ValueError, match="`fpr` must be between 0 and 1"):
            detector.threshold(fpr)


def test_layers_are_explained(detector, features):
    x = features[0].clone()
    assert detector.layer_z_scores(x[features[1] == 0]).abs().mean() < 3
    torch.testing.assert_close(
        detector.layer_contributions(detector.benign_mean[None]), torch.zeros(1, 6, dtype=torch.float64)
    )
    # Only the third layer is unusual: it alone has a z-score, and it alone makes the score.
    x = detector.benign_mean.repeat(1, 1)
    x[0, 4:6] += torch.tensor([1.0, -5.0]) * detector.benign_std[4:6]
    expected = [0, 0, -5, 0, 0, 0]
    torch.testing.assert_close(detector.layer_z_scores(x), torch.tensor([expected], dtype=torch.float64))
    contributions = detector.layer_contributions(x)[0]
    difference = detector.score_features(x) - detector.score_features(detector.benign_mean[None])
    torch.testing.assert_close(contributions[2], difference[0])
    assert contributions[[0, 1, 3, 4, 5]].eq(0).all()
    explained = detector.explain(IMAGES[:2])
    assert len(explained) == 2 and list(explained[0]) == detector.extractor.layers
    assert set(explained[0]["resnet.embedder.embedder.convolution"]) == {"z_score", "contribution"}


@pytest.mark.parametrize("load", [MBFDetector.from_pretrained, AutoModel.from_pretrained])
def test_a_saved_detector_comes_back_with_its_classifier(load, saved, detector):
    again = load(saved)
    assert type(again) is MBFDetector
    assert torch.equal(again.decision_function(IMAGES), detector.decision_function(IMAGES))
    assert again.threshold(0.1) == detector.threshold(0.1) and again.config.attacks == ["noise"]
    assert torch.equal(again.layer_contributions(detector.benign_mean[None] + 1), detector.layer_contributions(detector.benign_mean[None] + 1))  # fmt: skip
    assert again.support_vectors.dtype == torch.float64 and not again.training


def test_a_saved_detector_holds_no_pickle_and_carries_its_code(saved):
    names = sorted(path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file())
    weights = ["classifier/config.json", "classifier/model.safetensors", "config.json", "model.safetensors"]
    assert names == sorted([*CODE_FILES, *weights])
    assert not any(name.startswith("classifier") for name in load_file(saved / "model.safetensors"))


def test_a_classifier_of_ones_own_is_passed_again(tmp_path):
    classifier = make_classifier("plain")
    detector = MBFDetector(MBFConfig(), classifier).fit(ROWS, c=[1], gamma=[1])
    detector.save_pretrained(tmp_path)
    assert not (tmp_path / "classifier").exists()
    again = MBFDetector.from_pretrained(tmp_path, classifier=make_classifier("plain"))
    assert torch.equal(again.decision_function(IMAGES[:4]), detector.decision_function(IMAGES[:4]))
    with pytest.raises(ValueError, match=r"holds no classifier: pass the one it was trained for"):
        MBFDetector.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="needs a classifier of transformers"):
        detector.save_pretrained(tmp_path, include_classifier=True)


def test_a_timm_classifier_in_transformers_comes_back_with_the_detector(tmp_path):
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    torch.manual_seed(0)
    config = TimmWrapperConfig(architecture="test_efficientnet", model_args={"in_chans": 1}, num_labels=10)
    classifier = TimmWrapperForImageClassification(config).eval()
    detector = MBFDetector(MBFConfig(layers="*conv_*"), classifier).fit(ROWS, c=[1], gamma=[1])
    assert detector.extractor.layers[0] == "timm_model.conv_stem"
    detector.save_pretrained(tmp_path)
    again = MBFDetector.from_pretrained(tmp_path)
    # loaded weights lie elsewhere in memory, where convolutions round otherwise
    torch.testing.assert_close(
        again.decision_function(IMAGES[:4]), detector.decision_function(IMAGES[:4]), rtol=0, atol=1e-3
    )


def test_the_hub_keeps_a_detector_and_its_classifier(detector, hub, tmp_path):
    detector.push_to_hub("tester/mbf-detector")
    again = MBFDetector.from_pretrained("tester/mbf-detector", cache_dir=tmp_path)
    assert torch.equal(again.decision_function(IMAGES[:4]), detector.decision_function(IMAGES[:4]))
    make_classifier("resnet").push_to_hub("tester/resnet")
    config = MBFConfig(classifier_id="tester/resnet", classifier_revision="main")
    MBFDetector(config, make_classifier("resnet")).fit(ROWS, c=[1], gamma=[1]).push_to_hub("tester/mbf-only")
    files = {path for path in hub_files("tester/mbf-only")}
    assert "model.safetensors" in files and not any(path.startswith("classifier/") for path in files)
    assert MBFDetector.from_pretrained("tester/mbf-only", cache_dir=tmp_path).classifier is not None


def hub_files(repo_id):
    from huggingface_hub import HfApi

    return HfApi().list_repo_files(repo_id)


def test_another_classifier_is_refused(saved, detector):
    other = make_classifier("resnet")
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-6
    message = f"weights have the digest {weights_digest(other)[:16]}, but .* trained for {weights_digest(detector.classifier)[:16]}"
    with pytest.raises(ValueError, match=message):
        MBFDetector.from_pretrained(saved, classifier=other)
    with pytest.raises(ValueError, match="load that classifier"):
        MBFDetector.from_pretrained(saved, classifier=make_classifier("vit"))
    assert MBFDetector.from_pretrained(saved, classifier=torch.compile(make_classifier("resnet")))


def test_a_half_precision_classifier_warns_and_its_features_drift(saved, detector, warnings_text):
    again = MBFDetector.from_pretrained(saved, classifier=make_classifier("resnet").bfloat16())
    assert "the classifier is bfloat16, the detector was trained with float32" in warnings_text()
    drift = again(IMAGES.bfloat16()).features - detector(IMAGES).features
    assert 1e-4 < drift.abs().max() < 0.2
    assert weights_dtype(again.classifier) == "bfloat16"
    loaded = MBFDetector.from_pretrained(saved, dtype=torch.bfloat16)  # the dtype is the classifier's
    assert weights_dtype(loaded.classifier) == "bfloat16" and loaded.scaler_mean.dtype == torch.float64


def test_a_quantised_classifier_warns(saved, warnings_text):
    classifier = make_classifier("resnet")
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.copy_((parameter * 16).round() / 16)
    classifier.config.quantization_config = {"quant_method": "mine"}
    MBFDetector.from_pretrained(saved, classifier=classifier)
    assert "the classifier is quantised" in warnings_text()


def test_the_digest_is_of_values_and_buffers_not_of_counters():
    model, same = make_classifier("resnet"), make_classifier("resnet")
    same.train()(IMAGES[:2])
    assert weights_digest(model) != weights_digest(same)  # running statistics
    same.load_state_dict(model.state_dict())
    same.resnet.embedder.embedder.normalization.num_batches_tracked += 1
    assert weights_digest(model) == weights_digest(same)


def tamper(folder, **changes):
    """Change tensors (None: leave out) of a saved detector."""
    tensors = {**load_file(folder / "model.safetensors"), **changes}
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"support_vectors": None}, "missing keys: .*support_vectors"),
        ({"extra": torch.ones(1)}, "unexpected keys: .*extra"),
        ({"support_vectors": torch.ones(2, 3)}, "tensors do not fit its config.json"),
        ({"scaler_mean": torch.ones(3)}, "tensors do not fit its config.json"),
    ],
)
def test_a_file_with_other_tensors_is_refused(saved, changes, message):
    tamper(saved, **changes)
    with pytest.raises(ValueError, match=message):
        MBFDetector.from_pretrained(saved)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("support_vectors", lambda t: t.fill_(math.nan), "`support_vectors` holds NaN or infinite"),
        ("intercept", lambda t: t.fill_(math.inf), "`intercept` holds NaN or infinite"),
        ("scaler_scale", lambda t: t.neg_(), "`scaler_scale` must be positive"),
        ("benign_scores", lambda t: t.neg_(), "`benign_scores` ascending"),
    ],
)
def test_a_file_with_values_that_no_training_leaves_is_refused(saved, name, change, message):
    tamper(saved, **{name: change(load_file(saved / "model.safetensors")[name].clone())})
    with pytest.raises(ValueError, match=message):
        MBFDetector.from_pretrained(saved)


def test_changed_weights_beside_the_detector_are_refused(saved):
    path = saved / "classifier" / "model.safetensors"
    tensors = load_file(path)
    tensors["classifier.1.bias"] += 1e-3
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="weights have the digest"):
        MBFDetector.from_pretrained(saved)


class Trap:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "detector.pkl"])
@pytest.mark.parametrize("keep", [True, False])
def test_a_pickle_is_never_read(saved, name, keep, tmp_path):
    (saved / name).write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
    if keep:
        MBFDetector.from_pretrained(saved)
    else:
        (saved / "model.safetensors").unlink()
        with pytest.raises(OSError, match="safetensors"):
            MBFDetector.from_pretrained(saved)
    assert not (tmp_path / "ran").exists()


def test_a_file_that_is_no_safetensors_is_refused(saved, tmp_path):
    (saved / "model.safetensors").write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
    with pytest.raises(ValueError, match="model.safetensors is no safetensors file"):
        MBFDetector.from_pretrained(saved)
    assert not (tmp_path / "ran").exists()


def test_a_configuration_that_does_not_fit_is_refused(saved):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "num_features": 5}))
    with pytest.raises(ValueError, match="do not fit its config.json"):
        MBFDetector.from_pretrained(saved)
    (saved / "config.json").write_text(json.dumps({**config, "target_fpr": 2.0}))
    with pytest.raises(Exception, match="`target_fpr` must be between 0 and 1"):
        MBFDetector.from_pretrained(saved)
    (saved / "config.json").write_text(json.dumps({**config, "classifier_digest": None}))
    with pytest.raises(ValueError, match="config.json has no `classifier_digest`"):
        MBFDetector.from_pretrained(saved)
    (saved / "config.json").write_text(json.dumps({**config, "channel_groups": [2] * 6}))
    with pytest.raises(ValueError, match="the layers give 24 features, the detector has 12"):
        MBFDetector.from_pretrained(saved)
    (saved / "config.json").write_text(json.dumps({**config, "num_coefficients": [1] * 6}))
    with pytest.raises(ValueError, match="the layers give 6 features, the detector has 12"):
        MBFDetector.from_pretrained(saved)


def test_the_estimator_for_scikit_learn_comes_back_without_a_pickle(detector, features, tmp_path):
    path = tmp_path / "estimator.skops"
    save_estimator(detector, path)
    expected = detector.estimator_.decision_function(features[0].numpy())
    np.testing.assert_array_equal(load_estimator(path).decision_function(features[0].numpy()), expected)


def test_an_estimator_file_with_anything_else_is_refused(tmp_path, detector):
    import skops.io
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    path = tmp_path / "estimator.skops"
    for estimator, message in (
        (make_pipeline(StandardScaler(), FunctionTransformer(os.getpid)), "holds .*getpid"),
        (make_pipeline(StandardScaler(), LogisticRegression()), "holds .*LogisticRegression"),
        (LogisticRegression(), "not a scaler and a support vector machine"),
    ):
        skops.io.dump(estimator, path)
        with pytest.raises(ValueError, match=message):
            load_estimator(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.pkl", pickle.dumps(Trap(tmp_path / "ran")))
    with pytest.raises(ValueError, match="is no file of `save_estimator`"):
        load_estimator(path)
    path.write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
    with pytest.raises(ValueError, match="is no file of `save_estimator`"):
        load_estimator(path)
    assert not (tmp_path / "ran").exists()
    detector = MBFDetector(MBFConfig(), make_classifier("resnet"))
    with pytest.raises(ValueError, match="only a detector that was fitted in this process"):
        save_estimator(detector, path)


def features_of(num_rows=20, columns=12):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(num_rows, columns, generator=generator), torch.arange(num_rows) % 2, torch.arange(num_rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y, s: (x[:9], y[:9], s[:9]), "at least 10 rows, got 9"),
        (lambda x, y, s: (x, y * 0, s), r"must hold both 0 and 1, got \[0\]"),
        (lambda x, y, s: (x, y + 1, s), r"must hold both 0 and 1, got \[1, 2\]"),
        (lambda x, y, s: (x, y[:-1], s), "differ in rows"),
        (lambda x, y, s: (x[:, :5], y, s), "`features` has 5 columns, the layers give 12"),
        (lambda x, y, s: (x.index_fill(0, torch.tensor(3), math.nan), y, s), "NaN or infinite"),
        (lambda x, y, s: (x, y, s % 4), "`is_adversarial` 0 come from 2 sources, too few for 5 folds"),
    ],
)
def test_training_data_that_does_not_do_is_refused(change, message):
    detector = MBFDetector(MBFConfig(layers=CONVOLUTIONS, num_coefficients=2), make_classifier("resnet"))
    with pytest.raises(ValueError, match=message):
        detector.fit_features(*change(*features_of()))


def test_what_needs_fitting_or_a_classifier_says_so(features, tmp_path, detector):
    empty = MBFDetector(MBFConfig(), make_classifier("resnet"))
    for call in (
        lambda: empty(IMAGES[:1]),
        lambda: empty.score_features(features[0]),
        lambda: empty.threshold(0.1),
        lambda: empty.save_pretrained(tmp_path),
    ):
        with pytest.raises(ValueError, match="not fitted: call `fit` first"):
            call()
    with pytest.raises(ValueError, match="no classifier: call `bind"):
        MBFDetector(MBFConfig()).fit(ROWS)
    with pytest.raises(ValueError, match="rows need source, they have pixel_values, is_adversarial"):
        empty.fit([{name: row[name] for name in ("pixel_values", "is_adversarial")} for row in ROWS])
    with pytest.raises(ValueError, match="no rows"):
        empty.fit([])
    with pytest.raises(ValueError, match=r"`features` must be \(batch, 12\), got \(1, 5\)"):
        detector.score_features(torch.ones(1, 5))
    with pytest.raises(ValueError, match="call `push_to_hub` instead"):
        detector.save_pretrained(tmp_path, push_to_hub=True)
