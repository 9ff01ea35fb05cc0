"""The guard of the compiler: a rewritten network is compared with its original before it is returned.

Both are evaluated in float64, at several batch sizes, on random inputs and where ReLUs and maxima have their kinks.
They sum in different orders, so they differ by rounding: AGREEMENT is a hundred times the largest difference on the
models of torchvision and timm (8.7e-15). Where two outputs differ by more, cancellation may be the reason. Then both
graphs are evaluated operation by operation, and a difference counts if it is larger than the change of the original's
own result when every intermediate result is perturbed.

    deviation of a tensor = its largest change over WALKS evaluations, in which each result r of an operation becomes
                            r + 2^-40 M g, with g standard normal and M the largest of its arguments and results
    allowed               = 2^-3 of it: what perturbations of 2^-43 do, a thousand roundings of 2^-53 an operation
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from skipform.compiler.capture import CAPTURE_FAILURES, Captured, mutates
from skipform.compiler.emit import where
from skipform.errors import InternalError, SkipformError, first_line

BATCHES = (("normal",), ("kinks", "wide"))  # one sample, which broadcasting may hide, and two, which may be mixed
AGREEMENT = 1e-12  # of two float64 evaluations, relative to the largest entry of a sample's output
PERTURBATION = 2.0**-40
WALKS = 4
ALLOWED = 2.0**-3


def samples(
    shapes: Sequence[tuple[int, ...]],
    kinds: Sequence[str] = ("normal", "kinks", "wide"),
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, ...]:
    """Inputs (b, *shape) in float64 whose entries `dtype` holds exactly, the same at every call; one sample per kind:

    normal    standard normal entries
    kinks     -1, 0 and 1 alike often, so that zeros and ties are everywhere
    wide      normal entries times 10^s, s uniform in [-3, 3]
    """
    generator = torch.Generator().manual_seed(0)
    inputs = []
    for shape in shapes:
        x = torch.randn(len(kinds), *shape, generator=generator, dtype=torch.float64)
        exponent = 6 * torch.rand(x.shape, generator=generator, dtype=torch.float64) - 3
        for k, kind in enumerate(kinds):
            if kind == "kinks":
                x[k] = x[k].sign() * (x[k].abs() > 0.43)  # one normal number in three is smaller
            elif kind == "wide":
                x[k] *= 10 ** exponent[k]
        inputs.append(x.to(dtype).double())
    return tuple(inputs)


@torch.no_grad()
def check(
    module: nn.Module, captured: Captured, graph: fx.GraphModule, written: dict[fx.Node, Any], inputs: Sequence[Tensor]
) -> None:
    """Raise InternalError, naming the first operation that differs, unless `graph` computes what `module` does.

    captured: the module's graph of ATen operations. graph: the rewritten one, in float64. written: the result of each
    operation of the first in the second. inputs: the example inputs.
    """
    shapes, dtype, device = [tuple(x.shape[1:]) for x in inputs], inputs[0].dtype, inputs[0].device
    batch_dims = [n.meta.get("batch_dim") for n in output_nodes(graph.graph)]
    for kinds in BATCHES:
        points = tuple(x.to(device) for x in samples(shapes, kinds, dtype))
        given, promoted = tensors(graph(*points)), _promoted(module, points)
        if promoted is not None and _alike(promoted, given, batch_dims, AGREEMENT):
            continue
        coarseness = torch.finfo(dtype).eps / torch.finfo(torch.float64).eps
        own = _at_own_precision(module, points, dtype)
        if promoted is None and _alike(own, given, batch_dims, AGREEMENT * coarseness):
            continue
        arguments = _arguments(captured, points)
        original = Evaluation(captured.graph, arguments).values
        allowed = deviations(captured.graph, arguments, original)
        ours = Evaluation(graph.graph, points, graph).values
        pairs = ((node, ours[new]) for node, new in written.items() if isinstance(new, fx.Node) and new in ours)
        first_difference(((where(node), node, value) for node, value in pairs), original, allowed)
        # Every operation is right: the captured graph is what differs from the module, or all of it is rounding, in the
        # precision of the module if its forward asks for that.
        slack = [allowed.get(node, torch.zeros(1)) for node in output_nodes(captured.graph)]
        if promoted is not None and _alike(promoted, given, batch_dims, AGREEMENT, slack):
            continue
        slack = [coarseness * deviation for deviation in slack]
        if not _alike(own, given, batch_dims, AGREEMENT * coarseness, slack):
            raise SkipformError(
                f"{type(module).__name__}: on a batch of {len(kinds)} it computes something else than its captured"
                " graph; accepted is a forward without chance, memory and code that torch.export does not see, the same"
                " for every batch size"
            )


@torch.no_grad()
def compare_forms(graph: fx.GraphModule, other: fx.GraphModule, box: tuple[Any, Any] | None = None) -> None:
    """Raise InternalError unless a target's graph computes what the rewritten `graph` does, on one sample of each kind,
    moved into the box if there is one; both are in float64, and `graph` itself was compared with the module."""
    points = samples([tuple(n.meta["val"].shape[1:]) for n in graph.graph.nodes if n.op == "placeholder"])
    if box is not None:
        lower, upper = (torch.as_tensor(bound, dtype=torch.float64) for bound in box)
        points = tuple(x.clamp(lower, upper) for x in points)
    expected, given = tensors(graph(*points)), tensors(other(*points))
    nodes = output_nodes(graph.graph)
    dims = [batch_dim(n) for n in nodes]
    if _alike(expected, given, dims, AGREEMENT):
        return
    allowed = deviations(graph.graph, points, Evaluation(graph.graph, points, graph).values, graph)
    if not _alike(expected, given, dims, AGREEMENT, [allowed.get(node, torch.zeros(1)) for node in nodes]):
        raise InternalError(
            f"{type(other).__name__}: differs from the rewritten module; this is a defect of skipform, please report it"
        )


def _alike(
    expected: Sequence[Tensor],
    given: Sequence[Tensor],
    batch_dims: Sequence[int | None],
    relative: float,
    absolute: Sequence[Tensor] = (),
) -> bool:
    """Whether all outputs agree."""
    slack = absolute or [torch.zeros(1)] * len(given)
    return len(expected) == len(given) and all(map(agree, expected, given, batch_dims, repeat(relative), slack))


def first_difference(
    values: Iterable[tuple[str, fx.Node, Tensor]], original: dict[fx.Node, Tensor], allowed: dict[fx.Node, Tensor]
) -> None:
    """Raise InternalError at the first (place, node, value) whose value is not that of `original`."""
    for place, node, value in values:
        if not agree(original[node], value, batch_dim(node), AGREEMENT, allowed[node]):
            gap, size = apart(original[node], value, batch_dim(node))
            worst = int((gap / size.clamp(min=torch.finfo(torch.float64).tiny)).argmax())
            raise InternalError(
                f"{place}: its rewritten form differs by {gap[worst]:.1e} where the largest entry is {size[worst]:.1e};"
                " this is a defect of skipform, please report the module"
            )


def agree(
    expected: Tensor, given: Tensor, batch_dim: int | None, relative: float, absolute: Tensor | float = 0.0
) -> bool:
    """Whether no sample's entries differ by more than `relative` times the largest of them, or `absolute`."""
    gap, size = apart(expected, given, batch_dim)
    return bool((gap <= torch.maximum(relative * size, torch.as_tensor(absolute, dtype=size.dtype))).all())


