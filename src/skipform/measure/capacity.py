"""What a net can be fitted to: random labels (Zhang, Bengio, Hardt, Recht, Vinyals 2017), and another net.

Both train full batches with Adam in float64. The result is that of the net under this way of training it, a lower bound
on what the net can represent.

n points, d inputs, c classes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skipform.errors import SkipformError


@dataclass(frozen=True)
class Capacity:
    """The largest number of randomly labelled points that were memorised, and the smallest that were not."""

    memorised: int
    missed: int | None  # None if even the largest number tried was memorised
    tried: tuple[tuple[int, float], ...]  # number of points, share of them classified right, in the order tried


def capacity(
    build: Callable[[], nn.Module],
    input_shape: tuple[int, ...],
    *,
    classes: int,
    generator: torch.Generator,
    largest: int = 4096,
    steps: int = 1000,
    learning_rate: float = 1e-2,
) -> Capacity:
    """The largest n such that a fresh net gets all of n Gaussian points with uniform labels right within `steps`.

    n doubles until fitting fails, and bisection then narrows it down to within an eighth. build makes a net with
    `classes` outputs and new weights; the points of a smaller set are the first of a larger one's.

    Raises SkipformError if the net does not have `classes` outputs.
    """
    x = torch.randn(largest, *input_shape, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (largest,), generator=generator)
    tried: list[tuple[int, float]] = []

    def fits(n: int) -> bool:
        net = _fresh(build, generator)
        with torch.no_grad():
            outputs = net.eval()(x[:1]).shape
        if outputs != (1, classes):
            raise SkipformError(f"capacity: the net gives {tuple(outputs)} for one input; (1, {classes}) is accepted")
        right = 0.0
        for _ in _minimise(net, lambda: F.cross_entropy(net(x[:n]), labels[:n]), steps, learning_rate):
            with torch.no_grad():
                right = float((net.eval()(x[:n]).argmax(1) == labels[:n]).double().mean())
            if right == 1.0:
                break
        tried.append((n, right))
        return right == 1.0

    low, high = 0, None
    n = 1
    while high is None and n <= largest:
        if fits(n):
            low, n = n, 2 * n
        else:
            high = n
    while high is not None and high - low > max(1, low // 8):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return Capacity(low, high, tuple(tried))


def fitting_error(
    student: Callable[[], nn.Module],
    teacher: nn.Module,
    input_shape: tuple[int, ...],
    *,
    generator: torch.Generator,
    points: int = 2048,
    steps: int = 1000,
    learning_rate: float = 1e-2,
) -> float:
    """The share of the teacher's variance that a fresh student misses on new Gaussian inputs after fitting it on
    `points` of them: mean |student - teacher|^2 / mean |teacher - its mean|^2.

    Raises SkipformError if the two give different shapes, or the teacher is constant.
    """
    x = torch.randn(2, points, *input_shape, generator=generator, dtype=torch.float64)
    double = _fresh(lambda: teacher, generator)
    with torch.no_grad():
        y = torch.stack([double.eval()(part) for part in x])
    net = _fresh(student, generator)
    with torch.no_grad():
        shape = net.eval()(x[0, :1]).shape
    if shape != y[0, :1].shape:
        raise SkipformError(f"fitting_error: the student gives {tuple(shape)}, the teacher {tuple(y[0, :1].shape)}")
    variance = float((y[1] - y[1].mean(0)).square().mean())
    if variance == 0:
        raise SkipformError("fitting_error: the teacher is constant; one that depends on its input is accepted")
    for _ in _minimise(net, lambda: F.mse_loss(net(x[0]), y[0]), steps, learning_rate):
        pass
    with torch.no_grad():
        return float(F.mse_loss(net.eval()(x[1]), y[1])) / variance


def _fresh(build: Callable[[], nn.Module], generator: torch.Generator) -> nn.Module:
    """A net in float64 whose random weights come from the generator; torch's own state is left as it was."""
    seed = int(torch.randint(2**31, (1,), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().double()


def _minimise(net: nn.Module, loss: Callable[[], Tensor], steps: int, learning_rate: float) -> Iterator[int]:
    """Take Adam steps down the loss under a cosine schedule, yielding after every tenth."""
    optimiser = torch.optim.Adam(net.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(1, steps + 1):
        net.train()
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
        schedule.step()
        if step % 10 == 0 or step == steps:
            yield step
