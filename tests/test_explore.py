"""`skipform explore`: what it draws are the nets that `skipform fit` trains."""

import json

import torch

from skipform.measure import plane
from skipform.runs import Run
from skipform.stages import cli
from skipform.stages.explore import BOX

EXPERIMENT = """
variants: {one: {name: pooled, width: 1, depth: 1}, two: {name: activation_blocks, blocks: 1, width: 3}}
data: {name: digits, limit: 40, batch_size: 10}
trainer: {max_epochs: 6, accelerator: cpu}
threads: 1
wandb: disabled
"""


def test_the_pictures_are_those_of_the_nets_that_fit_trains(config, tmp_path):
    assert cli.main(["explore", *config, "--seed", "3", "--out", "explorer.json"]) == 0
    assert cli.main(["fit", *config, "--seeds", "3", "--workers", "1", "--out", "runs"]) == 0
    explorer = json.loads((tmp_path / "explorer.json").read_text())
    assert [net["variant"] for net in explorer["nets"]] == ["one", "two"]
    for net in explorer["nets"]:
        run = Run(tmp_path / "runs" / net["variant"] / "seed3")
        x, y, z = run.test_images()[:3]
        assert [moment["epoch"] for moment in net["moments"]] == [0, 1, 2, 6]
        errors = [moment["test_error"] for moment in net["moments"]]
        assert errors == [None, *(run.history[epoch - 1]["test_error"] for epoch in (1, 2, 6))]
        for moment, when in ((0, "initial"), (-1, "final")):
            regions = plane(run.net(when).double(), x, y - x, z - x, BOX)
            drawn = net["moments"][moment]
            assert (drawn["regions"], drawn["pieces"], drawn["maps"]) == (regions.count, regions.pieces, regions.maps)
    images = torch.tensor(explorer["images"]).reshape(3, *explorer["shape"])
    assert images.shape == (3, 1, 8, 8)
    assert images.min() == 0 < images.max()
    first = (tmp_path / "explorer.json").read_bytes()
    assert cli.main(["explore", *config, "--seed", "3", "--out", "explorer.json"]) == 0
    assert (tmp_path / "explorer.json").read_bytes() == first
