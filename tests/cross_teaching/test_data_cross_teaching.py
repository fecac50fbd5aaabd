# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Annotations of every layout as the same boxes, what is bad counted, and scenes and splits that can be relied on."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from hf_methods.cross_teaching import data_cross_teaching, formats_cross_teaching
from hf_methods.cross_teaching.data_cross_teaching import (
    BadImageError,
    detection_digest,
    drop_labels,
    image_digests,
    label_names,
    open_image,
    split_labeled,
)
from hf_methods.cross_teaching.formats_cross_teaching import (
    load_coco,
    load_imagefolder,
    load_unlabeled_folder,
    load_voc,
)
from hf_methods.cross_teaching.scenes_cross_teaching import make_digit_scenes


def picture(width=40, height=30, mode="RGB", seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def save_rotated(path, width=40, height=30):
    """A photo that is stored on its side; shown, it is `height` x `width`."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(width, height).save(path, exif=exif)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    picture().save(folder / "a.png")
    picture(seed=1).save(folder / "b.jpg")
    picture(mode="L").save(folder / "grey.png")
    (folder / "broken.jpg").write_bytes(b"no image at all")
    return folder


def write_lines(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))


def entry(name, boxes, categories, **more):
    return {"file_name": name, "objects": {"bbox": boxes, "category": categories, **more}}


def test_an_imagefolder_gives_its_boxes_and_counts_what_is_bad(pictures):
    write_lines(
        pictures / "metadata.jsonl",
        [
            entry("a.png", [[1, 2, 10, 5], [5, 5, 0, 3], [50, 1, 3, 3]], ["dog", "dog", "cat"]),
            entry("b.jpg", [[35, 25, 10, 10], [0, 0, float("nan"), 2]], ["cat", "dog"], iscrowd=[1, 0]),
            entry("grey.png", [], []),
            entry("broken.jpg", [[1, 1, 2, 2]], ["dog"]),
            entry("gone.jpg", [[1, 1, 2, 2]], ["dog"]),
        ],
    )
    dataset, report = load_imagefolder(pictures)
    assert label_names(dataset) == ["cat", "dog"] and report.num_images == len(dataset) == 3
    assert dataset[0]["objects"]["bbox"] == [[1, 2, 10, 5]] and dataset[0]["objects"]["category"] == [1]
    assert dataset[1]["objects"]["bbox"] == [[35, 25, 5, 5]] and dataset[1]["objects"]["iscrowd"] == [True]
    assert dataset[2]["objects"]["bbox"] == [] and dataset[2]["is_labeled"]
    assert report.counts == {
        "box without area": 1, "box outside the image": 1, "box over the edge of the image, clipped": 1,
        "box without four finite numbers": 1, "unreadable image": 1, "missing image": 1,
    }  # fmt: skip
    assert report.examples["unreadable image"] == ["broken.jpg"]
    fewer, report = load_imagefolder(pictures, keep_empty=False)
    assert len(fewer) == 2 and report.counts["image without objects"] == 1


def test_categories_may_be_numbers_and_unknown_ones_are_counted(pictures):
    write_lines(pictures / "metadata.jsonl", [entry("a.png", [[1, 2, 3, 4]] * 3, [0, 7, 1])])
    with pytest.raises(ValueError, match="categories that are numbers, such as .: give their `names`"):
        load_imagefolder(pictures)
    dataset, report = load_imagefolder(pictures, names=["x", "y"])
    assert dataset[0]["objects"]["category"] == [0, 1] and report.counts["unknown category"] == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: must be"),
        ('{"file_name": "a.png"}', "line 1: must be .* KeyError: 'objects'"),
        ('{"file_name": "a.png", "objects": {"bbox": [[1, 1, 2, 2]], "category": []}}', "1 boxes and 0 categories"),
    ],
)
def test_a_line_that_is_no_annotation_is_named(pictures, line, message):
    (pictures / "metadata.jsonl").write_text(line)
    with pytest.raises(ValueError, match=message):
        load_imagefolder(pictures)


def test_boxes_as_corners_are_suspected(pictures, monkeypatch):
    warned = []
    monkeypatch.setattr(formats_cross_teaching.logger, "warning", warned.append)
    write_lines(pictures / "metadata.jsonl", [entry("a.png", [[20, 15, 38, 28]], ["dog"])])
    load_imagefolder(pictures)
    assert any("are these [x0, y0, x1, y1]" in line for line in warned)


def test_an_unlabelled_folder_needs_no_index(pictures):
    (pictures / "deeper").mkdir()
    save_rotated(pictures / "deeper" / "turned.jpg")
    (pictures / "notes.txt").write_text("not an image")
    dataset, report = load_unlabeled_folder(pictures, ["dog"])
    names = [Path(row["image"]["path"]).name for row in dataset]
    assert names == ["a.png", "b.jpg", "turned.jpg", "grey.png"] and report.counts == {"unreadable image": 1}
    assert (dataset[2]["width"], dataset[2]["height"]) == (30, 40) and not any(dataset["is_labeled"])
    with pytest.raises(ValueError, match="is no folder"):
        load_unlabeled_folder(pictures / "nowhere", ["dog"])
    (pictures / "empty").mkdir()
    with pytest.raises(ValueError, match="has no image that can be used: it is empty"):
        load_unlabeled_folder(pictures / "empty", ["dog"])


def test_coco_ids_with_gaps_crowds_and_images_without_objects(pictures):
    save_rotated(pictures / "stored.jpg")
    content = {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 40, "height": 30},
            {"id": 9, "file_name": "stored.jpg", "width": 40, "height": 30},  # annotated as it is stored
            {"id": 11, "file_name": "grey.png"},
            {"id": 12, "file_name": "broken.jpg"},
        ],
        "categories": [{"id": 90, "name": "zebra"}, {"id": 3, "name": "ant"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 90, "bbox": [1, 2, 3, 4], "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 3, "bbox": [5, 5, 5, 5], "iscrowd": 1},
            {"id": 3, "image_id": 7, "category_id": 4, "bbox": [5, 5, 5, 5]},
            {"id": 4, "image_id": 99, "category_id": 3, "bbox": [5, 5, 5, 5]},
        ],
    }
    path = pictures / "coco.json"
    path.write_text(json.dumps(content))
    dataset, report = load_coco(path, pictures)
    assert label_names(dataset) == ["ant", "zebra"] and dataset["image_id"][:] == [7, 9, 11]
    assert dataset[0]["objects"]["category"] == [1, 0] and dataset[0]["objects"]["iscrowd"] == [False, True]
    assert (dataset[1]["width"], dataset[1]["height"]) == (40, 30)
    assert open_image(dataset[1]["image"], (40, 30)).size == (40, 30)
    assert report.counts == {"unknown category": 1, "annotation of no image": 1, "unreadable image": 1}
    del content["annotations"]
    path.write_text(json.dumps(content))
    assert not any(load_coco(path, pictures)[0]["is_labeled"])
    for text, message in (("{", "no valid JSON"), ("[]", "no COCO file"), ('{"images": []}', "no COCO file")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_coco(path, pictures)
    with pytest.raises(ValueError, match="is no file"):
        load_coco(pictures / "nothing.json", pictures)


def test_voc_counts_pixels_from_one_and_keeps_difficult_objects(tmp_path):
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "trainval.txt").write_text("000001\n000002 1\n000003\n000004\n")
    for number in (1, 2, 3):
        picture().save(tmp_path / "JPEGImages" / f"00000{number}.jpg")

    def item(name, corners, difficult=0):
        sides = "".join(f"<{side}>{x}</{side}>" for side, x in zip(("xmin", "ymin", "xmax", "ymax"), corners))
        return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{sides}</bndbox></object>"

    objects = item("cat", (1, 1, 10, 20)) + item("dog", (5, 6, 40, 30), 1) + item("unicorn", (1, 1, 2, 2))
    (tmp_path / "Annotations" / "000001.xml").write_text(f"<annotation>{objects}</annotation>")
    (tmp_path / "Annotations" / "000002.xml").write_text("<annotation></annotation>")
    dataset, report = load_voc(tmp_path)
    assert dataset[0]["objects"]["bbox"] == [[0, 0, 10, 20], [4, 5, 36, 25]]
    assert dataset[0]["objects"]["category"] == [7, 11] and dataset[0]["objects"]["difficult"] == [False, True]
    assert report.counts == {"unknown category": 1, "missing annotation": 1, "missing image": 1} and len(dataset) == 2
    (tmp_path / "Annotations" / "000001.xml").write_text("<annotation>")
    with pytest.raises(ValueError, match=r"000001\.xml is no valid XML"):
        load_voc(tmp_path)
    with pytest.raises(ValueError, match=r"test\.txt is no file; `root` must be a VOC folder"):
        load_voc(tmp_path, "test")


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "RGBA", "LA"])
def test_images_of_every_kind_become_rgb(mode, tmp_path):
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    picture(mode=mode).save(path)
    image = open_image(str(path))
    assert image.mode == "RGB" and image.size == (40, 30)


def test_transparent_pixels_are_white_and_grey_has_equal_channels(tmp_path):
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    clear.putpixel((0, 0), (255, 0, 0, 255))
    clear.save(tmp_path / "clear.png")
    pixels = np.asarray(open_image(tmp_path / "clear.png"))
    assert pixels[0, 0].tolist() == [255, 0, 0] and (pixels[1:] == 255).all()
    grey = np.asarray(open_image(picture(mode="L")))
    assert (grey[..., 0] == grey[..., 1]).all() and grey.std() > 0


def test_exif_orientation_is_applied_unless_the_annotation_is_of_the_stored_image(tmp_path):
    save_rotated(tmp_path / "turned.jpg")
    with Image.open(tmp_path / "turned.jpg") as stored:
        expected = ImageOps.exif_transpose(stored).convert("RGB")
        as_stored = stored.convert("RGB")
    assert open_image(tmp_path / "turned.jpg").tobytes() == expected.tobytes()
    assert open_image(tmp_path / "turned.jpg", (40, 30)).tobytes() == as_stored.tobytes()


def test_images_that_cannot_be_used_say_why(tmp_path, monkeypatch):
    picture().save(tmp_path / "x.jpg")
    whole = (tmp_path / "x.jpg").read_bytes()
    for image in (whole[: len(whole) // 2], b"", {"bytes": b"x", "path": "y.jpg"}, {"path": "/no/such/file"}, None, 3):
        with pytest.raises(BadImageError, match="can't be read as an image"):
            open_image(image)
    for mode in ("I;16", "I", "F"):
        with pytest.raises(BadImageError, match="more than 8 bits a channel"):
            open_image(Image.new(mode, (4, 4)))
    with pytest.raises(BadImageError, match="has no pixels"):
        open_image(Image.new("RGB", (0, 4)))
    monkeypatch.setattr(data_cross_teaching, "MAX_PIXELS", 1000)
    with pytest.raises(BadImageError, match="40 x 30 pixels, more than 1000"):
        open_image(whole)
    assert open_image(picture(1, 1)).size == (1, 1)


def test_splits_are_disjoint_complete_and_follow_from_fold_and_seed():
    scenes = make_digit_scenes("labeled", 40)
    labeled, unlabeled, indices = split_labeled(scenes, 10, fold=1, seed=5)
    assert len(labeled) == len(indices) == 4 and len(unlabeled) == 36
    ids = set(labeled["image_id"]), set(unlabeled["image_id"])
    assert ids[0] | ids[1] == set(range(40)) and not ids[0] & ids[1] and ids[0] == set(indices)
    assert all(labeled["is_labeled"]) and not any(unlabeled["is_labeled"])
    assert all(row["bbox"] == [] for row in unlabeled["objects"])
    assert split_labeled(scenes, 10, fold=1, seed=5)[2] == indices
    others = [split_labeled(scenes, 10, fold, seed)[2] for fold, seed in ((0, 5), (2, 5), (1, 6))]
    assert indices not in others
    assert len(split_labeled(scenes, 0.5)[0]) == 1 and len(split_labeled(scenes, 100)[0]) == 40
    for percent, fold in ((0, 0), (101, 0), (float("nan"), 0), (10, -1)):
        with pytest.raises(ValueError, match="`percent`|`fold`"):
            split_labeled(scenes, percent, fold)


def test_scenes_are_reproducible_and_their_objects_lie_apart_in_the_image():
    scenes, again = make_digit_scenes("test", 30, seed=3), make_digit_scenes("test", 30, seed=3)
    assert (
        detection_digest(scenes) == detection_digest(again) != detection_digest(make_digit_scenes("test", 30, seed=4))
    )
    assert label_names(scenes) == list("01234")
    for row in scenes:
        assert open_image(row["image"]).size == (64, 64) and 1 <= len(row["objects"]["bbox"]) <= 3
        for i, (x, y, w, h) in enumerate(row["objects"]["bbox"]):
            assert x >= 0 and y >= 0 and x + w <= 64 and y + h <= 64 and min(w, h) >= 4
            for a, b, c, d in row["objects"]["bbox"][:i]:
                assert x >= a + c or a >= x + w or y >= b + d or b >= y + h
    counts = np.bincount([label for row in scenes for label in row["objects"]["category"]], minlength=5)
    assert (counts > 0).all()
    with pytest.raises(ValueError, match="one of labeled, unlabeled, validation, test, got 'train'"):
        make_digit_scenes("train", 1)


def test_overlap_of_two_sets_shows_in_their_digests():
    first, other = make_digit_scenes("labeled", 5), make_digit_scenes("unlabeled", 5)
    assert not image_digests(first) & image_digests(other)
    assert len(image_digests(drop_labels(first)) & image_digests(first)) == 5
