"""What training costs: through the task over a bare PyTorch loop, and our nets over a library's.

    python benchmarks/bench_training.py          prints, per net, the ratio of the medians of 9 interleaved rounds

Both sides train the same net on the same batches with the same optimiser, schedule and kernels, on one thread. The bare
loop does nothing else; the other side is what `skipform fit` runs, with its journal, progress bar and checkpoints,
without evaluation, timed from the first step to the last epoch's end. The target is 1.1 for a convolutional net; a
perceptron, whose step is shorter than what Lightning does around it, shows that overhead by itself.

The second table is a step (forward, backward, SGD with momentum) of a net of ours over one of the same net of a library
in the same bare loop. The target is 1.0.
"""

import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torchvision
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock
from tqdm import tqdm

from skipform import nets
from skipform.data.images import Images
from skipform.stages import run
from skipform.tasks import Optimizer
from skipform.tasks.classify import Classify

ROUNDS, EPOCHS = 9, 3
RECIPE = Optimizer(name="nesterov", lr=0.05, schedule="cosine")
NETS: dict[str, dict[str, Any]] = {
    "resnet (depth 20, width 16)": {"net": "resnet", "depth": 20, "width": 16},
    "mlp (depth 3, width 64)": {"net": "mlp", "depth": 3, "width": 64, "image_size": 8},
}

CLAIMS = {name: import_module(f"skipform.nets.{name}").VARIANTS for name in ("resnet", "densenet", "resnext")}
TWINS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet 20, option B": (
        lambda: nets.build("resnet", depth=20, option="B"),
        lambda: torchvision_resnet20(),
        (64, 3, 32, 32),
    ),
    "resnet 18": (
        lambda: nets.build("resnet", **CLAIMS["resnet"]["ResNet-18"][0]),
        torchvision.models.resnet18,
        (8, 3, 96, 96),
    ),
    "densenet 121": (
        lambda: nets.build("densenet", **CLAIMS["densenet"]["DenseNet-121"][0]),
        torchvision.models.densenet121,
        (4, 3, 96, 96),
    ),
    "resnext 50, 32x4d": (
        lambda: nets.build("resnext", **CLAIMS["resnext"]["ResNeXt-50 32x4d"][0]),
        torchvision.models.resnext50_32x4d,
        (4, 3, 96, 96),
    ),
}


def torchvision_resnet20() -> nn.Module:
    """ResNet-20 from torchvision's blocks: it has none for small images."""
    layers, c_in = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)], 16
    for c, stride in ((16, 1), (16, 1), (16, 1), (32, 2), (32, 1), (32, 1), (64, 2), (64, 1), (64, 1)):
        side = nn.Sequential(nn.Conv2d(c_in, c, 1, stride, bias=False), nn.BatchNorm2d(c)) if stride > 1 else None
        layers.append(BasicBlock(c_in, c, stride, side))
        c_in = c
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def stepper(net: nn.Module, images: Tensor) -> Callable[[], float]:
    """What does one training step of the net and returns its seconds."""
    optimizer = torch.optim.SGD(net.train().parameters(), 0.01, 0.9, weight_decay=1e-4)
    labels = torch.arange(len(images)) % 10

    def step() -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
        return time.perf_counter() - start

    return step


def twins() -> None:
    for name, (ours, theirs, shape) in TWINS.items():
        torch.manual_seed(0)
        images = torch.randn(shape)
        sides = [stepper(build(), images) for build in (ours, theirs)]
        for side in sides:  # warm
            side()
        times = [[min(side() for _ in range(3)) for side in sides] for _ in range(ROUNDS)]
        mine, other = (statistics.median(side) for side in zip(*times, strict=True))
        print(
            f"{name:30} ours {1e3 * mine:6.1f} ms a step, torchvision's {1e3 * other:6.1f} ms, ratio {mine / other:.3f}"
        )


def bare(block: dict[str, Any]) -> float:
    """Seconds of EPOCHS epochs in the shortest loop that does the same steps."""
    data = Images("digits")
    data.setup()
    batches = data.train_dataloader()
    net = _net(block)
    optimizer = torch.optim.SGD(net.parameters(), RECIPE.lr, 0.9, weight_decay=1e-4, nesterov=True)
    steps = EPOCHS * len(batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: RECIPE.scale(step, steps))
    start = time.perf_counter()
    for epoch in range(EPOCHS):
        batches.epoch = epoch
        for images, labels in batches:
            optimizer.zero_grad()
            functional.cross_entropy(net(images), labels).backward()
            optimizer.step()
            schedule.step()
    return time.perf_counter() - start


def task(block: dict[str, Any]) -> float:
    """Seconds of the same epochs as `skipform fit` does them."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, tqdm(total=10**6, disable=None, leave=False) as bar:
        trainer = run.trainer(max_epochs=EPOCHS, accelerator="cpu", callback=run.Journal(Path(folder, "last"), 0, bar))
        trainer.callbacks.append(clock)  # type: ignore[attr-defined]
        trainer.limit_val_batches = 0
        trainer.fit(Classify(_net(block), RECIPE), datamodule=Images("digits"))
    return clock.stop - clock.start


class Clock(Callback):
    start = stop = 0.0

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.start = self.start or time.perf_counter()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.stop = time.perf_counter()


def _net(block: dict[str, Any]) -> torch.nn.Module:
    torch.manual_seed(0)
    return nets.build(
        block["net"], in_channels=1, **{key: value for key, value in block.items() if key != "net"}
    ).train()


def main() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # the same kernels for both
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    for name, block in NETS.items():
        task(block), bare(block)  # warm
        times = [(task(block), bare(block)) for _ in range(ROUNDS)]
        through, plain = (statistics.median(side) for side in zip(*times, strict=True))
        steps = EPOCHS * 21
        print(
            f"{name:30} task {1e3 * through / steps:6.2f} ms a step, bare {1e3 * plain / steps:6.2f} ms,"
            f" ratio {through / plain:.3f}"
        )
    torch.use_deterministic_algorithms(False)
    twins()


if __name__ == "__main__":
    main()
