"""A piecewise-linear net as a program: affine steps on a state, each followed by ReLUs on its first columns.

    S_0 = x,   (h ; c) = step_k(S_k),   S_{k+1} = (relu(h) ; c),   y = step_K(S_K)        step_k affine

S_k holds the values that are still needed at step k, one row per point. It is the form in which line and plane read a
net: before every step each column is affine on each region so far, so the state at a point between two others is the
weighted mean of theirs.

Rounding. A sign decides a region, so a computed value counts as zero when it is within its own rounding error. The
error is modelled as Higham & Mary (2019, A New Approach to Probabilistic Rounding Error Analysis) do: independent
errors of mean zero, so variances add where the classical bound adds absolute values and grows beyond use in deep nets.
With u = 2^-53, z the largest absolute value of each input and u e the error it carries, a step x -> W x + b leaves in
output i the error u sqrt(sum_j W_ij^2 (z_j^2 + e_j^2)) + u |b_i|, in units of one rounding per term. The square root
is the standard deviation of W r for random r of variance z^2 + e^2; it is estimated by the root mean square of W r over
eight fixed r, random signs times factors in [1/2, 3/2], so that no step (a convolution, a chain of them) has to know
its matrix. A unit that is off at all points of a block passes no error on.
A value is zero when it is at most TOLERANCE u e: 8 standard deviations, times 8 for the rounding of partial sums
(a blocked sum of up to 64 roundings in a row). 64 u = 7e-15 lies far below what generic nets need: among 10^8
values of size 1 the smallest is about 10^-8.

The model knows neither overflow nor underflow, so an e that is neither 0 nor between 2^-480 and 2^480 is refused.

n points, D columns of a state, d input features, m outputs.
"""

import copy
import functools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from skipform.errors import InternalError, SkipformError, first_line
from skipform.measure.convolution import conv2d
from skipform.theory.affine import Affine
from skipform.theory.network import CanonicalNetwork

if TYPE_CHECKING:
    from torch import fx

