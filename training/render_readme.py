# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Put the tables into README.md, training/README.md and docs/benchmarks.md, between `<!-- table: JSON file, key -->` and
`<!-- end -->`: what was measured, and where the values of the recipes come from.

The tables of other pages are filled in when the documentation is built.

python training/render_readme.py
"""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from hf_methods.benchmarks import Comparison, Figure, load_comparisons, read_figures


ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "training" / "README.md", ROOT / "docs" / "benchmarks.md")
MARKED = re.compile(r"<!-- table: (\S+) (\w+) -->\n.*?<!-- end -->", re.DOTALL)
LABELS = {
    "perplexity": "perplexity",
    "first_token_mass_pct": "attention on the first token, %",
    "null_mass_pct": "attention on nothing, %",
    "first_token_argmax_pct": "queries with their largest weight on the first token, %",
    "heads_first_token_max_pct": "heads with the first token on top, %",
    "kurtosis_first": "kurtosis, first token",
    "kurtosis_rest": "kurtosis, other tokens",
    "maxabs_first": "mean largest activation, first token",
    "maxabs_rest": "mean largest activation, other tokens",
    "maxabs_global": "largest activation",
    "loss": "loss",
    "loss_optimum": "loss of a perfect model",
    "accuracy_copy_pct": "copies that are right, %",
    "known_auroc": "AUROC, known attack",
    "transfer_auroc": "AUROC, trained on another",
    "leave_one_out_auroc": "AUROC, trained on all others",
    "other_source_auroc": "AUROC, other images",
}


FRACTIONS = {  # shown in per cent
    "balanced_accuracy": "balanced accuracy, %",
    "gmean": "geometric mean of the classes' accuracies, %",
    "head": "head classes, %",
    "medium": "medium classes, %",
    "tail": "tail classes, %",
    "worst_class": "worst class, %",
    "expert0_balanced_accuracy": "first expert alone, %",
    "expert1_balanced_accuracy": "second expert alone, %",
    "expert2_balanced_accuracy": "third expert alone, %",
    "known_tpr_at_5_fpr": "found at 5 % false alarms, %",
    "fpr_clean": "alarms, clean images, %",
    "fpr_gaussian": "alarms, Gaussian noise, %",
    "fpr_uniform": "alarms, uniform noise, %",
    "map_50": "mAP at IoU 0.5, students, %",
    "map": "mAP, students, %",
    "voc07_ap50": "AP at IoU 0.5 by VOC 2007, students, %",
    "teacher_map_50": "mAP at IoU 0.5, teachers, %",
    "ensemble_map_50": "mAP at IoU 0.5, ensemble, %",
    "precision_own": "right pseudo labels before rectification, %",
    "precision": "right pseudo labels after it, %",
    "changed": "labels that it changed, %",
}
ADAPTIVE = {
    "adaptive": "lower the detector's score",
    "feature_matching": "pull the features to the benign mean",
}

PERCENTAGES = {
    "base": "base classes, %",
    "novel": "novel classes, %",
    "harmonic_mean": "harmonic mean, %",
    "peak_novel": "novel classes, at their best epoch, %",
}
WIDE = 6  # arms beside each other, at most
LONGEST = 80  # characters of a value


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table whose first column is text."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def render_arms(summary: dict[str, dict[str, list[float]]]) -> str:
    """Mean and standard deviation over the seeds, one column an arm; of many arms, one row an arm."""
    rows = []
    for name in max(summary.values(), key=len):  # an arm with one expert has no figures of three
        factor, digits, label = 1, 3 if name.startswith("delta") or name.endswith("auroc") else 2, LABELS.get(name)
        if name in FRACTIONS:
            factor, digits, label = 100, 1, FRACTIONS[name]
        elif name in PERCENTAGES:
            digits, label = 1, PERCENTAGES[name]
        elif name.startswith("delta"):
            label = "Δ perplexity, " + name.removeprefix("delta_")
        if label:
            rows.append([label, *(_mean_and_sd(arm.get(name), factor, digits) for arm in summary.values())])
    table = [["", *summary], *rows]
    if len(summary) > WIDE:
        table = [list(row) for row in zip(*table, strict=True)]
    return markdown(table[0], table[1:])


def _mean_and_sd(value: list[float] | None, factor: int, digits: int) -> str:
    return (
        ""
        if value is None or value[0] is None
        else f"{factor * value[0]:.{digits}f}" + ("" if value[1] is None else f" ± {factor * value[1]:.{digits}f}")
    )


def render_adaptive(attacks: dict[str, dict[str, list]]) -> str:
    """Attackers who know the detector: in % of their images, and of those that fool the classifier."""
    header = ["", "fool the classifier, %", "of these detected, %", "fool both, %"]
    rows = [
        [ADAPTIVE[kind], *(_mean_and_sd(rates.get(name), 100, 1) for name in ("fooled", "detected", "evaded"))]
        for kind, rates in attacks.items()
    ]
    return markdown(header, rows)


def render_published(attacks: dict[str, dict[str, Any]]) -> str:
    """One detector on each attack, with bootstrap intervals."""
    interval = lambda value, factor, digits: "{} ({}, {})".format(*(f"{factor * x:.{digits}f}" for x in value))  # noqa: E731
    rows = [
        [name, interval(row["auroc"], 1, 3), interval(row["tpr_at_5_fpr"], 100, 1)] for name, row in attacks.items()
    ]
    return markdown(["", "AUROC", "found at 5 % false alarms, %"], rows)


def render_trials(trials: dict[str, dict[str, Any]]) -> str:
    """AUROC of each trial on attacks that it was trained on and on others; one row a trial."""
    columns = {"known": "known attack", "transfer": "trained on another", "leave_one_out": "trained on all others"}
    rows = [
        [name, str(trial["features"]), *(f"{trial[key]:.3f}" for key in columns)] for name, trial in trials.items()
    ]
    return markdown(["", "features", *columns.values()], rows)


def render_ratios(settings: dict[str, dict[str, dict[str, float]]]) -> str:
    """Time relative to the peer, which is the first row, and the peer's median; one column a setting."""
    first = next(iter(settings.values()))
    rows = [[name, *(f"{setting[name]['ratio']:.2f}" for setting in settings.values())] for name in first]
    rows[0][1:] = [f"1 ({next(iter(setting.values()))['median_ms']:.1f} ms)" for setting in settings.values()]
    return markdown(["", *settings], rows)


