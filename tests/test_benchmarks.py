# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Benchmarks: which ratio got worse, what the command runs and writes, and the document that shows them."""

import importlib.util
import json
from pathlib import Path

import pytest

from hf_methods import cli
from hf_methods.benchmarks import (
    BENCHMARKS,
    Comparison,
    benchmark_names,
    compare,
    load_comparisons,
    load_results,
    read_figures,
)


ROOT = Path(__file__).parents[1]
LOWER = Comparison("{} ÷ peer", ["times", "*"])
HIGHER = Comparison("peer ÷ {}", ["times", "*"], better="higher")


def load_script(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def times(**functions):
    """A JSON whose functions have these (first quartile, ratio, third quartile)."""
    table = {"theirs": {"ratio": 1.0, "ratio_quartiles": [1.0, 1.0]}}
    table |= {name: {"ratio": r, "ratio_quartiles": [low, high]} for name, (low, r, high) in functions.items()}
    return {"wall_seconds": 3.0, "times": table}


def kinds(before, after, *comparisons):
    return {change.name: change.kind for change in compare(before, after, list(comparisons))}


# --- what got worse


@pytest.mark.parametrize(
    ("after", "kind"),
    [
        ((1.9, 2.0, 2.1), "same"),
        ((2.11, 2.2, 2.3), "up"),  # ranges apart, 10 %
        ((2.09, 2.2, 2.3), "same"),  # ranges touch
        ((2.0, 3.0, 4.0), "same"),  # far away, but the rounds differ as much
        ((1.7, 1.8, 1.89), "down"),
        ((1.8, 1.85, 1.91), "same"),
    ],
)
def test_a_ratio_changes_where_the_ranges_are_apart(after, kind):
    before = times(ours=(1.9, 2.0, 2.1))
    assert kinds(before, times(ours=after), LOWER) == {
        "ours ÷ peer": {"up": "worse", "down": "better"}.get(kind, kind)
    }
    assert kinds(before, times(ours=after), HIGHER) == {
        "peer ÷ ours": {"up": "better", "down": "worse"}.get(kind, kind)
    }


def test_less_than_five_per_cent_is_never_a_change():
    before = times(a=(2.0, 2.0, 2.0), b=(2.0, 2.0, 2.0), c=(2.0, 2.0, 2.0), d=(2.0, 2.0, 2.0))
    after = times(a=(2.09, 2.09, 2.09), b=(2.11, 2.11, 2.11), c=(1.91, 1.91, 1.91), d=(1.9, 1.9, 1.9))
    assert list(kinds(before, after, LOWER).values()) == ["same", "worse", "same", "better"]


def test_a_goal_says_which_direction_is_better():
    before, after = times(ours=(1.0, 1.0, 1.0)), times(ours=(2.0, 2.0, 2.0))
    assert kinds(before, after, Comparison("x", ["times", "ours"], at_most=3)) == {"x": "worse"}
    assert kinds(before, after, Comparison("x", ["times", "ours"], at_least=3)) == {"x": "better"}


def test_a_ratio_that_is_gone_or_null_is_missing_and_another_one_is_new():
    before = times(ours=(1.0, 1.0, 1.0), old=(1.0, 1.0, 1.0))
    after = times(ours=(1.0, None, 1.0), more=(9.0, 9.0, 9.0))
    changes = compare(before, after, [LOWER])
    assert [(change.name.split()[0], change.kind, change.failed) for change in changes] == [
        ("ours", "missing", True), ("old", "missing", True), ("more", "new", False),
    ]  # fmt: skip
    assert [str(change) for change in changes][1:] == [
        "missing  1 -> nothing  old ÷ peer",
        "new      nothing -> 9  more ÷ peer",
    ]


def test_files_without_quartiles_count_as_a_point():
    old = {"times": {"theirs": {"median_ms": 5, "ratio": 1.0}, "ours": {"median_ms": 10, "ratio": 2.0}}}
    assert kinds(old, times(ours=(1.9, 2.3, 2.5)), LOWER) == {"ours ÷ peer": "same"}
    assert kinds(old, times(ours=(2.1, 2.3, 2.5)), LOWER) == {"ours ÷ peer": "worse"}


def test_plain_numbers_and_quotients_are_compared_and_figures_with_a_unit_are_not():
    memory = Comparison("{}", ["memory", "*", "ours"], [["memory", "*", "theirs"], ["memory", "*", "more"]])
    seconds = Comparison("import", ["seconds"], unit="s")
    before = {
        "seconds": 1.0,
        "memory": {"small": {"ours": 6, "theirs": 2, "more": 1}, "large": {"ours": 1, "theirs": 2, "more": 2}},
    }
    after = {
        "seconds": 9.0,
        "memory": {"small": {"ours": 9, "theirs": 3, "more": 1}, "large": {"ours": 1, "theirs": 2}},
    }
    values = {figure.name: figure.value for figure in read_figures(before, [memory, seconds])}
    assert values == {"small": 2.0, "large": 0.25, "import": 1.0}
    changes = {change.name: (change.kind, change.after) for change in compare(before, after, [memory, seconds])}
    assert changes == {"small": ("worse", 2.25), "large": ("missing", None)}


def test_a_quotient_of_ratios_has_the_widest_range():
    data = times(ours=(2.0, 3.0, 4.0), bare=(1.0, 1.5, 2.0))
    (figure,) = read_figures(data, [Comparison("x", ["times", "ours"], [["times", "bare"]])])
    assert (figure.low, figure.value, figure.high) == (1.0, 2.0, 4.0)


def test_the_first_entry_takes_a_figure_and_the_peer_is_none():
    data = times(ours=(2.0, 2.0, 2.0), other=(3.0, 3.0, 3.0))
    figures = read_figures(data, [Comparison("goal", ["times", "ours"], at_most=2), LOWER])
    assert [(figure.name, figure.value, figure.met) for figure in figures] == [
        ("goal", 2.0, True), ("other ÷ peer", 3.0, None),
    ]  # fmt: skip


def test_goals_are_met_up_to_the_limit():
    met = lambda value, **goal: read_figures({"x": value}, [Comparison("x", ["x"], **goal)])[0].met  # noqa: E731
    assert met(1.3, at_most=1.3) and not met(1.31, at_most=1.3)
    assert met(8.0, at_least=8) and not met(7.99, at_least=8) and met(1.0) is None


# --- files


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (None, ValueError, "x.json can't be read .*hf-methods bench x"),
        ("{", ValueError, "x.json is no JSON file"),
        ("\udcff", ValueError, "x.json is no JSON file"),
        ("[1]", TypeError, "x.json must hold a JSON object, got a list"),
    ],
)
def test_a_file_that_is_no_result_is_named(text, error, message, tmp_path):
    if text is not None:
        (tmp_path / "x.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(error, match=message):
        load_results(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- what: x\n  at_most: 1\n  at_least: 1", "'x' has `at_most` and `at_least`"),
        ("- what: x\n  better: up", "`better` of 'x' must be 'lower' or 'higher', got 'up'"),
        ("- what: x\n  limit: 1", "limit"),
        ("- [", "m.yaml"),
        ("", "m.yaml"),
    ],
)
def test_a_wrong_entry_of_the_comparisons_is_named(text, message, tmp_path):
    (tmp_path / "comparisons").mkdir()
    (tmp_path / "comparisons" / "m.yaml").write_text(text)
    with pytest.raises(ValueError, match="m.yaml.*") as raised:
        load_comparisons("m", tmp_path)
    assert message in str(raised.value)


