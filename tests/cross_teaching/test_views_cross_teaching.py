# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Views show what their geometry says, boxes map with them, and samples do not depend on workers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from hf_methods.cross_teaching.data_cross_teaching import drop_labels
from hf_methods.cross_teaching.detections_cross_teaching import map_boxes
from hf_methods.cross_teaching.sampling_cross_teaching import (
    DataCollatorForCrossTeaching,
    SemiSupervisedDetectionDataset,
    stack_images,
)
from hf_methods.cross_teaching.scenes_cross_teaching import make_digit_scenes
from hf_methods.cross_teaching.views_cross_teaching import (
    Geometry,
    ViewSettings,
    from_view_to_view,
    labels_in_view,
    plain_geometry,
    random_geometry,
    render,
    strong_colors,
)


GREY = (128, 128, 128)
side = st.floats(1, 100)
geometry = st.builds(
    lambda left, top, width, height, mirrored, w, h: Geometry(left, top, left + width, top + height, mirrored, w, h),
    st.floats(-50, 50), st.floats(-50, 50), side, side, st.booleans(), st.integers(8, 64), st.integers(8, 64),
)  # fmt: skip


@given(geometry, geometry)
def test_boxes_go_from_view_to_view_as_through_the_image(first, second):
    boxes = torch.tensor([[3.0, 4, 20, 30], [-5, 0, 10, 7]], dtype=torch.float64)
    in_first, in_second = (
        map_boxes(boxes, torch.tensor(view.scale_and_shift(), dtype=torch.float64)) for view in (first, second)
    )
    mapped = map_boxes(in_first, torch.tensor(from_view_to_view(first, second), dtype=torch.float64))
    torch.testing.assert_close(mapped, in_second, rtol=1e-6, atol=1e-6)
    assert (mapped[:, 2:] >= mapped[:, :2]).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(60, 40), (200, 90), (41, 173)]))
def test_a_square_in_the_image_is_where_its_mapped_box_is(seed, size):
    rng = np.random.default_rng(seed)
    view_settings = ViewSettings(image_size=64, expand=0.5, crop=0.5, translation=0.1, flip=0.5)
    box = np.array([[size[0] * 0.3, size[1] * 0.3, size[0] * 0.7, size[1] * 0.8]]).round()
    image = Image.new("RGB", size, GREY)
    image.paste((255, 255, 255), tuple(int(x) for x in box[0]))
    view = random_geometry(*size, box, view_settings, rng)
    pixels = np.asarray(render(image, view, GREY)).astype(int)[..., 0]
    rows, columns = np.nonzero(pixels > 191)  # half way, so that blurred edges are where the edge is
    mapped = map_boxes(torch.from_numpy(box), torch.tensor(view.scale_and_shift(), dtype=torch.float64))[0].clamp(
        0, 64
    )
    if (mapped[2:] - mapped[:2]).min() > 4:
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.abs(np.array(found) - mapped.numpy()).max() <= 1.5


def test_a_crop_of_a_labelled_image_holds_the_centre_of_an_object():
    view_settings = ViewSettings(crop=1.0, flip=0.0)
    boxes = np.array([[5.0, 5, 15, 15], [70, 40, 90, 55]])
    seen = set()
    for seed in range(60):
        view = random_geometry(100, 60, boxes, view_settings, np.random.default_rng(seed))
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        inside = ((centres > (view.left, view.top)) & (centres < (view.right, view.bottom))).all(1)
        assert inside.any() and view.left >= 0 and view.bottom <= 60
        seen.add(view)
    assert len(seen) > 15  # a crop that overlaps a small object by 0.9 is not found


