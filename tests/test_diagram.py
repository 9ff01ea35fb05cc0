"""The diagrams of nets: against the operations that are recorded while a net runs; and as they are drawn."""

import re
import runpy
import sys
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path

import matplotlib
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.overrides import TorchFunctionMode

from skipform import nets
from skipform.compiler.diagram import Diagram, Node, diagram

ROOT = Path(__file__).parents[1]
ATEN = {"interpolate": "upsample_nearest2d"}  # the names of functions of torch that ATen calls otherwise
COMPUTING = {
    *("add", "sub", "mul", "maximum", "cat", "conv2d", "conv_transpose2d", "batch_norm", "layer_norm", "linear"),
    *("relu", "max_pool2d", "upsample_nearest2d", "scaled_dot_product_attention"),
}


class Recorder(TorchFunctionMode):
    """Records what is computed of the inputs while a net runs: for every operation, or call of a module that is drawn
    whole, its name and which earlier ones it read. Independent of torch.export: results are known by identity."""

    def __init__(self, module, inputs, whole):
        super().__init__()
        self.names = ["input"] * len(inputs)
        self.reads = [[] for _ in inputs]
        self.made = {id(x): {k} for k, x in enumerate(inputs)}  # tensor -> the operations whose result it is
        self.alive = list(inputs)  # a tensor that is gone could give its identity to another one
        self.call, self.depth = None, 0
        for path, part in module.named_modules():
            if any(fnmatchcase(path, pattern) for pattern in whole):
                part.register_forward_pre_hook(self.enter)
                part.register_forward_hook(self.leave)

    def enter(self, part, args):
        if self.call is None:
            self.names.append("module")
            self.reads.append(set())
            self.call = len(self.names) - 1
        self.depth += 1  # of nested modules the outermost counts

    def leave(self, part, args, result):
        self.depth -= 1
        if not self.depth:
            self.call = None

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.__name__.rstrip("_")
        name = {"__add__": "add", "__sub__": "sub", "__mul__": "mul"}.get(name, ATEN.get(name, name))
        given, results = tensors((args, kwargs)), tensors(result)
        sources = set().union(*[self.made.get(id(x), set()) for x in given])
        if not sources or not results:
            return result
        if self.call is not None:
            self.reads[self.call] |= sources - {self.call}
            sources = {self.call}
        elif name in COMPUTING:
            self.names.append(name)
            self.reads.append(sources)
            sources = {len(self.names) - 1}
        elif any(list(x.shape) != list(y.shape) for x in results for y in given if id(y) in self.made):
            raise AssertionError(f"{name} is no operation that the tests know")
        for x in results:
            self.made[id(x)] = sources
            self.alive.append(x)
        return result


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [x for part in value for x in tensors(part)] if isinstance(value, list | tuple) else []


def recorded(module, inputs, whole=()):
    """The names and the edges of what a net computes, nested concatenations joined, without what no output reads."""
    inputs = [x.clone() for x in inputs]  # one tensor given twice is two inputs
    with torch.no_grad(), Recorder(module, inputs, whole) as recorder:
        outputs = tensors(module(*inputs))
    names, reads = list(recorder.names), [set(sources) for sources in recorder.reads]
    for k, name in enumerate(names):
        if name == "cat":
            reads[k] = {inner for s in reads[k] for inner in (reads[s] if names[s] == "cat" else {s})}
    for x in outputs:
        names.append("output")
        reads.append(set(recorder.made[id(x)]))
    needed = {k for k, name in enumerate(names) if name in ("input", "output")}
    for k in reversed(range(len(names))):
        needed |= reads[k] if k in needed else set()
    place = {k: i for i, k in enumerate(sorted(needed))}
    return [names[k] for k in sorted(needed)], {(place[s], place[k]) for k in needed for s in reads[k]}


