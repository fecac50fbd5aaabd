# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Detection data sets from folders of images, COCO and VOC files.

Whatever a source has that can't be used is left out and counted in a `DataReport`.
"""

import json
import math
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from datasets import Dataset
from PIL import Image
from transformers.utils import logging

from hf_methods.cross_teaching.data_cross_teaching import MAX_PIXELS, BadImageError, DataReport, detection_features


logger = logging.get_logger(__name__)

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
VOC_NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse",
    "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
# A share of boxes over the image's edge above which the boxes are probably of another format.
SUSPICIOUS_SHARE = 0.05


def _upright_size(path: Path) -> tuple[int, int]:
    """Width and height as displayed, from the header alone."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                width, height = image.size
                turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadImageError(str(error)) from error
    if width * height > MAX_PIXELS:
        raise BadImageError(f"{width} x {height} pixels")
    return (height, width) if turned else (width, height)


def _sound_objects(
    boxes: list, categories: list, crowds: list, difficult: list, size: tuple[int, int], where: str, report: DataReport
) -> dict[str, list]:
    """Objects whose boxes lie in the image, clipped to it; the others are counted."""
    width, height = size
    objects: dict[str, list] = {name: [] for name in ("bbox", "category", "area", "iscrowd", "difficult")}
    for box, category, crowd, hard in zip(boxes, categories, crowds, difficult):
        if len(box) != 4 or not all(isinstance(x, (int, float)) and math.isfinite(x) for x in box):
            report.add("box without four finite numbers", where)
            continue
        x, y, w, h = box
        if w <= 0 or h <= 0:
            report.add("box without area", where)
            continue
        left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
        if right <= left or bottom <= top:
            report.add("box outside the image", where)
            continue
        if x < -1 or y < -1 or x + w > width + 1 or y + h > height + 1:  # a pixel over is rounding
            report.add("box over the edge of the image, clipped", where)
        area = (right - left) * (bottom - top)
        row = ([left, top, right - left, bottom - top], category, area, bool(crowd), bool(hard))
        for values, value in zip(objects.values(), row):
            values.append(value)
    return objects


def _finish(rows: list[dict], names: list[str], report: DataReport, num_boxes: int) -> tuple[Dataset, DataReport]:
    over = report.counts["box over the edge of the image, clipped"] + report.counts["box outside the image"]
    if num_boxes and over > SUSPICIOUS_SHARE * num_boxes:
        logger.warning(
            f"{report.source}: {over} of {num_boxes} boxes go over the edge of their image. Boxes must be [x, y, width, "
            "height] in pixels; are these [x0, y0, x1, y1]?"
        )
    if not rows:
        raise ValueError(f"{report.source} has no image that can be used: {dict(report.counts) or 'it is empty'}.")
    report.num_images = len(rows)
    report.log()
    return Dataset.from_list(rows, features=detection_features(names)), report


def _row(image_id: int, path: Path, size: tuple[int, int], objects: dict[str, list] | None) -> dict[str, Any]:
    empty: dict[str, list] = {name: [] for name in ("bbox", "category", "area", "iscrowd", "difficult")}
    return {
        "image_id": image_id,
        "image": {"path": str(path), "bytes": None},
        "width": size[0],
        "height": size[1],
        "is_labeled": objects is not None,
        "objects": objects or empty,
    }


