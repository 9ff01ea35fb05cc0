"""`skipform grammar`: every architecture of the survey as a canonical network, before and after rewriting.

Weights do not matter: depth, ReLUs and carried width depend only on the architecture and the size of its input.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from skipform import nets
from skipform.arguments import Count
from skipform.compiler.flatten import structure
from skipform.compiler.rewrite import UnsupportedOperation, rewrite
from skipform.compiler.skips import bypassed
from skipform.files import write_json
from skipform.outputs import work_folder
from skipform.sources import fingerprint
from skipform.training import launch

# The published models that represent a net; any other net is represented by the first of its VARIANTS.
CHOSEN = {
    "activation_blocks": ("M1 concat", "M2 concat"),
    "densenet": ("DenseNet (40, 12)", "DenseNet-BC (100, 12)"),
    "fcn": ("FCN-8s",),
    "pooled": ("max", "relu"),
    "preact": ("PreResNet-110",),
    "resnet": ("ResNet-20", "ResNet-56", "ResNet-110"),
    "ror": ("RoR-3-110",),
    "shortcuts": ("convolution 110",),
    "transformer": ("base, the layers alone",),
    "vgg": ("VGG-16-BN",),
}
SMOKE = (("mlp", "MLP-2"), ("resnet", "ResNet-20"), ("vgg", "VGG-16-BN"))
# Shapes without the batch: an image of CIFAR, unless INPUTS has another. 188 is the smallest size that U-Net takes.
IMAGE = ((3, 32, 32),)
INPUTS = {
    "bert": ((16, 768),),
    "gpt": ((16, 768),),
    "transformer": ((16, 512), (16, 512)),
    "unet": ((1, 188, 188),),
    "vit": ((3, 224, 224),),
}
# Tokens are not vectors; the first layer, on the embeddings, represents such a net.
PART = {"bert": "layers.0", "gpt": "layers.0"}


def main(*, out: str, scale: Literal["smoke", "embedded", "paper"] = "embedded", workers: Count | None = None) -> None:
    """Rewrite the published models of the survey and write their numbers of ReLU layers, ReLUs and coordinates carried.

    One row per model, at its published width and depth, for the input that the row names. A net that is not piecewise
    linear has the compiler's reason instead. Every row also has the numbers of activations that its skips bypass.
    Finished rows are stored in OUT.partial, so that a killed run continues from there.

    Args:
        out: The JSON file to write.
        scale: smoke takes three small models, the other scales take all.
        workers: Local processes; one per core when not given.
    """
    package = Path(__file__).parent.parent
    sources = [*package.glob("compiler/*.py"), *package.glob("nets/*.py"), Path(__file__)]
    with work_folder(out, "grammar") as partial:
        rows = launch.run_grid(
            row,
            [{"net": net, "variant": variant} for net, variant in (SMOKE if scale == "smoke" else chosen())],
            partial,
            digest=fingerprint(None, sources),
            title="grammar",
            workers=workers,
        )
        write_json(out, rows)


def chosen() -> list[tuple[str, str]]:
    """(net, variant) of every row, nets in alphabetical order."""
    variants: dict[str, list[str]] = {}
    for claim in nets.survey():
        variants.setdefault(claim["net"], []).append(claim["variant"])
    return [(net, label) for net, labels in variants.items() for label in CHOSEN.get(net, labels[:1])]


def row(net: str, variant: str) -> dict[str, Any]:
    """One model: {net, variant, inputs, bypassed, before, after}, or {net, variant, inputs, bypassed, reason}.

    bypassed: the numbers of activations that its skips bypass, see compiler/skips.py; the others, see `described`.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    claims = {claim["variant"]: claim["arguments"] for claim in nets.survey() if claim["net"] == net}
    inputs = INPUTS.get(net, IMAGE)
    model = {"net": net, "variant": variant, "inputs": [list(shape) for shape in inputs]}
    module = nets.build(net, **claims[variant]).get_submodule(PART.get(net, "")).eval()
    tensors = tuple(torch.zeros(1, *shape) for shape in inputs)
    return model | {"bypassed": bypassed(module, tensors)} | described(module, *tensors)


def described(module: nn.Module, *inputs: Tensor) -> dict[str, Any]:
    """The size of the module and of its canonical network, for one sample; or the reason why it has none.

    before  depth: ReLU layers on the longest path; relu_count: their entries; max_poolings: the number of such layers;
            held: the most numbers that are still needed right after a ReLU or a max pooling, or at the start
    after   depth and relu_count of the canonical network; carried: the most coordinates of a z_k that are still needed
    The module is on the meta device afterwards.
    """
    try:
        graph = rewrite(module, inputs, "keep_add")
    except UnsupportedOperation as unsupported:
        return {"reason": str(unsupported)}
    after = structure(graph)
    carried = Carried(graph).most(*inputs)
    watched = Watched([x.to("meta") for x in inputs])
    with torch.no_grad(), watched:
        outputs = module.to("meta")(*watched.tensors)
    return {
        "before": watched.counts(outputs),
        "after": {"depth": after.depth, "relu_count": after.relu_count, "carried": carried},
    }