UNIT = 2.0**-53
TOLERANCE = 64.0
SMALLEST, LARGEST = 2.0**-480, 2.0**480  # of an e; the square of one is still a normal number
_PROBES = 8
AFFINE = (  # operations of a rewritten module, with constant weights, that do not only move entries
    *(F.linear, torch.matmul, torch.einsum, torch.add, torch.flatten),
    *(F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
)


@dataclass(frozen=True)
class Step:
    """One affine map of a program: apply takes (n, D) to (n, width), whose first `units` columns are rectified next."""

    apply: Callable[[Tensor], Tensor]
    units: int
    width: int
    weight: Tensor | None = None  # (units, D) and the bias of h, where the step has them: h can be written in place
    bias: Tensor | None = None
    carried: Tensor | None = None

    def to(self, device: torch.device) -> "Step":
        """The step on a device."""
        if self.weight is not None and self.bias is not None:
            carried = None if self.carried is None else self.carried.to(device)
            return replace(dense_step(self.weight.to(device), self.bias.to(device), carried), units=self.units)
        assert isinstance(self.apply, SparseMap | Segment)
        return replace(self, apply=self.apply.to(device))

    def into(self, state: Tensor, out: Tensor) -> None:
        """Write the step of state (n, D) to out (n, width)."""
        if self.weight is None or self.bias is None:
            out.copy_(self.apply(state))
            return
        h = out[:, : len(self.bias)]
        torch.addmm(self.bias, state, self.weight.T, out=h)
        if self.carried is not None:
            out[:, len(self.bias) :] = state[:, self.carried]


@dataclass(frozen=True)
class Program:
    """The steps of a net; the last one has no units and gives y (n, m)."""

    steps: tuple[Step, ...]
    input_shapes: tuple[tuple[int, ...], ...]  # those of one input that are accepted; all have as many entries

    @property
    def in_features(self) -> int:
        return math.prod(self.input_shapes[0])

    @staticmethod
    def of(f: "nn.Module | CanonicalNetwork | Program", x: Tensor, *, check: bool = True) -> "Program":
        """The program of a canonical network, or of a torch module in eval mode for inputs shaped like x.

        Every measure takes a program in place of the network: compile once, call often. A program itself is returned
        as it is, and so is what `skipform.rewrite` returned, in float64. Any other module is copied, moved to the CPU
        and rewritten in float64. Unless `check` is false, its rewritten form is compared with it, and the program with
        that. Raises SkipformError if the module is in training mode, if x does not fit, (the compiler's
        UnsupportedOperation) if it is not piecewise linear, InternalError if a check failed.
        """
        if isinstance(f, Program):
            _fits(x, f.input_shapes)
            return f
        if isinstance(f, CanonicalNetwork):
            _fits(x, _shapes_of(f))
            return _of_canonical(in_float64(f), check)
        from skipform.compiler.capture import in_dtype_of  # the compiler is only needed for torch modules
        from skipform.compiler.rewrite import rewrite_in_float64
        from skipform.compiler.targets.keep_add import AddingEmitter

        module = on_cpu(f)
        if is_rewritten(module):
            (shape,) = (tuple(n.meta["val"].shape[1:]) for n in module.graph.nodes if n.op == "placeholder")
            _fits(x, (shape,))
            return _checked(module.double(), x.detach().cpu()[None].double(), check)
        if not any(weight.is_floating_point() for weight in (*module.parameters(), *module.buffers())):
            module = promoted(f)  # nothing says in which dtype forward makes its constants, and x is in float64
        (example,) = in_dtype_of(module, (x.detach().cpu()[None],))
        # Additions stay additions: written as a concatenation they would only make the state wider.
        graph = rewrite_in_float64(module, example, AddingEmitter, check=check)
        return _checked(graph, example.double(), check)

    def compare(self, graph: "fx.GraphModule", shape: tuple[int, ...]) -> None:
        """Raise InternalError, naming the first ReLU that reads a wrong value, unless the program computes what the
        rewritten module does on three samples."""
        from skipform.compiler import check

        points = check.samples([shape])
        (expected,), (output,) = check.tensors(graph(*points)), check.output_nodes(graph.graph)
        read: list[Tensor] = []  # by every ReLU
        state = points[0].reshape(3, -1)
        for step in self.steps:
            state = step.apply(state)
            read.append(state[:, : step.units].clone())
            state[:, : step.units].relu_()
        if check.agree(check.rows(expected, check.batch_dim(output)), state, 0, check.AGREEMENT):
            return
        original = check.Evaluation(graph.graph, points, graph).values
        allowed = check.deviations(graph.graph, points, original, graph)
        inputs = [n.all_input_nodes[0] for n in graph.graph.nodes if n.target is torch.relu]
        values = (
            (n.meta.get("place", "the input"), n, check.from_rows(value, original[n], n.meta["batch_dim"]))
            for n, value in zip([*inputs, output], [*read[:-1], state], strict=True)
        )
        check.first_difference(values, original, allowed)

    def to(self, device: torch.device) -> "Program":
        """The program on a device, which is itself on the CPU, where programs are made."""
        return self if device.type == "cpu" else Program(tuple(s.to(device) for s in self.steps), self.input_shapes)

    @property
    def widths(self) -> tuple[int, ...]:
        """Columns of the state that each step leaves."""
        return tuple(step.width for step in self.steps)

    def slopes(self, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives of y at points (n, d) along directions (r, d): (n, r, m), and the error of each output (m,).

        A ReLU at exactly zero counts as off. Exact wherever the point lies inside a region.
        """
        n, r = len(points), len(directions)
        value, tangent = points, directions.repeat(n, 1)  # (n, D), (n r, D)
        error = torch.zeros_like(directions[0])
        for step in self.steps:
            size = tangent.abs().amax(0)
            error = rounding(step, size, error)
            value, constant = step.apply(value), step.apply(torch.zeros_like(tangent[:1]))
            tangent = step.apply(tangent) - constant
            # Subtracting the constant again rounds once more.
            error = error + constant[0].abs()
            on = value[:, : step.units] > 0
            error[: step.units] *= on.any(0)
            value = torch.cat([value[:, : step.units].relu(), value[:, step.units :]], 1)
            tangent[:, : step.units] *= on.repeat_interleave(r, 0)
        return tangent.view(n, r, -1), TOLERANCE * UNIT * error


def _fits(x: Tensor, shapes: tuple[tuple[int, ...], ...]) -> None:
    if tuple(x.shape) not in shapes:
        raise SkipformError(f"measure: a point of shape {tuple(x.shape)}; {shapes[0]} is accepted")


def _shapes_of(net: CanonicalNetwork) -> tuple[tuple[int, ...], ...]:
    flat = (net.in_features,)
    return (net.input_shape, flat) if net.input_shape else (flat,)


def is_rewritten(module: nn.Module) -> "TypeGuard[fx.GraphModule]":
    """Whether the module is what `skipform.rewrite` returned, of one input and with no operations but affine maps and
    ReLUs: it need not be rewritten again."""
    from torch import fx

    from skipform.compiler.flatten import MOVES
    from skipform.compiler.rewrite import InputShapes

    if not isinstance(module, fx.GraphModule) or "original_operations" not in module.meta or module._forward_hooks:
        return False
    if not all(isinstance(hook, InputShapes) for hook in module._forward_pre_hooks.values()):
        return False
    affine = (*MOVES, *AFFINE, torch.relu)
    nodes = [node for node in module.graph.nodes if node.op in ("placeholder", "call_function")]
    return sum(node.op == "placeholder" for node in nodes) == 1 and all(
        "batch_dim" in node.meta and (node.op == "placeholder" or node.target in affine) for node in nodes
    )


@contextmanager
def mapping(threads: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """`map` on so many threads; the plain one for a single thread."""
    if threads == 1:
        yield map
        return
    with ThreadPoolExecutor(threads) as pool:
        yield pool.map


def checked_device(where: str, device: torch.device | str | None) -> torch.device:
    """The device, by default the CPU. Raises SkipformError unless float64 can be computed on it."""
    try:
        chosen = torch.device("cpu" if device is None else device)
        torch.ones((), dtype=torch.float64, device=chosen).item()
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        raise SkipformError(f"{where}: device={device!r} ({first_line(error)}); cpu or cuda is accepted") from None
    return chosen


def checked_threads(where: str, threads: int) -> int:
    """The number of threads. Raises SkipformError unless it is a whole number of at least 1."""
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise SkipformError(f"{where}: threads={threads!r}; a whole number of at least 1 is accepted")
    return threads


def points(where: str, **given: Any) -> list[Tensor]:
    """The given inputs in float64 on the CPU, in memory of their own: a module may write into its input. Raises
    SkipformError for complex or non-finite numbers; `where` and the keywords name them."""
    copies = []
    for name, x in given.items():
        x = torch.as_tensor(x)
        if x.is_complex():
            raise SkipformError(f"{where}: {name} is {x.dtype}; real numbers are accepted")
        if not bool(x.isfinite().all()):
            raise SkipformError(f"{where}: {name} is not finite; finite numbers are accepted")
        copies.append(x.detach().to("cpu", torch.float64, copy=True))
    return copies


def in_float64(net: CanonicalNetwork) -> CanonicalNetwork:
    """The network with entries in float64. Raises SkipformError if one is a Fraction beyond the range of float64."""
    if not net.is_exact:
        return net
    try:
        rounded = net.float()
    except OverflowError:
        raise SkipformError("measure: an entry of the network is too large for float64") from None
    for exact, affine in zip(net.affine_maps, rounded.affine_maps, strict=True):
        for before, after in ((exact.data, affine.data), (exact.bias, affine.bias)):
            if ((before != 0) & (abs(after) < np.finfo(np.float64).tiny)).any():
                raise SkipformError("measure: an entry of the network is too small for float64")
    return rounded


def output(module: nn.Module, x: Tensor) -> Tensor:
    """The one tensor that the module returns for the batch x. Raises SkipformError if x does not fit the module, or if
    it returns anything else."""
    from skipform.compiler.capture import CAPTURE_FAILURES

    try:
        returned = pytree.tree_leaves(module(x))
    except CAPTURE_FAILURES as error:
        raise SkipformError(
            f"measure: {type(module).__name__} does not run on an input of shape {tuple(x.shape)}: {first_line(error)}"
        ) from None
    if len(returned) != 1 or not isinstance(returned[0], Tensor):
        raise SkipformError(f"measure: {type(module).__name__} returns {len(returned)} values; one tensor is accepted")
    return returned[0]


def on_cpu(module: nn.Module) -> nn.Module:
    """A copy of the module on the CPU. Raises SkipformError if it is in training mode or cannot be copied."""
    if not isinstance(module, nn.Module):
        raise SkipformError(
            f"measure: a network of type {type(module).__name__}; a torch module or a CanonicalNetwork is accepted"
        )
    training = [name or type(module).__name__ for name, part in module.named_modules() if part.training]
    if training:
        raise SkipformError(f"measure: {training[0]} is in training mode; a module in eval mode is accepted")
    try:
        return copy.deepcopy(module).cpu()
    except (RuntimeError, NotImplementedError) as error:  # parameters on the meta device, a hooked weight_norm
        first = first_line(error)
        raise SkipformError(f"measure: {type(module).__name__} cannot be copied to the CPU: {first}") from None


class _InFloat64(TorchFunctionMode):
    """Inside, all that a forward computes is in float64: a tensor made from no other one (torch.zeros, torch.tensor) is
    converted, with the numbers that it has in its own dtype, and a cast to another float dtype is one to float64.
    Otherwise `x @ torch.eye(3)` would fail for an x that was promoted."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        kinds = {type(leaf) for leaf in _leaves((args, kwargs))}
        if any(issubclass(kind, Tensor) for kind in kinds):
            function = Tensor.double if function in (Tensor.float, Tensor.half, Tensor.bfloat16) else function
            if torch.dtype in kinds:
                args, kwargs = pytree.tree_map_only(torch.dtype, _widened, (args, kwargs))
            return function(*args, **kwargs)
        result = function(*args, **kwargs)
        return result.double() if isinstance(result, Tensor) and result.is_floating_point() else result


def _leaves(value: Any) -> Iterator[Any]:
    """What lists, tuples and dicts in each other hold. torch's own function for this takes as long as a small layer."""
    if isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part)
    elif isinstance(value, dict):
        yield from _leaves(list(value.values()))
    else:
        yield value


def _widened(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype.is_floating_point else dtype


def promoted(module: nn.Module, device: torch.device | str = "cpu") -> nn.Module:
    """A copy of the module in float64 on the device, with the constants that its forward makes. Raises SkipformError if
    it is in training mode."""
    module = on_cpu(module).double().to(device)
    forward = module.forward

    @functools.wraps(forward)
    def promoting(*args: Any, **kwargs: Any) -> Any:
        with _InFloat64():
            return forward(*args, **kwargs)

    module.forward = promoting
    return module


def rounding(step: Step, size: Tensor, error: Tensor) -> Tensor:
    """e after the step, (width,), from the largest absolute value and the e of each column before it (see above).
    Raises SkipformError where the model does not hold: values that are not finite, too large or too small."""
    generator = torch.Generator().manual_seed(0)  # fixed signs: the same net always has the same tolerance
    uniform = torch.rand(_PROBES, len(size), generator=generator, dtype=torch.float64).to(size.device) * 2 - 1
    # Signs times [1/2, 3/2]: no two terms of equal size cancel in all probes. 13/12 is their mean square.
    factors = (uniform + 0.5 * uniform.sign()) * (12 / 13) ** 0.5
    spread = factors * torch.hypot(size, error)  # (_PROBES, D)
    out = step.apply(torch.cat([spread, torch.zeros_like(spread[:1])]))
    # Over its largest entry, the square of which may not be a float64.
    linear, constant = out[:-1] - out[-1], out[-1].abs()
    largest = linear.abs().amax(0)
    after = largest * (linear / torch.where(largest > 0, largest, 1.0)).square().mean(0).sqrt() + constant
    accepted = ((after >= SMALLEST) & (after <= LARGEST)) | (after == 0)
    if not bool((after > 0).all()):
        # Zero from zeros, or from products that are too small for float64? Those of large values are not.
        probe = factors[:1] * LARGEST * (spread[:1] != 0)
        large = step.apply(torch.cat([probe, torch.zeros_like(probe)]))
        accepted &= (after > 0) | (large[0] == large[1])
    if not bool(accepted.all()):
        worst = float(after[~accepted][0])
        raise SkipformError(
            f"measure: values of size {worst:.1g} between the layers; 0 and {SMALLEST:.0e} to {LARGEST:.0e} accepted,"
            " within which float64 neither overflows nor underflows (scale the net or its inputs)"
        )
    return after


def dense_step(weight: Tensor, bias: Tensor, carried: Tensor | None = None) -> Step:
    """x -> (W x + b ; x[carried])."""
    transposed = weight.T  # a view

    def apply(state: Tensor) -> Tensor:
        h = torch.addmm(bias, state, transposed)
        return h if carried is None else torch.cat([h, state[:, carried]], 1)

    width = len(bias) + (0 if carried is None else len(carried))
    return Step(apply, len(bias), width, weight, bias, carried)


def _affine_step(affine: Affine, carried: np.ndarray) -> Step:
    """x -> (A x ; x[carried]), through a dense product unless the matrix is large and sparse."""
    matrix = affine.weight
    columns = torch.from_numpy(carried) if len(carried) else None
    bias = torch.tensor(affine.bias)  # a copy: the network may be changed while a measure still reads the program
    # Per entry a dense product is about ten times as fast as a sparse one.
    if affine.nonzeros * 10 >= affine.in_features * affine.out_features or matrix.shape[0] * matrix.shape[1] < 1 << 16:
        return dense_step(torch.from_numpy(matrix.toarray()), bias, columns)

    return Step(SparseMap(matrix, bias, columns), len(bias), len(bias) + len(carried))


@dataclass(frozen=True)
class SparseMap:
    """x -> (A x + b ; x[carried]) with a sparse matrix: scipy's on the CPU, else torch's."""

    matrix: Any
    bias: Tensor
    carried: Tensor | None

    def to(self, device: torch.device) -> "SparseMap":
        entries = self.matrix.tocoo()
        indices = torch.from_numpy(np.stack([entries.row, entries.col]))
        values = torch.from_numpy(entries.data)
        with warnings.catch_warnings():  # that indices are not checked, which are scipy's
            warnings.filterwarnings("ignore", "Sparse invariant checks")
            matrix = torch.sparse_coo_tensor(indices, values, entries.shape, device=device)
        return SparseMap(matrix, self.bias.to(device), None if self.carried is None else self.carried.to(device))

    def __call__(self, state: Tensor) -> Tensor:
        if isinstance(self.matrix, Tensor):
            product = (self.matrix @ state.T).T
        else:
            product = torch.from_numpy(np.ascontiguousarray((self.matrix @ state.numpy().T).T))
        h = product + self.bias
        return h if self.carried is None else torch.cat([h, state[:, self.carried]], 1)


def _of_canonical(net: CanonicalNetwork, check: bool) -> Program:
    """The program of a canonical network. `check`: every step is compared with its layer, on random states."""
    # Coordinates are counted in z_L, of which z_k is the tail that starts where A_k's inputs start.
    total = net.readout.in_features
    reads = [np.unique(affine.indices) + total - affine.in_features for affine in net.affine_maps]
    needed = [np.zeros(0, dtype=np.int64)]
    for read in reversed(reads[1:]):
        needed.append(np.union1d(needed[-1], read))
    needed.reverse()  # needed[k]: read after step k
    state = np.arange(total - net.affine_maps[0].in_features, total)
    steps = []
    for k, affine in enumerate(net.affine_maps):
        start = total - affine.in_features
        carried = np.flatnonzero(np.isin(state, needed[k]))
        here = Affine(
            affine.indptr, np.searchsorted(state, affine.indices + start), affine.data, affine.bias, len(state)
        )
        step = _affine_step(here, carried)
        if check:
            _compare_step(step, affine, state - start, carried, k)
        last = k == net.depth
        steps.append(replace(step, units=0) if last else step)
        state = np.concatenate([np.arange(start - affine.out_features, start), state[carried]])
    return Program(tuple(steps), _shapes_of(net))


def _compare_step(step: Step, affine: Affine, state: np.ndarray, carried: np.ndarray, k: int) -> None:
    """Raise InternalError unless the step computes the layer's A z + b, to 1e-12 (|A| |z| + |b|): thousands of times
    its rounding, for sums of up to a thousand terms. state: which entries of z are its columns."""
    z = np.random.default_rng(k).standard_normal(affine.in_features)
    expected = np.concatenate([affine(z[None])[0], z[state[carried]]])
    given = step.apply(torch.from_numpy(z[state])[None])[0].numpy()
    size = np.concatenate([abs(affine.weight) @ abs(z) + abs(affine.bias), abs(z[state[carried]])])
    with np.errstate(invalid="ignore"):  # of infinite weights, which are refused elsewhere
        differs = (abs(given - expected) > 1e-12 * size).any()
    if differs:
        raise InternalError(f"measure: step {k} of a canonical network differs from its layer; please report it")


def _refuse_other_outputs(graph: "fx.GraphModule") -> None:
    """Raise SkipformError unless the graph returns one tensor with a row for each sample."""
    from skipform.compiler.check import output_nodes

    outputs = output_nodes(graph.graph)
    if len(outputs) != 1:
        raise SkipformError(f"measure: the net returns {len(outputs)} tensors; one is accepted")
    if not outputs[0].meta["val"].numel():
        raise SkipformError("measure: the net returns no number; at least one is accepted")
    if "batch_dim" not in outputs[0].meta:
        raise SkipformError(
            "measure: the net returns a constant without a batch dimension; one row a sample is accepted"
        )


def _checked(graph: "fx.GraphModule", example: Tensor, check: bool) -> Program:
    """The program of a rewritten module, compared with it if `check` is true."""
    _refuse_other_outputs(graph)
    program = _of_graph(graph, example)
    if check:
        program.compare(graph, tuple(example.shape[1:]))
    return program


def _of_graph(graph: "fx.GraphModule", example: Tensor) -> Program:
    """The program of a rewritten module: its nodes in order, cut before every ReLU."""
    nodes = list(graph.graph.nodes)
    (source,) = [node for node in nodes if node.op == "placeholder"]
    last_use = {argument: i for i, node in enumerate(nodes) for argument in node.all_input_nodes}
    moving = {source}  # nodes whose value depends on the input
    constants: dict[fx.Node, Any] = {}
    interpreter = _interpreter(graph)
    interpreter.env = constants
    with torch.no_grad():
        for node in nodes:
            if any(argument in moving for argument in node.all_input_nodes):
                moving.add(node)
            elif node is not source:
                constants[node] = interpreter.run_node(node)

    live, begin, row = [source], 0, example.reshape(1, -1)
    shapes = {source: tuple(example.shape[1:])}  # of one input's value, the batch dimension left out
    steps = []
    relus = [i for i, node in enumerate(nodes) if node.op == "call_function" and node.target is torch.relu]
    for cut in [*relus, len(nodes) - 1]:
        is_last = cut == len(nodes) - 1
        body = [node for node in nodes[begin:cut] if node in moving and node is not source]
        carried = [] if is_last else [node for node in (*live, *body) if last_use.get(node, -1) > cut]
        leaving = [nodes[cut].all_input_nodes[0], *carried]
        segment = Segment(interpreter, constants, tuple(live), tuple(body), tuple(leaving), shapes)
        with torch.no_grad():
            row, *rest = segment.run(row)
        state_shapes = [tuple(value.shape[1:]) for value in (row, *rest)]
        row = torch.cat([value.unsqueeze(1).flatten(1) for value in (row, *rest)], 1)
        steps.append(Step(segment, 0 if is_last else math.prod(state_shapes[0]), row.shape[1]))
        live, begin = [nodes[cut], *carried], cut + 1
        shapes = dict(zip(live, state_shapes, strict=True))
    return Program(tuple(steps), (tuple(example.shape[1:]),))


def _interpreter(graph: "fx.GraphModule") -> "fx.Interpreter":
    """An interpreter with the convolutions of convolution.py."""
    from torch import fx

    class Interpreter(fx.Interpreter):
        def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
            return conv2d(*args, **kwargs) if target is F.conv2d else super().call_function(target, args, kwargs)

    return Interpreter(graph)


@dataclass(frozen=True)
class Segment:
    """The affine nodes between two ReLUs as one map on states."""

    interpreter: "fx.Interpreter"
    constants: "dict[fx.Node, Any]"
    live: "tuple[fx.Node, ...]"
    body: "tuple[fx.Node, ...]"
    leaving: "tuple[fx.Node, ...]"
    shapes: "dict[fx.Node, tuple[int, ...]]"

    def to(self, device: torch.device) -> "Segment":
        """The segment on a device, with no constants but its own."""
        read = {argument for node in self.body for argument in node.all_input_nodes}
        own = {node: value for node, value in self.constants.items() if node in read}
        return replace(self, constants=pytree.tree_map_only(Tensor, lambda value: value.to(device), own))

    def run(self, state: Tensor) -> list[Tensor]:
        """The values of the nodes that leave the segment, (n, ...), with the batch dimension first."""
        widths = [math.prod(self.shapes[node]) for node in self.live]
        env = dict(self.constants)
        for node, columns in zip(self.live, state.split(widths, 1), strict=True):
            value = columns.reshape(len(state), *self.shapes[node])
            env[node] = value.movedim(0, node.meta.get("batch_dim", 0))
        interpreter = copy.copy(self.interpreter)  # several threads may run the segments of a program
        interpreter.env = env
        for node in self.body:
            env[node] = interpreter.run_node(node)
        return [env[node].movedim(node.meta.get("batch_dim", 0), 0) for node in self.leaving]

    @torch.no_grad()
    def __call__(self, state: Tensor) -> Tensor:
        return torch.cat([value.unsqueeze(1).flatten(1) for value in self.run(state)], 1)