def test_labels_in_a_view_leave_out_crowds_and_what_the_view_has_not():
    objects = {
        "bbox": [[10, 10, 10, 10], [10, 10, 10, 10], [80, 80, 10, 10], [45, 45, 20, 20]],
        "category": [1, 2, 3, 4],
        "iscrowd": [False, True, False, False],
    }
    boxes, labels = labels_in_view(objects, Geometry(0, 0, 60, 60, False, 120, 120))
    assert labels.tolist() == [1, 4] and boxes.tolist() == [[20, 20, 40, 40], [90, 90, 120, 120]]
    boxes, _ = labels_in_view(objects, Geometry(0, 0, 60, 60, True, 120, 120))
    assert boxes.tolist() == [[80, 20, 100, 40], [0, 90, 30, 120]]
    nothing = {"bbox": [], "category": [], "iscrowd": []}
    assert labels_in_view(nothing, Geometry(0, 0, 60, 60, True, 120, 120))[0].shape == (0, 4)


@pytest.mark.parametrize("kind", ["none", "ssd", "unbiased_teacher", "light"])
def test_strong_colours_stay_in_range_and_follow_from_the_random_numbers(kind):
    image = torch.rand(3, 40, 30, generator=torch.Generator().manual_seed(0))
    original = image.clone()
    for seed in range(12):
        strong = strong_colors(image, kind, np.random.default_rng(seed))
        assert strong.shape == image.shape and strong.min() >= 0 and strong.max() <= 1
        assert torch.equal(strong, strong_colors(image, kind, np.random.default_rng(seed)))
    assert torch.equal(image, original) and torch.equal(strong, image) == (kind == "none")


@pytest.mark.parametrize("size", [(1, 1), (3, 2000), (2000, 1)])
def test_tiny_and_narrow_images_give_views(size):
    image = Image.new("RGB", size, GREY)
    view_settings = ViewSettings(image_size=32, expand=1.0, crop=1.0, translation=0.2)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        view = render(image, random_geometry(*size, np.zeros((0, 4)), view_settings, rng), GREY)
        assert view.size == (32, 32)
        strong_colors(torch.rand(3, 2, 2), "unbiased_teacher", rng)


def test_the_shortest_edge_is_scaled_unless_the_longest_would_be_too_long():
    view_settings = ViewSettings(image_size=600, keep_aspect=True, max_image_size=1000, image_sizes=[480, 800])
    assert plain_geometry(500, 300, view_settings)[-2:] == (1000, 600)
    assert plain_geometry(300, 600, view_settings)[-2:] == (500, 1000)
    sizes = {
        random_geometry(400, 400, np.zeros((0, 4)), view_settings, np.random.default_rng(seed)).width
        for seed in range(20)
    }
    assert sizes == {480, 800}


def test_images_of_different_sizes_are_padded_and_masked():
    batch, mask = stack_images([torch.ones(3, 4, 6), torch.ones(3, 5, 2)])
    assert batch.shape == (2, 3, 5, 6) and mask.sum((1, 2)).tolist() == [24, 10]
    assert torch.equal(batch[:, 0], mask.float())
    assert stack_images([torch.ones(3, 4, 6)] * 2)[1] is None


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="`strong` must be one of none, ssd, .*'mosaic'"):
        ViewSettings(strong="mosaic")
    with pytest.raises(ValueError, match="`flip` must be a probability, got 2"):
        ViewSettings(flip=2)


@pytest.fixture(scope="module")
def scenes():
    return make_digit_scenes("labeled", 5), make_digit_scenes("unlabeled", 3)


def make_dataset(scenes, **options):
    view_settings = ViewSettings(image_size=64, translation=0.1, strong_translation=0.1, strong="light", flip=0.0)
    return SemiSupervisedDetectionDataset(*scenes, num_samples=12, views=view_settings, **options)


def flat(batch):
    if isinstance(batch, (torch.Tensor, int)):
        return [torch.as_tensor(batch)]
    values = batch.values() if isinstance(batch, dict) else batch
    return [tensor for value in values for tensor in flat(value)]