class Watched(TorchDispatchMode):
    """Follows the tensors that depend on the inputs through every operation of a forward pass. They are numbered in the
    order in which they are made, and none is freed, so that a number always means the same tensor."""

    def __init__(self, inputs: list[Tensor]):
        super().__init__()
        self.tensors = inputs
        self.number = WeakTensorKeyDictionary()  # of each tensor
        self.depth: list[int] = []  # ReLU layers below each tensor
        self.steps: list[tuple[str, list[int], list[int]]] = [("", [], self._add(inputs, 0))]  # name, reads, writes

    def _add(self, tensors: list[Tensor], depth: int) -> list[int]:
        """The numbers of the tensors, which an operation has just written."""
        for x in tensors:
            if x not in self.number:
                self.number[x] = len(self.depth)
                self.depth.append(depth)
            self.depth[self.number[x]] = depth
        return [self.number[x] for x in tensors]

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        leaves = pytree.tree_leaves((args, kwargs))
        reads = [self.number[x] for x in leaves if isinstance(x, Tensor) and x in self.number]
        if reads:
            name = function._schema.name.removeprefix("aten::")
            written = [x for x in pytree.tree_leaves(result) if isinstance(x, Tensor)]
            self.tensors += written
            depth = max(self.depth[i] for i in reads) + (name == "relu")
            self.steps.append((name, reads, self._add(written, depth)))
        return result

    def counts(self, outputs: Any) -> dict[str, int]:
        """The entry "before" of `described`, from the operations that were followed."""
        size = {self.number[x]: x.numel() for x in self.tensors}
        final = [self.number[x] for x in pytree.tree_leaves(outputs) if isinstance(x, Tensor)]
        last = {i: step for step, (_, reads, _) in enumerate(self.steps) for i in reads}
        last |= dict.fromkeys(final, len(self.steps))
        held, most, relus = dict[int, int](), 0, list[int]()
        poolings = 0
        for step, (name, _, writes) in enumerate(self.steps):
            held |= {i: size[i] for i in writes}
            held = {i: n for i, n in held.items() if last.get(i, step) > step}
            pooling = "max_pool" in name
            poolings += pooling
            if name == "relu":
                relus += [size[i] for i in writes]
            if name == "relu" or pooling or not step:
                most = max(most, sum(held.values()))
        depth = max(self.depth[i] for i in final)
        return {"depth": depth, "relu_count": sum(relus), "max_poolings": poolings, "held": most}


class Carried(fx.Interpreter):
    """Runs a rewritten graph to find out which coordinates (inputs and ReLUs) every ReLU and every output reads.

    `structure` counts whole tensors; here a coordinate is carried until its own last reader. All weights are made
    positive, so that a derivative is zero exactly where no path leads. The graph cannot be used afterwards.
    """

    def __init__(self, graph: fx.GraphModule):
        super().__init__(graph)
        for weight in graph.buffers():
            if weight.is_floating_point():
                weight.abs_()
        self.states: list[Tensor] = []  # the coordinates, one tensor per input or ReLU layer
        self.born: list[int] = []  # the k of the first z_k that has them
        self.last: list[Tensor] = []  # the k of the last z_k in which they are read, -1 for none

    def most(self, *inputs: Tensor) -> int:
        """The most coordinates that are carried at once, in z_0, ..., z_L."""
        outputs = [y for y in pytree.tree_leaves(self.run(*inputs)) if isinstance(y, Tensor)]
        depth = max(self.born)
        for y in outputs:
            self._read(y, depth)
        carried = torch.zeros(depth + 2, dtype=torch.long)
        for born, last in zip(self.born, self.last, strict=True):
            ends = last[last >= born] + 1
            carried[born] += len(ends)
            carried -= torch.bincount(ends, minlength=depth + 2)
        return int(carried.cumsum(0).max())

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op == "placeholder":
            return self._open(result, 0)
        if n.target is torch.relu:
            return self._open(result, self._read(self.env[n.all_input_nodes[0]]) + 1)
        return result

    def _open(self, like: Tensor, born: int) -> Tensor:
        self.states.append(torch.zeros_like(like, requires_grad=True))
        self.born.append(born)
        self.last.append(torch.full(like.shape, -1))
        return self.states[-1]

    def _read(self, y: Tensor, layer: int | None = None) -> int:
        """Note what y reads, in the given layer or the first in which all of it is there; returns the layer."""
        if not y.requires_grad:
            return -1
        slopes = torch.autograd.grad(y, self.states, torch.ones_like(y), retain_graph=True, allow_unused=True)
        pairs = [(k, slope != 0) for k, slope in enumerate(slopes) if slope is not None]
        at = max(self.born[k] for k, _ in pairs) if layer is None else layer
        for k, mask in pairs:
            self.last[k] = torch.where(mask, self.last[k].clamp(min=at), self.last[k])
        return at
