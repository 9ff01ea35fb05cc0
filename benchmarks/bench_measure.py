"""The speed of counting regions, against its matrix products only and against plain forward passes.

    python benchmarks/bench_measure.py [--rounds 9] [--quick]

plane: an MLP 2 -> [w] * d -> 1 with PyTorch's default float32 initialisation (seed 0), promoted to float64, on
[-1, 1]^2. line: 784 -> [1024] * 4 -> 10 and 3072 -> [2048] * 6 -> 10 between two Gaussian points; and ResNet-20 on a
share of the segment between two Gaussian images of 3 x 32 x 32, against its slow twin, which computes every value at
every break point. In every round each contestant runs once; the output is medians over the rounds and ratios of
medians. A count that differs from the one that this file expects ends the run with an error.
"""

import argparse
import time
from collections.abc import Callable
from itertools import pairwise
from statistics import median

import torch
from torch import Tensor, nn

import skipform
from skipform.measure import line, plane
from skipform.measure.cutting import count_cut, cut
from skipform.measure.line import line_of
from skipform.measure.mesh import box_mesh
from skipform.measure.program import Program
from skipform.theory.affine import Affine
from skipform.theory.network import CanonicalNetwork, perceptron

PLANES = {(64, 3): 6668, (64, 4): 7920, (128, 4): 29584, (256, 4): 125057}
LINES = {(784, 1024, 4): 3.0, (3072, 2048, 6): 3.0}  # sizes: standard deviation of the end points
SHARE, SEGMENTS = 0.02, 1105  # of the segment for ResNet-20
BOX = (-1.0, 1.0, -1.0, 1.0)


def mlp(*sizes: int) -> CanonicalNetwork:
    torch.manual_seed(0)
    layers = [nn.Linear(m, n).double() for m, n in pairwise(sizes)]
    return perceptron([Affine.of(part.weight.detach().numpy(), part.bias.detach().numpy()) for part in layers])


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compete(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of every contestant, interleaved, after one warm-up."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for round_ in range(rounds + 1):
        for name, work in contestants.items():
            spent = seconds(work)
            if round_:
                times[name].append(spent)
    return {name: median(spent) for name, spent in times.items()}


def products(program: Program, rows: list[int]) -> Callable[[], object]:
    """Only the affine steps; step k is applied to a batch of rows[k] states."""
    inputs = [program.in_features, *program.widths]
    states = [torch.rand(n, d, dtype=torch.float64) for n, d in zip(rows, inputs, strict=False)]

    def work() -> None:
        for step, state in zip(program.steps, states, strict=False):
            step.apply(state)

    return work


def forward(program: Program, points: Tensor) -> Callable[[], object]:
    """The forward pass of the net at the given points."""

    def work() -> None:
        state = points
        for step in program.steps:
            state = step.apply(state)
            state[:, : step.units].relu_()

    return work


@torch.no_grad()
def bench_plane(width: int, depth: int, expected: int, rounds: int) -> None:
    net = mlp(2, *[width] * depth, 1)
    slice_ = torch.tensor([[0.0, 0], [1, 0], [0, 1]], dtype=torch.float64)
    program = Program.of(net, slice_[0])
    mesh = box_mesh(slice_, BOX)
    vertices = [len(mesh.rows)]
    for _ in range(depth - 1):
        mesh = cut(program, mesh, 4 << 30, masks=False)
        vertices.append(len(mesh.rows))
    count = count_cut(program, mesh)
    if count != expected:
        raise SystemExit(f"plane {width} x {depth}: {count} regions, {expected} expected")
    points = torch.from_numpy(mesh.vertices.xy)
    times = compete(
        {
            "plane": lambda: plane(net, *slice_),
            "products": products(program, vertices),
            "forward": forward(program, points),
        },
        rounds,
    )
    report(f"plane {width:4d} x {depth}", f"{expected:7d} regions, {vertices[-1]:6d} vertices", times, "plane")


@torch.no_grad()
def bench_line(sizes: tuple[int, int, int], spread: float, rounds: int) -> None:
    inputs, width, depth = sizes
    net = mlp(inputs, *[width] * depth, 10)
    a, b = spread * torch.randn(2, inputs, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    program = Program.of(net, a)
    regions = line(net, a, b)
    points = torch.lerp(a, b, torch.from_numpy(regions.breakpoints)[:, None])
    times = compete({"line": lambda: line(net, a, b), "forward": forward(program, points)}, rounds)
    report(f"line {inputs} -> {width} x {depth}", f"{regions.count:7d} segments", times, "line")


@torch.no_grad()
def bench_images(rounds: int) -> None:
    torch.manual_seed(0)
    net = skipform.build("resnet", depth=20, num_classes=10).eval()
    a, b = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    program, ends = Program.of(net, a), torch.stack([a, torch.lerp(a, b, SHARE)]).flatten(1)
    for dense in (False, True):
        count = line_of(program, ends, dense=dense).count
        if count != SEGMENTS:
            raise SystemExit(f"line ResNet-20, {dense=}: {count} segments, {SEGMENTS} expected")
    times = compete(
        {"line": lambda: line_of(program, ends), "all values": lambda: line_of(program, ends, dense=True)}, rounds
    )
    report("line ResNet-20", f"{SEGMENTS:7d} segments", times, "line")


def report(case: str, size: str, times: dict[str, float], own: str) -> None:
    shown = "  ".join(f"{name} {spent:.4f} s" for name, spent in times.items())
    ratios = "  ".join(f"{own}/{name} {times[own] / spent:.2f}" for name, spent in times.items() if name != own)
    print(f"{case:24s} {size:34s} {shown}   {ratios}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="leave out the two largest cases")
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, {options.rounds} rounds")
    for (width, depth), expected in list(PLANES.items())[: 3 if options.quick else None]:
        bench_plane(width, depth, expected, options.rounds)
    for sizes, spread in list(LINES.items())[: 1 if options.quick else None]:
        bench_line(sizes, spread, options.rounds)
    bench_images(options.rounds)


if __name__ == "__main__":
    main()
