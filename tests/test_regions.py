"""`skipform regions`: its output, its files and its errors."""

import csv
from pathlib import Path

import numpy as np
import pytest

import skipform
from skipform.stages import cli


@pytest.fixture
def cross(tmp_path, monkeypatch):
    """A factory whose net has the kinks |s| + |t|: four regions, four pieces."""
    (tmp_path / "crossing.py").write_text(
        "import torch\n"
        "def net():\n"
        "    first, last = torch.nn.Linear(2, 4), torch.nn.Linear(4, 1)\n"
        "    first.weight.data = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])\n"
        "    first.bias.data.zero_(), last.weight.data.fill_(1.0), last.bias.data.zero_()\n"
        "    return torch.nn.Sequential(first, torch.nn.ReLU(), last)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_table_and_the_counts_are_those_of_the_plane(cross, capsys):
    assert cli.main(["regions", "crossing:net", "--input", "2", "-o", "plane.svg"]) == 0
    output = capsys.readouterr().out
    assert "activation regions   4 " in output
    assert "affine pieces        4" in output
    rows = list(csv.DictReader((cross / "plane.csv").read_text().splitlines()))
    assert len(rows) == 4
    assert sum(float(row["area"]) for row in rows) == pytest.approx(4.0, abs=1e-12)  # the box, to rounding
    assert {row["piece"] for row in rows} == {"0", "1", "2", "3"}


def test_equal_planes_make_equal_bytes(cross):
    for name in ("one", "two"):
        assert cli.main(["regions", "crossing:net", "--input", "2", "-o", f"{name}.svg"]) == 0
    assert (cross / "one.svg").read_bytes() == (cross / "two.svg").read_bytes()
    assert (cross / "one.csv").read_bytes() == (cross / "two.csv").read_bytes()


def test_the_seed_decides_the_weights_and_the_points_of_a_random_net(cross):
    net = ["skipform.nets:build", "--arguments", '{"name": "mlp", "width": 8}', "--input", "3,32,32"]
    for name, seed in (("one", "0"), ("two", "0"), ("other", "1")):
        assert cli.main(["regions", *net, "--seed", seed, "-o", f"{name}.svg"]) == 0
    assert (cross / "one.csv").read_bytes() == (cross / "two.csv").read_bytes()
    assert (cross / "one.csv").read_bytes() != (cross / "other.csv").read_bytes()


def test_a_plot_has_one_shade_per_piece_in_the_axes_that_are_given(cross):
    import torch
    from crossing import net  # of the fixture
    from matplotlib.figure import Figure

    regions = skipform.measure.plane(net().eval(), torch.zeros(2), *torch.eye(2))
    axes = Figure().subplots()
    assert regions.plot(axes) is axes
    (drawn,) = axes.collections
    assert len(drawn.get_paths()) == regions.count == 4
    assert len({tuple(colour) for colour in drawn.get_facecolor()}) == regions.pieces
    assert regions.plot().get_title() == axes.get_title() == "4 activation regions in 4 affine pieces (one shade each)"


def test_given_points_span_the_plane(cross):
    np.save("points.npy", np.array([[1.0, 1.0], [2.0, 1.0], [1.0, 2.0]]))
    # The box around (1, 1) that stays right of and above both kinks.
    box = ["--box", "[-0.5, 0.5, -0.5, 0.5]"]
    assert cli.main(["regions", "crossing:net", "--input", "2", "--points", "points.npy", *box, "-o", "p.svg"]) == 0
    assert len(list(csv.DictReader((cross / "p.csv").read_text().splitlines()))) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "neither a run's folder"),
        (["crossing:net"], "--input is missing"),
        (["crossing:absent", "--input", "2"], "MODULE:FACTORY that returns a model is accepted"),
        (["crossing:net", "--input", "two"], "whole numbers separated by commas"),
        (["crossing:net", "--input", "2", "--out", "plane.txt"], "unknown suffix '.txt'; accepted: .svg, .png, .pdf"),
        (["crossing:net", "--input", "2", "--box", "[1, 2]"], "four numbers are accepted"),
        (["crossing:net", "--input", "2", "--points", "absent.npy"], "not a .npy file of numbers"),
        (["torch.nn:GELU", "--input", "2"], "not piecewise linear"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(cross, capsys, arguments, message):
    assert cli.main(["regions", *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("skipform regions: error: ")
    assert message in error
    assert not list(cross.glob("*.svg"))


def test_a_trained_run_is_measured_on_its_own_test_images(tmp_path, monkeypatch):
    root = Path(__file__).parents[1]
    monkeypatch.chdir(tmp_path)
    config = str(root / "experiments" / "survey" / "mlp.yaml")
    assert (
        cli.main(["fit", "--config", config, "--scale", "smoke", "--seeds", "0", "--workers", "1", "--out", "run"]) == 0
    )
    (variant, *_) = sorted(path for path in Path("run").iterdir() if path.is_dir())
    assert cli.main(["regions", f"{variant}/seed0", "--images", "[0, 1, 5]", "-o", "run.svg"]) == 0
    assert cli.main(["regions", f"{variant}/seed0", "--images", "[0, 1]", "-o", "run.svg"]) == 2
