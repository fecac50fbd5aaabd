# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""What `hf-methods demo cross_teaching` shows."""

import json
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForObjectDetection

from hf_methods.cross_teaching.data_cross_teaching import label_names, open_image
from hf_methods.cross_teaching.detections_cross_teaching import pad_detections, peers_of, stack_detections
from hf_methods.cross_teaching.detectors_cross_teaching import build_processor
from hf_methods.cross_teaching.evaluation_cross_teaching import detect
from hf_methods.cross_teaching.pseudo_labels_cross_teaching import count_right, padded_truth
from hf_methods.cross_teaching.rectification_cross_teaching import BOX_RULES, label_rectification, rectify_anchors
from hf_methods.cross_teaching.scenes_cross_teaching import make_digit_scenes
from hf_methods.cross_teaching.views_cross_teaching import ViewSettings
from hf_methods.grid import run_script
from hf_methods.plotting import BLUE, GREY, ORANGE, new_figure
from hf_methods.report import Section, text_table, write_report


STEPS = 30
CHECKPOINT = Path("model_cards/ct-digit-scenes")
RECIPE = Path("training/cross_teaching/train.py")
CONFIG = "training/cross_teaching/digit_scenes.yaml"
NUM_SCENES, SCENES_SEED, THRESHOLD = 300, 200, 0.7
HEADER = ["rule", "own labels", "right, %", "rectified labels", "right, %", "changed, %"]
CAPTION = (
    "Two small detectors of digits on photos label scenes that they have not seen, and correct each other. A pseudo label is "
    "right if there is an object of its class at IoU 0.5. Own: as each detector has them; rectified: by each of the published "
    "rules; sums over both detectors. In the released code, unmatched boxes go in Cross Teaching and stay in the rule for COCO; "
    "the rule for SSD works on default boxes and changes classes only."
)


def run_demo(out: Path, steps: int) -> str:
    """Label scenes with the trained detectors and by each rule, then train on for a moment.

    Args:
        out: folder of `report.html` and the plots.
        steps: training steps.

    Returns:
        The tables, as text.

    Raises:
        FileNotFoundError: not run in a checkout with its `model_cards/`.
    """
    if not CHECKPOINT.is_dir():
        raise FileNotFoundError(f"{CHECKPOINT} is missing: run the demo in a checkout of hf_methods.")
    start = time.time()
    out.mkdir(parents=True, exist_ok=True)
    model = AutoModelForObjectDetection.from_pretrained(CHECKPOINT)
    scenes = make_digit_scenes("unlabeled", NUM_SCENES, SCENES_SEED)
    views = plain_views(model)
    named = {str(number): detector for number, detector in enumerate(model.detectors)}
    found, truths, _ = detect(named, scenes, views, batch_size=50)
    truth = padded_truth([{"boxes": image["boxes"], "labels": image["labels"]} for image in truths])
    above = [[_above(image, THRESHOLD) for image in rows] for rows in found.values()]
    own = stack_detections([pad_detections(rows)[0] for rows in above])
    rows = [_row_of_rule(name, own, truth, **options) for name, options in BOX_RULES.items()]
    rows.append(_row_of_anchors(model, scenes, views, truth))
    steps_header = ["step", "own labels", "right, %", "rectified labels", "right, %", "changed, %"]
    steps_rows = [_row_of_log(entry, len(model.detectors)) for entry in _train(steps)]
    plots = {"rules": plot_rules(rows), "scenes": plot_scenes(scenes, above, own)}
    for name, figure in plots.items():
        figure.savefig(out / f"{name}.png")
    sections = [
        Section("Precision of pseudo labels", "", [out / "rules.png"]),
        Section("Scenes: A's own boxes (dashed), rectified (solid), and the truth (grey)", "", [out / "scenes.png"]),
        Section("Training on, by the rule for SSD", text_table(steps_header, steps_rows)),
    ]
    report = out / "report.html"
    write_report(report, "Cross Teaching", CAPTION, HEADER, rows, sections)
    tables = f"{text_table(HEADER, rows)}\n\n{text_table(steps_header, steps_rows)}"
    return f"{tables}\nlabelled {NUM_SCENES} scenes, trained {steps} steps in {time.time() - start:.0f} s; report: {report}"


def plain_views(model) -> ViewSettings:
    """Plain views of the detectors' size and normalisation."""
    processor = build_processor(model.config.detector)
    return ViewSettings(processor.size["height"], mean=processor.image_mean, std=processor.image_std)


def _above(image: dict[str, Tensor], threshold: float) -> dict[str, Tensor]:
    return {key: value[image["scores"] > threshold] for key, value in image.items()}


def _cells(
    name: str, right: Tensor, used: Tensor, right_after: Tensor, used_after: Tensor, changed: Tensor
) -> list[str]:
    share = lambda part, whole: f"{100 * int(part) / max(1, int(whole)):.1f}"  # noqa: E731
    first = [name, str(int(used)), share(right, used)]
    return [*first, str(int(used_after)), share(right_after, used_after), share(changed, used_after)]


def _row_of_rule(name: str, own, truth, **options) -> list[str]:
    """A row of the table: detections of all detectors (M, B, N), rectified by a rule for boxes."""
    result = label_rectification(own, peers_of(own), **options)
    right = count_right(own.boxes, own.labels, own.valid, truth)
    right_after = count_right(result.boxes, result.labels, result.valid, truth)
    return _cells(name, right, own.valid.sum(), right_after, result.valid.sum(), (result.source > 0).sum())


