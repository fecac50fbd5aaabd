# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""What the runs of the recipe found, in the form that card, README, documentation and demo read."""

from typing import Any

from hf_methods.grid import mean_and_sd
from hf_methods.mbf.protocol_mbf import summarize_records


ARMS = {  # detector of a record: its name in tables
    "max_softmax": "max-softmax",
    "feature_squeezing": "feature squeezing",
    "mahalanobis": "Mahalanobis",
    "lid": "LID",
    "moments": "moments",
    "moments_of_groups": "moments of channel groups",
    "mbf_logits": "MBF of the logits",
    "mbf_whole_layers": "MBF of whole layers",
    "mbf_debiased": "MBF of channel groups, de-biased",
    "mbf": "MBF of channel groups",
}
OF_FIRST = ("counts", "accuracy", "published")  # figures of the first seed's run that the results repeat


def summarize_runs(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures over seeds, and those of the first seed with their intervals.

    Args:
        runs: of each seed the dictionary with `records` (see `compare_detectors`), `adaptive` (see `measure_adaptive`) and
            `OF_FIRST`.

    Returns:
        `arm`, the name of MBF in the tables; `summary_mean_and_sd`: {arm: {figure: [mean, standard deviation]}}, see
        `summarize_records`; `adaptive`: the same for each attack; `known`, `leave_one_out` and `other_source`, of the first
        seed: {arm: {tested attack: {metric: [value, low, high]}}}; `transfer_auroc`: {arm: {trained on: {tested: AUROC}}};
        `runs`: the summaries of each seed; and `OF_FIRST`.
    """
    first = runs[0]
    summaries = [summarize_records(run["records"]) for run in runs]
    by_arm = {label: [summary[name] for summary in summaries] for name, label in ARMS.items() if name in summaries[0]}
    return {
        "arm": ARMS["mbf"],
        **{name: first[name] for name in OF_FIRST if name in first},
        "summary_mean_and_sd": {label: mean_and_sd(rows) for label, rows in by_arm.items()},
        "adaptive": {kind: mean_and_sd([run["adaptive"][kind] for run in runs]) for kind in first["adaptive"]},
        **{setting: table_of(first["records"], setting) for setting in ("known", "leave_one_out", "other_source")},
        "transfer_auroc": transfer_of(first["records"]),
        "runs": by_arm,
    }


def table_of(records: list[dict], setting: str) -> dict[str, dict[str, dict]]:
    """{arm: {tested attack: {metric: [value, low, high]}}} of one run."""
    table: dict[str, dict[str, dict]] = {}
    for record in records:
        if record["setting"] == setting:
            table.setdefault(ARMS[record["detector"]], {})[record["test"]] = record["metrics"]
    return table


def transfer_of(records: list[dict]) -> dict[str, dict[str, dict[str, float]]]:
    """{arm: {attack trained on: {attack tested: AUROC}}} of one run."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for record in records:
        if record["setting"] in ("known", "transfer"):
            (trained,) = record["train"]
            row = table.setdefault(ARMS[record["detector"]], {}).setdefault(trained, {})
            row[record["test"]] = record["metrics"]["auroc"][0]
    return table