NAMES = benchmark_names(folder=ROOT / BENCHMARKS)


def ratios_in(value, path=()):
    """Paths of functions that were timed together with another, which came first."""
    for key, entry in value.items():
        if isinstance(entry, dict):
            peer = next((other for other in value.values() if isinstance(other, dict) and "ratio" in other), None)
            if "ratio" in entry and entry is not peer and entry["ratio"] != 1:
                yield (*path, key)
            yield from ratios_in(entry, (*path, key))


@pytest.mark.parametrize("name", NAMES)
def test_the_comparisons_fit_the_committed_file(name):
    comparisons = load_comparisons(name, ROOT / BENCHMARKS)
    results = load_results(ROOT / BENCHMARKS / "results" / f"{name}.json")
    figures = read_figures(results, comparisons)
    assert len({figure.name for figure in figures}) == len(figures)
    found = [figure.comparison for figure in figures]
    assert [comparison.what for comparison in comparisons if comparison.figure and comparison not in found] == []
    assert all(comparison.explanation for comparison in comparisons if comparison.figure is None)
    everything = [Comparison("", [*path]) for path in ratios_in(results)]
    assert {figure.value for figure in read_figures(results, everything)} <= {
        figure.value for figure in read_figures(results, [c for c in comparisons if c.relative_to is None])
    }
    assert not {change.kind for change in compare(results, results, comparisons)} - {"same"}


