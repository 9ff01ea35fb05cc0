"""The loss around trained weights: Li, Xu, Taylor, Studer, Goldstein, "Visualizing the loss landscape" (NeurIPS 2018).

The loss is the mean cross-entropy of images (n, ...) with labels (n,), in evaluation mode and in float64; the surface
is its value at weights + a u + b v. Weights are those of convolutions and linear layers. As in the paper, the
directions are zero for biases and for batch norm, which rescaled filters leave without effect.
"""

import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

Direction = dict[str, Tensor]  # name of a parameter -> a tensor of its shape


def filter_normalised(net: nn.Module, generator: torch.Generator) -> Direction:
    """A random direction in the space of the weights, in which every filter has the norm of the net's own:

    u_i = z_i |w_i| / |z_i|,   z ~ N(0, 1), i over the filters (output channels) of every layer

    so that a step of a given length means the same in nets whose filters differ in scale.
    """
    direction = {}
    for name, weight in net.named_parameters():
        if weight.dim() > 1:
            w = weight.detach().double().flatten(1)  # filters, entries
            z = torch.randn(w.shape, generator=generator, dtype=torch.float64)
            scale = w.norm(dim=1, keepdim=True) / z.norm(dim=1, keepdim=True)
            direction[name] = (z * scale).view_as(weight)
    return direction


@torch.no_grad()
def loss_surface(
    net: nn.Module, images: Tensor, labels: Tensor, u: Direction, v: Direction, coordinates: Tensor
) -> np.ndarray:
    """The loss at weights + a u + b v for a and b in coordinates (k,): (k, k), rows a, columns b. Time k^2 passes."""
    net, images = copy.deepcopy(net).double().eval(), images.double()
    weights = {name: weight for name, weight in net.named_parameters() if name in u}

    def loss(a: float, b: float) -> float:
        moved = {name: weight + a * u[name] + b * v[name] for name, weight in weights.items()}
        return float(functional.cross_entropy(functional_call(net, moved, (images,)), labels))

    steps = coordinates.tolist()
    return np.array([[loss(a, b) for b in steps] for a in steps])


def nonconvexity(surface: np.ndarray) -> float:
    """The share of inner points of an equidistant grid, in percent, at which the surface is not convex: its second
    difference is negative along a row, a column or one of the two diagonals.

    Of a convex function it is 0, of a concave one 100. Differences above -1e-9 times the largest value are rounding and
    count as zero.
    """
    f, centre = surface, 2 * surface[1:-1, 1:-1]
    ends = [
        (f[2:, 1:-1], f[:-2, 1:-1]),
        (f[1:-1, 2:], f[1:-1, :-2]),
        (f[2:, 2:], f[:-2, :-2]),
        (f[2:, :-2], f[:-2, 2:]),
    ]
    bends = np.min([one + other - centre for one, other in ends], axis=0)
    return 100 * float(np.mean(bends < -1e-9 * np.abs(f).max()))
