# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The pipeline says what the detector says, of images of any mode and size, with and without the package."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from checkpoint_mbf import GENERATOR, IMAGES, PROCESSOR, make_detector
from models_mbf import make_classifier
from PIL import Image
from transformers import AutoModel, ViTImageProcessor, pipeline

from hf_methods.mbf import AdversarialDetectionPipeline, MBFDetector


@pytest.fixture(scope="module")
def detect():
    return make_detector("vit")


def same(a, b):
    """Records with floats that may differ by the batch's rounding."""
    return json.loads(json.dumps(a), parse_float=lambda x: pytest.approx(float(x), abs=1e-3)) == json.loads(
        json.dumps(b)
    )


@pytest.mark.parametrize("fpr", [None, 0.5])
def test_a_record_is_what_the_detector_says(detect, fpr):
    detector = detect.model
    pixels = detect.image_processor(IMAGES, return_tensors="pt")["pixel_values"]
    verdicts, probabilities = detector.predict(pixels, fpr).tolist(), detector.predict_proba(pixels)[:, 1]
    explained, logits = detector.explain(pixels), detector.classifier(pixels).logits
    records = detect(IMAGES, fpr=fpr, top_k_layers=2)
    assert len(records) == 20
    for index, record in enumerate(records):
        assert record["label"] == ("benign", "adversarial")[verdicts[index]]
        assert record["score"] == pytest.approx(probabilities[index].item(), abs=1e-4)
        assert record["class"] == f"LABEL_{logits[index].argmax()}"
        assert record["class_score"] == pytest.approx(logits[index].softmax(0).max().item(), abs=1e-5)
        layers = sorted(explained[index].items(), key=lambda item: -item[1]["contribution"])[:2]
        assert [layer["layer"] for layer in record["layers"]] == [name for name, _ in layers]
        assert record["layers"][0]["z_score"] == pytest.approx(layers[0][1]["z_score"], abs=1e-3)
    if fpr == 0.5:
        assert {record["label"] for record in records} == {"benign", "adversarial"}


@pytest.mark.parametrize("batch_size", [1, 3, 20])
def test_batches_and_single_images_give_the_same(detect, batch_size):
    alone = [detect(image) for image in IMAGES[:6]]
    assert same(alone, detect(IMAGES[:6], batch_size=batch_size))


def test_all_layers_are_listed_when_asked_for(detect):
    assert len(detect(IMAGES[0])["layers"]) == 3
    assert len(detect(IMAGES[0], top_k_layers=100)["layers"]) == len(detect.model.extractor.layers)
    assert detect(IMAGES[0], top_k_layers=0)["layers"] == []


@pytest.mark.parametrize("config", [{}, {"num_coefficients": 2, "channel_groups": 2}], ids=["layers", "groups"])
def test_coefficients_come_with_their_benign_band(config):
    detect = make_detector("resnet", **config)
    detector = detect.model
    pixels = detect.image_processor(IMAGES[:2], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        features = detector.extractor(pixels).features
    names = detector.extractor.feature_names
    for index, record in enumerate(detect(IMAGES[:2], top_k_layers=100, return_coefficients=True)):
        assert len(record["layers"]) == len(detector.extractor.layers)
        for layer in record["layers"]:
            own = [at for at, name in enumerate(names) if name.rpartition(":")[0].partition("[")[0] == layer["layer"]]
            assert layer["coefficients"] == pytest.approx(features[index, own].tolist(), abs=1e-3)
            assert layer["benign_mean"] == detector.benign_mean[own].tolist()
            assert layer["benign_std"] == detector.benign_std[own].tolist()
            z = [
                (c - m) / s for c, m, s in zip(*(layer[key] for key in ("coefficients", "benign_mean", "benign_std")))
            ]
            assert layer["z_score"] == pytest.approx(max(z, key=abs), rel=1e-6)
    assert "coefficients" not in detect(IMAGES[0])["layers"][0]


def test_images_of_other_modes_and_sizes_are_converted(detect, tmp_path):
    grey = IMAGES[0]
    rgba = grey.convert("RGBA")
    rgba.putalpha(128)
    expected = detect(grey)
    for image in (grey.convert("RGB"), grey.convert("P"), rgba, grey.convert("CMYK")):
        record = detect(image)
        assert record["class"] == expected["class"] and record["score"] == pytest.approx(expected["score"], abs=0.02)
    grey.save(tmp_path / "x.png")
    assert same(detect(str(tmp_path / "x.png")), expected)
    records = detect([grey, grey.resize((40, 30)), grey.convert("RGB").resize((9, 9))], batch_size=3)
    assert same(records[0], expected) and len(records) == 3


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + bytes(50)])
def test_a_file_that_is_no_image_is_an_error_that_names_it(detect, content, tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="broken.png can't be read as an image"):
        detect(str(path))


