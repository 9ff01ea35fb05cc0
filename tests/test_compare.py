"""Comparisons of measured nets, and of the committed numbers with those found."""

import json
import shutil
import statistics
import subprocess
from xml.etree import ElementTree

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipform import comparisons
from skipform.errors import SkipformError
from skipform.files import write_json, write_json_lines
from skipform.stages import cli, compare

SEEDS = st.dictionaries(st.integers(0, 4), st.integers(-5, 5), min_size=1)


@given(SEEDS, SEEDS)
def test_a_relation_is_what_every_pair_of_seeds_says(first, second):
    pairs = [(x, y) for x in first.values() for y in second.values()]
    above, below = all(x > y for x, y in pairs), all(x < y for x, y in pairs)
    expected = "=" if first == second else ">" if above else "<" if below else "~"
    assert comparisons.relation(first, second) == expected
    mirrored = {">": "<", "<": ">"}.get(expected, expected)
    assert comparisons.relation(second, first) == mirrored


@pytest.mark.parametrize(
    ("relation", "greater", "equal"),
    [
        (">", "supports", "contradicts"),
        ("<", "contradicts", "contradicts"),
        ("=", "open", "supports"),
        ("~", "open", "open"),
    ],
)
def test_an_outcome_depends_on_what_the_claim_expects(relation, greater, equal):
    assert comparisons.outcome(relation, ">") == greater
    assert comparisons.outcome(relation, "=") == equal


GOOD = {"claim": "some", "expected": ">", "measures": ["pieces"], "pairs": [["a", "b"], ["a", "a as add"]]}


def test_announced_comparisons_are_decided_for_every_measure_pair_and_moment():
    announced = comparisons.read([GOOD | {"measures": ["regions", "pieces"]}], ["a", "b"], "file")
    rows = [
        {"variant": v, "copy": c, "seed": seed, "when": when, "regions": n + seed, "pieces": seed}
        for v, c, n in (("a", None, 10), ("b", None, 0), ("a", "add", 10))
        for seed in range(3)
        for when in ("initial", "final")
    ]
    decided = comparisons.decide(announced, rows)
    found = {(row["measure"], row["second"], row["when"]): (row["relation"], row["outcome"]) for row in decided}
    assert found == {
        (measure, second, when): result
        for when in ("initial", "final")
        for measure, second, result in (
            ("regions", "b", (">", "supports")),
            ("regions", "a as add", ("=", "open")),
            ("pieces", "b", ("=", "open")),
            ("pieces", "a as add", ("=", "open")),
        )
    }
    assert {(row["median_first"], row["seeds"]) for row in decided if row["measure"] == "regions"} == {(11, 3)}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"expected": "<"}, r"file\[0\]: expected: "),
        ({"measures": ["parameters"]}, r"file\[0\]: measures"),
        ({"measures": ["functional_dimension"]}, "functional_dimension is not measured for copies"),
        ({"pairs": [["a"]]}, r"\['a'\]; accepted: \[VARIANT, VARIANT\]"),
        ({"pairs": [["a", "c"]]}, "no variant 'c'; there are: a, b"),
        ({"seeds": 3}, "seeds"),
    ],
)
def test_a_wrong_announcement_is_refused_by_name(changed, words):
    with pytest.raises(SkipformError, match=words):
        comparisons.read([GOOD | changed], ["a", "b"], "file")


def run(variant, seed, error):
    return {
        "config": {"variant": variant, "seed": seed},
        "metrics": {"shown": ["error", "%"], "test_error": error},
        "history": {"epoch": [1]},
    }


