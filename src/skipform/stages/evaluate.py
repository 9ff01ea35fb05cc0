"""`skipform evaluate`: the scores of a trained net, computed again on the examples that it was not trained on."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from safetensors import SafetensorError
from safetensors.torch import load_model

from skipform import data, nets, tasks
from skipform.errors import SkipformError, one_line, shown
from skipform.runs import Run, data_root
from skipform.shipped import experiment_file
from skipform.training.executor import configure_process
from skipform.training.experiment import read
from skipform.training.journal import label_of, written


def main(source: Path, *, config: str | None = None, variant: str | None = None, scale: str = "embedded") -> None:
    """Compute the scores of a net on the held-out examples of its data set, and print them.

    The weights of a run's folder are compared with their checksum first, and its scores with those of metrics.json.
    Floating-point sums differ from machine to machine, so equal scores may differ in their last digits.

    Args:
        source: A run's folder (runs/survey/resnet/residual/seed0), or a file of weights (.safetensors).
        config: For a file of weights outside a run's folder, the experiment whose net they belong to: a file, or a
            name such as survey/resnet.
        variant: For --config, which of its nets; by default the first.
        scale: For --config, the scale: smoke, embedded or paper.
    """
    described, weights, stated = _described(source, config, variant, scale)
    configure_process(threads=0)
    net = _net(described["net"], weights)
    task = tasks.build(net=net, optimizer=described["optimizer"], **described["task"])
    module = data.build(0, lightning=True, **described["data"], root=data_root())
    trainer = Trainer(
        devices=1,
        precision=described["trainer"]["precision"],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.validate(task, datamodule=module, verbose=False)
    scores = written(0, {name: float(value) for name, value in trainer.callback_metrics.items()})
    name, unit = task.MAIN_SCORE
    parameters = sum(p.numel() for p in net.parameters())
    print(f"{weights}: {described['variant']}, a {described['net']['name']} of {parameters:,} parameters")
    print(f"{'':32} {'now':>12} {'in metrics.json' if stated else '':>18}".rstrip())
    for key in (key for key in scores if key != "epoch"):
        ending = f" {unit}" if key.endswith(f"_{name}") else "  "
        earlier = f"{stated[key]:16.4f}{ending}" if key in stated else ""
        print(f"{label_of(key):32} {scores[key]:10.4f}{ending} {earlier}".rstrip())


def _described(
    source: Path, config: str | None, variant: str | None, scale: str
) -> tuple[dict[str, Any], Path, dict[str, Any]]:
    """The config with variant, net, data, task, ...; the file of the weights; the scores in metrics.json, if any."""
    if source.is_dir():
        run = Run(source)
        if not run.is_finished():
            raise SkipformError(
                f"{source}: no finished run in it; accepted: VARIANT/seedK of a folder of `skipform fit`"
            )
        run.check()
        return run.config, source / "final.safetensors", run.metrics
    if not source.is_file():
        raise SkipformError(f"{source}: no such file or folder; accepted: a run's folder, or a .safetensors file")
    if config is None:
        if not (source.parent / "config.yaml").is_file():
            raise SkipformError(f"{source}: which net has these weights? accepted: --config, such as survey/resnet")
        return Run(source.parent).config, source, {}
    experiment = read(experiment_file(config), scale)
    variant = variant if variant is not None else next(iter(experiment.variants))
    if variant not in experiment.variants:
        raise SkipformError(f"--variant {shown(variant)}; accepted: {', '.join(experiment.variants)}")
    sections = ("data", "task", "optimizer", "trainer")
    block = {key: getattr(experiment, key) for key in sections}
    return {"variant": variant, "net": experiment.variants[variant], **block}, source, {}


def _net(block: dict[str, Any], weights: Path) -> torch.nn.Module:
    net = nets.build(**block)
    try:
        load_model(net, weights)
    except (OSError, SafetensorError, RuntimeError) as error:  # RuntimeError: the weights of another net
        raise SkipformError(f"{weights}: not the weights of {block['name']}: {one_line(error, 300)}") from None
    return net
