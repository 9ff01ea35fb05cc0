"""from_onnx as a whole: which first size is a batch, what is folded, what is refused; the commands that take a file.

The oracle is onnxruntime in float32. A net of n layers that sum at most T terms differs from it by at most
4 n (T + 8) 2^-24 of the largest intermediate value where no layer enlarges what it is given: the weights below are
scaled to row sums of at most 1.
"""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, external_data_helper, helper, numpy_helper
from test_from_onnx_operators import assert_reads

import skipform
from skipform import from_onnx
from skipform.compiler.from_onnx import file as reading
from skipform.compiler.rewrite import UnsupportedOperation
from skipform.errors import SkipformError
from skipform.stages import cli

FLOAT = TensorProto.FLOAT
node = helper.make_node


def weights(*shape, seed=0):
    """Rows with an absolute sum of 1."""
    w = np.random.default_rng(seed).standard_normal(shape)
    return (w / np.abs(w).sum(axis=tuple(range(1, len(shape))), keepdims=True)).astype(np.float32)


def whole(*numbers):
    return np.array(numbers, dtype=np.int64)


def model_of(nodes, inputs, outputs=("y",), opset=17, ir_version=8, kind=FLOAT, **constants):
    """inputs: name -> shape."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    return onnx.shape_inference.infer_shapes(model)


def saved(model, tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(model, path)
    return path


def run(path, *inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)})


def image_net(first=1):
    """A convolution with padding, max pooling, a Reshape to (sizes of the image's Shape, -1), two Gemm."""
    return model_of(
        [
            node("Conv", ["x", "k"], ["c"], pads=[1, 1, 1, 1], name="conv"),
            node("LeakyRelu", ["c"], ["a"], alpha=0.1),
            node("MaxPool", ["a"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
            node("Shape", ["p"], ["shape"]),
            node("Gather", ["shape", "zero"], ["n"], axis=0),
            node("Unsqueeze", ["n", "zeros"], ["n1"]),
            node("Concat", ["n1", "rest"], ["target"], axis=0),
            node("Reshape", ["p", "target"], ["f"]),
            node("Gemm", ["f", "w", "b"], ["h"], transB=1),
            node("Clip", ["h", "", "six"], ["y"]),
        ],
        {"x": [first, 2, 6, 6]},
        k=weights(3, 2, 3, 3),
        zero=np.int64(0),
        zeros=whole(0),
        rest=whole(-1),
        w=weights(4, 27),
        b=weights(4, 1)[:, 0],
        six=np.float32(0.1),
    )


LAYERS = 4 * 4 * (27 + 8) * 2.0**-24  # of image_net


@pytest.mark.parametrize("first", [1, "N", None, 3])
def test_shapes_that_are_read_at_run_time_are_made_literal_and_any_batch_is_taken(first, tmp_path):
    path = saved(image_net(first), tmp_path)
    module, (x,) = from_onnx(path)
    assert x.shape == (3 if first == 3 else 1, 2, 6, 6)
    assert [type(part).__name__ for part in module.operations].count("Operation") == 6  # no Shape, no Gather
    (expected,) = run(path, x)
    plain = skipform.rewrite(module, (x,))
    with torch.no_grad():
        for net in (module, plain):
            assert abs(net(x).numpy() - expected).max() <= LAYERS * 4
            many = torch.cat((x, 2 * x, -x))
            assert abs(net(many)[: len(x)].numpy() - expected).max() <= LAYERS * 8


def test_a_file_without_a_batch_gets_one_in_front(tmp_path):
    """W relu(V x + b), vectors from the right, as in a file for verifiers."""
    model = model_of(
        [
            node("MatMul", ["v", "x"], ["h"]),
            node("Add", ["h", "b"], ["s"]),
            node("Relu", ["s"], ["r"]),
            node("MatMul", ["w", "r"], ["y"]),
        ],
        {"x": [3]},
        v=weights(4, 3),
        b=weights(4, 1)[:, 0],
        w=weights(1, 4),
    )
    module = assert_reads(model, tmp_path / "net.onnx", 4 * 3 * 12 * 2.0**-24)
    assert not module.batched
    canon = skipform.canonical(module, from_onnx(tmp_path / "net.onnx")[1])
    assert (canon.depth, canon.relu_count) == (1, 4)


@pytest.mark.parametrize(
    ("nodes", "batched"),
    [
        ([node("Relu", ["x"], ["y"])], True),
        ([node("Transpose", ["x"], ["t"], perm=[1, 0]), node("Relu", ["t"], ["y"])], False),
        ([node("CumSum", ["x", "zero"], ["y"])], False),
        ([node("CumSum", ["x", "one"], ["y"])], True),
        ([node("ReduceMax", ["x"], ["m"], axes=[0], keepdims=1), node("Sub", ["x", "m"], ["y"])], False),
        ([node("ReduceMax", ["x"], ["m"], axes=[1], keepdims=1), node("Sub", ["x", "m"], ["y"])], True),
        ([node("Add", ["x", "square"], ["y"])], False),  # another constant for every row
        ([node("MatMul", ["square", "x"], ["y"])], False),
        ([node("MatMul", ["x", "square"], ["y"])], True),
        ([node("Slice", ["x", "zero1", "one1"], ["s"]), node("Sub", ["x", "s"], ["y"])], False),
        ([node("Reshape", ["x", "nine"], ["r"]), node("Reshape", ["r", "threes"], ["y"])], False),
    ],
)
def test_a_fixed_first_size_is_a_batch_if_no_sample_reads_another_and_all_are_treated_alike(nodes, batched, tmp_path):
    model = model_of(
        nodes,
        {"x": [3, 3]},
        zero=np.int64(0),
        one=np.int64(1),
        zero1=whole(0),
        one1=whole(1),
        nine=whole(9),
        threes=whole(3, 3),
        square=np.arange(9, dtype=np.float32).reshape(3, 3),
    )
    assert assert_reads(model, tmp_path / "net.onnx", 0.0, 9).batched == batched


def test_a_free_first_size_that_is_no_batch_is_refused(tmp_path):
    model = model_of([node("ReduceMean", ["x"], ["m"], axes=[0]), node("Sub", ["x", "m"], ["y"])], {"x": ["N", 3]})
    with pytest.raises(SkipformError, match="mixes the samples of its free first size"):
        from_onnx(saved(model, tmp_path))
    alone = model_of([node("Reshape", ["x", "s"], ["y"])], {"x": ["N", 3]}, s=whole(1, 3))  # runs at N = 1 only
    assert from_onnx(saved(alone, tmp_path))[1][0].shape == (1, 3)


def test_several_inputs_and_outputs_and_one_that_is_constant(tmp_path):
    nodes = [node("Add", ["x", "z"], ["s"]), node("Split", ["s"], ["a", "b"], axis=1), node("Identity", ["c"], ["d"])]
    model = model_of(nodes, {"x": [1, 4], "z": [1, 1]}, ("b", "d", "x"), c=np.float32([[5, 6]]))
    path = saved(model, tmp_path)
    module, inputs = from_onnx(path)
    for expected, given in zip(run(path, *inputs), module(*inputs), strict=True):
        assert np.array_equal(expected, given.detach().numpy())
    assert [y.shape for y in module(torch.ones(5, 4), torch.ones(5, 1))] == [(5, 2), (5, 2), (5, 4)]


def test_in_float64_the_module_is_the_file_in_float64(tmp_path):
    """Nothing is rounded to float32 on the way: the same file with double weights gives the same to 2^-53."""
    single = saved(image_net(), tmp_path)
    model = onnx.load(single)
    for i, tensor in enumerate(model.graph.initializer):
        if tensor.data_type == FLOAT:
            model.graph.initializer[i].CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name)
            )
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    del model.graph.value_info[:]
    double = tmp_path / "double.onnx"
    onnx.save(model, double)
    (net, (x,)), (other, (z,)) = from_onnx(single), from_onnx(double)
    assert z.dtype == torch.float64
    with torch.no_grad():
        assert torch.equal(net.double()(z), other(z))
    assert x.dtype == torch.float32


def test_constants_of_old_files_are_inputs_too(tmp_path):
    model = model_of([node("Add", ["x", "c"], ["y"])], {"x": [1, 2], "c": [2]}, ir_version=3, c=np.float32([1, 2]))
    module, inputs = from_onnx(saved(model, tmp_path))
    assert len(inputs) == 1
    assert torch.equal(module(torch.zeros(1, 2)), torch.tensor([[1.0, 2.0]]))


def test_the_broadcast_of_versions_up_to_6_begins_at_an_axis():
    """No library runs it any more; onnx's definition: the second operand's dimensions are those from `axis` on."""
    from skipform.compiler.from_onnx.file import Node
    from skipform.compiler.from_onnx.operation import Call, Value
    from skipform.compiler.from_onnx.operators import OPERATORS

    x, c = torch.randn(1, 3, 4, 5), torch.randn(3, 4)
    for axis, aligned in ((1, c[:, :, None]), (-3, c[:, :, None])):
        values = [Value("x", (1, 3, 4, 5), torch.float32), Value("c", (3, 4), torch.float32, c)]
        call = Call(Node("Add", "a", 6, ("x", "c"), ("y",), {"broadcast": 1, "axis": axis}), values, "a")
        assert torch.equal(OPERATORS["Add"](call).function(0, x, c), x + aligned)


# -- what is refused ---------------------------------------------------------------------------------------------

REFUSED = {
    "unknown operator": ([node("Det", ["x"], ["y"], name="the det")], "'the det' (Det): an operator without a transl"),
    "no operator of onnx": ([node("Dot", ["x"], ["y"])], "no operator of ONNX in opset 17"),
    "another domain": ([node("Gelu", ["x"], ["y"], domain="com.microsoft")], "an operator of 'com.microsoft'"),
    "unknown attribute": ([node("Relu", ["x"], ["y"], slope=1.0)], "attribute 'slope'; accepted: none"),
    "missing attribute": ([node("Concat", ["x", "x"], ["y"])], "no attribute axis"),
    "absent tensor": ([node("Add", ["x", "z"], ["y"], name="a")], "'a' (Add): reads 'z', which no input"),
    "absent output": ([node("Relu", ["x"], ["z"])], "the graph: reads 'y'"),
    "made twice": ([node("Relu", ["x"], ["y"]), node("Abs", ["x"], ["y"])], "makes 'y' again"),
    "shapes": ([node("MatMul", ["x", "c"], ["y"], name="m")], "'m' (MatMul): does not run on shapes (1, 4), (3,)"),
    "too many inputs": ([node("Relu", ["x", "x"], ["y"])], "2 inputs and 1 outputs; accepted: 1 to 1 inputs"),
    "shape from the input": ([node("Cast", ["x"], ["i"], to=7), node("Reshape", ["x", "i"], ["y"])], "shape depends"),
    "weights from the input": ([node("Conv", ["image", "image"], ["y"])], "product of two activations"),
    "training": ([node("Dropout", ["x", "", "yes"], ["y"])], "is random"),
    "too large": ([node("ConstantOfShape", ["huge"], ["y"])], "at most 268,435,456 numbers"),
    "too large by broadcasting": ([node("Expand", ["x", "huge"], ["y"])], "numbers"),
    "too many parts": ([node("Split", ["x"], ["y"], num_outputs=2**60, axis=1)], "num_outputs"),
    "too large a padding": ([node("MaxPool", ["image"], ["y"], kernel_shape=[1, 1], pads=[0, 0, 2**40, 0])], "numbers"),
    "too large a kernel": (
        [node("AveragePool", ["image"], ["y"], kernel_shape=[2**40, 1], strides=[2**41, 1], ceil_mode=1)],
        "numbers",
    ),
    "rounding": ([node("Cast", ["x"], ["y"], to=TensorProto.FLOAT16)], "rounds to torch.float16"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_accepted_is_refused_in_one_line_that_names_the_node(name, tmp_path):
    nodes, words = REFUSED[name]
    inputs = {"x": [1, 4], "image": [1, 1, 3, 3]}
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(key, FLOAT, shape) for key, shape in inputs.items()],
        [onnx.ValueInfoProto(name="y")],
        [
            numpy_helper.from_array(np.ones(3, dtype=np.float32), "c"),
            numpy_helper.from_array(whole(10**6, 10**6, 4), "huge"),
            numpy_helper.from_array(np.bool_(True), "yes"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(SkipformError) as error:
        from_onnx(saved(model, tmp_path))
    assert words in str(error.value)
    assert str(tmp_path / "net.onnx") in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_of_before_there_were_opsets_has_the_first(tmp_path):
    model = model_of([node("Relu", ["x"], ["y"])], {"x": [1, 2]}, ir_version=2)
    del model.opset_import[:]
    assert torch.equal(from_onnx(saved(model, tmp_path))[0](torch.tensor([[-1.0, 2.0]])), torch.tensor([[0.0, 2.0]]))


def test_an_operation_that_is_not_piecewise_linear_is_refused_by_the_name_of_its_node(tmp_path):
    nodes = [node("Softmax", ["x"], ["s"], name="/layers.0/Softmax"), node("Relu", ["s"], ["y"])]
    module, x = from_onnx(saved(model_of(nodes, {"x": [1, 4]}), tmp_path))
    with pytest.raises(UnsupportedOperation, match=r"^softmax at '/layers.0/Softmax' \(Softmax\) on shape \(b, 4\): "):
        skipform.rewrite(module, x)


def refusal(path):
    """What from_onnx says, '' if it reads the file; any other exception is passed on."""
    try:
        from_onnx(path)
    except SkipformError as error:
        return str(error)
    return ""


def test_damaged_files_are_refused_in_one_line(tmp_path):
    """Cut off anywhere, or with any byte changed: a SkipformError, or a network of the same kind."""
    whole_file = image_net().SerializeToString()
    path = tmp_path / "net.onnx"
    generator = np.random.default_rng(0)
    for case in range(200):
        data = bytearray(whole_file)
        if case % 2:
            data = data[: generator.integers(0, len(data))]
        else:
            data[generator.integers(0, len(data))] = generator.integers(0, 256)
        path.write_bytes(data)
        assert "\n" not in refusal(path)


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"not an onnx file at all", b"\x08\x08"])
def test_what_is_no_onnx_file_is_refused(content, tmp_path):
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(SkipformError, match=r"net\.onnx: not an ONNX file"):
        from_onnx(tmp_path / "net.onnx")
    with pytest.raises(SkipformError, match="No such file"):
        from_onnx(tmp_path / "absent.onnx")


@pytest.mark.parametrize(
    ("shape", "kind", "words"),
    [
        (["N", "height"], FLOAT, r"'x' \(N, height\); accepted: sizes that are fixed"),
        ([1, 4], TensorProto.INT64, r"'x' \(INT64\); FLOAT or DOUBLE is accepted"),
        (None, FLOAT, "'x' has no shape"),
    ],
)
def test_an_input_of_another_kind_is_refused(shape, kind, words, tmp_path):
    with pytest.raises(SkipformError, match=words):
        from_onnx(saved(model_of([node("Identity", ["x"], ["y"])], {"x": shape}, kind=kind), tmp_path))


def stored_elsewhere(tmp_path, location, **changes):
    """A file whose weights are in `location`, and that file next to it."""
    model = model_of([node("Add", ["x", "c"], ["y"])], {"x": [1, 8]}, c=np.arange(8, dtype=np.float32))
    tensor = model.graph.initializer[0]
    folder = tmp_path / "folder"
    folder.mkdir()
    for place in (folder / "weights.bin", tmp_path / "weights.bin"):
        place.write_bytes(tensor.raw_data)
    external_data_helper.set_external_data(tensor, location, **({"offset": 0, "length": 32} | changes))
    tensor.ClearField("raw_data")
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    return folder / "net.onnx"


def test_weights_in_a_file_of_the_same_folder_are_read(tmp_path):
    module, _ = from_onnx(stored_elsewhere(tmp_path, "weights.bin"))
    assert torch.equal(module(torch.zeros(1, 8)), torch.arange(8.0)[None])


@pytest.mark.parametrize(
    ("location", "changes"),
    [
        ("../weights.bin", {}),
        ("/etc/passwd", {}),
        ("link.bin", {}),
        ("absent.bin", {}),
        (".", {}),
        ("weights.bin", {"offset": 1}),
        ("weights.bin", {"offset": -1}),
        ("weights.bin", {"length": 31}),
        ("weights.bin", {"length": 10**15}),
    ],
)
def test_weights_elsewhere_or_of_another_length_are_refused(location, changes, tmp_path):
    path = stored_elsewhere(tmp_path, location, **changes)
    (path.parent / "link.bin").symlink_to(tmp_path / "weights.bin")
    with pytest.raises(SkipformError, match=r"its numbers are in|has no 32 bytes"):
        from_onnx(path)


@pytest.mark.parametrize("numbers", [8, 7])  # the initializer has 8
def test_sizes_are_bounded(numbers, tmp_path, monkeypatch):
    path = saved(model_of([node("Add", ["x", "c"], ["y"])], {"x": [1, 8]}, c=np.ones(8, dtype=np.float32)), tmp_path)
    monkeypatch.setattr(reading, "NUMBERS", numbers)
    if numbers == 8:
        from_onnx(path)
    else:
        with pytest.raises(SkipformError, match="at most 7 numbers"):
            from_onnx(path)


# -- commands ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_the_command_rewrites_an_onnx_file(tmp_path, capsys):
    path, out = saved(image_net(), tmp_path), tmp_path / "plain.onnx"
    assert cli.main(["rewrite", str(path), "--out", str(out)]) == 0
    assert "max_pool2d" in capsys.readouterr().out
    assert {n.op_type for n in onnx.load(out).graph.node}.isdisjoint({"MaxPool", "Clip", "LeakyRelu"})
    x = torch.randn(1, 2, 6, 6)
    assert abs(run(out, x)[0] - run(path, x)[0]).max() <= LAYERS * 4 * 2


def test_the_command_counts_the_regions_of_an_onnx_file(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nodes = [node("Gemm", ["x", "w"], ["h"]), node("Relu", ["h"], ["y"])]
    saved(model_of(nodes, {"x": [1, 2]}, w=np.float32([[1, 0], [0, 1]])), tmp_path)
    assert cli.main(["regions", "net.onnx", "--out", "r.svg"]) == 0
    assert "activation regions   4" in capsys.readouterr().out  # the quadrants


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("rewrite net.onnx --input 1,4 --out a.onnx", "--input is for MODULE:FACTORY; the shapes and weights are the"),
        ('rewrite net.onnx --arguments {"a":1} --out a.onnx', "--arguments is for MODULE:FACTORY"),
        ("rewrite absent.onnx --out a.onnx", "absent.onnx: No such file"),
        ("rewrite net.onnx --out a.onnx", "'the det' (Det): an operator without a translation"),
        ("rewrite torch.nn:ReLU --out a.onnx", "torch.nn:ReLU: --input is missing"),
        ("regions net.onnx --images [0,1,2]", "--images needs a run's folder"),
        ("regions two.onnx", "a network of 2 inputs; one is accepted"),
    ],
)
def test_the_commands_refuse_in_one_line_and_leave_no_file(command, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    saved(model_of([node("Add", ["x", "z"], ["y"])], {"x": [1, 2], "z": [1, 2]}), tmp_path).rename("two.onnx")
    graph = helper.make_graph(
        [node("Det", ["x"], ["y"], name="the det")],
        "net",
        [helper.make_tensor_value_info("x", FLOAT, [1, 2, 2])],
        [onnx.ValueInfoProto(name="y")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "net.onnx")
    before = sorted(tmp_path.iterdir())
    assert cli.main(command.split(" ")) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert words in line
    assert sorted(tmp_path.iterdir()) == before
