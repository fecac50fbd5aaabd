# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Fetch emoji artwork with npm, and make the data of the emoji recipe.

pip install resvg-py && python training/subpt/fetch_emoji.py

Writes `training/subpt/data/twemoji.parquet` (committed: few-shot pool, validation and test images in Twitter's style) and
`$HF_METHODS_DATA/emoji/pretrain.parquet` (not committed: four other styles, without the validation and test emoji).
The packages stay in `$HF_METHODS_DATA/npm`; needs npm, and resvg-py for the two styles that are SVG.
"""

import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as DatasetImage
from PIL import Image

from hf_methods.subpt.data_subpt import image_digest
from hf_methods.subpt.emoji_subpt import IMAGE_SIZE, PRETRAIN_FILE, TWEMOJI_FILE


# The licences are those that the packages state. Apple's and Facebook's artwork is not free and is not fetched.
PACKAGES = {
    "noto": "emoji-datasource-google@16.0.0",  # images Apache-2.0, data MIT
    "noto-v1": "@iconify-json/noto-v1@1.2.5",  # Apache-2.0
    "fluent-flat": "@iconify-json/fluent-emoji-flat@1.2.6",  # MIT
    "fluent-3d": "@lobehub/fluent-emoji-3d@1.1.0",  # MIT
    "twemoji": "emoji-datasource-twitter@16.0.0",  # images CC-BY-4.0, data MIT
}
MIN_CLASS_SIZE = 8
TEST_SHARE, VALIDATION_SHARE = 0.3, 0.1
PALETTE = 48  # colours of a committed image


def fetch(package: str, folder: Path) -> tarfile.TarFile:
    """The package's archive; fetched once."""
    name, _, version = package.rpartition("@")
    archive = folder / f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"
    if not archive.exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", "--silent", "--pack-destination", str(folder), package], check=True)
    return tarfile.open(archive)


def read_json(tar: tarfile.TarFile, name: str) -> Any:
    """A JSON file of an npm package."""
    file = tar.extractfile(f"package/{name}")
    assert file is not None
    return json.load(file)


def code_of(unified: str) -> str:
    """Code points without variation selectors, which the packages set differently: "263a"."""
    return "-".join(part for part in unified.lower().split("-") if part != "fe0f")


def class_name(subcategory: str) -> str:
    """ "sky & weather" -> "sky and weather", "animal-bird" -> "animal bird"."""
    return subcategory.replace("&", "and").replace("-", " ")


def group_of(name: str) -> str:
    """What the woman, the man and the person of one emoji share: they are drawn alike, so they share a split."""
    return re.sub(r"^(man|men|woman|women|person|people) ", "", name)


def split_class(names: list[str], subcategory: str) -> dict[str, str]:
    """The split of each emoji of a class, from hashes: whole groups go to test, then to validation, the rest is training."""
    groups = defaultdict(list)
    for name in names:
        groups[group_of(name)].append(name)
    order = sorted(groups, key=lambda group: hashlib.sha256(f"{subcategory}/{group}".encode()).hexdigest())
    splits: dict[str, str] = {}
    for split, share in (("test", TEST_SHARE), ("validation", VALIDATION_SHARE)):
        wanted, taken = max(1, round(share * len(names))), 0
        while taken < wanted:
            group = groups[order.pop(0)]
            splits |= dict.fromkeys(group, split)
            taken += len(group)
    return splits | {name: "train" for group in order for name in groups[group]}


def read_emoji(archives: dict[str, tarfile.TarFile]) -> list[dict[str, Any]]:
    """One dictionary an emoji: code, name, short_name, subcategory, category, file, class (or None) and split."""
    slugs = {code_of(code): slug for code, slug in read_json(archives["fluent-flat"], "chars.json").items()}
    emoji, names = [], set()
    for row in read_json(archives["twemoji"], "emoji.json"):
        if row["category"] in ("Flags", "Component") or not row["has_img_twitter"]:
            continue
        code = code_of(row["unified"])
        slug = slugs.get(code)
        name = slug.replace("-", " ") if slug else row["name"].lower()
        name = name if name not in names else f"{name} {code}"
        names.add(name)
        emoji.append(
            {
                "code": code,
                "slug": slug,
                "name": name,
                "short_name": re.sub(r"[-_]", " ", row["short_name"]),
                "subcategory": class_name(row["subcategory"]),
                "category": row["category"].lower().replace("&", "and"),
                "file": row["image"],
            }
        )
    by_class = defaultdict(list)
    for row in emoji:
        by_class[row["subcategory"]].append(row["name"])
    splits: dict[str, str] = {}
    for subcategory, members in by_class.items():
        if len(members) >= MIN_CLASS_SIZE:
            splits |= split_class(members, subcategory)
    return [row | {"split": splits.get(row["name"])} for row in emoji]  # None: of no class


def vector_images(tar: tarfile.TarFile) -> dict[str, Image.Image]:
    """Slug -> picture, of a package of SVG icons."""
    from resvg_py import svg_to_bytes

    icons = read_json(tar, "icons.json")
    size = icons.get("width", 16)
    height = icons.get("height", size)
    images = {}
    for slug, icon in icons["icons"].items():
        box = f"0 0 {icon.get('width', size)} {icon.get('height', height)}"
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box}">{icon["body"]}</svg>'
        images[slug] = Image.open(io.BytesIO(bytes(svg_to_bytes(svg_string=svg, width=2 * IMAGE_SIZE))))
    aliases = {alias: of["parent"] for alias, of in icons.get("aliases", {}).items()}
    return images | {alias: images[parent] for alias, parent in aliases.items() if parent in images}