def test_every_script_is_a_benchmark_or_a_helper():
    scripts = {path.stem for path in (ROOT / BENCHMARKS).glob("*.py")}
    assert scripts - {"memory", "output", "timing", "trainers"} == set(NAMES)


# --- scripts


def test_quartiles_of_the_ratio_are_those_of_the_rounds(monkeypatch):
    timing = load_script(ROOT / BENCHMARKS / "timing.py")
    clock = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    rounds = {"peer": [7, 1, 1, 2, 1, 1], "own": [9, 3, 1, 4, 4, 5]}  # the first one warms up

    def function(durations):
        left = iter(durations)

        def run():
            clock[0] += next(left)

        return run

    result = timing.time_together({name: function(d) for name, d in rounds.items()}, repeats=5, warm_up=1)
    assert result["own"] == {  # ratios 1, 2, 3, 4, 5
        "median_ms": 4000.0, "min_ms": 1000.0, "max_ms": 5000.0, "ratio": 3.0, "ratio_quartiles": [2.0, 4.0],
    }  # fmt: skip
    assert result["peer"]["ratio"] == 1.0 and result["peer"]["ratio_quartiles"] == [1.0, 1.0]


def test_small_ratios_keep_their_digits():
    timing = load_script(ROOT / BENCHMARKS / "timing.py")
    summary = timing._summary([0.0012345678, 0.0012345678], [1.0, 1.0])
    assert summary["ratio"] == 0.001235 and summary["ratio_quartiles"] == [0.001235, 0.001235]


@pytest.mark.parametrize(("options", "folder"), [([], "results"), (["--out", "elsewhere"], "elsewhere")])
def test_a_script_writes_beside_itself_or_where_it_is_told(options, folder, monkeypatch):
    output = load_script(ROOT / BENCHMARKS / "output.py")
    monkeypatch.setattr("sys.argv", ["mine.py", *options])
    assert output.output_path("a/mine.py") == (Path("elsewhere") if options else Path("a", folder)) / "mine.json"


# --- the command


SCRIPT = """
import json, os, sys
from pathlib import Path
assert sys.argv[1] == "--out" and len(sys.argv) == 3
folder = Path(sys.argv[2])
folder.mkdir(parents=True, exist_ok=True)
text, _, later = Path("ratio").read_text().partition(" ")  # of this run, and of later ones
Path("ratio").write_text(later or text)
print("chatter")
if text == "broken":
    sys.exit("it broke")
own = dict(ratio=float(text), ratio_quartiles=[float(text)] * 2)
(folder / (Path(__file__).stem + ".json")).write_text(json.dumps(dict(pid=os.getpid(), t=dict(peer=dict(ratio=1.0), own=own))))
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Two benchmarks whose ratio is what the file `ratio` says, measured once at 2."""
    for folder in ("comparisons", "results"):
        (tmp_path / BENCHMARKS / folder).mkdir(parents=True)
    for name in ("one", "two"):
        (tmp_path / BENCHMARKS / f"{name}.py").write_text(SCRIPT)
        (tmp_path / BENCHMARKS / "comparisons" / f"{name}.yaml").write_text("- {what: own ÷ peer, figure: [t, '*']}\n")
    (tmp_path / "ratio").write_text("2")
    monkeypatch.chdir(tmp_path)
    assert bench(monkeypatch) == 0
    return tmp_path