def agree(module, inputs, whole=None):
    actual = diagram(module, inputs, whole)
    names, edges = recorded(module, inputs, whole or {})
    assert [node.operation for node in actual.nodes] == names
    assert set(actual.edges) == edges
    assert len(actual.edges) == len(edges)
    return actual


@pytest.mark.parametrize("skip", ["add", "none", "concat", "maximum", "subtract"])
@pytest.mark.parametrize("name", ["resnet", "preact"])
def test_a_residual_net_is_drawn_as_it_computes(name, skip):
    kinds = {"add": "add", "concat": "cat", "maximum": "maximum", "subtract": "sub"}
    net = nets.build(name, depth=14, width=2, skip=skip).eval()
    body = nn.Sequential(net.stem, *net.stages).eval()
    found = agree(body, (torch.zeros(2, 3, 8, 8),), {"*shortcut": "shortcut"} if skip != "none" else None)
    merges = [node for node in found.nodes if node.operation == kinds.get(skip)]
    assert len(merges) == (0 if skip == "none" else 6)


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_every_concatenation_of_a_dense_block_reads_all_layers_before_it(layers):
    block = nets.build("densenet", depth=3 * layers + 4, growth=3).eval().stages[0]
    found = agree(block, (torch.zeros(2, 16, 4, 4),))
    reads = [sum(j == k for _, j in found.edges) for k, node in enumerate(found.nodes) if node.operation == "cat"]
    assert reads == list(range(2, layers + 2))


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_random_nets_are_drawn_as_they_compute(data):
    """Any acyclic net: layer k reads one or two of the results before it; some lead nowhere; one may be drawn whole."""
    count = data.draw(st.integers(0, 7))
    wiring = [data.draw(st.lists(st.integers(0, k), min_size=1, max_size=2)) for k in range(count)]
    kinds = [data.draw(st.sampled_from(["relu", "linear", "pair", "sum", "cat"])) for _ in range(count)]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            pair = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
            made = {"relu": nn.ReLU, "linear": lambda: nn.Linear(2, 2), "pair": lambda: pair}
            self.layers = nn.ModuleList(made.get(kind, nn.Identity)() for kind in kinds)

        def forward(self, x):
            results = [x]
            for kind, reads, layer in zip(kinds, wiring, self.layers, strict=True):
                first, last = results[reads[0]], results[reads[-1]]
                joined = {"sum": lambda a, b: a + b, "cat": lambda a, b: torch.cat((a, b), 1)[:, :2] + 0 * a}
                results.append(joined[kind](first, last) if kind in joined else layer(first))
            return torch.relu(results[-1])

    net = Net().eval()
    whole = {f"layers.{k}": "pair" for k, kind in enumerate(kinds) if kind == "pair"}
    x = torch.zeros(3, 2)
    actual = diagram(net, x, whole)
    assert [node.operation for node in actual.nodes if node.operation == "output"] == ["output"]
    if "cat" not in kinds:  # whose slice is an operation of its own
        agree(Net().eval(), (x,), whole)
    for i, j in actual.edges:
        assert i < j


def test_what_changes_nothing_and_what_no_output_reads_is_left_out():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop, self.unused = nn.Dropout(0.5), nn.Linear(3, 3)

        def forward(self, x):
            self.unused(x)
            return {"y": self.drop(torch.relu(x))[:, :3], "x": x}

    expected = Diagram(
        (Node("input", "x", (3,)), Node("relu", "ReLU", (3,)), Node("output", "y", (3,)), Node("output", "x", (3,))),
        ((0, 1), (0, 3), (1, 2)),
    )
    assert diagram(Net().eval(), torch.zeros(2, 3)) == expected


