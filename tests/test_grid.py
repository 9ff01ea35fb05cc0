"""A measurement grid computes every cell once and returns the results in order, even if it is killed in between."""

import multiprocessing
import sys
import time
from pathlib import Path

import pytest

from skipform.errors import SkipformError
from skipform.training import launch

# What a cell does: it leaves a line in a file that counts how often it was measured; the fourth waits for the gate. The
# import is done once, by the server that forks the workers, as it is for the functions that measure.
CELL = """
import time
from pathlib import Path
import skipform.training.executor

def cell(number, log, gate=None):
    with Path(log).open("a") as file:
        file.write(f"{number}\\n")
    while number == 3 and gate and not Path(gate).exists():
        time.sleep(0.01)
    return {"number": number, "square": number**2}
"""


@pytest.fixture
def cell(tmp_path, monkeypatch):
    (tmp_path / "cells.py").write_text(CELL)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    import cells

    yield cells.cell
    del sys.modules["cells"]


def run_cells(cell, tmp_path, *, number=6, digest="a", **options):
    cells = [{"number": n, "log": str(tmp_path / "log")} for n in range(number)]
    return launch.run_grid(cell, cells, tmp_path / "partial", digest=digest, title="test", **options)


@pytest.mark.parametrize("options", [{"workers": 1}, {"workers": 2}])
def test_results_come_in_the_order_of_the_cells(cell, tmp_path, options):
    assert run_cells(cell, tmp_path, **options) == [{"number": n, "square": n**2} for n in range(6)]


def test_stored_results_are_not_measured_again_unless_a_source_changed(cell, tmp_path):
    first = run_cells(cell, tmp_path, workers=1)
    assert run_cells(cell, tmp_path, workers=1) == first
    assert (tmp_path / "log").read_text().split() == list("012345")
    assert run_cells(cell, tmp_path, workers=1, digest="b") == first
    assert len((tmp_path / "log").read_text().split()) == 12


def test_a_killed_grid_resumes_where_it_stopped(cell, tmp_path):
    where = {"log": str(tmp_path / "log"), "gate": str(tmp_path / "gate")}
    cells = [{"number": n, **where} for n in range(8)]

    def run():
        return launch.run_grid(cell, cells, tmp_path / "partial", digest="a", title="test", workers=1)

    first = multiprocessing.get_context("fork").Process(target=run)
    first.start()
    while "3" not in ((tmp_path / "log").read_text() if (tmp_path / "log").exists() else ""):
        assert first.is_alive()
        time.sleep(0.01)
    first.kill()
    first.join()
    assert len(list((tmp_path / "partial").glob("[!.]*.json"))) == 3
    (tmp_path / "gate").touch()
    assert [row["number"] for row in run()] == list(range(8))
    # Only the cell that was under way when it was killed is begun twice.
    assert (tmp_path / "log").read_text().split() == list("012334567")


def test_a_cluster_measures_the_same(cell, tmp_path):
    # submitit's own stand-in for SLURM: the same pickled jobs, run by local processes.
    options = {"number": 2, "executor": "submitit", "slurm": {"cluster": "local"}}
    assert run_cells(cell, tmp_path, **options) == [{"number": n, "square": n**2} for n in range(2)]
    assert run_cells(cell, tmp_path, **options) == run_cells(cell, tmp_path, number=2, workers=1)
    assert len((tmp_path / "log").read_text().split()) == 2


@pytest.mark.parametrize(
    ("slurm", "says"),
    [
        ({}, r"^--executor submitit: no SLURM on this machine"),
        ({"slurm_partitions": "gpu"}, r"^--slurm .*: Unknown argument 'partitions' for executor 'slurm'"),
        ({"cluster": "moon"}, r"^--slurm .*moon.*: AutoExecutor doesn't know any executor named moon"),
    ],
)
def test_parameters_that_a_cluster_does_not_take_are_refused_in_one_line(cell, tmp_path, monkeypatch, slurm, says):
    monkeypatch.setenv("PATH", "")  # where srun would be
    with pytest.raises(SkipformError, match=says):
        run_cells(cell, tmp_path, executor="submitit", slurm=slurm)


# submitit's local job still runs for a moment after its result is there, and is not waited for
@pytest.mark.filterwarnings("ignore:subprocess . is still running:ResourceWarning")
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <function Popen.__del__:pytest.PytestUnraisableExceptionWarning"
)
def test_an_error_in_a_job_of_a_cluster_names_the_job_and_its_log(tmp_path, monkeypatch):
    (tmp_path / "wrong_cells.py").write_text("def cell(number):\n    return 1 // number\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    from wrong_cells import cell

    where = {"executor": "submitit", "slurm": {"cluster": "local"}}
    says = r"^number=0: job \d+: integer division or modulo by zero; its log: /"
    with pytest.raises(SkipformError, match=says) as raised:
        launch.run_grid(cell, [{"number": 0}, {"number": 1}], tmp_path / "partial", digest="a", title="test", **where)
    log = Path(str(raised.value).partition("its log: ")[2]).read_text()
    assert "ZeroDivisionError" in log
    assert 'wrong_cells.py", line 2' in log
