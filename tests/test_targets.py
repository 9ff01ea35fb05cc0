"""The targets verifier and perceptron: equal to the model, in the operations promised, as files too."""

import itertools

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from test_compiler_rules import Function
from torch import nn
from verifier_models import MODELS, shape_of

from skipform.compiler import onnx_file, targets
from skipform.compiler.rewrite import rewrite
from skipform.compiler.targets import Settings, bounds_of
from skipform.compiler.targets.perceptron import chain
from skipform.compiler.targets.verifier import convolution_of, convolutions_of
from skipform.errors import SkipformError
from skipform.stages import cli
from skipform.theory.affine import Affine
from skipform.theory.network import CanonicalNetwork

BOX = (-0.5, 1.0)
VERIFIER = {"Conv", "Gemm", "Relu", "Add", "Concat", "Flatten", "Reshape"}
# Relative to the largest output: float64 rounds sums of at most 100 terms in at most 20 layers, 2000 times 2^-53 at
# worst; a float32 file does the same with 2^-24, where signs alternate: 1e-5 is sqrt(2000) times 2^-24 fourfold.
DOUBLE, SINGLE = 1e-12, 1e-5


def inside(name, count=5):
    x = torch.rand(count, *shape_of(name), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return BOX[0] + (BOX[1] - BOX[0]) * x


def written(name, target, path, box=None):
    """The rewritten float32 model and its file."""
    plain = rewrite(MODELS[name].float(), torch.zeros(1, *shape_of(name)), target, box=box)
    onnx_file.save(plain, path)
    return plain


@pytest.mark.parametrize("target", ["verifier", "perceptron"])
@pytest.mark.parametrize("name", MODELS)
def test_the_target_equals_the_model_in_float64_and_as_a_file(name, target, tmp_path):
    module, x = MODELS[name].double(), inside(name)
    plain = rewrite(module, x[:1], target, box=BOX if target == "perceptron" else None)
    with torch.no_grad():
        expected = module(x)
    assert (plain(x) - expected).abs().max() <= DOUBLE * expected.abs().max()
    onnx_file.save(plain.float(), tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    for sample, y in zip(x, expected, strict=True):
        (actual,) = session.run(None, {"input_0": sample[None].float().numpy()})
        assert np.abs(actual - y.numpy()).max() <= SINGLE * expected.abs().max()
    model = onnx.load(tmp_path / "net.onnx")
    kinds = [node.op_type for node in model.graph.node]
    assert (model.opset_import[0].version, model.ir_version) == (9, 4)
    if target == "verifier":
        assert set(kinds) <= VERIFIER
        assert all(a.i == 1 for n in model.graph.node for a in n.attribute if n.op_type == "Conv" and a.name == "group")
        assert all(a.i == 1 for n in model.graph.node for a in n.attribute if n.op_type == "Concat")
    else:
        core = [kind for kind in kinds if kind not in ("Flatten", "Reshape")]
        assert core == ["Gemm", "Relu"] * (len(core) // 2) + ["Gemm"]
        assert set(kinds[1:-1]) <= {"Gemm", "Relu"}


@st.composite
def networks(draw):
    """Canonical networks of whole numbers, some entries zero, some ReLUs read by nobody."""
    inputs, widths = draw(st.integers(1, 3)), draw(st.lists(st.integers(1, 3), max_size=3))
    maps, size = [], inputs
    for width in [*widths, draw(st.integers(1, 2))]:
        entries = draw(st.lists(st.integers(-2, 2), min_size=width * (size + 1), max_size=width * (size + 1)))
        matrix = np.array(entries).reshape(width, size + 1)
        maps.append(Affine.of(matrix[:, :-1], matrix[:, -1]))
        size += width
    return CanonicalNetwork(tuple(maps[:-1]), maps[-1])


@settings(max_examples=100, deadline=None)
@given(networks(), st.booleans())
def test_a_chain_equals_its_canonical_network_and_carries_only_what_is_read(network, bounded):
    lower = np.full(network.in_features, -3.0) if bounded else None
    chained = chain(network, lower)
    x = np.random.default_rng(0).integers(-3, 4, (20, network.in_features)).astype(float)
    assert np.array_equal(chained.evaluate(x), network.evaluate(x))  # whole numbers far below 2^53
    # The widths again, by a search for what each output still needs, coordinate by coordinate.
    size, needed = network.readout.in_features, set()
    rows = {}  # coordinate of z_L -> the coordinates that it reads
    for a in network.layers:
        start = size - a.in_features
        for i, row in enumerate(a.weight.toarray()):
            rows[start - a.out_features + i] = {start + j for j in np.flatnonzero(row)}
    todo = {int(j) for row in network.readout.weight.toarray() for j in np.flatnonzero(row)}
    readers = dict.fromkeys(todo, network.depth)  # the last map that reads a coordinate
    needed = set(todo)
    while todo:
        j = todo.pop()
        for read in rows.get(j, ()):
            layer = next(
                k
                for k, a in enumerate(network.layers)
                if size - a.in_features - a.out_features <= j < size - a.in_features
            )
            readers[read] = max(readers.get(read, -1), layer)
            if read not in needed:
                needed.add(read)
                todo.add(read)
    for k, a in enumerate(network.layers):
        own = range(size - a.in_features - a.out_features, size - a.in_features)
        older = [j for j in range(size - a.in_features, size) if readers.get(j, -1) > k]
        per_input = 1 if bounded else 2
        carried = sum(per_input if j >= size - network.in_features else 1 for j in older)
        assert chained.widths[k] == sum(j in needed for j in own) + carried
    for a, width in zip(chained.affine_maps[1:], chained.widths, strict=True):
        assert a.indices.max(initial=0) < max(width, 1)  # the newest layer comes first: no skip


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_matrix_of_a_convolution_is_recognised(data):
    c, o = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))
    kernel, stride, padding = ([data.draw(st.integers(low, 3)) for _ in range(2)] for low in (1, 1, 0))
    spatial = [data.draw(st.integers(max(1, k - 2 * p), 6)) for k, p in zip(kernel, padding, strict=True)]
    weight = torch.tensor(
        data.draw(
            st.lists(st.integers(-2, 2), min_size=o * c * kernel[0] * kernel[1], max_size=o * c * kernel[0] * kernel[1])
        ),
        dtype=torch.float64,
    ).reshape(o, c, *kernel)
    unit = torch.eye(c * spatial[0] * spatial[1], dtype=torch.float64).reshape(-1, c, *spatial)
    images = F.conv2d(unit, weight, stride=stride, padding=padding)
    matrix = sparse.csr_array(images.flatten(1).T.numpy())
    kernels = convolution_of(matrix, (c, *spatial), tuple(images.shape[1:]))
    if kernels is not None:  # unless zeros of the kernel, or a Gemm with fewer weights
        again = F.conv2d(unit, torch.from_numpy(kernels.weight), stride=kernels.stride, padding=kernels.padding)
        assert torch.equal(again, images)
    elif matrix.nnz:
        assert o * c * kernel[0] * kernel[1] > matrix.shape[0] * matrix.shape[1] or (weight == 0).any()


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 2, 1)])
def test_max_pooling_becomes_convolutions_alone(kernel, stride, padding):
    plain = rewrite(nn.MaxPool2d(kernel, stride, padding).eval(), torch.zeros(1, 2, 9, 8), "verifier")
    kinds = {n.target for n in plain.graph.nodes if n.op == "call_function"}
    assert kinds == {F.conv2d, torch.relu, torch.add}
    assert sum(buffer.numel() for buffer in plain.buffers()) < 1000  # a Gemm would have 20,000


