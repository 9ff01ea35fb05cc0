"""The cost of training through a task, divided by that of a bare PyTorch loop.

    python benchmarks/bench_training.py          prints, per net, the ratio of the medians of 9 interleaved rounds

Both sides train the same net on the same batches with the same optimiser, schedule and kernels, on one thread. The bare
loop does nothing else; the other side is the training of `skipform fit`, with its journal, progress bar and checkpoints
but without evaluation, from the first step to the end of the last epoch. Times are processor times, on which other
programs have little influence. The target is 1.05 for ResNet-20 and 1.5 for a perceptron, whose step takes less time
than the work of Lightning around it.
"""

import logging
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from torch.nn import functional
from tqdm import tqdm

import skipform
from skipform import nets
from skipform.data.images import Images
from skipform.tasks import Optimizer
from skipform.tasks.classify import Classify
from skipform.training import run
from skipform.training.journal import Journal

ROUNDS, EPOCHS = 9, 3
RECIPE = Optimizer(name="nesterov", lr=0.05, schedule="cosine")
NETS: dict[str, dict[str, Any]] = {
    "resnet (depth 20, width 16)": {"name": "resnet", "depth": 20, "width": 16},
    "mlp (depth 3, width 64)": {"name": "mlp", "depth": 3, "width": 64, "image_size": 8},
}


def data() -> Images:
    digits = Images("digits")
    digits.setup()
    return digits


def bare(block: dict[str, Any]) -> float:
    """Seconds for EPOCHS epochs in the simplest loop that does the same steps."""
    batches = data().train_dataloader()
    net = _net(block)
    optimizer = torch.optim.SGD(net.parameters(), RECIPE.lr, 0.9, weight_decay=1e-4, nesterov=True)
    steps = EPOCHS * len(batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: RECIPE.scale(step, steps))
    start = time.process_time()
    for epoch in range(EPOCHS):
        batches.epoch = epoch
        for images, labels in batches:
            optimizer.zero_grad()
            functional.cross_entropy(net(images), labels).backward()
            optimizer.step()
            schedule.step()
    return time.process_time() - start


def task(block: dict[str, Any]) -> float:
    """Seconds for the same epochs in the way of `skipform fit`."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, tqdm(total=10**6, disable=None, leave=False) as bar:
        trainer = run.build_trainer(
            max_epochs=EPOCHS, accelerator="cpu", callback=Journal(Path(folder, "last"), 0, bar)
        )
        trainer.callbacks.append(clock)  # type: ignore[attr-defined]
        trainer.limit_val_batches = 0
        trainer.fit(Classify(_net(block), RECIPE), datamodule=skipform.data("digits"))
    return clock.stop - clock.start


class Clock(Callback):
    start = stop = 0.0

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.start = self.start or time.process_time()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.stop = time.process_time()


def _net(block: dict[str, Any]) -> torch.nn.Module:
    torch.manual_seed(0)
    return nets.build(**block, in_channels=1).train()


def main() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # the same kernels for both
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    for name, block in NETS.items():
        task(block), bare(block)  # warm-up
        times = [(task(block), bare(block)) for _ in range(ROUNDS)]
        through, plain = (statistics.median(side) for side in zip(*times, strict=True))
        steps = EPOCHS * 21
        print(
            f"{name:30} task {1e3 * through / steps:6.2f} ms per step, bare {1e3 * plain / steps:6.2f} ms,"
            f" ratio {through / plain:.3f}"
        )


if __name__ == "__main__":
    main()