def test_samples_do_not_depend_on_workers_or_order(scenes):
    collate = DataCollatorForCrossTeaching()
    alone = list(DataLoader(make_dataset(scenes, with_truth=True), batch_size=4, collate_fn=collate))
    workers = list(DataLoader(make_dataset(scenes, with_truth=True), batch_size=4, collate_fn=collate, num_workers=2))
    for a, b in zip(alone, workers):
        assert all(torch.equal(x, y) for x, y in zip(flat(a), flat(b), strict=True))
    late = collate([make_dataset(scenes, with_truth=True)[i] for i in range(8, 12)])
    assert all(torch.equal(x, y) for x, y in zip(flat(alone[2]), flat(late), strict=True))
    assert len(alone) == 3 and not torch.equal(
        alone[0]["labeled"][0]["pixel_values"], late["labeled"][0]["pixel_values"]
    )


def test_each_detector_sees_every_image_equally_often_in_its_own_order(scenes):
    dataset = make_dataset(scenes)
    rows = [[dataset._index(0, detector, i, 5) for i in range(20)] for detector in (0, 1)]
    assert all(sorted(row[k : k + 5]) == list(range(5)) for row in rows for k in range(0, 20, 5))
    assert rows[0] != rows[1] and rows[0][:5] != rows[0][5:10]


def test_the_batch_has_what_each_detector_needs(scenes):
    batch = DataCollatorForCrossTeaching()([make_dataset(scenes, unlabeled_ratio=2)[i] for i in range(4)])
    assert len(batch["labeled"]) == len(batch["unlabeled"]) == 2
    assert batch["labeled"][0]["pixel_values"].shape == (4, 3, 64, 64)
    assert batch["unlabeled"][1]["strong"].shape == (8, 3, 64, 64)
    assert batch["unlabeled"][1]["weak_to_strong"].shape == (8, 4) and "truth" not in batch["unlabeled"][0]
    for label in batch["labeled"][0]["labels"]:
        assert ((label["boxes"] >= 0) & (label["boxes"] <= 1)).all() and len(label["class_labels"])
    shared = DataCollatorForCrossTeaching()([make_dataset(scenes, shared_unlabeled=True)[0]])
    assert len(shared["unlabeled"]) == 1 and len(shared["labeled"]) == 2
    supervised = SemiSupervisedDetectionDataset(scenes[0], None, 4, views=ViewSettings(image_size=64))
    assert DataCollatorForCrossTeaching()([supervised[0]])["unlabeled"] == []


def test_the_truth_of_unlabelled_images_is_given_only_where_it_is_known(scenes):
    with_truth = make_dataset(scenes, with_truth=True)[0]["unlabeled"][0][0]
    assert len(with_truth["boxes"]) == len(with_truth["labels"])
    dataset = make_dataset((scenes[0], drop_labels(scenes[1])), with_truth=True)
    assert "boxes" not in dataset[0]["unlabeled"][0][0]


def test_an_unreadable_image_gives_way_and_is_counted(scenes):
    rows = scenes[1].to_list()
    rows[1]["image"] = {"bytes": b"broken", "path": "broken.png"}
    broken = type(scenes[1]).from_list(rows, features=scenes[1].features)
    dataset = make_dataset((scenes[0], broken))
    for i in range(6):
        dataset[i]
    assert dataset.num_unreadable > 0
    for row in rows:
        row["image"] = {"bytes": b"broken", "path": "broken.png"}
    with pytest.raises(ValueError, match="no image of the data set can be read"):
        make_dataset((scenes[0], type(broken).from_list(rows, features=broken.features)))[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b: dict(labeled=a.select([]), unlabeled=b), "`labeled` has no images"),
        (lambda a, b: dict(labeled=a, unlabeled=b.select([])), "`unlabeled` has no images; pass None"),
        (lambda a, b: dict(labeled=a, unlabeled=b, unlabeled_ratio=0), "`unlabeled_ratio` must be at least 1, got 0"),
    ],
)
def test_data_sets_that_cannot_be_sampled_are_named(scenes, change, message):
    with pytest.raises(ValueError, match=message):
        SemiSupervisedDetectionDataset(num_samples=4, **change(*scenes))
