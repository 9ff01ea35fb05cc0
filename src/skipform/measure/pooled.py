"""Networks whose max poolings stay maxima, so that they can be compared with their forms by ReLU."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from skipform.errors import SkipformError
from skipform.measure.relaxation import Range, through
from skipform.theory.affine import Affine, block_diagonal, identity
from skipform.theory.network import CanonicalNetwork


@dataclass(frozen=True)
class PooledNetwork:
    """z_{k+1} = (h_k; z_k), y = R z_L: h_k = relu(A_k z_k) where windows[k] = 0, else every entry of h_k is the maximum
    of the next windows[k] entries of A_k z_k. relus: the canonical network that is equal to it; places[k]: its layer
    whose arguments are those of layer k, of ReLUs."""

    layers: tuple[Affine, ...]
    windows: tuple[int, ...]
    readout: Affine
    relus: CanonicalNetwork
    places: tuple[int, ...]

    @property
    def in_features(self) -> int:
        return self.relus.in_features

    def ranges(self, box: Range, of_relus: list[Range]) -> list[Range]:
        """The ranges of the arguments of each layer: those of `relus`, and by intervals those of the maxima."""
        ranges, low, high = [], box.low, box.high
        for a, window, place in zip(self.layers, self.windows, self.places, strict=True):
            t = through(a, low, high) if window else of_relus[place]
            ranges.append(t)
            own = [bound.reshape(-1, window).max(1) if window else bound.clip(0) for bound in (t.low, t.high)]
            low, high = Range(*own).before(low, high)
        return ranges


def pooled(net: nn.Module, example: Tensor, memory: int, check: bool) -> PooledNetwork:
    """A Sequential, its MaxPool2d without padding on whole windows. example: one input, (1, ...).

    Raises SkipformError for another net or pooling.
    """
    from skipform.compiler.flatten import canonical

    if not isinstance(net, nn.Sequential):
        raise SkipformError(f"native maxima: {type(net).__name__}; a torch.nn.Sequential is accepted")
    x, size = example, example[0].numel()
    relus, readout = CanonicalNetwork((), identity(size)), identity(size)
    layers: list[Affine] = []
    windows: list[int] = []
    places: list[int] = []
    for part in _parts(net):
        own = canonical(part, x, memory, explicit=True, check=check)
        if isinstance(part, nn.MaxPool2d):
            cells = _windows(part, x)
            layers.append(readout.take(cells.flatten().tolist()))
            windows.append(cells.shape[1])
            places.append(relus.depth)
            readout = identity(readout.in_features + len(cells)).take(range(len(cells)))
        else:
            for k, a in enumerate(own.affine_maps):
                a = a.compose(block_diagonal(identity(a.in_features - own.in_features), readout))
                if k < own.depth:
                    layers.append(a)
                    windows.append(0)
                    places.append(relus.depth + k)
                else:
                    readout = a
        relus, x = relus.then(own), part(x)
    return PooledNetwork(tuple(layers), tuple(windows), readout, relus, tuple(places))


def _parts(net: nn.Sequential) -> list[nn.Module]:
    """The max poolings of a Sequential, and the Sequentials between them."""
    parts: list[nn.Module] = []
    for layer in net:
        if isinstance(layer, nn.MaxPool2d) or not parts or isinstance(parts[-1], nn.MaxPool2d):
            parts.append(layer if isinstance(layer, nn.MaxPool2d) else nn.Sequential(layer).eval())
        else:
            parts[-1] = nn.Sequential(*parts[-1], layer).eval()  # type: ignore[misc]
    return parts


def _windows(pool: nn.MaxPool2d, x: Tensor) -> Tensor:
    """(outputs, cells): the flat places in x, (1, c, h, w), that each maximum reads."""
    size, stride = ((v, v) if isinstance(v, int) else tuple(v) for v in (pool.kernel_size, pool.stride))
    if pool.padding not in (0, (0, 0)) or pool.dilation not in (1, (1, 1)) or pool.ceil_mode or x.ndim != 4:
        raise SkipformError(f"native maxima: {pool}; MaxPool2d without padding, dilation and ceil_mode is accepted")
    places = torch.arange(x[0].numel()).view(x.shape[1:])
    return places.unfold(1, size[0], stride[0]).unfold(2, size[1], stride[1]).reshape(-1, size[0] * size[1])