def apart(expected: Tensor, given: Tensor, batch_dim: int | None) -> tuple[Tensor, Tensor]:
    """The largest difference of two tensors and the largest entry of the first, one number per sample. Infinities and
    NaN are equal to themselves, and infinitely far from everything else."""
    if expected.shape != given.shape:
        return torch.tensor([torch.inf]), torch.tensor([1.0])
    expected, given = (rows(x, batch_dim).double() for x in (expected, given))
    if expected.shape[1] == 0:
        return torch.zeros(1), torch.zeros(1)
    same = (expected == given) | (expected.isnan() & given.isnan())
    gap = torch.where(same, 0.0, (expected - given).abs()).nan_to_num(nan=torch.inf, posinf=torch.inf)
    return gap.amax(1).cpu(), expected.abs().nan_to_num(nan=0.0, posinf=0.0).amax(1).cpu()


def rows(x: Tensor, batch_dim: int | None) -> Tensor:
    """(samples, entries of one)."""
    return x.reshape(1, -1) if batch_dim is None else x.movedim(batch_dim, 0).unsqueeze(1).flatten(1)


def from_rows(x: Tensor, like: Tensor, batch_dim: int) -> Tensor:
    """The inverse of `rows` for a tensor shaped like `like`."""
    return x.reshape(like.movedim(batch_dim, 0).shape).movedim(0, batch_dim)


