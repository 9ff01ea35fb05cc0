"""Scale paper tried from end to end on a CPU, in a fresh copy, with small stand-ins of the data sets: `make rehearsal`.

What is tried: every data set in its format and under its name (stand_ins.py), every stage of the pipeline, and every
variant of every net with its recipe and its options of scale paper. What differs: the nets are narrow, those of five
files, whose measuring would take most of the time, have 20 or 22 layers, an epoch has few batches, there are two
epochs and one seed, the learning rate is small, backbones start from random weights, nothing is compiled, and a net is
measured on one segment and two images.
"""

import itertools
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import stand_ins
from pipeline_copy import environment, fresh_copy

from skipform.files import read_yaml, write_yaml

# What differs at scale paper, for all experiments.
SHARED: dict[str, Any] = {
    "optimizer": {"lr": 1e-4},  # the papers' rates, for their batches, make narrow nets of 110 layers diverge
    "trainer": {"max_epochs": 2, "accelerator": "cpu", "precision": "32-true", "fast": False},
    "threads": 1,
    "wandb": "disabled",
    "backbone_weights": "random",
}
DATA: dict[str, dict[str, Any]] = {  # for those of a data set
    "cifar10": {"batch_size": 32},
    "voc2012": {"batch_size": 2, "limit": 4},
    "isbi2012": {"crops": 1, "limit": 2},
    "coco2017": {"batch_size": 2, "limit": 4, "sides": [64], "workers": 0},
    "tiny_shakespeare": {"batch_size": 2, "steps": 2, "limit": 2},
    "multi30k": {"batch_size": 16},
}
MEASURE = "skipform measure runs/survey/${item}"
TINY = {"width": 16, "heads": 2}
NARROW: dict[str, dict[str, Any]] = {  # for every net of a name; measuring one of 110 layers takes 40 s
    "mlp": {"width": 16},
    "vgg": {"width": 2},
    "highway": {"width_factor": 0.05},
    "resnet": {"width": 4},
    "preact": {"width": 4, "depth": 20},
    "shortcuts": {"width": 4, "depth": 20},
    "resnext": {"width": 4, "cardinality": 2, "bottleneck_width": 2},
    "densenet": {"growth": 4, "depth": 22},
    "pyramidnet": {"width": 2, "alpha": 3, "depth": 20},
    "fractalnet": {"width": 2},
    "ror": {"width": 4, "depth": 20},
    "projection_blocks": {"filters": [2, 2, 4]},
    "pooled": {"width": 2},
    "activation_blocks": {"width": 4},
    "fcn": {"hidden": 16},
    "unet": {"width": 4},
    "fpn": {"channels": 16},
    "detr": {"hidden": 16} | TINY,
    "transformer": {"hidden": 32} | TINY,
    "bert": TINY,
    "gpt": TINY,
    "vit": TINY,
}


def main() -> int:
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rehearsal") as top:
        folder = rehearsal(Path(top) / "skipform")
        # The data are those in the copy, whatever folder this machine's data have.
        status = subprocess.run(
            ["skipform", "repro"], cwd=folder, env=environment(folder) | {"SKIPFORM_DATA": "data"}
        ).returncode
        done = status == 0 and (folder / "paper" / "paper.pdf").is_file()
    minutes = (time.monotonic() - start) / 60
    print(f"rehearsal of scale paper: {'all stages ran' if done else 'stopped'} after {minutes:.1f} min")
    return 0 if done else 1


def rehearsal(folder: Path) -> Path:
    """A fresh copy of the checkout in `folder`, at scale paper made small, with the stand-ins."""
    fresh_copy(folder, scale="paper", seeds=[0])
    stand_ins.lay(folder / "data", folder / "src" / "skipform")
    stages = (folder / "dvc.yaml").read_text()
    assert MEASURE in stages
    (folder / "dvc.yaml").write_text(stages.replace(MEASURE, f"{MEASURE} --slices 1 --batch 2"))
    shared = folder / "experiments" / "scale" / "paper.yaml"
    write_yaml(shared, merged(read_yaml(shared), SHARED))
    for file in sorted((folder / "experiments").glob("[sc]*/*.yaml")):
        if file.parent.name in ("survey", "claims"):
            shrink(file, read_yaml(shared)["data"]["name"])
    return folder


def shrink(file: Path, name: str) -> None:
    """Make an experiment at scale paper small; `name`: the data set of the scale."""
    own, text = read_yaml(file), file.read_text()
    paper = own.setdefault("paper", {}) or {}
    name = paper.get("data", {}).get("name", name)
    variants = merged(own["variants"], paper.get("variants") or {})
    if file.parent.name == "claims":  # of these the widths belong together; those for digits are small
        paper["variants"] = {}
    else:
        paper["variants"] = {label: narrow(block) for label, block in variants.items()}
    own["paper"] = merged(merged(paper, {"data": DATA[name]}), SHARED)
    write_yaml(file, own)
    head = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines(keepends=True))
    file.write_text("".join(head) + file.read_text())  # the review page shows the question of an experiment


def narrow(block: dict[str, Any]) -> dict[str, Any]:
    """The block of a net, and of the nets in it, with few channels, and some with few layers."""
    block = {key: narrow(value) if isinstance(value, dict) else value for key, value in block.items()}
    return merged(block, NARROW.get(str(block.get("name")), {}))


def merged(block: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The block with the values of the other one in it."""
    result = dict(block)
    for key, value in other.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


if __name__ == "__main__":
    sys.exit(main())
