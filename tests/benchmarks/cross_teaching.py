# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Cross Teaching's goals as ratios in one run: rectification, pseudo labels, teachers, a training step, and its memory.

python tests/benchmarks/cross_teaching.py
"""

import multiprocessing
import resource
import time
from functools import partial

import torch
from output import output_path
from timing import time_together
from torch import Tensor
from torchvision.ops import box_iou as torchvision_iou

from hf_methods import CrossTeachingConfig, CrossTeachingModel
from hf_methods.checkpoints import write_results
from hf_methods.cross_teaching.detections_cross_teaching import (
    pad_detections,
    peers_of,
    stack_detections,
    unpad_detections,
)
from hf_methods.cross_teaching.rectification_cross_teaching import (
    BOX_RULES,
    Rectified,
    label_rectification,
    rectify_anchors,
)


RULE = BOX_RULES["crossrectify_voc"]
NUM_ANCHORS, NUM_LABELS = 8732, 20  # SSD300 on VOC
TINY = {"model_type": "cross_teaching_detector", "architecture": "ssd_tiny", "num_labels": 5}


# --- G1: rectification against loops over boxes and over images


def make_detections(num_images: int, num_boxes: int, num_detectors: int) -> list[list[dict[str, Tensor]]]:
    """Boxes of several detectors about the same objects, in pixels of a 500-pixel image."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(num_images, num_boxes, 2, generator=generator) * 400
    detectors = []
    for _ in range(num_detectors):
        low = corner + 8 * torch.randn(corner.shape, generator=generator)
        size = 40 + 20 * torch.rand(corner.shape, generator=generator)
        scores = torch.rand(num_images, num_boxes, generator=generator)
        labels = torch.randint(0, NUM_LABELS, (num_images, num_boxes), generator=generator)
        rows = zip(torch.cat([low, low + size], -1), scores, labels)
        detectors.append([dict(boxes=boxes, scores=score, labels=label) for boxes, score, label in rows])
    return detectors


