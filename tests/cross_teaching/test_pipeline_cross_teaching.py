# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The pipeline's detectors against the stock pipeline on each, its ensemble and rules against the functions themselves."""

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForObjectDetection, pipeline

from hf_methods import CrossTeachingConfig, CrossTeachingModel, rectify, weighted_boxes_fusion
from hf_methods.cross_teaching import CrossTeachingDetectionPipeline, CrossTeachingForObjectDetection
from hf_methods.cross_teaching.image_processing_cross_teaching import DetectionImageProcessor
from hf_methods.cross_teaching.publishing_cross_teaching import save_repository
from hf_methods.cross_teaching.rectification_cross_teaching import BOX_RULES


NAMES = {0: "ant", 1: "bee", 2: "cat"}
THRESHOLD = 0.7


def make_teaching_model(num_detectors=2):
    """Untrained detectors that are sure of something, and half agree."""
    detector = {
        "model_type": "cross_teaching_detector", "architecture": "ssd_tiny", "id2label": NAMES,
        "label2id": {name: label for label, name in NAMES.items()},
    }  # fmt: skip
    model = CrossTeachingModel(CrossTeachingConfig(detector=detector, num_detectors=num_detectors))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        first = copy.deepcopy(model.students[0].state_dict())
        for student in model.students:
            student.load_state_dict(first)
            for name, parameter in student.named_parameters():
                if "classification_head" in name and name.endswith("weight"):
                    parameter.mul_(300)
                    parameter.add_(0.3 * parameter.std() * torch.randn(parameter.shape, generator=generator))
    model.copy_to_teachers()
    return model


@pytest.fixture(scope="module")
def model():
    return make_teaching_model().for_inference()


@pytest.fixture(scope="module")
def processor(model):
    return DetectionImageProcessor.for_detector(model.config.detector)


@pytest.fixture(scope="module")
def detect(model, processor):
    return CrossTeachingDetectionPipeline(model=model, image_processor=processor)


@pytest.fixture(scope="module")
def images():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 80, 100, 3), dtype=np.uint8)
    return [Image.fromarray(image) for image in pixels]


def stock(model, processor, number):
    detector = copy.deepcopy(model.detectors[number])
    return pipeline("object-detection", model=detector, image_processor=processor)


def without(records, *keys):
    return [{key: value for key, value in record.items() if key not in keys} for record in records]


def as_tensors(model, processor, image, number, threshold):
    with torch.no_grad():
        output = model(**processor(images=[image], return_tensors="pt"), detector=number)
    size = [(image.height, image.width)]
    return processor.post_process_object_detection(output, threshold, size)


def test_each_detector_answers_as_by_itself(detect, model, processor, images):
    counts = []
    for number, name in enumerate("AB"):
        alone = stock(model, processor, number)
        for image in images:
            records = detect(image, detector=name, threshold=THRESHOLD)
            assert {record["detector"] for record in records} <= {name}
            assert without(records, "detector") == alone(image, threshold=THRESHOLD)
            counts.append(len(records))
    assert min(counts) > 0 and len(set(counts)) > 1


def test_the_stock_pipeline_runs_the_whole_model_as_its_first_detector(model, processor, images):
    whole = pipeline("object-detection", model=model, image_processor=processor)
    assert whole(images[0], threshold=THRESHOLD) == stock(model, processor, 0)(images[0], threshold=THRESHOLD)


def test_the_ensemble_is_the_weighted_fusion_of_all_boxes(detect, model, processor, images):
    for image in images:
        found = [as_tensors(model, processor, image, number, 0.01) for number in range(2)]
        (fused,) = weighted_boxes_fusion(found, 0.6)
        keep = fused["scores"] > 0.3
        records = detect(image, threshold=0.3)
        assert [record["score"] for record in records] == pytest.approx(fused["scores"][keep].tolist())
        assert [record["label"] for record in records] == [NAMES[label] for label in fused["labels"][keep].tolist()]
        boxes = [[record["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")] for record in records]
        assert boxes == fused["boxes"][keep].int().tolist() and boxes


def test_all_are_the_detectors_in_turn_and_the_ensemble(detect, images):
    parts = [detect(images[0], detector=name, threshold=THRESHOLD) for name in ("A", "B", "ensemble")]
    assert detect(images[0], detector="all", threshold=THRESHOLD) == [record for part in parts for record in part]


@pytest.mark.parametrize("rule", BOX_RULES)
def test_the_changes_of_a_rule_lead_to_the_rectified_boxes(rule, detect, model, processor, images):
    changes = set()
    for image in images:
        found = [as_tensors(model, processor, image, number, THRESHOLD) for number in range(2)]
        for number, name in enumerate("AB"):
            records = detect(image, detector=name, rule=rule, threshold=THRESHOLD)
            (expected,) = rectify(found[number], [found[1 - number]], rule)
            after = [record for record in records if record["change"] != "dropped"]
            assert [record["score"] for record in after] == pytest.approx(expected["scores"].tolist())
            assert [record["label"] for record in after] == [NAMES[label] for label in expected["labels"].tolist()]
            before = [record.get("own", record) for record in records if record["change"] != "added"]
            own = detect(image, detector=name, threshold=THRESHOLD)
            assert without(before, "change") == own
            assert all((record["change"] == "replaced") == ("own" in record) for record in records)
            changes |= {record["change"] for record in records}
    assert {"kept", "replaced"} <= changes
    assert ("dropped" in changes) == (BOX_RULES[rule]["unmatched_own"] == "drop")
    assert ("added" in changes) == (BOX_RULES[rule]["unmatched_other"] == "add")


