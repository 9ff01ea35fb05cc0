"""A canonical network whose matrices would be too large keeps its convolutions: the same function, in less memory."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from scipy import sparse
from torch import nn

import skipform
from skipform import nets
from skipform.compiler import flatten
from skipform.compiler.flatten import ENTRY, canonical, convolutions_of, structure
from skipform.compiler.rewrite import rewrite
from skipform.errors import InternalError, SkipformError
from skipform.theory.affine import Affine
from skipform.theory.convolved import Convolved, Geometry, before_of
from skipform.theory.network import FORMAT, CanonicalNetwork


@st.composite
def convolutions(draw):
    """A torch convolution with its options, an image size, and an affine map onto such images."""
    rank = draw(st.integers(1, 3))
    groups, per_group, out = (draw(st.integers(1, 2)) for _ in range(3))
    window, stride, dilation = (tuple(draw(st.integers(1, 3)) for _ in range(rank)) for _ in range(3))
    padding = draw(st.sampled_from(["same", "valid", tuple(draw(st.integers(0, 3)) for _ in range(rank))]))
    if padding == "same":
        stride = (1,) * rank
    pads = before_of(padding, dilation, window)
    least = [
        max(1, d * (k - 1) + 1 - (0 if padding == "same" else 2 * p))
        for k, p, d in zip(window, pads, dilation, strict=True)
    ]
    sizes = tuple(draw(st.integers(n, n + 3)) for n in least)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    weight = torch.randn(groups * out, per_group, *window, dtype=torch.float64, generator=generator)
    weight *= torch.rand(weight.shape, generator=generator) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    bias = torch.randn(groups * out, dtype=torch.float64, generator=generator)
    how = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    image = (groups * per_group, *sizes)
    matrix = sparse.random_array(
        (math.prod(image), 7), density=0.3, rng=np.random.default_rng(generator.initial_seed())
    )
    inner = Affine.of(matrix, np.arange(math.prod(image)) / 8)
    return weight, bias, how, image, inner


@settings(max_examples=60, deadline=None)
@given(convolutions())
def test_it_is_torchs_convolution_of_the_image(case):
    weight, bias, how, image, inner = case
    z = torch.randn(3, 7, dtype=torch.float64)
    function = (F.conv1d, F.conv2d, F.conv3d)[len(image) - 2]
    expected = function(torch.from_numpy(inner(z.numpy())).reshape(3, *image), weight, bias, **how)
    geometry = Geometry(
        image,
        tuple(expected.shape[2:]),
        how["stride"],
        before_of(how["padding"], how["dilation"], weight.shape[2:]),
        how["dilation"],
        how["groups"],
    )
    map_ = Convolved(weight.numpy(), bias.numpy(), inner, geometry)
    # At most 2 * 27 products of numbers below 100, and an image of 7 products: thousands of roundings of 1e-14.
    for of in (map_, map_.explicit):
        assert np.allclose(of(z.numpy()), expected.flatten(1).numpy(), rtol=0, atol=1e-10)
        assert np.allclose(of(z[0].numpy()), expected[0].flatten().numpy(), rtol=0, atol=1e-10)
    assert (map_.in_features, map_.out_features) == (7, expected[0].numel())
    assert set(map_.explicit.indices) <= set(map_.columns)  # products may cancel
    assert map_.nonzeros == weight.numel() + inner.nonzeros
    assert np.array_equal(map_.data, map_.explicit.data)


SMALL = ENTRY * 200  # bytes


def bytes_of(shape):
    return ENTRY * (shape.entries + 3 * shape.largest)


class Branches(nn.Module):
    """Two convolutions of one layer, one that a ReLU and a sum read, and one that is a layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(2, 2, 3, padding=1) for _ in range(4))

    def forward(self, x):
        y = self.a(x).relu() + self.b(x).relu()
        z = self.c(y)
        return self.d(z.relu() + z).relu()


def test_a_layer_stays_a_convolution_if_it_is_one_convolution_that_its_relu_alone_reads():
    module, x = Branches().double().eval(), torch.randn(2, 2, 5, 5, dtype=torch.float64)
    graph = rewrite(module, x, "keep_add")
    nodes = convolutions_of(graph)
    assert len(nodes) == 1
    needed, less = bytes_of(structure(graph)), bytes_of(structure(graph, nodes))
    network = canonical(module, x, memory=needed - 1)
    assert [type(a) for a in network.affine_maps] == [Affine, Affine, Convolved, Affine]
    with torch.no_grad():
        assert torch.allclose(network(x), module(x), rtol=0, atol=1e-12)
    assert not any(isinstance(a, Convolved) for a in canonical(module, x, memory=needed).affine_maps)
    assert canonical(module, x, memory=less).depth == 3
    with pytest.raises(SkipformError, match="GiB is accepted"):
        canonical(module, x, memory=less - 1)
    with pytest.raises(SkipformError, match="GiB is accepted"):
        canonical(module, x, memory=needed - 1, explicit=True)
    with pytest.raises(SkipformError, match="GiB is accepted"):
        skipform.rewrite(module, x, target="perceptron", memory=needed - 1)