def batch_dim(node: fx.Node) -> int | None:
    """The batch dimension of a node's tensor, of a captured graph or a rewritten one."""
    if "batch_dim" in node.meta:
        return node.meta["batch_dim"]
    sizes = node.meta["val"].shape
    return next((dim for dim, size in enumerate(sizes) if isinstance(size, torch.SymInt)), None)


def tensors(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def output_nodes(graph: fx.Graph) -> list[fx.Node]:
    return [leaf for leaf in pytree.tree_leaves(graph.output_node().args) if isinstance(leaf, fx.Node)]


def _promoted(module: nn.Module, points: tuple[Tensor, ...]) -> list[Tensor] | None:
    """The module's outputs at points with its weights in float64; None if its forward makes tensors of another dtype,
    which do not go with these."""
    state = (*module.named_parameters(), *module.named_buffers())
    weights = {name: tensor.double() for name, tensor in state if tensor.is_floating_point()}
    try:
        return tensors(functional_call(module, weights, tuple(x.clone() for x in points)))
    except CAPTURE_FAILURES:
        return None


def _at_own_precision(module: nn.Module, points: tuple[Tensor, ...], dtype: torch.dtype) -> list[Tensor]:
    """The module's outputs at points, computed in its own dtype."""
    try:
        return [y.double() for y in tensors(module(*(x.to(dtype, copy=True) for x in points)))]
    except CAPTURE_FAILURES as error:
        raise SkipformError(
            f"{type(module).__name__}: forward does not run on a batch of {len(points[0])} ({first_line(error)});"
            " one that works for every batch size is accepted"
        ) from None


def _arguments(captured: Captured, points: Sequence[Tensor]) -> list[Tensor]:
    """The values of the placeholders of the captured graph."""
    given = dict(zip(captured.inputs, points, strict=True)) | captured.constants
    values = [given[node.name] for node in captured.graph.nodes if node.op == "placeholder"]
    return [value.double().clone() if value.is_floating_point() else value for value in values]


def deviations(
    graph: fx.Graph, arguments: Sequence[Tensor], original: dict[fx.Node, Tensor], root: nn.Module | None = None
) -> dict[fx.Node, Tensor]:
    """The largest difference that rounding may cause at every node, one number per sample (see above)."""
    largest: dict[fx.Node, Tensor] = {}
    for seed in range(WALKS):
        for node, value in Evaluation(graph, arguments, root, seed).values.items():
            deviation = ALLOWED * apart(original[node], value, batch_dim(node))[0]
            largest[node] = torch.maximum(deviation, largest.get(node, deviation))
    return largest


class Evaluation(fx.Interpreter):
    """A graph's value at every node, in float64; perturbed if a seed is given."""

    def __init__(
        self, graph: fx.Graph, arguments: Sequence[Tensor], root: nn.Module | None = None, seed: int | None = None
    ):
        super().__init__(root or nn.Module(), graph=graph)
        self.values: dict[fx.Node, Tensor] = {}
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)
        self.run(*(x.clone() for x in arguments))

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A cast to the module's own dtype is one to float64 here; an assertion of that dtype is skipped. A constant
        that forward makes in a dtype of its own, with no tensor to start from, keeps the numbers of that dtype."""
        if target is torch.ops.aten._assert_tensor_metadata.default:
            return None
        if not tensors((args, kwargs)):
            return super().call_function(target, args, kwargs)
        args, kwargs = fx.node.map_aggregate(
            (args, kwargs), lambda a: torch.float64 if isinstance(a, torch.dtype) and a.is_floating_point else a
        )
        return super().call_function(target, args, kwargs)

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if not (isinstance(result, Tensor) and result.is_floating_point()):
            return result
        result = result.double()
        if self.generator is not None and n.op == "call_function":
            noise = torch.randn(result.shape, generator=self.generator, dtype=torch.float64).to(result.device)
            noise *= PERTURBATION * max(_sizes((result, *self.fetch_args_kwargs_from_env(n))), default=0.0)
            result = result.add_(noise) if mutates(n) else result + noise
        if n.op != "output":
            self.values[n] = result.clone()  # a later operation may write into it
        return result


def _sizes(values: Any) -> Iterator[float]:
    """The largest absolute value of each tensor."""
    for x in tensors(values):
        if x.is_floating_point() and x.numel():
            yield float(x.abs().max())
