# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The benchmarks of a checkout: run a script, read its ratios with their goals, and find what got worse.

`tests/benchmarks/NAME.py` measures and writes `tests/benchmarks/results/NAME.json`; `tests/benchmarks/comparisons/NAME.yaml`
says which figures of that file are compared with what, which direction is better, and what the goal is.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import yaml


BENCHMARKS = Path("tests/benchmarks")  # in a checkout, at whose root the commands run
NOISE = 0.05  # of a ratio, between two runs of the same code: where memory lies, what else the machine does
RUNS = 3  # in so many processes a ratio must be worse: in one of them memory may lie badly for all rounds


@dataclass(frozen=True)
class Comparison:
    """An entry of comparisons/NAME.yaml: figures of one kind, and what is asked of them.

    Args:
        what: text; each `{}` stands for what a wildcard of `figure` found, in their order.
        figure: keys that lead to a function's times or to a number in the JSON file; `*` is a wildcard, alone or within a
            key. `None` if the benchmark does not measure it. Functions stand for their ratio to the first of their table,
            which is no figure itself. A figure that an earlier entry found is left out.
        relative_to: keys of what `figure` is divided by, with the same wildcards; of several, the sum.
        at_most: the goal, where less is better.
        at_least: the goal, where more is better.
        better: "lower" or "higher", where there is no goal.
        unit: of a figure that depends on the machine, for one that is no ratio; it is not compared with another run.
        explanation: why the goal is not met, or why the figure is not measured.

    Raises:
        ValueError: two goals, or a `better` that is neither.
    """

    what: str
    figure: list[str] | None = None
    relative_to: list[list[str]] | None = None
    at_most: float | None = None
    at_least: float | None = None
    better: Literal["lower", "higher"] = "lower"
    unit: str = ""
    explanation: str = ""

    def __post_init__(self):
        if self.at_most is not None and self.at_least is not None:
            raise ValueError(f"{self.what!r} has `at_most` and `at_least`; give one of them.")
        if self.better not in ("lower", "higher"):
            raise ValueError(f"`better` of {self.what!r} must be 'lower' or 'higher', got {self.better!r}.")

    @property
    def higher_is_better(self) -> bool:
        return self.at_least is not None or self.better == "higher"


@dataclass(frozen=True)
class Figure:
    """A measured ratio: its median, and the range in which half of the rounds lie; `low == high` where none is recorded."""

    comparison: Comparison
    name: str
    value: float
    low: float
    high: float

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without a goal."""
        if self.comparison.at_most is not None:
            return self.value <= self.comparison.at_most
        return None if self.comparison.at_least is None else self.value >= self.comparison.at_least


@dataclass(frozen=True)
class Change:
    """What became of a ratio from one run to another: "missing" in the other, or "new" there."""

    name: str
    kind: Literal["worse", "better", "same", "missing", "new"]
    before: float | None
    after: float | None

    @property
    def failed(self) -> bool:
        return self.kind in ("worse", "missing")

    def __str__(self) -> str:
        before, after = ("nothing" if value is None else f"{value:.4g}" for value in (self.before, self.after))
        return f"{self.kind:7s}  {before} -> {after}  {self.name}"


def benchmark_names(name: str | None = None, folder: Path = BENCHMARKS) -> list[str]:
    """The benchmarks of a checkout, or `name` alone.

    Raises:
        ValueError: not at the root of a checkout, or no benchmark of this name.
    """
    names = sorted(path.stem for path in folder.glob("comparisons/*.yaml"))
    if not names:
        raise ValueError(f"{folder}/comparisons/ has no files: run in a checkout of hf_methods, at its root.")
    if name is not None and name not in names:
        raise ValueError(f"NAME must be one of {', '.join(names)}, got {name!r}.")
    return names if name is None else [name]


def load_comparisons(name: str, folder: Path = BENCHMARKS) -> list[Comparison]:
    """What `name` compares, in the order of its file.

    Raises:
        ValueError: the file is no list of entries that `Comparison` takes.
    """
    path = folder / "comparisons" / f"{name}.yaml"
    try:
        return [Comparison(**entry) for entry in yaml.safe_load(path.read_text("utf-8"))]
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def load_results(path: Path) -> dict[str, Any]:
    """A benchmark's JSON file.

    Raises:
        ValueError: the file is not there, or is no JSON.
        TypeError: it holds another thing than an object.
    """
    try:
        results = json.loads(path.read_text("utf-8"), parse_constant=lambda _: None)  # NaN is no figure
    except OSError as error:
        raise ValueError(
            f"{path} can't be read ({error.strerror}); `hf-methods bench {path.stem}` writes it."
        ) from error
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    if not isinstance(results, dict):
        raise TypeError(f"{path} must hold a JSON object, got a {type(results).__name__}.")
    return results


def run_benchmark(name: str, out: Path, folder: Path = BENCHMARKS) -> Path:
    """Run a benchmark in a process of its own; its JSON file, in the folder `out`.

    Raises:
        ChildProcessError: the script failed; what it wrote to stderr is on stderr.
    """
    script = folder / f"{name}.py"
    result = subprocess.run(
        [sys.executable, str(script), "--out", str(out)], capture_output=True, text=True, check=False
    )
    if result.returncode:
        sys.stderr.write(f"\n{result.stderr}")  # behind a progress bar
        raise ChildProcessError(f"{script} failed with status {result.returncode}.")
    return out / f"{name}.json"


def read_figures(results: dict[str, Any], comparisons: list[Comparison]) -> list[Figure]:
    """The figures that `comparisons` find in a benchmark's JSON; what is not there or null is left out."""
    figures, seen = [], set()
    for comparison in comparisons:
        for path, found in _matches(results, comparison.figure or []):
            key = (path, comparison.relative_to is None)
            low_value_high = _spread(results, path)
            if key in seen or low_value_high is None:
                continue
            seen.add(key)
            if comparison.relative_to is not None:
                low_value_high = _divide(results, low_value_high, comparison.relative_to, found)
            if low_value_high is not None:
                low, value, high = low_value_high
                figures.append(Figure(comparison, comparison.what.format(*found), value, low, high))
    return figures