def test_what_is_no_convolution_is_not_taken_for_one():
    matrix = sparse.csr_array(np.arange(1.0, 65.0).reshape(4, 16))  # strides of 4 and more would do for any matrix
    assert convolution_of(matrix, (1, 4, 4), (1, 2, 2)) is None
    assert convolutions_of(matrix, (1, 4, 4), (1, 2, 2)) is None


@pytest.mark.parametrize(
    ("target", "module", "options", "words"),
    [
        ("verifer", nn.ReLU(), {}, "did you mean verifier"),
        ("perceptron", nn.Conv2d(1, 4, 3), {"memory": 8 * (36 + 1) * 64 - 1}, "GiB is accepted"),
        ("verifier", nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(64, 64)), {"memory": 8 * 4096}, "GiB"),
        ("perceptron", Function(lambda x: (x, torch.ones(2))), {}, "batch first"),
        ("perceptron", nn.ReLU(), {"box": (1.0, 0.0)}, "lower <= upper"),
        ("perceptron", nn.ReLU(), {"box": (0.0, np.inf)}, "finite"),
        ("perceptron", nn.ReLU(), {"box": (np.zeros(7), 1.0)}, "shape (1, 6, 6)"),
        ("verifier", Function(lambda x: x.permute(1, 0, 2, 3)), {}, "batch first"),
    ],
)
def test_what_a_target_cannot_write_is_refused_in_one_line(target, module, options, words):
    with pytest.raises(SkipformError) as error:
        rewrite(module.eval(), torch.zeros(1, 1, 6, 6), target, **options)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def concatenation(x, y, z):
    """relu of an image's rows, a vector and a number, with one skip: shapes (2, 3), (4,), (1,)."""
    return torch.cat([x.flatten(1).relu(), (y - 1).abs(), z], 1).cumsum(1).relu() - z