def bench(monkeypatch, *arguments):
    """The exit code."""
    monkeypatch.setattr("sys.argv", ["hf-methods", "bench", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code or 0


def written(folder):
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def test_bench_runs_each_script_in_a_process_of_its_own_and_replaces_the_files(checkout, monkeypatch, capsys):
    before = written(checkout / BENCHMARKS / "results")
    assert set(before) == {"one", "two"} and len({run["pid"] for run in before.values()}) == 2
    (checkout / "ratio").write_text("3")
    assert bench(monkeypatch, "two") == 0
    after = written(checkout / BENCHMARKS / "results")
    assert after["one"] == before["one"] and after["two"]["t"]["own"]["ratio"] == 3.0
    output, progress = capsys.readouterr()
    assert "chatter" not in output and output.splitlines()[-1] == "written: tests/benchmarks/results/two.json"
    assert "1/1" in progress


@pytest.mark.parametrize(
    ("ratio", "code", "last"),
    [
        ("2", 0, "ratios that are worse or missing: 0"),
        ("1.5", 0, "ratios that are worse or missing: 0"),
        ("3", 1, "ratios that are worse or missing: 1"),
        ("3 3 2", 0, "ratios that are worse or missing: 0"),  # worse in two runs of three
        ("nan", 1, "ratios that are worse or missing: 1"),
    ],
)
def test_check_compares_and_leaves_the_committed_files(ratio, code, last, checkout, monkeypatch, capsys):
    before = written(checkout / BENCHMARKS / "results")
    (checkout / "ratio").write_text(ratio)
    capsys.readouterr()
    assert bench(monkeypatch, "one", "--check") == code
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == last
    expected = {"3": "worse    2 -> 3  own ÷ peer", "1.5": "better   2 -> 1.5  own ÷ peer"}
    assert ratio not in expected or expected[ratio] in lines
    assert written(checkout / BENCHMARKS / "results") == before and set(written(checkout / "runs" / "bench")) == {
        "one"
    }


def test_check_can_write_elsewhere_but_not_over_the_committed_files(checkout, monkeypatch, capsys):
    assert bench(monkeypatch, "--check", "--out", "mine") == 0 and set(written(checkout / "mine")) == {"one", "two"}
    before = written(checkout / BENCHMARKS / "results")
    assert bench(monkeypatch, "--check", "--out", "tests/benchmarks/../benchmarks/results") == 1
    assert "leaves tests/benchmarks/results as it is" in capsys.readouterr().err
    assert written(checkout / BENCHMARKS / "results") == before


def test_check_needs_readable_files_before_anything_runs(checkout, monkeypatch, capsys):
    (checkout / BENCHMARKS / "results" / "two.json").write_text("{")
    assert bench(monkeypatch, "--check") == 1
    assert "results/two.json is no JSON file" in capsys.readouterr().err and not (checkout / "runs").exists()
    (checkout / BENCHMARKS / "results" / "two.json").unlink()
    assert bench(monkeypatch, "--check") == 1
    assert "`hf-methods bench two` writes it" in capsys.readouterr().err and not (checkout / "runs").exists()


def test_an_unknown_name_is_told_the_known_ones(checkout, monkeypatch, capsys):
    assert bench(monkeypatch, "three") == 1
    assert "NAME must be one of one, two, got 'three'" in capsys.readouterr().err


def test_a_script_that_fails_ends_the_run_with_what_it_said(checkout, monkeypatch, capsys):
    (checkout / "ratio").write_text("broken")
    before = written(checkout / BENCHMARKS / "results")
    assert bench(monkeypatch) == 1
    error = capsys.readouterr().err.splitlines()
    assert "it broke" in error and error[-1] == "hf-methods: tests/benchmarks/one.py failed with status 1."
    assert written(checkout / BENCHMARKS / "results") == before


# --- the document


@pytest.fixture(scope="module")
def renderer():
    return load_script(ROOT / "training" / "render_readme.py")


def test_the_document_is_what_the_files_say(renderer):
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    assert renderer.render(text) == text, "run `python training/render_readme.py`"
    assert len(renderer.MARKED.findall(text)) == text.count("<!-- table:") >= len(NAMES)
    assert all(f"results/{name}.json" in text for name in NAMES)
    assert renderer.render(text.replace("÷", "/", 1)) == text


def test_a_table_tells_goals_that_are_met_and_numbers_the_reasons_of_others(renderer):
    comparisons = [
        Comparison("met", ["a"], at_most=2.0),
        Comparison("not met, {}", ["b*"], at_least=5, explanation="too small"),
        Comparison("no reason", ["a", "b"]),
        Comparison("slow", ["c"], at_most=1.0, unit="s"),
        Comparison("on another machine", at_least=3, explanation="needs one"),
        Comparison("{}", ["t", "*"]),
    ]
    figures = read_figures(
        {"a": 1.5, "b1": 4, "b2": 5, "c": 2.0, "t": times(ours=(1.2, 1.23456, 1.3))["times"]}, comparisons
    )
    assert renderer.render_comparisons(comparisons, figures).splitlines() == [
        "|  | ratio | goal | met |",
        "| --- | ---: | ---: | ---: |",
        "| met | 1.5 | ≤ 2.0 | yes |",
        "| not met, b1 | 4 | ≥ 5 | **no** (1) |",
        "| not met, b2 | 5 | ≥ 5 | yes |",
        "| slow | 2 s | ≤ 1.0 s | **no** (2) |",
        "| on another machine | not measured: needs one | ≥ 3 |  |",
        "| ours | 1.235 (1.2, 1.3) |  |  |",
        "",
        "Not met:",
        "",
        "1. too small",
        "2. not explained yet",
    ]