@pytest.fixture(scope="module")
def pair():
    """A small VGG, whole numbers as weights, as a network that keeps its convolutions and as one of matrices."""
    net = nets.build("vgg", depth=11, width=1, in_channels=1, num_classes=3).double().eval()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randint(-2, 3, p.shape, generator=torch.Generator().manual_seed(p.numel())))
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_var.fill_(1 - layer.eps)
    x = torch.randint(-2, 3, (2, 1, 32, 32), generator=torch.Generator().manual_seed(0)).double()
    needed = bytes_of(structure(rewrite(net, x, "keep_add")))
    return net, x, canonical(net, x, memory=needed - 1), canonical(net, x)


def test_both_forms_are_the_same_network(pair):
    net, x, convolved, matrices = pair
    assert sum(isinstance(a, Convolved) for a in convolved.affine_maps) == 8
    assert (convolved.widths, convolved.carried) == (matrices.widths, matrices.carried)
    with torch.no_grad():
        assert torch.allclose(convolved(x), net(x), rtol=1e-12, atol=0)
    for a, b in zip(convolved.affine_maps, matrices.affine_maps, strict=True):
        assert np.array_equal(a.indptr, b.indptr)
        assert np.array_equal(a.indices, b.indices)
        assert np.allclose(a.data, b.data, rtol=1e-12, atol=0)
        assert np.allclose(a.bias, b.bias, rtol=1e-12, atol=0)
    assert convolved.float().affine_maps[0] is convolved.affine_maps[0]


def test_saved_and_loaded_it_is_the_same_network(pair, tmp_path):
    _, x, convolved, matrices = pair
    for name, network in (("convolved", convolved), ("matrices", matrices)):
        network.save(tmp_path / name)
        assert torch.equal(CanonicalNetwork.load(tmp_path / name)(x), network(x))
    assert "convolutions" not in header_of(tmp_path / "matrices")
    convolved.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "convolved").read_bytes()


def header_of(path):
    with safe_open(path, "numpy") as file:
        return json.loads(file.metadata()[FORMAT])


SIZES = st.sampled_from([0, 1, 2, 3, 4, 9, -1, 2**20, 2**40, 2**62, None, "2", 1.5, []])


@pytest.fixture(scope="module")
def small():
    """A network that keeps a convolution, a point, and what the network is made of."""
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 1)).double().eval()
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64)
    network = canonical(net, x, memory=SMALL)
    assert isinstance(network.affine_maps[0], Convolved)
    return network, x, (net, x)


def test_a_wrong_matrix_after_a_convolution_is_named(small, monkeypatch):
    matrix = flatten.matrix_of
    monkeypatch.setattr(flatten, "matrix_of", lambda *node: (2 * matrix(*node)[0], matrix(*node)[1]))
    with pytest.raises(InternalError, match=r"^linear at 3 .*differs by"):
        canonical(*small[2], memory=SMALL)


def refused(path):
    """The network of a file, or None if it is refused in one line that names the file."""
    try:
        return CanonicalNetwork.load(path)
    except SkipformError as error:
        line = str(error)
    assert "\n" not in line
    assert str(path) in line
    return None


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_an_altered_file_without_a_checksum_is_refused_or_is_a_network(small, tmp_path_factory, data):
    network, x, _ = small
    path = tmp_path_factory.mktemp("convolved") / "net"
    network.save(path)
    header, arrays = header_of(path), load_file(path)
    del header["sha256"]
    sizes = header["convolutions"]["0"]
    name = data.draw(st.sampled_from([*sizes, "move", "array", "exact"]))
    if name == "move":
        header["convolutions"] = {data.draw(st.sampled_from(["1", "2", "-1", "x", ""])): sizes}
    elif name == "exact":
        header["exact"] = True
    elif name == "array":
        key = data.draw(st.sampled_from(["0.kernel", "0.shift"]))
        array = arrays[key].copy()
        match data.draw(st.sampled_from(["nan", "short", "int"])):
            case "nan":
                array[0] = np.nan
            case "short":
                array = array[1:]
            case "int":
                array = array.astype(np.int64)
        arrays[key] = array
    elif isinstance(sizes[name], list) and data.draw(st.booleans()):
        sizes[name][data.draw(st.integers(0, len(sizes[name]) - 1))] = data.draw(SIZES)
    else:
        sizes[name] = data.draw(SIZES)
    save_file(arrays, path, metadata={FORMAT: json.dumps(header)})
    again = refused(path)
    if again is not None:  # other sizes may fit as well
        assert name in sizes
        assert again(x).shape == network(x).shape
        assert again(x).isfinite().all()
        assert torch.equal(again(x), network(x)) or sizes != geometry_of(network)


def geometry_of(network):
    a = network.affine_maps[0]
    return json.loads(json.dumps({"kernel": a.kernel.shape} | asdict(a.geometry)))
