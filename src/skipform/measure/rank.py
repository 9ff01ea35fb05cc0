"""Ranks: of the input Jacobian at a point, of the parameter Jacobian over a batch.

A rank read off floating-point singular values is a statement about a gap, so the gap is part of the record. The
net need only be differentiable: attention is allowed.

d inputs, m outputs, n points, P parameters.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacfwd, jacrev, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel  # vmap has rules only for the plain formula of attention
from torch.utils import _pytree as pytree

from skipform.errors import SkipformError
from skipform.measure.program import SMALLEST, Program, checked_device, in_float64, output, points, promoted
from skipform.measure.projection import Projection
from skipform.theory.network import CanonicalNetwork

MEMORY = 8 << 30  # bytes of one Jacobian and of the copy its decomposition works on, and as much again to derive it


@dataclass(frozen=True, eq=False)
class Rank:
    """The numerical rank of a matrix: singular values above max(shape) 2^-52 times the largest."""

    rank: int
    gap: float  # sigma_rank / sigma_{rank + 1}; inf if all others are zero; close to 1 if the rank is arbitrary
    shape: tuple[int, int]
    singular_values: np.ndarray = field(repr=False)  # descending; those of the product if the matrix was projected
    by: str = "rows"  # or "projection": the matrix was too large for the memory, and its product with a random one used

    @staticmethod
    def of(matrix: Tensor, whole: tuple[int, int] | None = None) -> "Rank":
        """The rank of a matrix; `whole`: the shape of the larger matrix of which it is a projection."""
        rows, columns = matrix.shape
        if not bool(matrix.isfinite().all()):
            raise SkipformError("rank: a Jacobian that is not finite; finite weights and values are accepted")
        # The singular values of a wide or tall matrix are those of its triangular factor, which is small.
        square = torch.linalg.qr(matrix if rows >= columns else matrix.T, mode="r").R
        sigma = torch.linalg.svdvals(square).cpu().numpy()
        largest = sigma[0] if len(sigma) else 0.0
        if 0 < largest < SMALLEST:
            raise SkipformError(
                f"rank: a Jacobian of norm {largest:.1g}, too small for float64; {SMALLEST:.0e} is accepted"
            )
        rank = int((sigma > max(rows, columns) * 2.0**-52 * largest).sum()) if largest > 0 else 0
        below = sigma[rank] if rank < len(sigma) else 0.0
        gap = float(sigma[rank - 1] / below) if rank and below > 0 else float("inf")
        return Rank(rank, gap, whole or (rows, columns), sigma, "projection" if whole else "rows")


@torch.inference_mode(False)  # in which there are no derivatives, and all would be zero
def jacobian_rank(
    f: nn.Module | CanonicalNetwork | Program, x: Tensor, *, device: torch.device | str | None = None
) -> Rank:
    """The rank of dy/dx (m, d) at x, one input without a batch dimension, in float64, on the device (the CPU).

    Only as many rows of the Jacobian are computed at once as MEMORY has room for, by an estimate.

    f is a canonical network, a Program or a torch module in eval mode. At a kink the derivative is autograd's: a ReLU
    at zero is off. Raises SkipformError for a module in training mode or with randomness in its forward, an input that
    does not fit or is not of floating point, a Jacobian that is not finite, or one that needs more than MEMORY.
    """
    if not torch.as_tensor(x).is_floating_point():
        raise SkipformError(f"jacobian_rank: x is {torch.as_tensor(x).dtype}; a floating-point input is accepted")
    device = checked_device("jacobian_rank", device)
    (x,) = points("jacobian_rank", x=x)
    if isinstance(f, CanonicalNetwork | Program):
        program = Program.of(f, x)
        _check_memory("jacobian_rank", program.steps[-1].width, x.numel(), MEMORY)
        slopes, _ = program.slopes(x.reshape(1, -1), torch.eye(x.numel(), dtype=torch.float64))
        return Rank.of(slopes[0].T.to(device))
    module, x = promoted(f, device), x.to(device)
    outputs = _outputs(module, x)
    _check_memory("jacobian_rank", outputs, x.numel(), MEMORY)
    rows_at_once = max(1, MEMORY // _bytes_of_pass(module, x))
    # Reverse mode costs one pass per output, forward mode one per input.
    reverse = partial(jacrev, chunk_size=rows_at_once if rows_at_once < outputs else None)
    differentiate = reverse if outputs <= x.numel() else jacfwd
    with sdpa_kernel(SDPBackend.MATH):
        jacobian = differentiate(lambda point: output(module, point[None].clone()).reshape(-1))(x)
    return Rank.of(jacobian.detach().reshape(outputs, x.numel()))


@torch.inference_mode(False)
def functional_dimension(
    f: nn.Module | CanonicalNetwork | Program,
    x: Tensor,
    *,
    memory: int = MEMORY,
    device: torch.device | str | None = None,
) -> Rank:
    """The rank of d(y_1, ..., y_n)/d theta (n m, P) over the batch x (n, ...), in float64, on the device (the CPU).

    The dimension of the set of functions near f, seen through the batch (Grigsby, Lindsey, Meyerhoff, Wu 2022,
    Functional dimension of feedforward ReLU neural networks); it grows with n up to that of f. theta: the parameters
    of a module that require a gradient; the stored entries and all biases of a canonical network. `memory` bounds, in
    bytes, the Jacobian together with its decomposition, and separately what is needed to compute it. A Jacobian that
    needs more is computed a few rows at a time, each of which is projected to 4 n m numbers (see `Projection`). A
    canonical network stays on the CPU.

    Raises SkipformError for a module in training mode, with randomness in its forward or without parameters, a batch
    that does not fit, a Jacobian that is not finite, or one that needs more than the memory even when it is projected.
    """
    x = torch.as_tensor(x)
    kind = x.dtype
    device = checked_device("functional_dimension", device)
    (x,) = points("functional_dimension", x=x)
    x = x if kind.is_floating_point else x.to(kind)  # words
    if x.ndim < 1 or len(x) == 0:
        raise SkipformError(f"functional_dimension: x of shape {tuple(x.shape)}; a batch of at least 1 is accepted")
    if isinstance(f, Program):
        raise SkipformError("functional_dimension: a Program has no parameters; the network that it is of is accepted")
    if isinstance(f, CanonicalNetwork):
        accepted = {(f.in_features,), f.input_shape}
        if tuple(x.shape[1:]) not in accepted:
            shape = ("n", *(f.input_shape or (f.in_features,)))
            raise SkipformError(
                f"functional_dimension: x of shape {tuple(x.shape)}; ({', '.join(map(str, shape))}) is accepted"
            )
        module: nn.Module = _Canonical(in_float64(f)).eval()
    else:
        module, x = promoted(f, device), x.to(device)
    free = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    if not free:
        raise SkipformError(f"functional_dimension: {type(f).__name__} has no parameter that requires a gradient")
    fixed = {name: p.detach() for name, p in module.named_parameters() if not p.requires_grad}
    fixed |= dict(module.named_buffers())

    def value(parameters: dict[str, Tensor], point: Tensor) -> Tensor:
        returned = functional_call(module, {**parameters, **fixed}, (point[None].clone(),))
        return pytree.tree_leaves(returned)[0].reshape(-1)

    outputs = _outputs(module, x[0])
    size, rows = sum(p.numel() for p in free.values()), len(x) * outputs
    if _jacobian_bytes(rows, size) > memory and 4 * rows < size:
        _check_memory("functional_dimension", rows, 4 * rows, memory)
        return Rank.of(_projected(value, free, x, outputs, memory // (2 * 8 * size)), (rows, size))
    _check_memory("functional_dimension", rows, size, memory)
    # A few points at a time: vmap keeps every layer of every output of every point at once.
    at_once = max(1, min(16, memory // (outputs * _bytes_of_pass(module, x[0]))))
    with sdpa_kernel(SDPBackend.MATH):
        parts = vmap(jacrev(value), in_dims=(None, 0), chunk_size=at_once)(free, x)
    jacobian = torch.cat([part.reshape(rows, free[name].numel()) for name, part in parts.items()], 1)
    del parts  # the decomposition needs the room
    return Rank.of(jacobian)


def _projected(value: Callable[..., Tensor], free: dict[str, Tensor], x: Tensor, outputs: int, at_once: int) -> Tensor:
    """The projection of d value / d free over the batch x to four times as many columns as rows, `at_once` rows (one
    at least) at a time."""
    columns = 4 * len(x) * outputs
    projections = {name: Projection(p.numel(), columns, seed) for seed, (name, p) in enumerate(free.items())}
    parts = []
    with sdpa_kernel(SDPBackend.MATH):
        for point in x:
            pull_back = vjp(partial(value, point=point), free)[1]
            for rows in torch.eye(outputs, dtype=torch.float64, device=x.device).split(max(1, at_once)):
                (gradients,) = vmap(pull_back)(rows)
                parts.append(torch.stack([projections[name](g.flatten(1)) for name, g in gradients.items()]).sum(0))
    return torch.cat(parts)


def ranks(net: nn.Module, inner: nn.Module, x: Tensor, name: str = "feature") -> dict[str, Any]:
    """The ranks of two Jacobians at x: of the scores, and of the output of `inner`, under its `name`."""
    scores, hidden = jacobian_rank(net, x), jacobian_rank(inner, x)
    return {
        "jacobian_rank": scores.rank,
        "rank_gap": finite(scores.gap),
        "output_dim": scores.shape[0],
        f"{name}_rank": hidden.rank,
        f"{name}_rank_gap": finite(hidden.gap),
        f"{name}_dim": hidden.shape[0],
    }


def finite(gap: float) -> float | None:
    """JSON has no infinity: null where no singular value is left below the rank."""
    return gap if math.isfinite(gap) else None


@torch.no_grad()
def _outputs(module: nn.Module, x: Tensor) -> int:
    """How many numbers the module returns for the input x. Raises SkipformError unless it returns the same twice."""
    first, second = (output(module, x[None].clone()) for _ in range(2))
    if first.shape != second.shape or not torch.allclose(first, second, rtol=1e-9, equal_nan=True):
        raise SkipformError(
            f"measure: {type(module).__name__} returns two values for one input; a forward without chance is accepted"
        )
    return first.numel()


@torch.no_grad()
def _bytes_of_pass(module: nn.Module, x: Tensor) -> int:
    """About the memory of one derivative of the module at the input x: two copies of what all its parts return. On an
    image of 32x32, ResNeXt-29 (8x64d) was measured to need 0.6 of that, VGG-11 0.8."""
    returned = 0

    def count(part: nn.Module, inputs: Any, outputs: Any) -> None:
        nonlocal returned
        returned += sum(leaf.numel() for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor))

    hooks = [part.register_forward_hook(count) for part in module.modules()]
    output(module, x[None].clone())
    for hook in hooks:
        hook.remove()
    return max(1, 2 * 8 * returned)


def _jacobian_bytes(rows: int, columns: int) -> int:
    """The memory of a Jacobian in float64 and of the copy that its decomposition works on."""
    return 2 * 8 * rows * columns


def _check_memory(what: str, rows: int, columns: int, memory: int) -> None:
    needed = _jacobian_bytes(rows, columns)
    if needed > memory:
        raise SkipformError(
            f"{what}: a Jacobian of {rows} x {columns} needs {needed / 2**30:.3g} GiB with its decomposition; "
            f"{memory / 2**30:.3g} GiB is accepted (take fewer points or a smaller net)"
        )


class _Canonical(nn.Module):
    """A canonical network whose stored entries and biases are parameters."""

    def __init__(self, net: CanonicalNetwork) -> None:
        super().__init__()
        maps = net.affine_maps
        self.entries = nn.ParameterList([nn.Parameter(torch.from_numpy(a.data.copy())) for a in maps])
        self.biases = nn.ParameterList([nn.Parameter(torch.from_numpy(a.bias.copy())) for a in maps])
        self.places = [
            (
                torch.from_numpy(np.repeat(np.arange(a.out_features), np.diff(a.indptr))),
                torch.from_numpy(np.asarray(a.indices)),
            )
            for a in maps
        ]
        self.sizes = [(a.out_features, a.in_features) for a in maps]

    def forward(self, x: Tensor) -> Tensor:
        z = x.reshape(len(x), -1)  # (n, d)
        for k, (places, size) in enumerate(zip(self.places, self.sizes, strict=True)):
            weight = torch.zeros(size, dtype=z.dtype).index_put(places, self.entries[k])
            h = z @ weight.T + self.biases[k]
            z = h if k == len(self.sizes) - 1 else torch.cat([h.relu(), z], 1)
        return z
