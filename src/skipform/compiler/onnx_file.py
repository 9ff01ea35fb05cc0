"""The targets verifier and perceptron as ONNX for old readers: opset 9, IR version 4, one sample, float32.

    conv2d Conv    linear Gemm    relu Relu    add Add    cat Concat    flatten Flatten    reshape Reshape

Opset 9 (ONNX 1.4, January 2019) is what most verifiers were written for; from IR version 4 on, weights need not be
inputs. Names are plain and every Gemm has its bias, since readers rely on both.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx

from skipform.compiler.check import output_nodes
from skipform.compiler.emit import BATCH
from skipform.errors import SkipformError

OPSET, IR_VERSION = 9, 4
NAMES = {
    F.conv2d: "Conv",
    F.linear: "Gemm",
    torch.relu: "Relu",
    torch.add: "Add",
    torch.cat: "Concat",
    torch.flatten: "Flatten",
    torch.reshape: "Reshape",
}


LARGEST = 2**31  # bytes of a file of Protocol Buffers


def save(graph: fx.GraphModule, path: str | Path) -> None:
    """Write a rewritten module of either target. Equal modules give equal bytes. Raises SkipformError if its weights
    are too large for float32 or for a file."""
    needed = 4 * sum(buffer.numel() for buffer in graph.buffers())
    if needed >= LARGEST:
        raise SkipformError(f"{path}: its weights take {needed / 2**30:.3g} GiB; less than 2 GiB fit into an ONNX file")
    names: dict[fx.Node, str] = {}
    inputs: list[Any] = []
    weights: list[Any] = []
    nodes: list[Any] = []
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            names[node] = f"input_{len(inputs)}"
            inputs.append(_value(names[node], node))
        elif node.op == "get_attr":
            names[node] = str(node.target)
            weights.append(numpy_helper.from_array(_numbers(graph.get_buffer(str(node.target)), path), names[node]))
        elif node.op == "call_function":
            names[node] = f"value_{len(nodes)}"
            read = [names[n] for n in node.args if isinstance(n, fx.Node)]
            if node.target is torch.cat:
                read = [names[n] for n in node.args[0]]
            if node.target is torch.reshape:
                read.append(f"shape_{len(nodes)}")
                weights.append(_shape(read[-1], node))
            nodes.append(helper.make_node(NAMES[node.target], read, [names[node]], **_attributes(node)))
    outputs = []
    for position, node in enumerate(output_nodes(graph.graph)):  # by a node of its own, also where it is an input
        name, shape = f"output_{position}", f"shape_of_output_{position}"
        weights.append(_shape(shape, node))
        nodes.append(helper.make_node("Reshape", [names[node], shape], [name]))
        outputs.append(_value(name, node))
    model = helper.make_model(
        helper.make_graph(nodes, "skipform", inputs, outputs, weights),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="skipform",
    )
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _sizes(node: fx.Node) -> list[int]:
    """The sizes for a batch of one sample."""
    sizes = [*node.meta["val"].shape]
    sizes[0] //= BATCH
    return sizes


def _value(name: str, node: fx.Node) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, _sizes(node))


def _shape(name: str, node: fx.Node) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(_sizes(node), dtype=np.int64), name)


def _numbers(buffer: Tensor, path: str | Path) -> np.ndarray:
    single = buffer.float()
    if not bool(single.isfinite().all()):
        raise SkipformError(f"{path}: a weight is too large for float32, in which ONNX files are read")
    return single.cpu().numpy()


def _attributes(node: Any) -> dict[str, Any]:
    """Those of the ONNX operation, written out where they have the value that readers assume."""
    if node.target is F.conv2d:
        padding, weight = node.kwargs["padding"], node.args[1].meta["val"]
        shape = {"kernel_shape": [*weight.shape[2:]], "strides": [*node.kwargs["stride"]], "pads": [*padding, *padding]}
        return shape | {"dilations": [1, 1], "group": 1}
    return {F.linear: {"transB": 1}, torch.cat: {"axis": 1}, torch.flatten: {"axis": 1}}.get(node.target, {})
