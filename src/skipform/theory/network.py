"""The canonical network: the normal form into which every architecture of the survey is rewritten.

    z_0 = x,   z_{k+1} = (relu(A_k z_k); z_k),   y = R z_L        A_k, R affine, ( ; ) concatenation

It is the perceptron of Definition 1 with a concatenation skip at every layer; L counts activation layers, so L = 0 is
an affine map. z_k holds the input and the values of all ReLUs up to layer k, the newest first.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from skipform.errors import SkipformError
from skipform.theory.affine import Affine, block_diagonal, fractions, hstack, identity, vstack
from skipform.theory.convolved import Convolved, Geometry

FORMAT = "skipform-canonical-1"


@dataclass(frozen=True, eq=False)
class CanonicalNetwork:
    """z_0 = x, z_{k+1} = (relu(A_k z_k); z_k), y = R z_L, with A_k = layers[k] and R = readout.

    A_k maps R^{d_k} to R^{n_k}, where d_0 = in_features and d_{k+1} = n_k + d_k; R maps R^{d_L} to the output. The
    shapes are those of one input and one output, for a network that equals a torch module; flat by default.

    Raises SkipformError if the sizes do not chain.
    """

    layers: tuple[Affine, ...]
    readout: Affine
    input_shape: tuple[int, ...] | None = None
    output_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        size = self.layers[0].in_features if self.layers else self.readout.in_features
        for k, layer in enumerate((*self.layers, self.readout)):
            if layer.in_features != size:
                name = f"A_{k}" if k < len(self.layers) else "R"
                raise SkipformError(f"CanonicalNetwork: {name} reads {layer.in_features} coordinates, z_{k} has {size}")
            size += layer.out_features
        for name, shape, features in (
            ("input_shape", self.input_shape, self.in_features),
            ("output_shape", self.output_shape, self.out_features),
        ):
            if shape is not None and math.prod(shape) != features:
                raise SkipformError(f"CanonicalNetwork: {name} {shape} does not hold {features} coordinates")

    def __repr__(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"CanonicalNetwork({sizes}, depth={self.depth}, relu_count={self.relu_count})"

    @property
    def affine_maps(self) -> tuple[Affine, ...]:
        """A_0, ..., A_{L-1}, R."""
        return (*self.layers, self.readout)

    @property
    def depth(self) -> int:
        """L, the number of activation layers (Definition 1); 0 for an affine map."""
        return len(self.layers)

    @property
    def widths(self) -> tuple[int, ...]:
        """n_0, ..., n_{L-1}: ReLUs in each activation layer."""
        return tuple(layer.out_features for layer in self.layers)

    @property
    def relu_count(self) -> int:
        """n_0 + ... + n_{L-1}."""
        return sum(self.widths)

    @property
    def in_features(self) -> int:
        return self.affine_maps[0].in_features

    @property
    def out_features(self) -> int:
        return self.readout.out_features

    @property
    def nonzeros(self) -> int:
        """Stored entries of all affine maps."""
        return sum(layer.nonzeros for layer in self.affine_maps)

    @property
    def is_exact(self) -> bool:
        """Whether the entries are Fractions."""
        return self.readout.is_exact

    @cached_property
    def carried(self) -> tuple[int, ...]:
        """For k = 0..L, the number of coordinates of z_k that A_k, ..., A_{L-1} or R reads and memory must hold."""
        total = self.readout.in_features
        read = np.zeros(total, dtype=bool)  # in the coordinates of z_L; z_k is its tail
        counts = []
        for layer in reversed(self.affine_maps):
            tail = read[total - layer.in_features :]
            tail[layer.columns] = True
            counts.append(int(tail.sum()))
        return tuple(reversed(counts))

    def __call__(self, x: Any) -> Any:
        """y for one input or a batch: a float64 tensor, or an object array of Fractions when exact.

        x: (*input_shape) or (n, *input_shape); flat (d,) or (n, d) when no input_shape is set.
        """
        if self.is_exact:
            return self.evaluate(fractions(x))
        if isinstance(x, torch.Tensor):
            return torch.from_numpy(self.evaluate(x.detach().cpu().double().numpy())).to(x.device)
        return torch.from_numpy(self.evaluate(np.asarray(x, dtype=np.float64)))

    def evaluate(self, x: np.ndarray, relu: Callable[[np.ndarray], np.ndarray] | None = None) -> np.ndarray:
        """y in the arithmetic of x's own entries: float64, Fractions, or a solver's symbols with their own relu.

        x: as in __call__; relu acts on an array entry by entry, max(t, 0) by default.
        """
        shape = (self.in_features,) if self.input_shape is None else self.input_shape
        batch = x.shape[: max(x.ndim - len(shape), 0)]
        if x.shape[len(batch) :] != shape or len(batch) > 1:
            accepted = " or ".join(str(accepted).replace("'", "") for accepted in (shape, ("n", *shape)))
            raise SkipformError(f"CanonicalNetwork: argument of shape {x.shape}; {accepted} is accepted")
        relu = relu or _relu
        flat = x.reshape(-1, self.in_features)
        # One buffer for z_L is filled from the right, so that z_k is its tail and no layer copies the one before.
        state = np.empty((len(flat), self.readout.in_features), dtype=x.dtype)
        tail = state.shape[1] - self.in_features
        state[:, tail:] = flat
        for layer in self.layers:
            state[:, tail - layer.out_features : tail] = relu(layer(state[:, tail:]))
            tail -= layer.out_features
        y = self.readout(state)
        return y.reshape(*batch, *((self.out_features,) if self.output_shape is None else self.output_shape))

    def exact(self) -> Self:
        """The same network over the rationals: every float64 entry as the Fraction that it represents."""
        return replace(self, layers=tuple(a.exact() for a in self.layers), readout=self.readout.exact())

    def float(self) -> Self:
        """The same network with every entry rounded to float64."""
        return replace(self, layers=tuple(a.float() for a in self.layers), readout=self.readout.float())

    def then(self, outer: "CanonicalNetwork") -> "CanonicalNetwork":
        """x -> outer(self(x)); the depths add."""
        if outer.in_features != self.out_features:
            raise SkipformError(f"then: {self.out_features} outputs into {outer.in_features} inputs")
        # The outer state (h; y) with y = R z_L becomes (h; z_L): its new ReLUs h stay, R is folded into each map.
        maps = []
        for a in outer.affine_maps:
            fresh = a.in_features - outer.in_features
            maps.append(a.compose(block_diagonal(identity(fresh, exact=self.is_exact), self.readout)))
        *layers, readout = maps
        return CanonicalNetwork((*self.layers, *layers), readout, self.input_shape, outer.output_shape)

    def save(self, path: str | Path) -> None:
        """Write the network as safetensors; Fractions as text, so that nothing is rounded."""
        tensors: dict[str, np.ndarray] = {}
        convolutions = {}
        for k, a in enumerate(self.affine_maps):
            if isinstance(a, Convolved):
                convolutions[str(k)] = {"kernel": a.kernel.shape} | asdict(a.geometry)
                tensors |= {f"{k}.kernel": a.kernel.ravel(), f"{k}.shift": a.shift}
                a = a.inner
            tensors[f"{k}.indptr"], tensors[f"{k}.indices"] = a.indptr.astype(np.int64), a.indices.astype(np.int64)
            for name, values in (("data", a.data), ("bias", a.bias)):
                tensors[f"{k}.{name}"] = _as_text(values) if self.is_exact else values
        header = {
            "exact": self.is_exact,
            "in_features": [a.in_features for a in self.affine_maps],
            "input_shape": self.input_shape,
            "output_shape": self.output_shape,
        } | ({"convolutions": convolutions} if convolutions else {})
        header["sha256"] = _digest(header, tensors)
        # One entry: safetensors writes several in an order that differs from process to process.
        save_file(tensors, path, metadata={FORMAT: json.dumps(header)})

    @staticmethod
    def load(path: str | Path) -> "CanonicalNetwork":
        """Read what `save` wrote; a file of an earlier version has no checksum, and is checked in all else.

        Raises SkipformError if the file is missing, damaged or of another kind: one line that names file and part.
        """
        try:
            with safe_open(path, "numpy") as file:
                metadata = file.metadata() or {}
                if FORMAT not in metadata and metadata.get("format") != FORMAT:
                    raise SkipformError(
                        f"{path}: not a canonical network; a file written by CanonicalNetwork.save is accepted"
                    )
                # Under "network" it stood before the metadata was one entry.
                header = _header(path, metadata.get(FORMAT, metadata.get("network", "")))
                convolutions = header.get("convolutions", {})
                names = {f"{k}.{part}" for k in range(len(header["in_features"])) for part in PARTS}
                names |= {f"{k}.{part}" for k in convolutions for part in KERNEL}
                if not convolutions.keys() <= {str(k) for k in range(len(header["in_features"]))}:
                    raise SkipformError(f"{path}: its header names a convolution that is none of its affine maps")
                if names != set(file.keys()):
                    raise SkipformError(f"{path}: holds other arrays than the {len(names)} of its affine maps")
                tensors = {name: file.get_tensor(name) for name in sorted(names)}
        except (OSError, SafetensorError) as error:
            raise SkipformError(f"{path}: cannot be read as a canonical network ({error})") from None
        digest = header.pop("sha256", None)
        if digest is not None and digest != _digest(header, tensors):
            raise SkipformError(f"{path}: damaged, its content is not that of its checksum; write the file again")
        maps: list[Affine] = []
        for k, features in enumerate(header["in_features"]):
            where = f"{path}: affine map {k}"
            own = _loaded(where, {part: tensors[f"{k}.{part}"] for part in PARTS}, features, header["exact"])
            if (geometry := convolutions.get(str(k))) is not None:
                own = _convolved(where, tensors[f"{k}.kernel"], tensors[f"{k}.shift"], own, geometry)
            maps.append(own)
        shapes = [tuple(header[name]) if header[name] is not None else None for name in ("input_shape", "output_shape")]
        try:
            return CanonicalNetwork(tuple(maps[:-1]), maps[-1], *shapes)
        except SkipformError as error:
            raise SkipformError(f"{path}: {error}") from None


PARTS = ("indptr", "indices", "data", "bias")  # of an affine map in a file
KERNEL = ("kernel", "shift")  # of one that is a convolution of that map, besides


def _as_text(values: np.ndarray) -> np.ndarray:
    """The bytes of Fractions as text, separated by spaces."""
    return np.frombuffer(" ".join(map(str, values)).encode(), np.uint8)


def _digest(header: dict[str, Any], tensors: dict[str, np.ndarray]) -> str:
    """The SHA-256 of what a file holds, the checksum itself aside."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].size} ".encode())
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()


