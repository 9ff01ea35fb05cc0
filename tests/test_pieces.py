"""`skipform pieces`: what it counts are the pieces of the nets that `skipform fit` trains; equal bytes."""

import json

from skipform.measure import line
from skipform.runs import Run
from skipform.stages import cli

EXPERIMENT = """
variants: {one: {name: mlp, depth: 1, width: 8}, two: {name: resnet, depth: 8, width: 2}}
data: {name: digits, limit: 40, batch_size: 10}
trainer: {max_epochs: 3, accelerator: cpu}
threads: 1
wandb: disabled
"""


def test_the_counts_are_those_of_the_nets_that_fit_trains(config, tmp_path):
    command = ["pieces", *config, "--seed", "3", "--slices", "2", "--out", "pieces.json"]
    assert cli.main(command) == 0
    first = (tmp_path / "pieces.json").read_bytes()
    assert cli.main(command) == 0
    assert (tmp_path / "pieces.json").read_bytes() == first
    assert cli.main(["fit", *config, "--seeds", "3", "--workers", "1", "--out", "runs"]) == 0
    found = json.loads(first)
    assert [net["variant"] for net in found["nets"]] == ["one", "two"]
    for net in found["nets"]:
        run = Run(tmp_path / "runs" / net["variant"] / "seed3")
        assert net["parameters"] == run.metrics["parameters"]
        assert [moment["epoch"] for moment in net["moments"]] == [0, 1, 2, 3]
        errors = [moment["test_error"] for moment in net["moments"]]
        assert errors == [None, *(row["test_error"] for row in run.history)]
        for moment, when in ((net["moments"][0], "initial"), (net["moments"][-1], "final")):
            images = run.test_images()[:4].double()
            lines = [line(run.net(when).double(), images[k], images[k + 1]) for k in (0, 2)]
            assert moment["regions"] == [regions.count for regions in lines]
            assert moment["pieces"] == [regions.pieces for regions in lines]


def test_more_segments_than_images_and_another_task_are_refused_before_training(config, tmp_path, capsys):
    assert cli.main(["pieces", *config, "--slices", "1000", "--out", "pieces.json"]) == 2
    assert "--slices: 1000;" in capsys.readouterr().err
    text = "variants: {a: {name: gpt, width: 8}}\ndata: {name: sums}\ntask: {name: language_model}\n"
    (tmp_path / "experiments/explorer/small.yaml").write_text(text)
    assert cli.main(["pieces", *config, "--out", "pieces.json"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "pieces.json").exists()