def render_columns(table: dict[str, dict[str, float]]) -> str:
    """One column a key, single figures."""
    names = next(iter(table.values()))
    rows = [[name.replace("delta", "Δ"), *(f"{column[name]:.3f}" for column in table.values())] for name in names]
    return markdown(["", *table], rows)


def render_training_step(step: dict) -> str:
    """Medians of the parts of a training step, and the ratio of the whole."""
    times = [[name, f"{part['median_ms'] / 1000:.2f} s"] for name, part in step.items() if isinstance(part, dict)]
    ratios = [[name, f"{value:.3f}"] for name, value in step.items() if not isinstance(value, dict)]
    return markdown(["", "median"], times + ratios)


def render_sets(runs: dict[str, list[dict[str, float]]]) -> str:
    """mAP of each set, one column an arm."""
    first = next(iter(runs.values()))
    rows = [[f"set {k + 1}", *(f"{100 * arm[k]['map_50']:.1f}" for arm in runs.values())] for k in range(len(first))]
    return markdown(["", *runs], rows)


def render_comparisons(comparisons: list[Comparison], figures: list[Figure]) -> str:
    """Ratios with the range of half of the rounds, and goals; numbers lead to why one is not met, below the table."""
    rows: list[list[str]] = []
    reasons: list[str] = []
    for comparison in comparisons:
        reason = comparison.explanation or "not explained yet"
        if comparison.figure is None:
            rows.append([comparison.what, f"not measured: {reason}", _goal(comparison), ""])
        for figure in (figure for figure in figures if figure.comparison is comparison):
            if figure.met is False and reason not in reasons:
                reasons.append(reason)
            spread = "" if figure.low == figure.high else f" ({figure.low:.4g}, {figure.high:.4g})"
            value = f"{figure.value:.4g}{spread} {comparison.unit}".strip()
            met = "" if figure.met is None else "yes" if figure.met else f"**no** ({reasons.index(reason) + 1})"
            rows.append([figure.name, value, _goal(comparison), met])
    table = markdown(["", "ratio", "goal", "met"], rows)
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    return "\n".join([table, "", "Not met:", "", *notes]) if notes else table


def _goal(comparison: Comparison) -> str:
    for sign, limit in (("≤", comparison.at_most), ("≥", comparison.at_least)):
        if limit is not None:
            return f"{sign} {limit} {comparison.unit}".strip()
    return ""