def _header(path: str | Path, text: str) -> dict[str, Any]:
    """The header of a file, every entry of the kind that `save` writes. Raises SkipformError for any other."""
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise SkipformError(
            f"{path}: its header is no JSON; a file written by CanonicalNetwork.save is accepted"
        ) from None

    def is_sizes(value: Any) -> bool:
        return isinstance(value, list) and all(type(size) is int and 0 <= size < 2**63 for size in value)

    def is_convolutions(value: Any) -> bool:
        return isinstance(value, dict) and all(
            isinstance(sizes, dict)
            and sizes.keys() == {"kernel", *(field.name for field in fields(Geometry))}
            and all(is_sizes([size] if name == "groups" else size) for name, size in sizes.items())
            for sizes in value.values()
        )

    kinds = {
        "exact": lambda value: isinstance(value, bool),
        "in_features": lambda value: is_sizes(value) and len(value) > 0,
        "input_shape": lambda value: value is None or is_sizes(value),
        "output_shape": lambda value: value is None or is_sizes(value),
        "sha256": lambda value: isinstance(value, str),
        "convolutions": is_convolutions,
    }
    if not isinstance(header, dict) or header.keys() | {"sha256", "convolutions"} != kinds.keys():
        raise SkipformError(f"{path}: its header has other entries than {', '.join(kinds)}")
    for name, value in header.items():
        if not kinds[name](value):
            raise SkipformError(f"{path}: the entry {name} of its header is none that CanonicalNetwork.save writes")
    return header