def iou(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    inter = width * height
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def by_boxes(detectors: list[list[list[tuple]]]) -> list:
    """Loops over everything, on lists of (box, score, label)."""
    results = []
    for number, own_images in enumerate(detectors):
        peers = [images for index, images in enumerate(detectors) if index != number]
        for image, own in enumerate(own_images):
            rectified, used = [], [set() for _ in peers]
            for row in own:
                winner, matched = row, False
                for peer, images in enumerate(peers):
                    overlaps = [iou(row[0], other[0]) for other in images[image]]
                    best = max(range(len(overlaps)), key=overlaps.__getitem__)
                    if overlaps[best] >= 0.5:
                        matched = True
                        used[peer].add(best)
                        if images[image][best][1] > winner[1]:
                            winner = images[image][best]
                if matched:
                    rectified.append(winner)
            for peer, images in enumerate(peers):
                rectified += [row for index, row in enumerate(images[image]) if index not in used[peer]]
            results.append(rectified)
    return results


def by_images(detectors: list[list[dict[str, Tensor]]]) -> list:
    """One table of IoU for each image and pair of detectors, as the released code does it."""
    results = []
    for number, own_images in enumerate(detectors):
        peers = [images for index, images in enumerate(detectors) if index != number]
        for image, own in enumerate(own_images):
            boxes, scores, labels = own["boxes"], own["scores"], own["labels"]
            matched = torch.zeros(len(scores), dtype=torch.bool)
            added = []
            for images in peers:
                other = images[image]
                best, index = torchvision_iou(own["boxes"], other["boxes"]).max(1)
                passes = best >= 0.5
                wins = passes & (other["scores"][index] > scores)
                boxes = torch.where(wins[:, None], other["boxes"][index], boxes)
                labels = torch.where(wins, other["labels"][index], labels)
                scores = torch.where(wins, other["scores"][index], scores)
                matched |= passes
                is_new = torch.ones(len(other["scores"]), dtype=torch.bool)
                is_new[index[passes]] = False
                added.append({key: value[is_new] for key, value in other.items()})
            kept = {"boxes": boxes[matched], "scores": scores[matched], "labels": labels[matched]}
            results.append({key: torch.cat([kept[key], *(more[key] for more in added)]) for key in kept})
    return results


def batched(detectors: list[list[dict[str, Tensor]]]) -> list:
    """Ours: all images and detectors at once, padding and unpadding included."""
    stacked = stack_detections([pad_detections(images)[0] for images in detectors])
    result = label_rectification(stacked, peers_of(stacked), **RULE)
    return [unpad_detections(Rectified(*(field[number] for field in result))) for number in range(len(detectors))]


def benchmark_rectification() -> dict:
    """All detectors of a batch rectified; the loops over boxes only where they end in time."""
    results = {}
    for num_images, num_boxes in ((16, 2), (16, 20), (16, 100), (16, 300)):
        for num_detectors in (2, 3, 4):
            detectors = make_detections(num_images, num_boxes, num_detectors)
            rows = [[list(zip(*(v.tolist() for v in image.values()))) for image in images] for images in detectors]
            functions = {"batched": partial(batched, detectors), "by images": partial(by_images, detectors)}
            if num_detectors == 2:  # with more, boxes that two others add are suppressed: not what the loops do
                lengths = [len(image["scores"]) for images in batched(detectors) for image in images]
                assert lengths == [len(image["scores"]) for image in by_images(detectors)]
                assert lengths == [len(image) for image in by_boxes(rows)]
            if num_boxes <= 100:
                functions["by boxes"] = partial(by_boxes, rows)
            name = f"{num_images} x {num_boxes}, {num_detectors} detectors"
            results[name] = time_together(functions, repeats=3 if num_boxes >= 100 else 11, warm_up=1)
    return results


# --- G3: pseudo labels against the detector's own post-processing


def benchmark_pseudo_labels(num_images: int = 4, num_confident: int = 40) -> dict:
    """SSD300's outputs with some confident anchors: detections as in evaluation, and the choice of pseudo labels."""
    config = CrossTeachingConfig(
        detector={"model_type": "cross_teaching_detector", "num_labels": NUM_LABELS}, num_detectors=1
    )
    model: CrossTeachingModel = CrossTeachingModel(config).eval()
    student = model.students[0]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        _, _, anchors = student.ssd_heads(student.extract_features(torch.rand(1, 3, 300, 300)), (300, 300))
    logits = torch.randn(num_images, len(anchors), NUM_LABELS + 1, generator=generator)
    logits[..., 0] += 8
    for row in logits:
        chosen = torch.randperm(len(anchors), generator=generator)[:num_confident]
        row[chosen, 1 + torch.randint(NUM_LABELS, (num_confident,), generator=generator)] += 16
    offsets = 0.5 * torch.randn(num_images, len(anchors), 4, generator=generator)
    heads = {"cls_logits": logits, "bbox_regression": offsets}
    detector = student.detector

    def torchvision() -> list:
        return detector.postprocess_detections(heads, [anchors] * num_images, [(300, 300)] * num_images)

    def anchors_only() -> object:
        decode = partial(student.decode, image_size=(300, 300))
        return rectify_anchors(logits, offsets, logits[None], offsets[None], anchors, decode, top_k=num_confident)

    found, pseudo = torchvision(), anchors_only()
    boxes = student.decode(offsets, anchors, (300, 300))
    for number in range(num_images):  # each pseudo label is a detection: same class, box and score above one half
        keep = pseudo.valid[number]
        mine = boxes[number][pseudo.anchor[number][keep]]
        theirs = found[number]["boxes"][found[number]["scores"] > 0.5]
        assert (torchvision_iou(mine, theirs).max(1).values > 0.999).all()
    return time_together({"pseudo labels": anchors_only, "torchvision's detections": torchvision}, repeats=7)


# --- G4, G5: a step of training


class Step:
    """A training step of `num_detectors` tiny SSDs on random images: forward, loss, backward, AdamW, teachers."""

    def __init__(self, arm: str, num_detectors: int, batch: int = 16):
        self.model = CrossTeachingModel(
            CrossTeachingConfig(detector=dict(TINY), num_detectors=num_detectors, arm=arm, score_threshold=0.3)
        ).train()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if "classification_head" in name and name.endswith("weight"):
                    parameter.mul_(6)  # so that there are pseudo labels
        self.optimizer = torch.optim.AdamW(self.model.students.parameters(), 1e-5)
        self.labeled, self.unlabeled = [], []
        for _ in range(num_detectors):
            labels = [
                {"class_labels": torch.randint(0, 5, (2,), generator=generator), "boxes": torch.full((2, 4), 0.4)}
                for _ in range(batch)
            ]
            images = [torch.randn(batch, 3, 64, 64, generator=generator) for _ in range(3)]
            self.labeled.append({"pixel_values": images[0], "labels": labels})
            view = torch.tensor([1.0, 0, 1, 0]).repeat(batch, 1)
            self.unlabeled.append({"weak": images[1], "strong": images[2], "weak_to_strong": view})

    def __call__(self) -> None:
        unlabeled = None if self.model.config.arm == "sup" else self.unlabeled
        self.model(self.labeled, unlabeled, unsup_weight=1.0).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.model.update_teachers()


def benchmark_steps() -> dict:
    """Arms of two detectors against one detector that labels for itself."""
    steps = {"self-labelling, 1 detector": Step("self", 1)}
    steps |= {f"{arm}, 2 detectors": Step(arm, 2) for arm in ("sup", "self", "mutual", "ct")}
    return time_together(steps, repeats=11)


def benchmark_bookkeeping() -> dict:
    """A step of Cross Teaching, and the parts of it that are ours: rectification on anchors and the teachers."""
    step = Step("ct", 2)
    model = step.model
    images = step.unlabeled[0]["strong"]
    with torch.no_grad():
        student = model.students[0]
        own = student.ssd_heads(student.extract_features(images), (64, 64))
        peer = model.teachers[1].eval().ssd_heads(model.teachers[1].extract_features(images), (64, 64))

    @torch.no_grad()
    def bookkeeping() -> None:
        for _ in range(2):
            rectify_anchors(
                own[0], own[1], peer[0][None], peer[1][None], own[2], partial(student.decode, image_size=(64, 64)),
                score_threshold=0.3,
            )  # fmt: skip
        model.update_teachers()

    return time_together({"step": step, "rectification and teachers": bookkeeping}, repeats=11)


# --- G6: averages


def benchmark_averages() -> dict:
    """Teachers of SSD300's size against a state dict that is built anew, as the released code does it."""
    config = CrossTeachingConfig(
        detector={"model_type": "cross_teaching_detector", "num_labels": NUM_LABELS}, num_detectors=1
    )
    model = CrossTeachingModel(config)
    student, teacher = model.students[0], model.teachers[0]
    tiny = CrossTeachingModel(CrossTeachingConfig(detector=dict(TINY)))

    def rebuild(students: list, teachers: list) -> None:
        for one, other in zip(students, teachers):
            current, before = one.state_dict(), other.state_dict()
            other.load_state_dict({key: 0.01 * current[key] + 0.99 * before[key] for key in before})

    return {
        "SSD300": time_together({"in place": model.update_teachers, "rebuilt": partial(rebuild, [student], [teacher])}, repeats=7),
        "two tiny SSDs": time_together(
            {"in place": tiny.update_teachers, "rebuilt": partial(rebuild, tiny.students, tiny.teachers)}, repeats=21
        ),
    }  # fmt: skip


# --- G7: memory


def peak_memory(arm: str, num_detectors: int) -> float:
    """What a step of 64 + 64 images adds to the peak memory of a process of its own, MB."""
    torch.set_num_threads(1)
    Step(arm, num_detectors, batch=2)()  # the libraries' own memory
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    Step(arm, num_detectors, batch=64)()
    return round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, 1)


def main() -> None:
    out = output_path(__file__)
    start = time.time()
    torch.manual_seed(0)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        cases = {"self-labelling, 1 detector": ("self", 1), "ct, 2 detectors": ("ct", 2)}
        memory = {name: pool.apply(peak_memory, case) for name, case in cases.items()}
    torch.set_num_threads(1)
    times = {
        "rectification": benchmark_rectification(),
        "pseudo_labels": benchmark_pseudo_labels(),
        "steps": benchmark_steps(),
        "bookkeeping": benchmark_bookkeeping(),
        "averages": benchmark_averages(),
    }
    write_results(
        out, seeds=[0], data={}, wall_seconds=time.time() - start, time_one_thread=times, peak_memory_mb=memory,
    )  # fmt: skip
    print(out.read_text())


if __name__ == "__main__":
    main()