def test_a_truncated_file_is_an_error(detect, tmp_path):
    Image.fromarray(GENERATOR.integers(0, 256, (200, 200), dtype=np.uint8)).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:5000])
    with pytest.raises(ValueError, match="half.png can't be read as an image"):
        detect(str(tmp_path / "half.png"))
    with pytest.raises(ValueError):
        detect(str(tmp_path / "missing.png"))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"fpr": 0.0}, "`fpr` must be between 0 and 1"),
        ({"fpr": 1}, "got 1"),
        ({"top_k_layers": -1}, "can't be negative"),
    ],
)
def test_bad_parameters_are_refused(detect, kwargs, message):
    with pytest.raises(ValueError, match=message):
        detect(IMAGES[0], **kwargs)


def test_what_is_no_detector_or_has_no_fitting_processor_is_refused(detect):
    with pytest.raises(TypeError, match="needs an MBFDetector, got ViTForImageClassification"):
        AdversarialDetectionPipeline(model=make_classifier("vit"), image_processor=detect.image_processor)
    with pytest.raises(ValueError, match="needs the classifier's `image_processor`"):
        AdversarialDetectionPipeline(model=detect.model)
    colored = ViTImageProcessor(size={"height": 28, "width": 28}, do_convert_rgb=True)
    with pytest.raises(ValueError, match="gives 3 channels, the classifier takes 1"):
        AdversarialDetectionPipeline(model=detect.model, image_processor=colored)(IMAGES[0])
    large = ViTImageProcessor(**{**PROCESSOR, "size": {"height": 32, "width": 32}})
    with pytest.raises(ValueError, match="32"):
        AdversarialDetectionPipeline(model=detect.model, image_processor=large)(IMAGES[0])


CODE = """
import json, sys
sys.modules["hf_methods"] = None  # importing it is an error from here on
from transformers import pipeline
folder, *images = sys.argv[1:]
try:
    pipeline("adversarial-detection", model=folder, trust_remote_code=False)
except ValueError as error:
    assert "trust_remote_code" in str(error), error
else:
    raise AssertionError("loaded without trust")
detect = pipeline("adversarial-detection", model=folder, trust_remote_code=True)
assert type(detect).__module__.startswith("transformers_modules."), type(detect)
json.dump(detect(images), open(f"{folder}/out.json", "w"))
detect.save_pretrained(f"{folder}/again")
"""


@pytest.mark.slow
def test_a_saved_pipeline_works_with_and_without_the_package(detect, tmp_path):
    folder = tmp_path / "detector"
    detect.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["custom_pipelines"] == {
        "adversarial-detection": {
            "impl": "pipeline_mbf.AdversarialDetectionPipeline",
            "pt": ["AutoModel"],
            "type": "image",
        }
    }
    paths = [str(tmp_path / f"{index}.png") for index in range(3)]
    for path, image in zip(paths, IMAGES, strict=False):
        image.save(path)
    here = pipeline("adversarial-detection", model=str(folder), pipeline_class=AdversarialDetectionPipeline)
    assert isinstance(here.model, MBFDetector) and same(here(paths), detect(paths))
    assert isinstance(AutoModel.from_pretrained(folder), MBFDetector)
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    result = subprocess.run(
        [sys.executable, "-c", CODE, str(folder), *paths],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, env=env, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert same(json.loads((folder / "out.json").read_text()), detect(paths))
    files = [f"{role}_mbf.py" for role in ("configuration", "extraction", "features", "modeling", "pipeline", "svm")]
    assert sorted(path.name for path in folder.glob("*.py")) == files
    # transformers saves the code of a remote model again, not that of a remote pipeline
    assert sorted(path.name for path in (folder / "again").glob("*.py")) == [
        name for name in files if "pipeline" not in name
    ]