def _loaded(where: str, arrays: dict[str, np.ndarray], in_features: int, exact: bool) -> Affine:
    """The affine map of arrays that a file holds, after checking all that SciPy takes for granted."""
    number = np.dtype(np.uint8 if exact else np.float64)
    for name, array in arrays.items():
        _check_array(f"{where}: {name}", array, number if name in ("data", "bias") else np.dtype(np.int64))
    indptr, indices = arrays["indptr"], arrays["indices"]
    data, bias = (_rationals(f"{where}: {name}", arrays[name]) if exact else arrays[name] for name in ("data", "bias"))
    if len(indptr) != len(bias) + 1 or indptr[0] != 0 or indptr[-1] != len(indices) or len(indices) != len(data):
        raise SkipformError(
            f"{where}: {len(bias)} rows and {len(data)} entries; indptr and indices are not those of such a matrix"
        )
    if (indptr[1:] < indptr[:-1]).any():
        raise SkipformError(f"{where}: indptr decreases; accepted: where each row begins, in order")
    if len(indices) and not 0 <= indices.min() <= indices.max() < in_features:
        raise SkipformError(f"{where}: a column outside 0 to {in_features - 1}")
    ascending = np.ones(len(indices), dtype=bool)
    ascending[1:] = indices[1:] > indices[:-1]
    ascending[indptr[:-1][indptr[:-1] < len(indices)]] = True  # the first entry of a row
    if not ascending.all():
        raise SkipformError(f"{where}: the columns of a row do not ascend")
    if not exact and not (np.isfinite(data).all() and np.isfinite(bias).all()):
        raise SkipformError(f"{where}: an entry is NaN or infinite; accepted: finite numbers")
    return Affine(indptr, indices, data, bias, in_features)


def _check_array(where: str, array: np.ndarray, dtype: np.dtype) -> None:
    if array.dtype != dtype or array.ndim != 1:
        raise SkipformError(f"{where} has {array.dtype} {array.shape}; accepted: {dtype} (n,)")