def leave(folder, errors, pieces, outcome):
    """Records of two variants, measures of one, and one verdict."""
    for name in ("records/survey", "measures/survey", "measures/claims"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    runs = [run(variant, seed, error) for variant, values in errors.items() for seed, error in enumerate(values)]
    write_json_lines(folder / "records/survey/net.jsonl", runs)
    rows = [{"variant": "plain", "when": "final", "line_pieces": n, "line_regions": None} for n in pieces]
    write_json(folder / "measures/survey/net.json", {"rows": rows})
    write_json(folder / "measures/survey/net.metrics.json", {"line_pieces": 1})
    verdict = {"claim": "(i)", "measure": "pieces", "when": "final", "first": "a", "second": "b", "outcome": outcome}
    write_json(folder / "measures/claims/some.json", {"rows": [], "comparisons": [verdict]})


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A repository with committed records and measures."""
    monkeypatch.chdir(tmp_path)
    leave(tmp_path, {"plain": [1.0, 2.0, 4.0], "skips": [3.0, 3.0, 3.0]}, [5, 6, 7], "supports")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *command], check=True)
    return tmp_path


def states(table):
    return dict(zip(zip(table["variant"], table["number"], strict=True), table["is"], strict=True))


def test_numbers_are_equal_inside_or_outside_and_verdicts_kept_or_turned(clone, capsys):
    assert cli.main(["compare"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "   1 measures: 1 equal",
        "   2 scores: 2 equal",
        "   1 verdicts: 1 kept",
    ]
    leave(clone, {"plain": [1.0, 3.9, 9.0], "skips": [3.0, 3.1, 3.1]}, [5, 6, 8], "open")
    assert cli.main(["compare", "--out", "page.html", "--badge", "badge.svg"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[:3] == ["   1 measures: 1 inside", "   2 scores: 1 inside, 1 outside", "   1 verdicts: 1 turned"]
    assert printed[3:] == [
        "turned: (i) / a : b / final pieces: committed supports, found open",
        "outside: net / skips / test_error: committed 3 (3 to 3), found 3.1 (3 to 3.1)",
    ]
    page = (clone / "page.html").read_text()
    assert "2 (1 to 4)" in page
    assert "3.9 (1 to 9)" in page
    assert "measures 1/1  scores 1/2  verdicts 0/1" in ElementTree.parse("badge.svg").getroot()[0].text
    assert cli.main(["compare", "--out", "table.csv"]) == 0
    assert pd.read_csv("table.csv")["is"].tolist() == ["turned", "inside", "inside", "outside"]
    capsys.readouterr()
    shutil.rmtree(clone / "measures")
    assert cli.main(["compare"]) == 0
    assert "absent: net / plain / final line_pieces: committed 6 (5 to 7), found nothing" in capsys.readouterr().out


@given(st.lists(st.floats(-9, 9), min_size=1, max_size=5), st.lists(st.floats(-9, 9), min_size=1, max_size=5))
def test_inside_means_that_the_median_found_lies_in_the_committed_range(old, new):
    before, now = ({"records/survey/n.jsonl": "\n".join(json.dumps(run("v", 0, x)) for x in xs)} for xs in (old, new))
    (state,) = states(compare.compared(before, now)).values()
    same = (statistics.median(old), min(old), max(old)) == (statistics.median(new), min(new), max(new))
    assert (state == "equal") == same
    assert (state == "outside") == (not min(old) <= statistics.median(new) <= max(old))


def test_what_cannot_be_compared_is_refused_in_one_line(clone, capsys):
    for words, part in {
        ("compare", "--revision", "no-such-revision"): "no-such-revision: ",
        ("compare", "--out", "page.txt"): "accepted: .html, .csv",
        ("compare", "--badge", "badge.png"): "accepted: .svg",
        ("compare", "--output=x"): "--output",
    }.items():
        assert cli.main([*words]) == 2
        error = capsys.readouterr().err
        assert part in error
        assert error.count("\n") == 1
    (clone / "records/survey/net.jsonl").write_text('{"config": 1}\n')
    assert cli.main(["compare"]) == 2
    assert "records/survey/net.jsonl: not as skipform writes it" in capsys.readouterr().err