def bitmap_images(tar: tarfile.TarFile, prefix: str) -> dict[str, Image.Image]:
    """Code -> picture, of a package with a file an emoji."""
    images = {}
    for member in tar:
        if member.name.startswith(prefix):
            file = tar.extractfile(member)
            assert file is not None
            images[code_of(Path(member.name).stem)] = Image.open(io.BytesIO(file.read()))
    return images


def resize(image: Image.Image) -> Image.Image:
    """RGBA, IMAGE_SIZE wide and high."""
    return image.convert("RGBA").resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.LANCZOS)


def on_white(image: Image.Image) -> Image.Image:
    """The picture on white with few colours, which makes a small file."""
    image = resize(image)
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB").quantize(PALETTE, dither=Image.Dither.NONE)


def encode(image: Image.Image) -> dict[str, Any]:
    """A row of an image column: the bytes of a PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return {"bytes": buffer.getvalue(), "path": None}


def make_twemoji(emoji: list[dict[str, Any]], tar: tarfile.TarFile) -> Dataset:
    """All emoji of a class in Twitter's style."""
    images = bitmap_images(tar, "package/img/twitter/64/")
    rows = [row for row in emoji if row["split"]]
    classes = sorted({row["subcategory"] for row in rows})
    features = Features(
        {
            "image": DatasetImage(),
            "label": ClassLabel(names=classes),
            "name": Value("string"),
            "code": Value("string"),
            "split": Value("string"),
        }
    )
    table = [
        {
            "image": encode(on_white(images[row["code"]])),
            "label": row["subcategory"],
            **{column: row[column] for column in ("name", "code", "split")},
        }
        for row in rows
    ]
    return Dataset.from_list(table, features=features)


def make_pretrain(emoji: list[dict[str, Any]], archives: dict[str, tarfile.TarFile]) -> Dataset:
    """The other styles, without the emoji that are tested or validated on."""
    styles = {
        "noto": bitmap_images(archives["noto"], "package/img/google/64/"),
        "noto-v1": vector_images(archives["noto-v1"]),
        "fluent-flat": vector_images(archives["fluent-flat"]),
        "fluent-3d": bitmap_images(archives["fluent-3d"], "package/assets/"),
    }
    columns = ("name", "short_name", "subcategory", "category", "code")
    features = Features({"image": DatasetImage(), **{name: Value("string") for name in (*columns, "style")}})
    table = []
    for style, images in styles.items():
        for row in emoji:
            image = images.get(row["code"]) or images.get(row["slug"])
            if image is not None and row["split"] in ("train", None):
                table.append({"image": encode(resize(image)), **{name: row[name] for name in columns}, "style": style})
    return Dataset.from_list(table, features=features)


def write(dataset: Dataset, path: Path) -> None:
    """Write aside, then rename; prints what there is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".aside")
    dataset.to_parquet(aside)
    os.replace(aside, path)
    print(f"{path}: {len(dataset)} images, {path.stat().st_size / 1e6:.2f} MB")


def main() -> None:
    folder = PRETRAIN_FILE.parents[1] / "npm"
    archives = {style: fetch(package, folder) for style, package in PACKAGES.items()}
    emoji = read_emoji(archives)
    twemoji = make_twemoji(emoji, archives["twemoji"])
    write(twemoji, TWEMOJI_FILE)
    for split in ("train", "validation", "test"):
        part = twemoji.filter(lambda row, split=split: row["split"] == split)
        print(f"  {split}: {len(part)} images, digest {image_digest(part)}")
    pretrain = make_pretrain(emoji, archives)
    write(pretrain, PRETRAIN_FILE)
    styles = list(pretrain["style"])
    print("  " + ", ".join(f"{style} {styles.count(style)}" for style in dict.fromkeys(styles)))
    print(f"  digest {image_digest(pretrain, label_column='name')}")


if __name__ == "__main__":
    main()