def _convolved(where: str, kernel: np.ndarray, shift: np.ndarray, image: Affine, sizes: dict[str, Any]) -> Convolved:
    """The convolution of an image, from the arrays and the sizes that a file holds."""
    for name, array in (("kernel", kernel), ("shift", shift)):
        _check_array(f"{where}: {name}", array, np.dtype(np.float64))
        if not np.isfinite(array).all():
            raise SkipformError(f"{where}: an entry of its {name} is NaN or infinite; accepted: finite numbers")
    if image.is_exact:
        raise SkipformError(f"{where}: a convolution of Fractions; accepted: one in float64")
    if math.prod(sizes["kernel"]) != len(kernel):
        raise SkipformError(f"{where}: a kernel {tuple(sizes['kernel'])} with {len(kernel)} entries")
    geometry: Any = {name: tuple(size) if isinstance(size, list) else size for name, size in sizes.items()}
    window = geometry.pop("kernel")
    try:
        return Convolved(kernel.reshape(window), shift, image, Geometry(**geometry))
    except SkipformError as error:
        raise SkipformError(f"{where}: {error}") from None


def _rationals(where: str, array: np.ndarray) -> np.ndarray:
    """The Fractions whose texts stand in the bytes, separated by spaces. Raises SkipformError for any other text."""
    texts = array.tobytes().split()
    for text in texts:
        if not re.fullmatch(rb"-?[0-9]+(/[0-9]*[1-9][0-9]*)?", text):
            raise SkipformError(f"{where}: {text[:20]!r} is no rational number; accepted: -2/3")
    try:
        return fractions([text.decode() for text in texts])
    except ValueError as error:  # Python refuses to read numbers of thousands of digits
        raise SkipformError(f"{where}: {error}") from None


def _relu(values: np.ndarray) -> np.ndarray:
    """max(t, 0) entry by entry; 0 * t is a zero of the same type as t, and NaN stays NaN."""
    with np.errstate(invalid="ignore"):  # of infinite values, which become NaN
        return np.where(values <= 0, values * 0, values)


def perceptron(maps: Sequence[Affine]) -> CanonicalNetwork:
    """w_L . relu . w_{L-1} . ... . relu . w_0 (Definition 1): a canonical network that reads only the newest ReLUs."""
    layers, size = [], maps[0].in_features
    for w in maps:
        layers.append(w.spread(np.arange(w.in_features), size))
        size += w.out_features
    return CanonicalNetwork(tuple(layers[:-1]), layers[-1])


def affine(map_: Affine) -> CanonicalNetwork:
    """The network of depth 0 that is an affine map."""
    return CanonicalNetwork((), map_)


def parallel(*networks: CanonicalNetwork) -> CanonicalNetwork:
    """x -> (f_1(x); f_2(x); ...): networks of one argument in parallel; the depth is the largest."""
    if len({f.in_features for f in networks}) != 1:
        raise SkipformError(f"parallel: networks of {[f.in_features for f in networks]} inputs; the same is accepted")
    size = networks[0].in_features
    # columns[i]: where the coordinates of network i's own z_k stand in the joint state, counted from its end, because
    # the joint state grows at its front.
    columns = [np.arange(size, 0, -1) for _ in networks]
    layers: list[Affine] = []
    for k in range(max(f.depth for f in networks)):
        active = [i for i, f in enumerate(networks) if k < f.depth]
        layers.append(vstack(*(networks[i].layers[k].spread(size - columns[i], size) for i in active)))
        front = size + layers[-1].out_features
        for i in active:
            width = networks[i].layers[k].out_features
            columns[i] = np.concatenate([np.arange(front, front - width, -1), columns[i]])
            front -= width
        size += layers[-1].out_features
    readout = vstack(*(f.readout.spread(size - c, size) for f, c in zip(networks, columns, strict=True)))
    return CanonicalNetwork(tuple(layers), readout)


def direct(*networks: CanonicalNetwork) -> CanonicalNetwork:
    """(x_1; x_2; ...) -> (f_1(x_1); f_2(x_2); ...): the direct sum of networks, each with its own argument."""
    total = sum(f.in_features for f in networks)
    parts, offset = [], 0
    for f in networks:
        coordinates = range(offset, offset + f.in_features)
        from_input = identity(total, exact=f.is_exact).take(coordinates)
        parts.append(affine(from_input).then(f))
        offset += f.in_features
    return parallel(*parts)


def add(*networks: CanonicalNetwork) -> CanonicalNetwork:
    """x -> f_1(x) + f_2(x) + ...: an addition is a concatenation followed by (I I ...) (Theorem 2)."""
    m = networks[0].out_features
    total = hstack(*(identity(m, exact=f.is_exact) for f in networks))
    return parallel(*networks).then(affine(total))
