"""What training takes: an estimate on the meta device, what the experiment files state, and the sums of that."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from skipform import nets
from skipform.errors import SkipformError
from skipform.stages import cli, costs
from skipform.stages import list as list_stage
from skipform.training import cost
from skipform.training.experiment import read

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
FILES = [
    file for folder in costs.FOLDERS for file in sorted(EXPERIMENTS.glob(f"{folder}/*.yaml")) if file.stem != "table"
]
GPU = 80e9  # bytes


def test_the_estimate_of_two_layers_is_that_by_hand():
    """W of 3 x 5 and V of 5 x 2 without batch norm: the first layer stores its input, the ReLU and the second layer the
    same 5 numbers, of 7 examples each. Forward, and for the gradients of the weights, 2 x 7 operations per entry of W
    and V; as many for the gradient of what V multiplies."""
    weights, activations = 3 * 5 + 5 + 5 * 2 + 2, 7 * (3 + 5)

    class Two(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nets, "build", lambda **block: Two())
        batch = [torch.empty(7, 3, device="meta")]
        operations = 2 * 7 * (2 * 3 * 5 + 3 * 5 * 2)
        assert cost.step({}, batch, "sgd", "32-true") == (operations, 4 * (3 * weights + activations), 4 * weights)
        assert cost.step({}, batch, "adamw", "bf16-mixed")[1] == 4 * 4 * weights + 2 * activations


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_every_experiment_at_scale_paper_fits_a_gpu_and_states_what_it_takes(file):
    estimate, stated = cost.estimate(read(file, "paper")), cost.stated(file)["paper"]
    assert stated.memory == pytest.approx(estimate.memory, rel=0.1)
    assert stated.disk == pytest.approx(estimate.disk, rel=0.1)
    assert stated.on_gpu == estimate.on_gpu
    assert stated.hours > 0
    if stated.on_gpu and "measured" not in cost.text_of(file):
        assert estimate.hours / 2 < stated.hours < 2 * estimate.hours
    assert estimate.memory < GPU


def test_the_table_for_one_gpu_states_what_its_rows_take():
    file = EXPERIMENTS / "gpu" / "table.yaml"
    table, stated = yaml.safe_load(file.read_text()), cost.stated(file)["paper"]
    estimates = []
    for row in table["rows"]:
        experiment = read(EXPERIMENTS / f"{row['experiment']}.yaml", "paper")
        variants = {label: experiment.variants[label] for label in row["variants"]}
        estimates.append(cost.estimate(replace(experiment, variants=variants)))
    assert stated.hours == pytest.approx(sum(estimate.hours for estimate in estimates), rel=0.1)
    assert stated.disk == pytest.approx(sum(estimate.disk for estimate in estimates), rel=0.1)
    assert stated.memory == pytest.approx(max(estimate.memory for estimate in estimates), rel=0.1)


def test_a_sentence_is_read_as_it_is_written(tmp_path):
    for hours, on_gpu, memory, disk in (
        (3.1, True, 0.56e9, 45e6),
        (17 / 60, False, 40e6, 1.2e9),
        (9 / 3600, True, 1e8, 1e6),
    ):
        given = cost.Cost(hours, on_gpu, memory, disk)
        time = None if on_gpu else "17 min of a core of an Intel Xeon (AVX-512, AMX), measured"
        text = (
            f"# Cost      embedded (3 seeds): 90 s of CPU.\n#           {cost.sentence('paper', given, time)}\n# Run\n"
        )
        (tmp_path / "some.yaml").write_text(text)
        read_back = cost.stated(tmp_path / "some.yaml")
        assert vars(read_back["paper"]) == pytest.approx(vars(given))
        assert (read_back["embedded"].hours, read_back["embedded"].on_gpu) == (30 / 3600, False)
        assert math.isnan(read_back["embedded"].memory)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A project of three experiments: one of the survey, one claim with seeds of its own, one on a CPU."""
    monkeypatch.chdir(tmp_path)
    sentences = {
        "survey/a": "paper (1 seed): 2 h of an A100, 3 GB of memory, 40 MB on disk, estimated.",
        "claims/b": "embedded (5 seeds): 50 s of CPU.\n#           paper (1 seed): 6 min of an A100, 4 GB of memory, 50"
        "\n#           MB on disk, estimated.",
        "cpu/c": "paper (1 seed): 30 min of a core, measured; 70 MB of memory, 1 MB on disk, estimated.",
    }
    accelerators = {"survey/a": "auto", "claims/b": "auto", "cpu/c": "cpu"}
    for name, text in sentences.items():
        file = tmp_path / "experiments" / f"{name}.yaml"
        file.parent.mkdir(parents=True)
        seeds = " --seeds 0 1 2 3 4" * (name == "claims/b")
        variants = {
            label: {"name": "mlp", "depth": 1, "width": 4} for label in ("one", "two")[: 1 + (name == "survey/a")]
        }
        trainer = {"max_epochs": 2, "accelerator": accelerators[name]}
        content = {"variants": variants, "data": {"name": "cifar10"}, "trainer": trainer}
        head = f"# Question  Why?\n# Cost      {text}\n# Run       skipform fit --config {name}{seeds}\n\n"
        file.write_text(head + yaml.safe_dump(content))
    (tmp_path / "experiments" / "scale").mkdir()
    for scale in ("paper", "embedded"):
        (tmp_path / "experiments" / "scale" / f"{scale}.yaml").write_text("")
    (tmp_path / "params.yaml").write_text("seeds: [0, 1, 2]")
    return tmp_path


