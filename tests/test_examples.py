"""The files of `skipform examples`: predictions for the first test inputs, attention, pyramids, texts."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open

from skipform import data
from skipform.runs import Run
from skipform.stages import cli

EXPERIMENTS = Path(__file__).parents[1] / "experiments" / "survey"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three nets of three tasks at scale smoke, and what is shown of them."""
    folder = tmp_path_factory.mktemp("examples")
    for net in ("vit", "fpn", "transformer"):
        words = ["fit", "--config", str(EXPERIMENTS / f"{net}.yaml"), "--scale", "smoke", "--seeds", "0", "--workers"]
        assert cli.main([*words, "1", "--out", str(folder / "runs" / net)]) == 0
    assert cli.main(["examples", str(folder / "runs"), "--out", str(folder / "shown"), "--count", "2"]) == 0
    return folder


def stored(folder, net):
    """The arrays and texts in the file of one net."""
    with safe_open(folder / "shown" / f"{net}.safetensors", "pt") as file:
        names = list(file.keys())
        return {name: file.get_tensor(name) for name in names} | json.loads(file.metadata()["texts"])


def test_predictions_are_those_of_the_final_net_for_the_first_test_images(runs):
    examples = stored(runs, "vit")
    variant = next(iter(examples)).partition("/")[0]
    run = runs / "runs" / "vit" / variant / "seed0"
    digits = data.build(0, **yaml.safe_load((run / "config.yaml").read_text())["data"])
    digits.setup()
    images, labels = digits.splits["test"]
    assert torch.equal(examples[f"{variant}/images"], images[:2])
    assert torch.equal(examples[f"{variant}/labels"], labels[:2])
    with torch.no_grad():
        scores = Run(run).net()(images[:2])
    assert torch.equal(examples[f"{variant}/predicted"], scores.argmax(1))


def test_attention_is_paid_to_shares_of_one(runs):
    for net in ("vit", "transformer"):
        maps = {name: value for name, value in stored(runs, net).items() if "/attention." in name}
        assert maps
        for name, weights in maps.items():
            # a sum of s float32 shares, each of relative error 2^-22 or so after exp and division
            assert (weights.sum(-1) - 1).abs().max() < weights.shape[-1] * 2.0**-22, name


def test_pyramids_halve_from_level_to_level(runs):
    examples = stored(runs, "fpn")
    variant = next(iter(examples)).partition("/")[0]
    sides = [examples[name].shape[-1] for name in sorted(examples) if name.startswith(f"{variant}/pyramid.")]
    assert len(sides) >= 2
    assert all(fine == 2 * coarse for fine, coarse in pairwise(sides))


def test_texts_are_texts(runs):
    examples = stored(runs, "transformer")
    texts = {name.partition("/")[2]: value for name, value in examples.items() if isinstance(value, list)}
    assert texts.keys() == {"source", "reference", "hypothesis"}
    assert all(len(value) == 2 and all(isinstance(text, str) for text in value) for value in texts.values())
    assert all(len(text) == len("2026-11-21") for text in texts["reference"])


def test_equal_runs_leave_equal_bytes(runs, tmp_path):
    assert cli.main(["examples", str(runs / "runs"), "--out", str(tmp_path), "--count", "2"]) == 0
    for path in sorted((runs / "shown").iterdir()):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_a_folder_without_experiments_is_refused(tmp_path, capsys):
    assert cli.main(["examples", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "no finished experiment (NET/summary.json) in it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
