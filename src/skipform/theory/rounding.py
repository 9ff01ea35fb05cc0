"""The rounding errors of the constructions: bounds for float64, round to nearest, no overflow.

u = 2^-53 is the unit roundoff: every operation returns the exact result times (1 + d), |d| <= u. A product of k such
factors is 1 up to gamma(k) = k u / (1 - k u), and gamma(j) + gamma(k) + gamma(j) gamma(k) <= gamma(j + k).
"""

import numpy as np

from skipform.theory.affine import Affine
from skipform.theory.blocks import Block, BlockNet
from skipform.theory.network import CanonicalNetwork
from skipform.theory.skips import ProductNetwork

UNIT = 2.0**-53


def gamma(k: int) -> float:
    """k u / (1 - k u)."""
    return k * UNIT / (1 - k * UNIT)


def pair_bound(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A bound of |fl(relu(x - y) + y) - max(x, y)|: 0 for x <= y, else u (|x - y| (1 + u) + |x|).

    For x <= y the rounded difference is not positive either, as subtraction never underflows to a wrong sign, and
    0 + y = y. For x > y the difference is (x - y)(1 + d) and the sum (x + (x - y) d)(1 + e). At worst the error is
    about 3 u max(|x|, |y|), one and a half ulps of a power of two. It is 0 for y / 2 <= x <= 2 y, where x - y is
    exact (Sterbenz). A small x is lost next to a large negative y: for x = 1, y = -2^54 the result is 0.

    With y = -inf the difference is inf and inf - inf is NaN: a window is never padded with -inf.
    """
    return np.where(x <= y, 0.0, UNIT * (np.abs(x - y) * (1 + UNIT) + np.abs(x)))


def network_bound(network: CanonicalNetwork, x: np.ndarray) -> np.ndarray:
    """A bound of the rounding error of network(x), for x (n, d) and weights rounded to float64: gamma(M) |f|(|x|).

    |f| is the network with absolute weights and without ReLU, M one more, for the rounding of x itself, than the sum
    over layers of the longest row plus 2. Proof by induction: if z_k is off by gamma(M_k) |z|_k, then A z_k + b, a sum
    of r products with weights rounded once, is off by gamma(M_k + r + 2) (|A| |z|_k + |b|), in any order of summation,
    and relu does not increase a difference.
    """
    absolute = CanonicalNetwork(tuple(map(_absolute, network.layers)), _absolute(network.readout))
    longest = sum(int(np.max(np.diff(a.indptr), initial=0)) + 2 for a in network.affine_maps)
    return gamma(longest + 1) * absolute.evaluate(np.abs(x.reshape(len(x), -1)), relu=lambda t: t)


def block_bound(net: BlockNet, x: np.ndarray) -> np.ndarray:
    """The same bound for a net of blocks: an addition skip adds one rounding to its sum of at most d products."""
    absolute = BlockNet(
        _absolute_layer(net.stem),
        tuple(
            Block(tuple(map(_absolute_layer, b.layers)), b.shortcut and _absolute_layer(b.shortcut)) for b in net.blocks
        ),
        _absolute_layer(net.readout),
    )
    longest = sum(weight.shape[1] + 3 for weight, _ in net.affine_maps)
    return gamma(longest + 1) * absolute(np.abs(x), relu=lambda t: t)


def product_bound(network: ProductNetwork, x: np.ndarray) -> np.ndarray:
    """A bound of the rounding error of network(x), x (n, d) rounded to float64, followed through the layers.

    A value z known up to e gives: an affine map, |A| e, and one gamma(r + 2) of |A| (|z| + e) + |b| for rows of r
    entries; square, (2 |z| + e) e; log, -log(1 - e / z), infinite for e >= z; exp, exp(z) (exp(e) - 1); and each
    function 4 u of its value, as its library rounds it within two ulps.
    """
    z, e = x, UNIT * np.abs(x)
    for w, activation in zip(network.maps, (*network.activations, None), strict=True):
        absolute = _absolute(w)
        roundings = gamma(int(np.max(np.diff(w.indptr), initial=0)) + 2)
        linear = Affine(absolute.indptr, absolute.indices, absolute.data, 0 * absolute.bias, absolute.in_features)
        z, e = w(z), linear(e) + roundings * absolute(np.abs(z) + e)
        if activation == "square":
            z, e = z * z, (2 * np.abs(z) + e) * e
        elif activation == "log":
            with np.errstate(divide="ignore"):
                z, e = np.log(z), -np.log1p(-np.minimum(e / z, 1.0))
        elif activation == "exp":
            z, e = np.exp(z), np.exp(z) * np.expm1(e)
        e = e + 4 * UNIT * (np.abs(z) + e)
    return e.reshape(len(x), *network.output_shape)


def _absolute(a: Affine) -> Affine:
    return Affine(a.indptr, a.indices, np.abs(a.data), np.abs(a.bias), a.in_features)


def _absolute_layer(layer: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return np.abs(layer[0]), np.abs(layer[1])
