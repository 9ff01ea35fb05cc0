"""`skipform bound`: the exact range of an output of a network over a box of inputs."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from skipform.arguments import Factor, Natural, Seed
from skipform.errors import SkipformError
from skipform.files import whole
from skipform.measure import output_range
from skipform.outputs import check_file
from skipform.stages.models import read_inputs, with_shape


def main(
    factory: str,
    *,
    input: str | None = None,
    box: list[float],
    output: Natural = 0,
    centre: Path | None = None,
    radius: Factor | None = None,
    arguments: str = "{}",
    time_limit: Factor = 60.0,
    out: Path | None = None,
    seed: Seed = 0,
    memory_gib: Factor = 4.0,
) -> int:
    """Find the least and the greatest value of an output over a box of inputs, by mixed-integer linear programming.

    Interval bounds are printed as well, and when the time is up, what is proved so far; then the exit status is 1. The
    inputs where the values are taken are evaluated by the model itself.

    Args:
        factory: MODULE:FACTORY, a callable that returns the model, e.g. torchvision.models:resnet18; or an ONNX file of
            one input.
        input: For MODULE:FACTORY, the shape of one input, e.g. 3,32,32.
        box: The lowest and the highest number of an input, e.g. [0, 1].
        output: The index of the output.
        centre: A .npy file of one input; with --radius the box is what of it lies within this distance of the centre.
        radius: The largest distance from the centre, of every number of the input.
        arguments: Keyword arguments of the factory, as JSON, e.g. '{"num_classes": 10}'.
        time_limit: Seconds of the solver, half of them for each end of the range.
        out: A .npy file for the two inputs where the least and the greatest value are taken.
        seed: The seed of the model's random weights.
        memory_gib: A network whose matrices need more memory than this is refused.
    """
    if out is not None:
        check_file(out, suffixes=(".npy",))
    model, shape = with_shape(factory, input, arguments, seed=seed)
    lower, upper = _box(box, shape, centre, radius)
    with tqdm(desc="bound", leave=False, disable=None, bar_format="{desc} [{elapsed}]") as bar:

        def show(end: str, value: float, bound: float) -> None:
            bar.set_description_str(f"{end}: found {value:.6g}, proved {bound:.6g}")

        result = output_range(
            model,
            lower,
            upper,
            output,
            time_limit=time_limit,
            progress=show,
            memory=int(memory_gib * 2**30),
        )
    print(f"interval bounds  {result.interval[0]:.9g} to {result.interval[1]:.9g}")
    print(f"proved           {result.proved[0]:.9g} to {result.proved[1]:.9g}")
    print(f"found            {result.found[0]:.9g} to {result.found[1]:.9g}   by the model itself")
    if out is not None:
        with whole(out) as temporary, temporary.open("wb") as file:
            np.save(file, torch.stack(result.at).numpy())
        print(f"written          {out}")
    if result.is_exact:
        print(f"exact, in {result.seconds:.1f} s")
        return 0
    gap = max(abs(p - v) for p, v in zip(result.proved, result.found, strict=True))
    print(f"time is up: proved {result.proved[0]:.6g} to {result.proved[1]:.6g}; {gap:.2g} open")
    return 1


def _box(box: list[float], shape: tuple[int, ...], centre: Path | None, radius: float | None) -> tuple[Tensor, Tensor]:
    if len(box) != 2 or not box[0] <= box[1] or not np.isfinite(box).all():
        raise SkipformError(f"--box {box}: the lowest and the highest number of an input are accepted, e.g. [0, 1]")
    if (centre is None) != (radius is None):
        raise SkipformError("--centre and --radius go together")
    lower, upper = (torch.full(shape, bound, dtype=torch.float64) for bound in box)
    if centre is None or radius is None:
        return lower, upper
    point = read_inputs(centre, shape, "--centre")
    if not bool(((point >= lower) & (point <= upper)).all()):
        raise SkipformError(
            f"--centre {centre}: an entry lies outside --box {box}; a centre inside the box is accepted"
        )
    return (point - radius).clamp(min=lower), (point + radius).clamp(max=upper)