@pytest.mark.parametrize("target", ["verifier", "perceptron"])
@pytest.mark.parametrize("box", [None, (-0.5, 1.0)])
def test_several_inputs_are_read_in_their_order(target, box, tmp_path):
    shapes = [(2, 3), (4,), (1,)]
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.rand(1, *shape, generator=generator) * 1.5 - 0.5 for shape in shapes]
    module = Function(concatenation).eval()
    plain = rewrite(module, tuple(inputs), target, box=box)
    onnx_file.save(plain, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    assert names == ["input_0", "input_1", "input_2"]
    (y,) = session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
    expected = module(*inputs)
    assert np.abs(y - expected.numpy()).max() <= SINGLE * expected.abs().max()
    if target == "perceptron":  # one concatenation and flattening in front of the chain
        kinds = [node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node]
        assert kinds == ["Flatten", "Concat", *["Gemm", "Relu"] * (kinds.count("Gemm") - 1), "Gemm", "Reshape"]
        network = find_network(module, tuple(inputs), box)
        assert network.in_features == 11
        flat = torch.cat([x.flatten(1) for x in inputs], 1).double()
        assert (network(flat) - expected).abs().max() <= SINGLE * expected.abs().max()


@pytest.mark.parametrize("box", [None, (-0.5, 1.0)])
def test_each_of_several_outputs_of_a_perceptron_has_a_last_gemm_of_its_own(box, tmp_path):
    x = torch.rand(1, 2, 3, generator=torch.Generator().manual_seed(0)) * 1.5 - 0.5

    def several(x):
        h = (x.flatten(1).cumsum(1) - 0.5).relu()
        return {"image": h.view(-1, 2, 3) + x, "pair": (h[:, :2], h[:, :2]), "scores": (h.cumsum(1) - 1).relu()}

    module = Function(several).eval()
    plain = rewrite(module, x, "perceptron", box=box)
    with torch.no_grad():
        expected, actual = module(x), plain(x)
    assert actual.keys() == expected.keys()
    onnx_file.save(plain, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    leaves = [expected["image"], *expected["pair"], expected["scores"]]
    for found in ([actual["image"], *actual["pair"], actual["scores"]], session.run(None, {"input_0": x.numpy()})):
        for y, known in zip(found, leaves, strict=True):
            assert y.shape == known.shape
            assert np.abs(np.asarray(y) - known.numpy()).max() <= SINGLE * known.abs().max()
    kinds = [node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node]
    assert set(kinds) == {"Flatten", "Gemm", "Relu", "Reshape"}
    assert kinds.count("Gemm") == kinds.count("Relu") + 3  # equal outputs share theirs
    network = find_network(module, (x,), box)
    flat = torch.cat([y.flatten(1) for y in leaves], 1)
    assert (network(x.double()) - flat).abs().max() <= SINGLE * flat.abs().max()


def find_network(module, inputs, box):
    return targets.find("perceptron").network(module, inputs, Settings(box=box))


def test_a_perceptron_that_just_fits_is_written():
    module = nn.Conv2d(1, 4, 3).eval()
    assert rewrite(module, torch.zeros(1, 1, 6, 6), "perceptron", memory=2**20, check=False) is not None


def test_every_file_of_the_folder_is_a_target():
    for name in targets.names():
        assert callable(targets.find(name).rewritten)


def test_bounds_spread_over_the_input():
    lower, upper = bounds_of((0.0, np.arange(3.0)), (2, 3))
    assert lower.shape == upper.shape == (2, 3)


@pytest.mark.parametrize(("target", "suffix"), itertools.product(["verifier", "perceptron"], [".onnx", ".safetensors"]))
def test_the_command_writes_a_target(target, suffix, tmp_path, capsys):
    out = tmp_path / f"net{suffix}"
    options = ["--input", "1,1,4,4", "--target", target, "--box", "[0, 1]", "--out", str(out)]
    assert cli.main(["rewrite", "torch.nn:MaxPool2d", "--arguments", '{"kernel_size": 2}', *options]) == 0
    assert "written" in capsys.readouterr().out
    if suffix == ".safetensors":
        network = CanonicalNetwork.load(out)
        x = torch.rand(3, 1, 4, 4, dtype=torch.float64)
        assert torch.allclose(network(x), F.max_pool2d(x, 2), rtol=0, atol=1e-15)  # maxima of numbers below 1
        skips = any(a.indices.max(initial=0) >= n for a, n in zip(network.affine_maps[1:], network.widths, strict=True))
        assert skips == (target == "verifier")
