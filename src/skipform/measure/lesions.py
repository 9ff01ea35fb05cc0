"""What a trained net loses with its blocks: Veit, Wilber, Belongie, "Residual networks behave like ensembles" (2016).

Blocks are named modules of a net that give an output of the shape of their input. Every function leaves the net as it
is.
"""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from skipform.errors import SkipformError


def without(net: nn.Module, blocks: Sequence[str]) -> nn.Module:
    """A copy of the net in which every one of the blocks is x -> x: of a residual block the shortcut stays, of a plain
    one nothing."""
    net = copy.deepcopy(net)
    for name in blocks:
        net.set_submodule(name, nn.Identity())
    return net


def exchanged(net: nn.Module, places: Mapping[str, str]) -> nn.Module:
    """A copy of the net in which the block at every place is the one that stood at places[place].

    Raises:
        SkipformError: a block that would stand at two places, or at none.
    """
    if sorted(places) != sorted(places.values()):
        raise SkipformError(f"exchanged: {dict(places)}; a permutation of the blocks is accepted")
    blocks = {name: copy.deepcopy(net.get_submodule(name)) for name in places}
    net = copy.deepcopy(net)
    for place, name in places.items():
        net.set_submodule(place, blocks[name])
    return net


def disorder(places: Mapping[str, str]) -> float:
    """The share of pairs of blocks whose order is reversed: (1 - Kendall's tau) / 2, of 0 for no change to 1 for the
    reverse. The order of the blocks is that of the keys."""
    rank = {name: i for i, name in enumerate(places)}
    order = [rank[name] for name in places.values()]
    pairs = [(a, b) for i, a in enumerate(order) for b in order[i + 1 :]]
    return sum(a > b for a, b in pairs) / len(pairs) if pairs else 0.0


@torch.no_grad()
def classification_error(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images (n, ...) whose largest score is that of another class than labels (n,), in percent; in
    evaluation mode and in the precision of the images."""
    net = copy.deepcopy(net).eval().to(images)
    return 100 * float((net(images).argmax(1) != labels).double().mean())
