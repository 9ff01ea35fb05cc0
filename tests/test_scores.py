"""`skipform scores`: what `dvc metrics` and `dvc plots` show agrees with the records."""

import csv
import json
import statistics
from pathlib import Path

import pytest

from skipform.stages import cli

ROOT = Path(__file__).parents[1]


def record(variant, seed, error, losses, unit="%"):
    return {
        "config": {"variant": variant, "seed": seed},
        "metrics": {"shown": ["error", unit], "parameters": 7, "epochs": 2, "train_error": 1.0, "test_error": error},
        "history": {"epoch": [1, 2], "train_loss": losses, "test_error": [9.0, error]},
    }


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Two seeds of net a, which has measures, and a claim whose second seed has no defined score."""
    monkeypatch.chdir(tmp_path)
    for folder in ("records/survey", "records/claims", "measures/survey"):
        (tmp_path / folder).mkdir(parents=True)
    runs = [record("a", 0, 4.0, [3.0, 1.0]), record("a", 1, 2.0, [5.0, None]), record("b", 0, 6.0, [1.0, 1.0])]
    (tmp_path / "records/survey/net.jsonl").write_text("".join(json.dumps(run) + "\n" for run in runs))
    runs = [record("c", 0, 4.0, [1.0, 1.0]), record("c", 1, None, [1.0, 1.0])]
    (tmp_path / "records/claims/claim.jsonl").write_text("".join(json.dumps(run) + "\n" for run in runs))
    rows = [
        {"variant": "a", "when": when, "line_regions": count, "line_pieces": None, "feature_rank": 3}
        for when, count in (("initial", 100), ("final", 4), ("final", 8))
    ]
    (tmp_path / "measures/survey/net.json").write_text(json.dumps({"rows": rows}))
    return tmp_path


def test_a_row_holds_the_medians_over_the_seeds(project):
    assert cli.main(["scores"]) == 0
    row = json.loads(Path("scores/metrics/survey/net/a.json").read_text())
    assert row == {
        "score": "error, %",
        "parameters": 7,
        "epochs": 2,
        "seeds": 2,
        "train": 1.0,
        "test": 3.0,
        "line_regions": 6,
        "feature_rank": 3,
        "low": 2.0,
        "high": 4.0,
    }
    assert "line_regions" not in json.loads(Path("scores/metrics/survey/net/b.json").read_text())
    assert "test" not in json.loads(Path("scores/metrics/claims/claim/c.json").read_text())


def test_a_curve_has_a_point_per_epoch_where_all_seeds_have_a_value(project):
    assert cli.main(["scores"]) == 0
    rows = list(csv.DictReader(Path("scores/curves/survey/net.csv").read_text().splitlines()))
    points = [tuple(row.values()) for row in rows if row["variant"] == "a"]
    assert points == [
        ("1", "a", "train loss", "4", "3", "5"),  # the second epoch is undefined for one seed
        ("1", "a", "test error, %", "9", "9", "9"),
        ("2", "a", "test error, %", "3", "2", "4"),
    ]


def test_records_that_are_none_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["scores"]) == 2
    assert "records: no records (survey/NET.jsonl) in it" in capsys.readouterr().err
    (tmp_path / "records/survey").mkdir(parents=True)
    (tmp_path / "records/survey/net.jsonl").write_text("{}\n")
    assert cli.main(["scores"]) == 2
    assert "net.jsonl, line 1: config is missing" in capsys.readouterr().err
    assert not Path("scores").exists()


@pytest.mark.parametrize("path", sorted((ROOT / "records").glob("*/*.jsonl")), ids=lambda path: path.stem)
def test_the_committed_scores_are_those_of_the_committed_records(path):
    runs = [json.loads(line) for line in path.read_text().splitlines()]
    folder = ROOT / "scores/metrics" / path.parent.name / path.stem
    assert {file.stem for file in folder.glob("*.json")} == {run["config"]["variant"] for run in runs}
    for file in folder.glob("*.json"):
        values = [r["metrics"][f"test_{r['metrics']['shown'][0]}"] for r in runs if r["config"]["variant"] == file.stem]
        assert json.loads(file.read_text())["test"] == statistics.median(values)
