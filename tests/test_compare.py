"""The committed numbers and verdicts next to those found."""

import json
import re
import shutil
import statistics
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipform.files import write_json, write_json_lines
from skipform.stages import cli, compare

ROOT = Path(__file__).parent.parent


def run(variant, seed, error):
    return {
        "config": {"variant": variant, "seed": seed},
        "metrics": {"shown": ["error", "%"], "test_error": error},
        "history": {"epoch": [1]},
    }


def leave(folder, errors, pieces, verdict):
    """Records of two variants, measures of one, and one verdict."""
    for name in ("records/survey", "measures/survey", "measures/claims"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    runs = [run(variant, seed, error) for variant, values in errors.items() for seed, error in enumerate(values)]
    write_json_lines(folder / "records/survey/net.jsonl", runs)
    rows = [{"variant": "plain", "when": "final", "line_pieces": n, "line_regions": None} for n in pieces]
    write_json(folder / "measures/survey/net.json", {"rows": rows})
    write_json(folder / "measures/survey/net.metrics.json", {"line_pieces": 1})
    sides = {"a": 2 if verdict == "holds" else 0, "b": 1}  # of five seeds each
    rows = [
        {"variant": variant, "seed": seed, "when": "final", "copy": None, "loss_rise": value + seed / 10}
        for variant, value in sides.items()
        for seed in range(5)
    ]
    row = {"claim": "(i)", "measure": "loss_rise", "first": "a", "second": "b", "expected": ">", "margin": None}
    write_json(folder / "measures/claims/some.json", {"rows": rows, "comparisons": [row]})


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A repository with committed records and measures."""
    monkeypatch.chdir(tmp_path)
    leave(tmp_path, {"plain": [1.0, 2.0, 4.0], "skips": [3.0, 3.0, 3.0]}, [5, 6, 7], "holds")
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
    leave(clone, {"plain": [1.0, 3.9, 9.0], "skips": [3.0, 3.1, 3.1]}, [5, 6, 8], "does not hold")
    assert cli.main(["compare", "--out", "page.html", "--badge", "badge.svg"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[:3] == ["   1 measures: 1 inside", "   2 scores: 1 inside, 1 outside", "   1 verdicts: 1 turned"]
    assert printed[3:] == [
        "turned: (i) / a : b / final loss_rise: committed holds, found does not hold",
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


def test_verdicts_are_decided_from_the_numbers_of_both_by_the_comparisons_of_this_directory(clone):
    """Of the revision neither its own verdicts count nor its own rule, nor what it has no numbers for."""

    def claims(values, announced):
        sides = {"a": [value + 1 if value is not None else None for value in values], "b": values}
        rows = [
            {"variant": side, "seed": seed, "when": "final", "steps_to 1": value}
            for side, numbers in sides.items()
            for seed, value in enumerate(numbers)
        ]
        text = json.dumps({"rows": rows, "comparisons": [row | {"verdict": "nonsense"} for row in announced]})
        return {"measures/claims/some.json": text}

    row = {"claim": "slower", "measure": "steps_to 1", "first": "a", "second": "b", "expected": ">", "margin": None}
    other, new = row | {"claim": "faster", "first": "b", "second": "a"}, row | {"claim": "new", "measure": "not yet"}
    same, never = [0.1 * seed for seed in range(5)], [None] * 5
    before, now = claims(same, [row]), claims(same, [row, other])
    assert states(compare.compared(before, now)) == {
        ("a : b", "final steps_to 1"): "kept",
        ("b : a", "final steps_to 1"): "kept",
    }
    assert set(states(compare.compared(before, claims([*same, 0.5], [row]))).values()) == {"of other seeds"}
    table = compare.compared(before, claims(never, [row, new]))
    assert states(table) == {("a : b", "final steps_to 1"): "turned"}
    (row,) = table.itertuples()
    assert (row.committed.verdict, row.found.verdict) == ("holds", "open")  # two nets that never reach it: a tie


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


def test_the_table_of_a_second_machine_and_the_badge_are_those_of_the_committed_numbers(monkeypatch):
    """analysis/second_machine.csv; the section of analysis/training.py that reads it has the command."""
    monkeypatch.chdir(ROOT)
    table = pd.read_csv("analysis/second_machine.csv", dtype=str)
    files = compare.working()
    found = {key: str(value) for key, value in compare.numbers(files, dict(compare.announcements(files)))}
    for row in table.itertuples(index=False):
        assert row.found == found[tuple(row[:4])]
    assert Path("paper/second_machine.svg").read_text() == compare.drawn_badge(table)
    good = table["is"].isin(compare.GOOD).groupby(table["kind"]).agg(["sum", "size"])
    (alternative,) = re.findall(r"!\[What a second machine gave: (.*)\]", Path("README.md").read_text())
    assert alternative == ", ".join(
        f"{kind}s {good['sum'][kind]} of {good['size'][kind]}" for kind in ("measure", "score")
    )
