"""The runs of an experiment: what is checked before the first one, how one of them is done, and their progress."""

from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from tqdm import tqdm

from skipform import data, nets
from skipform.errors import SkipformError, one_line
from skipform.training import run, tracking, weights
from skipform.training.experiment import Experiment


def check(path: Path, experiment: Experiment, storage: dict[str, Any]) -> int:
    """Read the data, build every net on the meta device, without memory, and check that it takes the data and fits into
    this machine, and the files of its backbone's weights; return the number of batches per epoch.

    path: the experiment's file, for the message of an error. storage: `root` and `download` of the data.
    """
    module = data.build(0, **experiment.data | storage)
    module.prepare_data()
    module.setup()
    images = module.splits["test"][0][:2].float().to("meta") if experiment.task["name"] == "classify" else None
    for label, block in experiment.variants.items():
        where = f"{path} ({experiment.scale}): variants.{label}: "
        try:
            with torch.device("meta"):
                net = nets.build(**block).eval()
        except (ValueError, RuntimeError) as failure:
            raise SkipformError(f"{where}{one_line(failure, 500)}") from failure
        if 2 * sum(p.nbytes for p in net.parameters()) > psutil.virtual_memory().total:
            raise SkipformError(
                f"{where}{sum(p.numel() for p in net.parameters()):,} parameters; accepted: as many as fit into the"
                " memory of this machine together with their gradients"
            )
        if images is not None:
            try:
                with torch.no_grad():
                    net(images)
            except (ValueError, RuntimeError, TypeError, IndexError) as failure:
                shape = tuple(images.shape[1:])
                raise SkipformError(
                    f"{where}it does not take images of shape {shape}: {one_line(failure, 500)}"
                ) from None
    if experiment.backbone_weights == "imagenet":
        for model in sorted({weights.model_of(block) for block in experiment.variants.values()}):
            weights.prepare(model, **storage)
    return len(module.train_dataloader())


def train(
    folder: Path, experiment: Experiment, command: str, storage: dict[str, Any], label: str, seed: int, bar: Any
) -> dict[str, Any]:
    """Train one variant with one seed in FOLDER/<label>/seed<seed>, and return its metrics; see `run.train`."""
    config = {
        "experiment": experiment.name,
        "scale": experiment.scale,
        "variant": label,
        "seed": seed,
        "threads": experiment.threads,
        "net": experiment.variants[label],
        "backbone_weights": experiment.backbone_weights,
        "data": experiment.data,
        "task": experiment.task,
        "optimizer": experiment.optimizer,
        "trainer": experiment.trainer,
    }
    logger = partial(tracking.logger, experiment.wandb, experiment.file)
    folder = folder / label / f"seed{seed}"
    return run.train(folder, config, command=command, bar=bar, storage=storage, open_logger=logger)


def progress_bar(steps: int, *, shown: bool = True) -> tqdm:
    """The bar of all runs together, which have `steps` steps; it is shown on a terminal only."""
    return tqdm(
        total=steps,
        disable=None if shown else True,
        leave=False,
        bar_format="{desc}  {percentage:3.0f} % |{bar}| {remaining} left{postfix}",
    )
