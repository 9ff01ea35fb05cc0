"""`skipform radii`: its digits, radii and nearest images, by the net that `skipform fit` trains; equal bytes."""

import json

import numpy as np
import torch

from skipform.data.images import SETS
from skipform.runs import Run
from skipform.stages import cli
from skipform.stages.radii import DIGITS

EXPERIMENT = """
variants: {one: {name: pooled, width: 1, depth: 1}}
data: {name: digits, limit: 60, batch_size: 20}
optimizer: {name: adamw, lr: 0.03}
trainer: {max_epochs: 40, accelerator: cpu}
threads: 1
wandb: disabled
"""


def test_the_nearest_images_are_of_another_class_and_lie_within_the_grey_levels(config, tmp_path, capsys):
    command = ["radii", *config, "--seed", "3", "--nodes", "20", "--out", "radii.json"]
    assert cli.main(command) == 0
    assert "CPU time" in capsys.readouterr().out
    first = (tmp_path / "radii.json").read_bytes()
    assert cli.main(command) == 0
    assert (tmp_path / "radii.json").read_bytes() == first
    assert cli.main(["fit", *config, "--seeds", "3", "--workers", "1", "--out", "runs"]) == 0
    run = Run(tmp_path / "runs/one/seed3")
    net, images, labels = run.net().double(), run.test_images(), run.data().splits["test"][1]
    *_, mean, deviation = SETS["digits"]
    found = json.loads(first)
    assert found["net"]["test_error"] == run.metrics["test_error"]
    assert [row["label"] for row in found["rows"]] == sorted({row["label"] for row in found["rows"]}) != []
    with torch.no_grad():
        right = net(images).argmax(1) == labels
    for row in found["rows"]:
        assert row["index"] == int((right & (labels == row["label"])).nonzero()[0])
        if row["radius"] is None:
            continue
        assert row["relaxed"] <= row["proved"] <= row["radius"]
        assert row["exact"] == (row["radius"] - row["proved"] <= 1e-5)
        half = 0.5 * 10**-DIGITS  # of rounding, in the file
        image, witness = np.array(row["image"]), np.array(row["witness"])
        assert ((witness >= 0) & (witness <= 1)).all()
        assert abs(abs(witness - image).max() - row["radius"]) <= 3 * half
        x = (torch.from_numpy(witness).reshape(1, 1, 8, 8) - mean[0]) / deviation[0]
        with torch.no_grad():
            scores, before = net(x)[0], net(images[[row["index"]]])[0]
        # A pixel is off by `half`; between the two images the margin falls by far less than a thousand times that.
        assert scores[row["other"]] - scores[row["label"]] >= -1000 * half * (1 + abs(before).max())
    assert {row["label"] for row in found["rows"]} <= set(labels.tolist())


def test_several_variants_are_refused(config, tmp_path, capsys):
    text = EXPERIMENT.replace("depth: 1}}", "depth: 1}, two: {name: pooled}}")
    (tmp_path / "experiments/explorer/small.yaml").write_text(text)
    assert cli.main(["radii", *config, "--out", "radii.json"]) == 2
    assert "one variant" in capsys.readouterr().err
    assert not (tmp_path / "radii.json").exists()