@torch.no_grad()
def _row_of_anchors(model, scenes, views: ViewSettings, truth) -> list[str]:
    """The same by SSD's rule, on default boxes."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (views.mean, views.std))
    size = (views.image_size, views.image_size)
    pixels = np.stack([np.asarray(open_image(row["image"])) for row in scenes])  # of that size already
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
    heads = [detector.ssd_heads(detector.extract_features(images), size) for detector in model.detectors]
    totals = torch.zeros(5, dtype=torch.long)
    for number, (logits, offsets, anchors) in enumerate(heads):
        peers = [other for index, other in enumerate(heads) if index != number]
        pseudo = rectify_anchors(
            logits, offsets, torch.stack([p[0] for p in peers]), torch.stack([p[1] for p in peers]), anchors,
            partial(model.detectors[number].decode, image_size=size), score_threshold=THRESHOLD,
        )  # fmt: skip
        used = pseudo.valid.sum()
        right = [
            count_right(pseudo.boxes, labels - 1, pseudo.valid, truth) for labels in (pseudo.own_label, pseudo.label)
        ]
        changed = ((pseudo.label != pseudo.own_label) & pseudo.valid).sum()
        totals += torch.stack([right[0], used, right[1], used, changed])
    return _cells("ssd_anchor", *totals)


def _train(steps: int) -> list[dict]:
    """Train both detectors on by the recipe; the precision of their pseudo labels as it went."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "run")
        options = {
            "checkpoints": [CHECKPOINT],
            "burn_in_steps": 0,
            "ramp_start": 0,
            "save_strategy": "no",
            "max_steps": steps,
            "logging_steps": max(1, steps // 3),
            "num_scenes": [100, 300, 20],
            "split_seed": SCENES_SEED,
        }
        run_script(RECIPE, output, CONFIG, options, threads=1)
        return json.loads((output / "results.json").read_text())["log"]


def _row_of_log(entry: dict, num_detectors: int) -> list[str]:
    """Pseudo labels of all detectors between two entries of a training's log."""

    def total(name: str) -> float:
        return sum(entry.get(f"{name}_{number}", 0) for number in range(num_detectors))

    shares = [100 * total(f"right{when}") / max(1, total(f"used{when}")) for when in ("_own", "")]
    changed = 100 * total("changed") / num_detectors
    used = [f"{total('used_own'):.0f}", f"{total('used'):.0f}"]
    return [str(entry["step"]), used[0], f"{shares[0]:.1f}", used[1], f"{shares[1]:.1f}", f"{changed:.1f}"]


def plot_rules(rows: list[list[str]]):
    """Bars of the precision before and after each rule, with how many labels there are."""
    figure, (axis,) = new_figure(8, 3.4)
    for part, (name, color) in enumerate((("own", GREY), ("rectified", BLUE))):
        places = [place + 0.4 * (part - 0.5) for place in range(len(rows))]
        bars = axis.bar(places, [float(row[2 + 2 * part]) for row in rows], 0.36, color=color, label=name)
        axis.bar_label(bars, [row[1 + 2 * part] for row in rows], fontsize=8)
    axis.set_xticks(range(len(rows)), [row[0] for row in rows])
    axis.set(ylabel="right pseudo labels, %", ylim=(0, 100))
    figure.legend(frameon=False, loc="outside right upper", title="bars: labels")
    return figure


def plot_scenes(scenes, above: list[list[dict[str, Tensor]]], own, num_scenes: int = 6):
    """Scenes where a rule changes most of the first detector's labels."""
    from matplotlib.patches import Rectangle

    result = label_rectification(own, peers_of(own), **BOX_RULES["crossrectify_voc"])
    replaced = (result.source[0, :, : own.labels.shape[-1]] > 0) & (
        result.labels[0, :, : own.labels.shape[-1]] != own.labels[0]
    )
    chosen = replaced.sum(-1).argsort(descending=True, stable=True)[:num_scenes].tolist()
    names = label_names(scenes)
    figure, axes = new_figure(12, 2.6, columns=num_scenes)
    for axis, number in zip(axes, chosen):
        axis.imshow(open_image(scenes[number]["image"]))
        axis.set_axis_off()
        boxes = [(corners, GREY, "-") for corners in _corners(scenes[number]["objects"]["bbox"])]
        boxes += [(corners, ORANGE, "--") for corners in above[0][number]["boxes"].tolist()]
        keep = result.valid[0, number]
        boxes += [(corners, BLUE, "-") for corners in result.boxes[0, number][keep].tolist()]
        for (left, top, right, bottom), color, line in boxes:
            axis.add_patch(
                Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=color, linestyle=line)
            )
        before = " ".join(names[label] for label in above[0][number]["labels"].tolist())
        after = " ".join(names[label] for label in result.labels[0, number][keep].tolist())
        truth = " ".join(names[label] for label in scenes[number]["objects"]["category"])
        axis.set_title(f"own {before or 'none'}\nrectified {after or 'none'}\ntruth {truth}", fontsize=8)
    return figure


def _corners(boxes: list[list[float]]) -> list[tuple[float, float, float, float]]:
    return [(x, y, x + width, y + height) for x, y, width, height in boxes]