def compare(before: dict[str, Any], after: dict[str, Any], comparisons: list[Comparison]) -> list[Change]:
    """What became of each ratio from one run of a benchmark to another, given the JSON of both.

    A ratio is worse if it moved in the wrong direction by more than 5 % and the ranges of the two runs do not overlap:
    half of the rounds lie in them, so that a few slow rounds do not count. What the rounds of one process can't show, the
    difference between two processes, is left to the 5 %. "better" is the same in the other direction. Figures with a unit
    are left out.
    """
    old, new = (
        {figure.name: figure for figure in read_figures(run, comparisons) if not figure.comparison.unit}
        for run in (before, after)
    )
    changes = [
        Change(name, _kind(figure, new.get(name)), figure.value, new[name].value if name in new else None)
        for name, figure in old.items()
    ]
    return changes + [Change(name, "new", None, figure.value) for name, figure in new.items() if name not in old]


def confirm(changes: list[Change], again: list[Change]) -> list[Change]:
    """`changes`, in which those that failed and did not in another run are as in that run."""
    others = {change.name: change for change in again}
    return [others.get(change.name, change) if change.failed else change for change in changes]


def _kind(before: Figure, after: Figure | None) -> Literal["worse", "better", "same", "missing"]:
    if after is None:
        return "missing"
    if after.low > before.high and after.value > before.value * (1 + NOISE):
        return "better" if after.comparison.higher_is_better else "worse"
    if after.high < before.low and before.value > after.value * (1 + NOISE):
        return "worse" if after.comparison.higher_is_better else "better"
    return "same"


def _matches(results: Any, keys: list[str], path: tuple = (), found: tuple = ()) -> Iterator[tuple[tuple, tuple]]:
    """Paths in nested dictionaries, and which keys the wildcards found."""
    if not keys:
        if path:
            yield path, found
    elif isinstance(results, dict):
        pattern = keys[0]
        for key in results:
            if key == pattern:
                yield from _matches(results[key], keys[1:], (*path, key), found)
            elif "*" in pattern and fnmatchcase(key, pattern):
                yield from _matches(results[key], keys[1:], (*path, key), (*found, key))


def _spread(results: dict[str, Any], path: tuple) -> tuple[float, float, float] | None:
    """(low, value, high) of a function's ratio or of a number; None for a table's first function, and for other things."""
    table: Any = results
    for key in path[:-1]:
        table = table[key]
    entry = table[path[-1]]
    if isinstance(entry, (int, float)) and not isinstance(entry, bool):
        return entry, entry, entry
    if not isinstance(entry, dict) or not isinstance(entry.get("ratio"), (int, float)):
        return None
    peer = next(other for other in table.values() if isinstance(other, dict) and "ratio" in other)
    if entry is peer:
        return None
    low, high = entry.get("ratio_quartiles", (entry["ratio"], entry["ratio"]))  # older files have none
    return low, entry["ratio"], high


def _divide(
    results: dict[str, Any], dividend: tuple[float, float, float], divisors: list[list[str]], found: tuple
) -> tuple[float, float, float] | None:
    """A figure by the sum of others, whose wildcards are what the figure's have found; None where one is not there."""
    sums = [0.0, 0.0, 0.0]
    for keys in divisors:
        rest = iter(found)
        path = tuple(next(rest) if "*" in key else key for key in keys)
        spreads = [_spread(results, match) for match, _ in _matches(results, list(path))]
        if len(spreads) != 1 or spreads[0] is None:
            return None
        sums = [total + part for total, part in zip(sums, spreads[0], strict=True)]
    (low, value, high), (low_sum, sum_, high_sum) = dividend, sums
    return (low / high_sum, value / sum_, high / low_sum) if low_sum else None
