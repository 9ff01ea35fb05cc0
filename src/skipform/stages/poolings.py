"""The max poolings of trained nets, proved equal to their ReLU form for every real input.

What is proved. For each max pooling of a net, at the size of its input, each window of a channel is taken: over the
reals, the affine maps and ReLUs that the compiler puts in its place equal the maximum of the window (z3 refutes the
opposite). A max pooling treats all channels alike, and the rewritten net has the same other layers with the same
weights. So as functions over the reals the net and the net whose poolings are built from ReLUs are equal on the whole
input space, and thereby on the box of all images. Computed in float64 both are rounded: `theory/rounding.py`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from skipform.compiler.flatten import canonical
from skipform.runs import Run
from skipform.stages.subjects import subject
from skipform.theory import definitions, proofs

WINDOWS = 16384  # of one channel of one pooling, at most


def poolings(runs: list[Run]) -> list[dict[str, Any]]:
    """One row per max pooling of the nets of the runs: the variant (its run of the first seed), the name of the layer,
    the number of windows of a channel, of those that differ in more than their place, and whether all are proved; null
    if there are more than WINDOWS."""
    first: dict[str, Run] = {}
    for run in sorted(runs, key=lambda run: (run.config["variant"], run.config["seed"])):
        first.setdefault(run.config["variant"], run)
    return [{"variant": variant} | row for variant, run in first.items() for row in of_run(run)]


def of_run(run: Run) -> list[dict[str, Any]]:
    """The rows of the net of one run; see `poolings`."""
    if not any(isinstance(part, nn.MaxPool2d) for part in run.net().modules()):
        return []
    measured = subject(run, "final", 1)
    return [{"layer": name} | proof(layer, size) for name, layer, size in sizes(measured.net, measured.inputs[:1])]


@torch.no_grad()
def sizes(net: nn.Module, inputs: Tensor) -> list[tuple[str, nn.MaxPool2d, tuple[int, int]]]:
    """Every max pooling of a net, once for each time that it is used: its name, the layer, and height and width of what
    it reads for these inputs."""
    read: list[tuple[str, nn.MaxPool2d, tuple[int, int]]] = []
    handles = []
    for name, part in net.named_modules():
        if isinstance(part, nn.MaxPool2d):

            def note(layer: nn.MaxPool2d, given: tuple[Tensor], name: str = name) -> None:
                h, w = given[0].shape[-2:]
                read.append((name, layer, (h, w)))

            handles.append(part.register_forward_pre_hook(note))
    try:
        net(inputs.to(next(net.parameters())))
    finally:
        for handle in handles:
            handle.remove()
    return read


def proof(layer: nn.MaxPool2d, size: tuple[int, int]) -> dict[str, Any]:
    """Whether the rewritten pooling of a map of this size is the maximum of each window; see the top of this file."""
    window, stride, padding, dilation = (
        int(value[0] if isinstance(value, tuple) else value)
        for value in (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    )
    cells = definitions.pooling(
        torch.arange(size[0] * size[1]).numpy(), (1, *size), window, stride, padding, tuple,
        ceil_mode=layer.ceil_mode, dilation=dilation,
    )  # fmt: skip
    windows = [[int(cell) for cell in one] for one in cells.reshape(-1)]
    if len(windows) > WINDOWS:
        return {"windows": len(windows), "different": None, "proved": None}
    network = canonical(layer.eval(), torch.zeros(1, 1, *size, dtype=torch.float64)).exact()
    different = proofs.prove_windows(network, windows)
    return {"windows": len(windows), "different": different, "proved": different > 0}