# The schematics of the paper


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The notebook that draws them, and the folder in which its figures are."""
    folder = tmp_path_factory.mktemp("figures")
    sys.path.insert(0, str(ROOT / "analysis"))
    matplotlib.use("Agg")
    import frame

    frame.GENERATED = folder
    calls = []
    import skipform.compiler.diagram as compiler

    original = compiler.diagram

    def remember(module, inputs, whole=None):
        found = original(module, inputs, whole)
        calls.append((module, inputs if isinstance(inputs, tuple) else (inputs,), whole, found))
        return found

    compiler.diagram = remember
    notebook = runpy.run_path(str(ROOT / "analysis/architectures.py"))
    compiler.diagram = original
    yield notebook, folder, tuple(calls)  # the notebook remembers what tests draw with it, too
    sys.path.remove(str(ROOT / "analysis"))
    for name in ("frame", "style", "layered"):
        sys.modules.pop(name, None)


def test_every_schematic_has_the_nodes_and_edges_of_the_net_that_it_shows(drawn):
    notebook, folder, calls = drawn
    schematics = notebook["SCHEMATICS"]
    assert len(calls) == len(schematics) == 9
    for (name, shown), (module, inputs, whole, found) in zip(schematics.items(), calls, strict=True):
        assert shown == found
        names, edges = recorded(module, inputs, whole or {})
        svg = (folder / f"fig_{name}.svg").read_text()
        assert {int(k) for k in re.findall(r'id="node-(\d+)"', svg)} == set(range(len(names))), name
        assert {(int(i), int(j)) for i, j in re.findall(r'id="edge-(\d+)-(\d+)"', svg)} == edges, name
        assert [node.operation for node in shown.nodes] == names, name


def test_no_edge_crosses_a_node_and_a_skip_bends_around_what_it_bypasses(drawn):
    notebook, _, _ = drawn
    layered = notebook["layered"]
    for name, shown in notebook["SCHEMATICS"].items():
        centres, halves = layered.layout(shown)
        for (i, j), path in layered.routes(shown).items():
            for k, ((x, y), (w, h)) in enumerate(zip(centres, halves, strict=True)):
                for (x0, y0), (x1, y1) in pairwise(path):
                    for t in torch.linspace(0, 1, 201).tolist():  # finer than a box is wide
                        inside = abs(x0 + t * (x1 - x0) - x) < w - 1e-9 and abs(y0 + t * (y1 - y0) - y) < h - 1e-9
                        assert not inside, (name, i, j, k)
        for i in range(len(centres)):
            for j in range(i):
                pairs = zip(centres[i], centres[j], halves[i], halves[j], strict=True)
                assert any(abs(a - b) >= v + w - 1e-9 for a, b, v, w in pairs), (name, i, j)


def test_the_thick_lines_are_the_skips(drawn):
    """By hand: what leaves the longest path and comes back to it."""
    notebook, _, _ = drawn
    schematics, skip_edges = notebook["SCHEMATICS"], notebook["layered"].skip_edges
    counts = {name: len(skip_edges(shown)) for name, shown in schematics.items()}
    assert counts == {
        "without_skip": 0,
        "with_skip": 1,
        "resnext_block": 1,
        "projection_block": 3,  # into the convolution, into the norm, into the sum
        "dense_block": 4 + 3 + 2 + 1,  # from the input and from each layer to all concatenations but the next one
        "encoder": 2,
        "decoder": 3,
        "fpn": 4,  # a lateral connection on each of two levels: into its convolution and into the sum
        "unet": 3,
    }


def test_equal_nets_give_equal_bytes_and_another_net_another_drawing(drawn, tmp_path):
    notebook, folder, _ = drawn
    import frame

    frame.GENERATED = tmp_path
    style, layered = notebook["style"], notebook["layered"]
    style.use()
    for ending in ("svg", "pdf"):
        first = (folder / f"fig_with_skip.{ending}").read_bytes()
        for skip, same in (("add", True), ("none", False), ("concat", False), ("subtract", False)):
            shown = notebook["block"]("resnet", 16, "stages.0.0", depth=8, skip=skip)
            style.save(layered.draw(shown), "fig_with_skip")
            assert ((tmp_path / f"fig_with_skip.{ending}").read_bytes() == first) == same, skip
    frame.GENERATED = folder