def load_unlabeled_folder(folder: str | Path, names: Iterable[str]) -> tuple[Dataset, DataReport]:
    """Images of a folder and the folders in it, without annotation; no index file is needed.

    Args:
        folder: any folder of images.
        names: labels of the labelled data, for the features.

    Raises:
        ValueError: no such folder, or no image in it that can be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give one with images.")
    report = DataReport(str(folder))
    rows: list[dict] = []
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES):
        try:
            rows.append(_row(len(rows), path.resolve(), _upright_size(path), None))
        except BadImageError:
            report.add("unreadable image", path.relative_to(folder))
    return _finish(rows, list(names), report, 0)


def load_imagefolder(
    folder: str | Path, names: list[str] | None = None, keep_empty: bool = True
) -> tuple[Dataset, DataReport]:
    """A folder of images with `metadata.jsonl`: the layout of `datasets`' imagefolder.

    Args:
        folder: has `metadata.jsonl`, each line {"file_name": ..., "objects": {"bbox": [[x, y, width, height], ...],
            "category": [...]}} with optional `iscrowd`, `difficult`; or "categories" for "category". Categories are names
            or numbers.
        names: labels, in order; default the sorted categories of the file. Needed where they are numbers.
        keep_empty: keep images without objects, as background.

    Raises:
        ValueError: no metadata.jsonl, a line that is no such object, or no usable image.
    """
    folder = Path(folder)
    path = folder / "metadata.jsonl"
    if not path.is_file():
        raise ValueError(f"{folder} has no metadata.jsonl; for images without annotation use `load_unlabeled_folder`.")
    entries = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            objects = entry["objects"]
            categories = objects["category"] if "category" in objects else objects["categories"]
            boxes = objects["bbox"]
            entries.append((entry["file_name"], boxes, categories, objects))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f'{path}, line {number}: must be {{"file_name": ..., "objects": {{"bbox": [...], "category": [...]}}}}; '
                f"{type(error).__name__}: {error}."
            ) from error
        if len(boxes) != len(categories):
            raise ValueError(f"{path}, line {number}: {len(boxes)} boxes and {len(categories)} categories.")
    if names is None:
        found = {category for _, _, categories, _ in entries for category in categories}
        if numbers := [category for category in found if not isinstance(category, str)]:
            raise ValueError(f"{path} has categories that are numbers, such as {numbers[0]}: give their `names`.")
        names = sorted(found)
    report, num_boxes = DataReport(str(folder)), 0
    rows: list[dict] = []
    for file_name, boxes, categories, objects in entries:
        image_path = folder / file_name
        try:
            size = _upright_size(image_path)
        except BadImageError:
            report.add("unreadable image" if image_path.exists() else "missing image", file_name)
            continue
        known = [_category(category, names) for category in categories]
        for category, index in zip(categories, known):
            if index is None:
                report.add("unknown category", f"{category} of {file_name}")
        keep = [row for row, index in enumerate(known) if index is not None]
        num_boxes += len(keep)
        flags = [objects.get(name) or [False] * len(boxes) for name in ("iscrowd", "difficult")]
        kept_boxes, labels, crowds, hard = ([column[row] for row in keep] for column in (boxes, known, *flags))
        sound = _sound_objects(kept_boxes, labels, crowds, hard, size, file_name, report)
        if sound["bbox"] or keep_empty:
            rows.append(_row(len(rows), image_path.resolve(), size, sound))
        else:
            report.add("image without objects", file_name)
    return _finish(rows, names, report, num_boxes)


def _category(category: Any, names: list[str]) -> int | None:
    if isinstance(category, str):
        return names.index(category) if category in names else None
    return category if isinstance(category, int) and 0 <= category < len(names) else None


def load_coco(annotations: str | Path, images: str | Path, keep_empty: bool = True) -> tuple[Dataset, DataReport]:
    """A COCO detection file; category ids may have gaps, labels are numbered in the order of the ids.

    Args:
        annotations: JSON with `images`, `annotations` and `categories`. Without `annotations` the images are unlabelled.
        images: folder of the images.
        keep_empty: keep images without objects, as background.

    Raises:
        ValueError: no such file, no COCO file, or no usable image.
    """
    path, folder = Path(annotations), Path(images)
    if not path.is_file():
        raise ValueError(f"{path} is no file; give a COCO JSON.")
    try:
        content = json.loads(path.read_text("utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no valid JSON: {error}") from error
    if not isinstance(content, dict) or missing_keys(content, ("images", "categories")):
        raise ValueError(f"{path} is no COCO file: it needs `images`, `categories` and, if labelled, `annotations`.")
    categories = sorted(content["categories"], key=lambda category: category["id"])
    names = [category["name"] for category in categories]
    index = {category["id"]: number for number, category in enumerate(categories)}
    report, num_boxes = DataReport(str(path)), 0
    rows: list[dict] = []
    by_image: dict[Any, list[dict]] = {}
    image_ids = {image["id"] for image in content["images"]}
    for annotation in content.get("annotations", []):
        if annotation["category_id"] not in index:
            report.add("unknown category", annotation["category_id"])
        elif annotation["image_id"] not in image_ids:
            report.add("annotation of no image", annotation.get("id"))
        else:
            by_image.setdefault(annotation["image_id"], []).append(annotation)
    for image in content["images"]:
        image_path = folder / image["file_name"]
        try:
            size = _upright_size(image_path)
        except BadImageError:
            report.add("unreadable image" if image_path.exists() else "missing image", image["file_name"])
            continue
        if {"width", "height"} <= image.keys() and (image["width"], image["height"]) == size[::-1]:
            size = size[::-1]  # annotated as it is stored, without its EXIF orientation
        of_image = by_image.get(image["id"], [])
        num_boxes += len(of_image)
        objects = _sound_objects(
            [annotation["bbox"] for annotation in of_image],
            [index[annotation["category_id"]] for annotation in of_image],
            [annotation.get("iscrowd", 0) for annotation in of_image],
            [False] * len(of_image),
            size,
            image["file_name"],
            report,
        )
        if "annotations" in content and not objects["bbox"] and not keep_empty:
            report.add("image without objects", image["file_name"])
            continue
        number = image["id"] if isinstance(image["id"], int) else len(rows)
        rows.append(_row(number, image_path.resolve(), size, objects if "annotations" in content else None))
    return _finish(rows, names, report, num_boxes)


def missing_keys(mapping: dict, keys: Iterable[str]) -> list[str]:
    """Those of `keys` that `mapping` has not."""
    return [key for key in keys if key not in mapping]


def load_voc(
    root: str | Path, split: str = "trainval", names: Iterable[str] = VOC_NAMES, keep_empty: bool = True
) -> tuple[Dataset, DataReport]:
    """A Pascal VOC folder (`VOCdevkit/VOC2007`): Annotations/, ImageSets/Main/ and JPEGImages/.

    VOC counts pixels from 1 and includes the last: the left upper corner moves by one. Objects marked difficult are kept
    with `difficult`, for the evaluation leaves them out.

    Args:
        root: the folder.
        split: name of a list in ImageSets/Main.
        names: labels, in order.
        keep_empty: keep images without objects, as background.

    Raises:
        ValueError: no such folder or list, an annotation that is no XML, or no usable image.
    """
    root, names = Path(root), list(names)
    listing = root / "ImageSets" / "Main" / f"{split}.txt"
    if not listing.is_file():
        raise ValueError(f"{listing} is no file; `root` must be a VOC folder such as VOCdevkit/VOC2007.")
    report, num_boxes = DataReport(f"{root} {split}"), 0
    rows: list[dict] = []
    for stem in (line.split()[0] for line in listing.read_text("utf-8").splitlines() if line.strip()):
        image_path, xml_path = root / "JPEGImages" / f"{stem}.jpg", root / "Annotations" / f"{stem}.xml"
        try:
            size = _upright_size(image_path)
        except BadImageError:
            report.add("unreadable image" if image_path.exists() else "missing image", image_path.name)
            continue
        if not xml_path.is_file():
            report.add("missing annotation", xml_path.name)
            continue
        try:
            tree = ElementTree.parse(xml_path).getroot()
        except ElementTree.ParseError as error:
            raise ValueError(f"{xml_path} is no valid XML: {error}") from error
        boxes, categories, difficult = [], [], []
        for item in tree.iter("object"):
            name = item.findtext("name", "").strip()
            if name not in names:
                report.add("unknown category", f"{name} of {xml_path.name}")
                continue
            corners = [_number(item.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")]
            left, top, right, bottom = corners
            boxes.append([left - 1, top - 1, right - left + 1, bottom - top + 1])
            categories.append(names.index(name))
            difficult.append(item.findtext("difficult", "0").strip() == "1")
        num_boxes += len(boxes)
        objects = _sound_objects(boxes, categories, [False] * len(boxes), difficult, size, xml_path.name, report)
        if objects["bbox"] or keep_empty:
            rows.append(_row(len(rows), image_path.resolve(), size, objects))
        else:
            report.add("image without objects", image_path.name)
    return _finish(rows, names, report, num_boxes)


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan
