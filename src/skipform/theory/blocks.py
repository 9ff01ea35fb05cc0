"""Theorem 3 and Theorem 4: nets made of blocks with skips, and the converters between them.

    block                B(y) = w_L . f . w_{L-1} . ... . f . w_0        L activation layers, f = relu
    concatenation skip   y' = (B(y); y)
    addition skip        y' = B(y) + v y                                v = I, or a projection
    net                  y_0 = stem(x), y_1, ..., y_K, output = readout(y_K)

An affine map is a dense pair (weight, bias) here, as in torch.nn.Linear, so that the converters act on trained weights
directly. The entries may be float64, Fractions or a solver's symbols: the converters only select, multiply and add.

    to_concatenation   the same function with concatenation skips only                                   (Theorem 3)
    to_addition        the same function with identity addition skips only, in a wider state             (Theorem 3)
    to_single          the same function with one activation per block, L blocks for one of L            (Theorem 4)
    canonical          the same function as a CanonicalNetwork
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np

from skipform.errors import SkipformError
from skipform.theory.affine import Affine
from skipform.theory.network import CanonicalNetwork

Layer = tuple[np.ndarray, np.ndarray]  # (m, d) and (m,): y = weight @ x + bias


@dataclass(frozen=True, eq=False)
class Block:
    """B = w_L . f . ... . f . w_0 with its skip: concatenation if shortcut is None, else addition of shortcut(y)."""

    layers: tuple[Layer, ...]
    shortcut: Layer | None = None

    @property
    def activations(self) -> int:
        """L, the number of activation layers."""
        return len(self.layers) - 1


@dataclass(frozen=True, eq=False)
class BlockNet:
    """x -> readout(y_K), y_0 = stem(x), y_{k+1} = blocks[k](y_k)."""

    stem: Layer
    blocks: tuple[Block, ...]
    readout: Layer

    def __post_init__(self) -> None:
        size = _chain("stem", self.stem, self.stem[0].shape[1])
        for k, block in enumerate(self.blocks):
            if block.activations < 1:
                raise SkipformError(f"BlockNet: block {k} has {len(block.layers)} affine maps; at least 2 are accepted")
            out = size
            for level, layer in enumerate(block.layers):
                out = _chain(f"w_{level} of block {k}", layer, out)
            if block.shortcut is None:
                size = out + size
            elif _chain(f"the shortcut of block {k}", block.shortcut, size) != out:
                raise SkipformError(f"BlockNet: block {k} gives {out} numbers, its shortcut {len(block.shortcut[1])}")
            else:
                size = out
        _chain("the readout", self.readout, size)

    @staticmethod
    def of(
        blocks: Sequence[Sequence[Any]], readout: Any, *, merge: str, stem: Any = None, in_features: int | None = None
    ) -> "BlockNet":
        """From nested lists of (weight, bias), or of anything with .weight and .bias such as torch.nn.Linear.

        merge: 'concat', or 'add' with identity shortcuts. Without a stem, y_0 = x. A bias of None is zero.
        """
        if merge not in ("concat", "add"):
            raise SkipformError(f"BlockNet.of: merge {merge!r}; 'concat' or 'add' is accepted")
        built = [tuple(layer(source) for source in block) for block in blocks]
        if stem is not None:
            first = layer(stem)
        else:
            first = eye(built[0][0][0].shape[1] if built else layer(readout)[0].shape[1])
        shortcuts = [None if merge == "concat" else eye(len(block[-1][1])) for block in built]
        parts = tuple(Block(block, shortcut) for block, shortcut in zip(built, shortcuts, strict=True))
        return BlockNet(first, parts, layer(readout))

    def __call__(self, x: Any, relu: Callable[[np.ndarray], np.ndarray] | None = None) -> np.ndarray:
        """The output for x (d,) or (n, d), in the arithmetic of the weights; relu as in CanonicalNetwork.evaluate."""
        relu = relu or (lambda t: np.where(t <= 0, t * 0, t))
        y = _apply(self.stem, np.asarray(x))
        for block in self.blocks:
            h = _apply(block.layers[0], y)
            for w in block.layers[1:]:
                h = _apply(w, relu(h))
            y = np.concatenate([h, y], axis=-1) if block.shortcut is None else h + _apply(block.shortcut, y)
        return _apply(self.readout, y)

    @property
    def affine_maps(self) -> tuple[Layer, ...]:
        """Every affine map with weights, in order; identity shortcuts are among those of addition skips."""
        inner = [w for b in self.blocks for w in (*b.layers, *([] if b.shortcut is None else [b.shortcut]))]
        return (self.stem, *inner, self.readout)


def layer(source: Any) -> Layer:
    """(weight, bias) as NumPy arrays from a pair, or from anything with .weight and .bias; a missing bias is zero."""
    weight, bias = source if isinstance(source, tuple | list) else (source.weight, source.bias)
    weight = _array(weight)
    return weight, (weight[:, 0] * 0 if weight.shape[1] else np.zeros(len(weight))) if bias is None else _array(bias)


def eye(n: int) -> Layer:
    """The identity of R^n, in integers, which combine with every type of number."""
    return np.eye(n, dtype=np.int64), np.zeros(n, dtype=np.int64)


def compose(outer: Layer, inner: Layer) -> Layer:
    """x -> outer(inner(x))."""
    return outer[0] @ inner[0], outer[0] @ inner[1] + outer[1]


def to_concatenation(net: BlockNet) -> BlockNet:
    """The same function with blocks (f . w_{L-1} . ... . f . w_0 y; y): as many ReLUs, layers and blocks (Theorem 3).

    The old state is an affine function T of the new one, and every w_L is folded into it, so that the new w_L is the
    identity. A block reads w_0 . T; its ReLUs h and the state z then give T'(h; z) = w_L h + v T z after an addition,
    (w_L h; T z) after a concatenation (Proposition 1).
    """
    old = eye(len(net.stem[1]))  # T
    blocks = []
    for block in net.blocks:
        first, *inner, last = block.layers
        blocks.append(Block((compose(first, old), *inner, eye(last[0].shape[1]))))
        old = _hstack(last, compose(block.shortcut, old)) if block.shortcut else _block_diagonal(last, old)
    return BlockNet(net.stem, tuple(blocks), compose(net.readout, old))


def to_addition(net: BlockNet) -> BlockNet:
    """The same function with identity addition skips y' = B(y) + y only (Theorem 3, Proposition 1).

    The state is as wide as the last state of `to_concatenation`, and starts as (0; stem(x)). Each block reads the
    coordinates that are filled so far and adds its outputs to the zeros in front of them.
    """
    net = to_concatenation(net)
    size = net.readout[0].shape[1]
    filled = len(net.stem[1])
    stem = compose(_place(size - filled, filled, size), net.stem)
    blocks = []
    for block in net.blocks:
        first, *inner, last = block.layers
        reads = _place(size - filled, filled, size)[0].T, np.zeros(filled, dtype=np.int64)
        out = len(last[1])
        filled += out
        writes = _place(size - filled, out, size)
        blocks.append(Block((compose(first, reads), *inner, compose(writes, last)), eye(size)))
    return BlockNet(stem, tuple(blocks), net.readout)


def to_single(net: BlockNet) -> BlockNet:
    """The same function with one activation per block and concatenation skips (Theorem 4).

    A block of L activations becomes L blocks z -> (f(w_l h); z), h the newest coordinates, or T z for the first of
    them, where T gives the old state from the new. For addition skips compose with `to_addition`, by Proposition 1.
    """
    old = eye(len(net.stem[1]))  # T: y_k from z
    blocks = []
    for block in net.blocks:
        reads = old
        for w in block.layers[:-1]:
            new = compose(w, reads)
            units, size = new[0].shape
            blocks.append(Block((new, eye(units))))
            reads = _hstack(eye(units), _zero(units, size))
            old = _hstack(_zero(len(old[1]), units), old)
        h = compose(block.layers[-1], reads)
        old = _sum(h, compose(block.shortcut, old)) if block.shortcut else _vstack(h, old)
    return BlockNet(net.stem, tuple(blocks), compose(net.readout, old))


def canonical(net: BlockNet) -> CanonicalNetwork:
    """The same function as a canonical network: `to_single` read layer by layer, the stem folded into each map.

    Exact where the weights are integers or Fractions, float64 otherwise.
    """
    single = to_single(net)
    exact = all(w.dtype == object or w.dtype.kind == "i" for pair in net.affine_maps for w in pair)
    maps, fresh = [], 0
    for w in (*(block.layers[0] for block in single.blocks), single.readout):
        maps.append(Affine.of(*compose(w, _block_diagonal(eye(fresh), net.stem)), exact=exact))
        fresh += len(w[1])
    return CanonicalNetwork(tuple(maps[:-1]), maps[-1])


def two_activations_as_printed(w0: Layer, w1: Layer, u: Layer, v: Layer, a: Layer) -> BlockNet:
    """Theorem 4 for L = 2 with the weights the paper prints; it equals u . f . w1 . f . w0 + v for every affine a.

    Single block 1 computes f(w0 x), block 2 computes f of diag(w1, w0) on (f(w0 x); x), that is f(w1 f(w0 x)) and once
    more f(w0 x); the readout (u, a, -a, v) cancels the two copies of f(w0 x), and the constant of a.
    """
    width = len(w0[1])
    minus_a = -a[0], -a[1]
    blocks = (Block((w0, eye(width))), Block((_block_diagonal(w1, w0), eye(len(w1[1]) + width))))
    return BlockNet(eye(w0[0].shape[1]), blocks, _hstack(_hstack(_hstack(u, a), minus_a), v))


# ---------------------------------------------------------------------------------------------------------------------
# The inclusion of Theorem 4 is strict


def staircase(blocks: int) -> BlockNet:
    """relu(x) + relu(x - 1) + ... + relu(x - L + 1), L = `blocks` single-activation blocks of width one on the line.

    Its slopes are 0, 1, ..., L: for L >= 2 no net with one L-activation block of width one equals it, since

        u f(a_{L-1} f(... f(a_0 x + b_0) ...) + b_{L-1}) + v x + c,     concatenation or addition skip,

    has at most two slopes: v where some f is off, v + u a_{L-1} ... a_0 where all are on (`chain_slopes`).
    """
    layers = []
    for k in range(blocks):
        weight = np.zeros((1, k + 1), dtype=np.int64)
        weight[0, k] = 1  # the input is the last coordinate of (h_k; ...; h_1; x)
        layers.append(Block(((weight, np.array([-k])), eye(1))))
    readout = np.array([[1] * blocks + [0]]), np.array([0])
    return BlockNet(eye(1), tuple(layers), readout)


def chain_slopes(a: Iterable[Any], u: Any, v: Any) -> set[Any]:
    """The slopes of x -> u f(a_{L-1} f(... f(a_0 x + b_0) ...)) + v x over all patterns of which f are on, ReLUs f."""
    a = list(a)
    patterns = product((0, 1), repeat=len(a))
    return {u * prod(on * weight for on, weight in zip(pattern, a, strict=True)) + v for pattern in patterns}


# ---------------------------------------------------------------------------------------------------------------------
# Dense affine maps in any arithmetic


def _apply(w: Layer, x: np.ndarray) -> np.ndarray:
    return x @ w[0].T + w[1]


def _array(values: Any) -> np.ndarray:
    """A NumPy array; a tensor without its graph and its device."""
    values = values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
    return values.astype(np.float64) if values.dtype.kind == "f" else values


def _chain(name: str, w: Layer, size: int) -> int:
    if w[0].ndim != 2 or w[0].shape[1] != size or w[1].shape != w[0].shape[:1]:
        raise SkipformError(
            f"BlockNet: {name} has weight {w[0].shape} and bias {w[1].shape}; {size} inputs are accepted"
        )
    return len(w[1])


def _zero(m: int, d: int) -> Layer:
    return np.zeros((m, d), dtype=np.int64), np.zeros(m, dtype=np.int64)


def _place(start: int, count: int, size: int) -> Layer:
    """R^count -> R^size, onto the coordinates from `start` on."""
    return np.eye(size, count, -start, dtype=np.int64), np.zeros(size, dtype=np.int64)


def _hstack(u: Layer, v: Layer) -> Layer:
    """(a; b) -> u(a) + v(b)."""
    return np.hstack([u[0], v[0]]), u[1] + v[1]


def _vstack(u: Layer, v: Layer) -> Layer:
    """x -> (u(x); v(x))."""
    return np.vstack([u[0], v[0]]), np.concatenate([u[1], v[1]])


def _sum(u: Layer, v: Layer) -> Layer:
    return u[0] + v[0], u[1] + v[1]


def _block_diagonal(u: Layer, v: Layer) -> Layer:
    """(a; b) -> (u(a); v(b))."""
    above = _hstack(u, _zero(len(u[1]), v[0].shape[1]))
    below = _hstack(_zero(len(v[1]), u[0].shape[1]), v)
    return _vstack(above, below)
