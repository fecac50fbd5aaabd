# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Costs of prompt tuning as ratios in one run: CoOp, SubPT, NFL, CoCoOp, the speed levers, a whole fit, the import.

python tests/benchmarks/subpt.py

100 classes, 16 context tokens, 32 images a step (cached features), on the CPU. The text tower is a stand-in for
ViT-B/32's: 12 layers and 8 heads at a quarter of its width, 77 positions, CLIP's vocabulary of 49408.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from memory import peak_bytes
from output import output_path
from peft import get_peft_model
from timing import time_together
from torch.nn.functional import cross_entropy, normalize
from transformers import CLIPConfig, CLIPModel

from hf_methods.checkpoints import write_results
from hf_methods.subpt import SubPTConfig, SubPTTrainer, SubPTTrainingArguments, SubspaceProjector, random_basis
from hf_methods.subpt.recipe_subpt import make_tiny_clip


CLASSES, CONTEXT, BATCH, DIM = 100, 16, 32, 128


def make_model(full_length: bool = False, num_classes: int = CLASSES, n_ctx: int = CONTEXT):
    """A prompted model with classes of one token, and as many further names as NFL's anchors."""
    torch.manual_seed(0)
    text = dict(
        hidden_size=128, intermediate_size=512, num_hidden_layers=12, num_attention_heads=8, vocab_size=49408,
        max_position_embeddings=77, eos_token_id=2,
    )  # fmt: skip
    vision = dict(hidden_size=192, intermediate_size=768, num_hidden_layers=12, num_attention_heads=3, patch_size=32)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=DIM)
    # The end of text of the small tokenizer; the ids of the names are real ones of a table of CLIP's size.
    tokenizer = make_tiny_clip()[1]
    settings = SubPTConfig(n_ctx=n_ctx, eos_token_id=tokenizer.eos_token_id)
    model = get_peft_model(CLIPModel(config).eval(), settings)
    names = [chr(97 + i % 26) + chr(97 + i // 26) for i in range(2 * num_classes)]
    model.set_classes(names[:num_classes], tokenizer, full_length=full_length)
    targets = normalize(torch.randn(num_classes, DIM), dim=-1)
    model.anchor_names_and_targets = names[num_classes:], targets
    return model.train()


def step_of(model, optimizer=None, num_classes: int = CLASSES):
    """A training step on cached image features."""
    optimizer = optimizer or torch.optim.SGD([model.context], 2e-3, momentum=0.9, weight_decay=5e-4)
    features, labels = normalize(torch.randn(BATCH, DIM), dim=-1), torch.randint(num_classes, (BATCH,))

    def step():
        optimizer.zero_grad()
        model(image_embeds=features, labels=labels).loss.backward()
        optimizer.step()

    return step


def with_anchors(model, per_step=None):
    names, targets = model.anchor_names_and_targets
    model.set_anchors(names, targets, per_step=per_step)
    return model


def cocoop_step(model, images: int):
    """CoCoOp: a bias for each image on each context token, so each image has prompts of its own."""
    meta = torch.nn.Sequential(torch.nn.Linear(DIM, DIM // 16), torch.nn.ReLU(), torch.nn.Linear(DIM // 16, DIM))
    optimizer = torch.optim.SGD([model.context, *meta.parameters()], 2e-3)
    features, labels = normalize(torch.randn(images, DIM), dim=-1), torch.randint(CLASSES, (images,))
    layer, ids = model.prompt_layer, model.class_input_ids
    is_context = (ids >= layer.first_ctx_token_id["default"])[None, :, :, None]

    def step():
        optimizer.zero_grad()
        bias = meta(features)[:, None, None]  # (images, 1, 1, width)

        def add(module, inputs, output):
            return (output.view(images, *ids.shape, -1) + bias * is_context).flatten(0, 1)

        handle = layer.register_forward_hook(add)
        text = model.encode_prompts(ids.repeat(images, 1)).view(images, CLASSES, DIM)
        handle.remove()
        cross_entropy(100 * (text @ features[:, :, None]).squeeze(-1), labels).backward()
        optimizer.step()

    return step


def benchmark_steps() -> dict:
    """Goals 1 to 4: steps of the methods."""
    subpt = make_model()
    SubspaceProjector(subpt.context, random_basis(subpt.context.numel(), 10)).attach()
    both = with_anchors(make_model())
    SubspaceProjector(both.context, random_basis(both.context.numel(), 10)).attach()
    few = with_anchors(make_model(), per_step=CLASSES // 10)
    images = 2
    coop = {"CoOp": step_of(make_model())}
    # In turns of their own: a step after the one of 77 tokens takes longer, whatever it does.
    times = time_together(coop | {"CoOp, 77 tokens": step_of(make_model(full_length=True))}, repeats=7, warm_up=1)
    times |= time_together(coop | {"CoOp + SubPT": step_of(subpt)}, repeats=7, warm_up=1)
    steps = {
        "CoOp + SubPT + NFL, 100 names": step_of(both),
        "CoOp + NFL, 10 of 100 names a step": step_of(few),
        f"CoCoOp, {images} images": cocoop_step(make_model(), images),
    }
    times |= time_together(coop | steps, repeats=7, warm_up=1)
    times["CoCoOp / CoOp, per image"] = round(times[f"CoCoOp, {images} images"]["ratio"] / images * BATCH, 1)
    return times


def benchmark_chunks() -> dict:
    """Goal 6: an eighth of the classes at once, each chunk computed again in the backward pass."""
    steps, models, results = {}, {}, {}
    for name, size in (("all classes", None), ("chunks of 1/8", -(-CLASSES // 8))):
        models[name] = make_model()
        models[name].class_chunk_size = size
        steps[name] = step_of(models[name])
    results = time_together(steps, repeats=5, warm_up=1)
    memory = {name: peak_bytes(step) for name, step in steps.items()}
    for name, size in memory.items():
        results[name]["peak_bytes"] = size
        results[name]["memory_ratio"] = round(size / memory["all classes"], 3)
    whole, chunked = gradients(models["all classes"]), gradients(models["chunks of 1/8"])
    results["relative difference of the gradients"] = float((whole - chunked).norm() / whole.norm())
    return results


def gradients(model) -> torch.Tensor:
    """Of the context, on the same features and labels from the same values."""
    torch.manual_seed(0)
    with torch.no_grad():
        model.context.normal_(std=0.02)
    model.context.grad = None
    step_of(model, torch.optim.SGD([model.context], 0.0))()
    return model.context.grad


def benchmark_classifier() -> dict:
    """Goal 7: the cached classifier with 1000 classes against the image tower alone."""
    model = make_model().eval()
    pixel_values = torch.randn(4, 3, 224, 224)
    classifiers = {}
    for number in (10, 1000):
        names = [f"{chr(97 + i % 26)}{i}" for i in range(number)]
        classifiers[number] = model.build_classifier(names)

    def run(call):
        def wrapped():
            with torch.no_grad():
                call()

        return wrapped

    return time_together(
        {
            "image tower": run(lambda: model.get_base_model().get_image_features(pixel_values)),
            "10 classes": run(lambda: classifiers[10](pixel_values)),
            "1000 classes": run(lambda: classifiers[1000](pixel_values)),
        },
        repeats=15,
    )


def benchmark_fit() -> dict:
    """Goal 5: collect, rewind and projected run against one CoOp run of the same epochs."""
    features = normalize(torch.randn(BATCH, DIM), dim=-1)
    rows = [{"image_embeds": row, "labels": index % CLASSES} for index, row in enumerate(features)]

    def fit(rank):
        with tempfile.TemporaryDirectory() as folder:
            arguments = SubPTTrainingArguments(
                folder, num_train_epochs=10, subspace_rank=rank, subspace_epochs=3 if rank else None, use_cpu=True,
                report_to="none", disable_tqdm=True, logging_strategy="no",
            )  # fmt: skip
            SubPTTrainer(make_model(), arguments, train_dataset=rows).fit()

    times = time_together({"CoOp": lambda: fit(0), "SubPT": lambda: fit(2)}, repeats=5, warm_up=1)
    return {**times, "of the epochs": 1.3}


def adapter_bytes() -> dict:
    """Goal 8: the adapter's file against its context."""
    with tempfile.TemporaryDirectory() as folder:
        model = make_model()
        model.save_pretrained(folder)
        size = Path(folder, "adapter_model.safetensors").stat().st_size
    return {"file": size, "context": 4 * model.context.numel()}


IMPORT_CODE = """
import time
start = time.perf_counter()
import peft
middle = time.perf_counter()
import hf_methods.subpt
print(middle - start, time.perf_counter() - middle)
"""


def benchmark_import() -> dict:
    """Goal 9: what importing the method adds to importing PEFT, seconds in a process of its own."""
    command = [sys.executable, "-c", IMPORT_CODE]
    outputs = [subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(6)]
    peft_seconds, subpt_seconds = zip(*(map(float, output.split()) for output in outputs[1:]))
    return {"peft_seconds": round(median(peft_seconds), 3), "subpt_seconds": round(median(subpt_seconds), 3)}


def main() -> None:
    out = output_path(__file__)
    start = time.time()
    torch.set_num_threads(1)
    results = {
        "steps": benchmark_steps(),
        "chunks": benchmark_chunks(),
        "classifier": benchmark_classifier(),
        "fit": benchmark_fit(),
        "adapter_bytes": adapter_bytes(),
        "import": benchmark_import(),
    }
    write_results(out, seeds=[0], data={}, wall_seconds=time.time() - start, threads=1, **results)
    print(out.read_text())


if __name__ == "__main__":
    main()
