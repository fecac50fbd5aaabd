# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Train a detector of adversarial images for a classifier, and compare it with other detectors.

accelerate launch training/mbf/train.py --config training/mbf/mnist5k_resnet.yaml --output_dir runs/mbf

`output_dir` is then a repository of the pipeline `adversarial-detection`: detector, image processor, results.json, and in
the folder `classifier` the classifier, with its image processor again. Attacked images are kept in `cache_dir`, by the digest
of what they follow from. Several processes share the training of the classifier, which goes on from its last checkpoint if it
was stopped; the first process does the rest by itself.
"""

import time
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from transformers import set_seed

from hf_methods.args import parse_args_and_config
from hf_methods.checkpoints import write_results
from hf_methods.data import image_digest
from hf_methods.mbf.arguments_mbf import MBFTrainingArguments
from hf_methods.mbf.attacks_mbf import PixelClassifier
from hf_methods.mbf.data_mbf import draw_rows, normalization_of, stack_images, with_pixel_values
from hf_methods.mbf.modeling_mbf import CLASSIFIER_FOLDER, MBFDetector
from hf_methods.mbf.pipeline_mbf import AdversarialDetectionPipeline
from hf_methods.mbf.protocol_mbf import (
    compare_detectors,
    compute_feature_sets,
    measure_adaptive,
    measure_detector,
    row_columns,
    rows_of_few_sources,
)
from hf_methods.mbf.recipe_mbf import (
    ClassifierArguments,
    DataArguments,
    load_attacked,
    load_classifier,
    load_splits,
    summarize_runs,
    transform_of,
)
from hf_methods.mbf.training_mbf import classifier_accuracy


SPLITS = ("detector_train", "detector_test", "other")  # that are attacked


def train(classifier_args: ClassifierArguments, data_args: DataArguments, args: MBFTrainingArguments) -> None:
    """Train classifier and detector, measure, and save all in `args.output_dir`."""
    start = time.time()
    set_seed(args.seed)
    splits = load_splits(data_args, args.seed)
    digests = {split: image_digest(dataset) for split, dataset in splits.items()}  # reads every image before the work
    model, processor = load_classifier(classifier_args, splits, args)
    if args.process_index:
        return
    if classifier_args.classifier is None:
        accuracy = classifier_accuracy(model, splits["validation"].with_transform(transform_of(processor)))
        print(f"accuracy of the classifier on the validation split: {accuracy:.4f}")
    classifier = PixelClassifier(model, *normalization_of(processor)).to(model.device).eval()
    attacked, counts = {}, {}
    for split in (split for split in SPLITS if split in splits):
        name = split.removeprefix("detector_")
        attacked[name], counts[name] = load_attacked(classifier, splits, split, data_args, args.seed, processor)

    config = args.detector_config(
        classifier_id=classifier_args.classifier if classifier_args.is_on_hub() else None,
        classifier_revision=classifier_args.classifier_revision,
        attacks=list(data_args.attacks),
    )
    columns = {name: row_columns(dataset) for name, dataset in attacked.items()}
    detector = MBFDetector(config, model).to(model.device)
    rows = np.ones(len(attacked["train"]), bool)
    rows = np.flatnonzero(rows_of_few_sources(columns["train"], rows, args.max_train_rows, args.seed))
    detector.fit(with_pixel_values(attacked["train"].select(rows), classifier), **args.svm_options())
    records, adaptive = [], {}
    clean = draw_rows(splits["classifier_train"], 2000, args.seed)
    if args.compare:
        reference = stack_images(list(clean["image"]), processor).to(model.device)
        # its own copy of the settings: `fit` has put in what it found
        sets = compute_feature_sets(
            classifier, args.detector_config(), attacked, reference, torch.tensor(clean["label"]), args.seed
        )
        records = compare_detectors(
            sets, **columns, fpr=args.target_fpr, max_train_rows=args.max_train_rows,
            num_samples=args.bootstrap_samples, **args.svm_options(),
        )  # fmt: skip
    if args.adaptive_steps:
        is_clean = [index for index, kind in enumerate(attacked["test"]["kind"]) if kind == "clean"]
        rows = draw_rows(attacked["test"].select(is_clean), args.adaptive_images, args.seed)
        adaptive = measure_adaptive(
            detector, classifier, stack_images(list(rows["image"])).to(model.device),
            torch.tensor(rows["label"]).to(model.device),
            eps=args.adaptive_eps, max_iter=args.adaptive_steps, seed=args.seed,
        )  # fmt: skip

    AdversarialDetectionPipeline(model=detector, image_processor=processor).save_pretrained(args.output_dir)
    if config.classifier_id is None:
        processor.save_pretrained(Path(args.output_dir, CLASSIFIER_FOLDER))
    own = ("layers", "num_coefficients", "center", "debias", "channel_groups", "max_responses", "target_fpr", "svm_c", "svm_gamma", "num_folds", "max_train_rows", "num_train_epochs", "adaptive_eps", "adaptive_steps", "adaptive_images")  # fmt: skip
    settings = {**vars(classifier_args), **vars(data_args), **{name: getattr(args, name) for name in own}}
    run = {
        "counts": counts,
        "accuracy": classifier_accuracy(model, splits["detector_test"].with_transform(transform_of(processor))),
        "published": measure_detector(detector, classifier, attacked["test"], args.bootstrap_samples, args.seed),
        "records": records,
        "adaptive": adaptive,
    }
    write_results(
        Path(args.output_dir, "results.json"),
        seeds=[args.seed],
        data=digests,
        wall_seconds=time.time() - start,
        settings={"split": "detector_test", "train": settings},
        **(summarize_runs([run]) if records else {}),
        run=run,
    )


if __name__ == "__main__":
    train(*parse_args_and_config((ClassifierArguments, DataArguments, MBFTrainingArguments)))
    PartialState().destroy_process_group()  # before Python ends: its threads could end the process with an error