def render_estimates(presets: dict[str, dict[str, int]]) -> str:
    """Memory of a step by kind, in 2^30 bytes, and its floating-point operations; one row a preset."""
    kinds = ("parameters", "gradients", "optimizer_state", "averages", "activations")
    rows = []
    for name, row in presets.items():
        total = sum(value for kind, value in row.items() if kind != "flops")
        gibibytes = [f"{value / 2**30:.2f}" for value in (*(row[kind] for kind in kinds), total)]
        rows.append([f"`{name}`", *gibibytes, f"{row['flops'] / 1e12:.2f}"])
    header = ["GiB", *(kind.replace("_", " ") for kind in kinds), "total", "TFLOP a step"]
    return markdown(header, rows)


def render_shares(shares: dict[str, dict[str, float]]) -> str:
    """Parts in per cent, one column a method; empty where a method has no such part."""
    first = next(iter(shares.values()))
    cells = {
        name: ["" if column[name] is None else f"{column[name]:.1f}" for column in shares.values()] for name in first
    }
    return markdown(["%", *shares], [[name, *row] for name, row in cells.items()])


def render_speeds(speeds: dict[str, dict[str, float]]) -> str:
    """Figures with three digits, one column a method."""
    first = next(iter(speeds.values()))
    rows = [[name, *(f"{float(f'{column[name]:.3g}'):,g}" for column in speeds.values())] for name in first]
    return markdown(["", *speeds], rows)


def render_differences(differences: dict[str, list]) -> str:
    """Differences of an arm to the others in points, over the seeds."""
    rows = [
        [name, f"{value[0]:+.1f}" + ("" if value[1] is None else f" ± {value[1]:.1f}")]
        for name, value in differences.items()
    ]
    return markdown(["mAP at IoU 0.5, points", "mean over the sets"], rows)


def published_settings(sources: Path) -> dict[str, list[dict[str, Any]]]:
    """The settings of the YAMLs beside a sources.json that it speaks of, by its columns."""
    columns = json.loads(sources.read_text("utf-8"))["files"]
    paths = {
        column: sorted(p for each in patterns for p in sources.parent.glob(each))
        for column, patterns in columns.items()
    }
    return {column: [yaml.safe_load(path.read_text("utf-8")) for path in found] for column, found in paths.items()}


def render_sources(values: list[dict[str, Any]], settings: dict[str, list[dict[str, Any]]]) -> str:
    """Where each value of the YAMLs comes from, one row an option."""
    rows = []
    for entry in values:
        note = f"; {entry['note']}" if "note" in entry else ""
        for name in entry["options"]:
            cells = [_values(name, of_column) for of_column in settings.values()]
            rows.append([f"`{name}`", *cells, entry["source"] + note])
            note = ""  # once for options that belong together
    lines = [["option", *settings, "source"], ["---"] * (len(settings) + 2), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _values(name: str, settings: list[dict[str, Any]]) -> str:
    """Those of an option in some YAMLs; what is long is not repeated."""
    values = dict.fromkeys(json.dumps(one[name], ensure_ascii=False) for one in settings if name in one)
    text = " or ".join(value.strip('"') for value in values)
    return text if len(text) <= LONGEST else "see the file" if len(settings) == 1 else "see the files"


RENDERERS = {
    "difference_mean_and_sd": render_differences,
    "estimates": render_estimates,
    "parts_pct": render_shares,
    "kinds_pct": render_shares,
    "speed_one_thread": render_speeds,
    "runs": render_sets,
    "training_step": render_training_step,
    "table": render_columns,
    "summary_mean_and_sd": render_arms,
    "adaptive": render_adaptive,
    "published": render_published,
    "trials_auroc": render_trials,
    "time_forward_backward_causal": render_ratios,
    "optimizer_step": render_ratios,
    "seconds": render_columns,
}


def render(text: str) -> str:
    """`text` with each marked block replaced by the table of its JSON file and key."""

    def table(match: re.Match) -> str:
        path, key = ROOT / match[1], match[2]
        results = json.loads(path.read_text())
        if key == "comparisons":  # in a file of their own, beside the folder of the results
            comparisons = load_comparisons(path.stem, path.parents[1])
            body = render_comparisons(comparisons, read_figures(results, comparisons))
        elif key == "values":  # of the YAMLs beside the file
            body = render_sources(results[key], published_settings(path))
        else:
            values = results[key]
            if key == "summary_mean_and_sd" and len(results.get("seeds", ())) == 1:  # older files have 0 for none
                values = {arm: {name: [pair[0], None] for name, pair in row.items()} for arm, row in values.items()}
            body = RENDERERS[key](values)
        return f"<!-- table: {match[1]} {key} -->\n{body}\n<!-- end -->"

    return MARKED.sub(table, text)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(render(page.read_text()))