def test_a_batch_gives_what_each_image_gives_alone(detect, images):
    together = detect(images, batch_size=3, detector="all", threshold=THRESHOLD)
    for records, image in zip(together, images, strict=True):
        alone = detect(image, detector="all", threshold=THRESHOLD)
        assert without(records, "score", "box") == without(alone, "score", "box")
        assert [r["score"] for r in records] == pytest.approx([r["score"] for r in alone], abs=1e-5)


def test_grey_and_transparent_images_are_detected(detect, images):
    for mode in ("L", "RGBA", "1", "P"):
        assert isinstance(detect(images[0].convert(mode), threshold=0.01), list)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"detector": "C"}, "`detector` must be one of A, B, ensemble, all, got 'C'"),
        ({"detector": 0}, "got 0"),
        ({"rule": "ssd_anchor", "detector": "A"}, "`rule` must be one of ct_v1, crossrectify_voc, crossrectify_coco"),
        ({"rule": "ct_v1"}, "`rule` is for one detector or detector='all'"),
        ({"fusion_iou_threshold": 1.5}, "`fusion_iou_threshold` must be between 0 and 1, got 1.5"),
    ],
)
def test_bad_options_are_named(options, message, detect, images):
    with pytest.raises(ValueError, match=message):
        detect(images[0], **options)


def test_a_single_detector_has_nobody_to_rectify_it(processor, images):
    single = CrossTeachingDetectionPipeline(model=make_teaching_model(1).for_inference(), image_processor=processor)
    assert single(images[0], threshold=0.2) and {r["detector"] for r in single(images[0], threshold=0.2)} == {
        "ensemble"
    }
    with pytest.raises(ValueError, match="this model has one"):
        single(images[0], detector="A", rule="ct_v1")


def test_a_published_model_has_its_teachers_code_and_processor(tmp_path, images):
    teaching = make_teaching_model()
    with torch.no_grad():
        for parameter in teaching.students.parameters():
            parameter.zero_()  # what is published are the averages
    teaching.save_pretrained(tmp_path / "run")
    teaching = CrossTeachingModel.from_pretrained(tmp_path / "run")  # knows where its code came from
    save_repository(str(tmp_path / "run"), tmp_path / "repository")
    config = json.loads((tmp_path / "repository" / "config.json").read_text())
    assert config["architectures"] == ["CrossTeachingForObjectDetection"]
    assert config["auto_map"] == {
        "AutoConfig": "configuration_cross_teaching.CrossTeachingConfig",
        "AutoModelForObjectDetection": "modeling_inference_cross_teaching.CrossTeachingForObjectDetection",
    }
    loaded = AutoModelForObjectDetection.from_pretrained(tmp_path / "repository")
    assert isinstance(loaded, CrossTeachingForObjectDetection)
    for number in range(2):
        state = teaching.teachers[number].state_dict()
        assert all(torch.equal(value, state[name]) for name, value in loaded.detectors[number].state_dict().items())
    assert AutoImageProcessor.from_pretrained(tmp_path / "repository").size == {"height": 64, "width": 64}
    save_repository(str(tmp_path / "repository"), tmp_path / "again")
    again = pipeline("cross-teaching-object-detection", model=str(tmp_path / "again"), trust_remote_code=True)
    first = CrossTeachingDetectionPipeline(
        model=loaded, image_processor=AutoImageProcessor.from_pretrained(tmp_path / "repository")
    )
    assert again(images[0], detector="all", threshold=THRESHOLD) == first(
        images[0], detector="all", threshold=THRESHOLD
    )


def test_models_of_one_kind_are_not_taken_for_the_other(tmp_path):
    teaching = make_teaching_model()
    teaching.save_pretrained(tmp_path / "run")
    with pytest.raises(ValueError, match="holds several detectors .*export_detector.*for_inference"):
        AutoModelForObjectDetection.from_pretrained(tmp_path / "run")
    teaching.for_inference().save_pretrained(tmp_path / "published")
    with pytest.raises(ValueError, match=r"without their students.*from_detectors\(list\(model.detectors\)\)"):
        CrossTeachingModel.from_pretrained(tmp_path / "published")
    published = AutoModelForObjectDetection.from_pretrained(tmp_path / "published")
    back = CrossTeachingModel.from_detectors(list(published.detectors))
    assert torch.equal(next(back.students.parameters()), next(teaching.teachers.parameters()))
    with pytest.raises(ValueError, match="`detector` must be between 0 and 1, got 2"):
        published(torch.zeros(1, 3, 64, 64), detector=2)