def test_the_table_adds_up_what_the_files_state(folder, capsys):
    assert cli.main(["list", "--scale", "paper"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:4] == [
        ["survey/a", "6", "6", "h", "-", "3", "GB", "0.12", "GB"],
        ["claims/b", "5", "30", "min", "-", "4", "GB", "0.25", "GB"],
        ["cpu/c", "3", "-", "1.5", "h", "70", "MB", "3", "MB"],
    ]
    assert lines[4][4:] == ["pipeline", "11", "6.5", "h", "-", "4", "GB", "0.37", "GB"]
    assert lines[5] == ["all", "14", "6.5", "h", "1.5", "h", "4", "GB", "0.37", "GB"]
    assert cli.main(["list", "--scale", "embedded"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[2:4] == [["claims/b", "5", "-", "50", "s", "-", "-"], ["cpu/c", "3", "-", "-", "-", "-"]]


def test_the_totals_of_the_project_are_the_sums_of_its_files():
    rows = list_stage.rows_of(EXPERIMENTS.parent, "paper")
    assert [row.name for row in rows] == [f"{file.parent.name}/{file.stem}" for file in FILES]
    total = list_stage._sum("all", rows)
    assert total.runs == sum(row.runs for row in rows)
    for file, row in zip(FILES, rows, strict=True):
        stated, seeds = cost.stated(file)["paper"], row.runs / len(read(file, "paper").variants)
        assert (row.gpu_hours if stated.on_gpu else row.cpu_hours) == seeds * stated.hours
    hours = [row.gpu_hours if math.isnan(row.cpu_hours) else row.cpu_hours for row in rows]
    assert total.gpu_hours + total.cpu_hours == pytest.approx(math.fsum(hours))
    assert total.disk == pytest.approx(math.fsum(row.disk for row in rows))
    assert total.memory == max(row.memory for row in rows)


def test_the_estimates_are_renewed_and_measured_times_stay(folder):
    before = {file: file.read_text() for file in sorted(folder.rglob("*.yaml"))}
    assert cli.main(["costs"]) == 0
    for name, scale in (("survey/a", {"paper"}), ("claims/b", {"embedded", "paper"}), ("cpu/c", {"paper"})):
        file = folder / "experiments" / f"{name}.yaml"
        stated, estimate = cost.stated(file), cost.estimate(read(file, "paper"))
        assert stated.keys() == scale
        assert stated["paper"].memory == pytest.approx(estimate.memory, rel=0.05)
        assert stated["paper"].hours == pytest.approx(0.5 if name == "cpu/c" else estimate.hours, rel=0.05)
        assert "# Question  Why?\n# Cost " in file.read_text()
        assert file.read_text().partition("# Run")[2] == before[file].partition("# Run")[2]
    after = {file: file.read_text() for file in sorted(folder.rglob("*.yaml"))}
    assert cli.main(["costs"]) == 0
    assert {file: file.read_text() for file in sorted(folder.rglob("*.yaml"))} == after


def test_a_file_that_states_no_time_on_a_cpu_is_refused(folder):
    file = folder / "experiments" / "cpu" / "c.yaml"
    file.write_text(file.read_text().replace("30 min of a core, measured; ", ""))
    with pytest.raises(SkipformError, match=r"c\.yaml: Cost: accepted on a CPU: `paper \(1 seed\): TIME"):
        costs.main()
