"""The table of rows for one GPU: every row of it is tried on a CPU, and finished runs become rows of the results."""

import csv
import time
from pathlib import Path

import pytest
import yaml
from small_sets import cifar10, lay

from skipform import results
from skipform.errors import SkipformError
from skipform.runs import Run
from skipform.stages import cli, gpu_table
from skipform.training import launch
from skipform.training.experiment import read

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
TABLE = yaml.safe_load((EXPERIMENTS / "gpu" / "table.yaml").read_text())
VARIANTS = [(row["experiment"], variant) for row in TABLE["rows"] for variant in row["variants"]]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder with two rows of ResNets of 8 layers on the digits."""
    experiment = {
        "variants": {"residual": {"name": "resnet", "depth": 8, "width": 2}, "plain": {"name": "mlp", "depth": 1}},
        "data": {"name": "digits"},
        "trainer": {"max_epochs": 1},
    }
    rows = [{"experiment": "survey/some", "variants": [variant]} for variant in ("plain", "residual")]
    for name, content in {
        "scale/paper.yaml": {"wandb": "disabled"},
        "survey/some.yaml": experiment,
        "gpu/table.yaml": {"rows": rows, "seeds": [3, 1], "at_once": 2},
    }.items():
        (tmp_path / "experiments" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "experiments" / name).write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("name", "variant"), VARIANTS, ids=lambda name: Path(name).name)
def test_every_row_is_trained_for_one_step_of_its_recipe(name, variant, tmp_path, monkeypatch):
    lay(cifar10(monkeypatch).files, tmp_path)
    experiment = read(EXPERIMENTS / f"{name}.yaml", "paper", {"wandb": "disabled"} | gpu_table.TRIAL)
    storage = {"root": str(tmp_path), "download": False}
    gpu_table.train(gpu_table.Job(experiment, variant, 0, tmp_path / "runs", "some command", storage))
    metrics = Run(tmp_path / "runs" / variant / "seed0").metrics
    assert (metrics["steps"], metrics["epochs"]) == (1, 1)


def test_a_trial_trains_every_run_once_and_writes_no_table(folder, capfd):
    for _ in range(2):  # the second time there is nothing left to train
        assert cli.main(["gpu_table", "--minutes", "600", "--trial", "--at_once", "1"]) == 0
        assert "4 of 4 runs are finished, 0 failed\n" in capfd.readouterr().out
        times = {run: run.stat().st_mtime_ns for run in Path("runs/gpu_trial").rglob("metrics.json")}
    assert len(times) == 4
    assert times == {run: run.stat().st_mtime_ns for run in Path("runs/gpu_trial").rglob("metrics.json")}
    assert not Path("results").exists()


def test_it_stops_when_the_time_is_over(folder, capsys):
    assert cli.main(["gpu_table", "--minutes", "0.0001", "--trial"]) == 0
    assert "0 of 4 runs are finished, 0 failed; run it again to go on" in capsys.readouterr().out


def test_without_a_gpu_it_is_refused_in_one_line(folder, monkeypatch, capsys):
    monkeypatch.setattr(gpu_table, "has_gpu", lambda: False)
    assert cli.main(["gpu_table", "--minutes", "5"]) == 2
    assert capsys.readouterr().err == (
        "skipform gpu_table: error: no GPU is visible to torch; accepted: a machine with one, or --trial\n"
    )
    assert not Path("runs").exists()


def test_an_unknown_variant_is_refused(folder, capsys):
    table = yaml.safe_load(Path("experiments/gpu/table.yaml").read_text())
    table["rows"][0]["variants"] = ["plane"]
    Path("experiments/gpu/table.yaml").write_text(yaml.safe_dump(table))
    assert cli.main(["gpu_table", "--minutes", "5", "--trial"]) == 2
    assert "survey/some: unknown variant 'plane'; accepted: plain, residual" in capsys.readouterr().err


@pytest.mark.parametrize(("key", "times"), [("rows", 0), ("rows", 2), ("seeds", 0), ("seeds", 2)])
def test_a_table_without_runs_or_with_a_run_twice_is_refused(key, times, folder, capsys):
    table = yaml.safe_load(Path("experiments/gpu/table.yaml").read_text())
    Path("experiments/gpu/table.yaml").write_text(yaml.safe_dump(table | {key: times * table[key]}))
    assert cli.main(["gpu_table", "--minutes", "5", "--trial"]) == 2
    assert "table.yaml: accepted: one or more rows, variants and seeds, and no run twice\n" in capsys.readouterr().err
    assert not Path("runs").exists()


def in_this_process(function, jobs, workers, end):
    """`launch.side_by_side` where the third job fails."""
    for i, job in enumerate(jobs):
        if i != 2:
            function(job)
        yield job, i != 2


def test_a_row_is_written_when_all_its_seeds_are_finished(folder, monkeypatch, capsys):
    monkeypatch.setattr(gpu_table, "has_gpu", lambda: True)
    monkeypatch.setattr(gpu_table.launch, "side_by_side", in_this_process)
    monkeypatch.setattr(gpu_table, "read", lambda *given: read(given[0], given[1], given[2] | gpu_table.TRIAL))
    assert cli.main(["gpu_table", "--minutes", "5"]) == 1
    assert "3 of 4 runs are finished, 1 failed; run it again to go on" in capsys.readouterr().out
    (row,) = csv.DictReader(Path("results/gpu.csv").read_text().splitlines())
    assert (row["experiment"], row["variant"], row["seeds"]) == ("some", "plain", "3 1")
    assert row["command"] == "skipform gpu_table --minutes 5"
    assert all(row[key] for key in ("hardware", "versions", "test_middle"))


def test_a_row_replaces_that_of_the_same_variant_and_follows_the_others(tmp_path):
    out = tmp_path / "some.csv"
    for experiment, variant, error in (("a", "x", "3"), ("a", "y", "4"), ("b", "x", "5"), ("a", "y", "6")):
        results.add(out, {"experiment": experiment, "variant": variant, "error": error})
    assert out.read_text() == "experiment,variant,error\na,x,3\na,y,6\nb,x,5\n"
    with pytest.raises(
        SkipformError, match=r"some\.csv: accepted is a table with the columns experiment, variant, loss"
    ):
        results.add(out, {"experiment": "a", "variant": "x", "loss": "1"})


def test_a_run_that_fails_does_not_stop_the_others(folder):
    path, storage = Path("experiments/survey/some.yaml"), {"root": "nowhere", "download": False}
    digits, absent = (read(path, "paper", gpu_table.TRIAL | {"data": {"name": name}}) for name in ("digits", "cifar10"))
    jobs = [
        gpu_table.Job(experiment, "plain", 0, Path("runs", experiment.data["name"]), "", storage)
        for experiment in (absent, digits)
    ]
    ended = list(launch.side_by_side(gpu_table.train, jobs, 1, time.monotonic() + 36_000))
    assert ended == [(jobs[0], False), (jobs[1], True)]
