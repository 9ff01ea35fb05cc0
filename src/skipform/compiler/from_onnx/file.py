"""An ONNX file as plain records: nodes, constants, inputs and outputs, in the order of the file.

Nothing in the file is trusted. It is data: no code in it is run, and no operator is looked up outside the table of
operators.py. Weights that are stored in files of their own are read from the folder of the file only, sizes are
bounded before anything of that size is made, and a damaged file is a SkipformError of one line.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper
from torch import Tensor

from skipform.errors import SkipformError, first_line, shown

LARGEST_FILE = 2**31 - 1  # bytes; protobuf reads no more
NUMBERS = 2**28  # numbers in one tensor, and in all constants that a file computes: 1 GiB in float32
NODES = 10**5

FLOATING: dict[int, torch.dtype] = {TensorProto.FLOAT: torch.float32, TensorProto.DOUBLE: torch.float64}  # of inputs
TYPES: dict[int, torch.dtype] = {
    **FLOATING,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.BOOL: torch.bool,
}


@dataclass(frozen=True)
class Node:
    """One operation. version: that of the operator's definition, e.g. 13 for Softmax under opset 17. attributes: those
    of the file, and ONNX's defaults of that version; a text, a number, a list, or a tensor."""

    operator: str
    name: str  # the file's, or made of the operator and the output
    version: int
    inputs: tuple[str, ...]  # '' for one that is left out
    outputs: tuple[str, ...]
    attributes: dict[str, Any]


@dataclass(frozen=True)
class File:
    """inputs: name -> shape, where a size that the file leaves free is its name, '?' without one."""

    path: Path
    dtype: torch.dtype
    nodes: tuple[Node, ...]
    constants: dict[str, Tensor]
    inputs: dict[str, tuple[int | str, ...]]
    outputs: tuple[str, ...]


def read_file(path: str | Path) -> File:
    """Raises SkipformError, naming the file and what is wrong in it."""
    path = Path(path)
    graph, opset = _graph(path)
    try:
        return _file(path, graph, opset)
    except (TypeError, AttributeError, UnicodeError) as error:  # a name that is no text, which protobuf lets pass
        raise SkipformError(f"{path}: damaged ({first_line(error)})") from None


def _file(path: Path, graph: onnx.GraphProto, opset: int) -> File:
    if graph.sparse_initializer:
        raise SkipformError(f"{path}: a sparse initializer; dense ones are accepted")
    if len(graph.node) > NODES:
        raise SkipformError(f"{path}: {len(graph.node):,} nodes; at most {NODES:,} are accepted")
    constants: dict[str, Tensor] = {}
    for tensor in graph.initializer:
        constants[_text(tensor.name)] = constant_of(tensor, f"{path}: initializer {shown(tensor.name)}", path.parent)
    nodes = tuple(_node(path, node, opset) for node in graph.node)
    given = [value for value in graph.input if value.name not in constants]
    if not given:
        raise SkipformError(f"{path}: a graph without inputs; at least one is accepted")
    if not graph.output:
        raise SkipformError(f"{path}: a graph without outputs; at least one is accepted")
    inputs = {_text(value.name): _shape(path, value) for value in given}
    types = {value.type.tensor_type.elem_type for value in given}
    if len(types) != 1 or not types <= set(FLOATING):
        names = ", ".join(
            f"{shown(v.name)} ({TensorProto.DataType.Name(v.type.tensor_type.elem_type)})" for v in given[:10]
        )
        raise SkipformError(f"{path}: inputs {names}; FLOAT or DOUBLE is accepted, the same for all")
    outputs = tuple(_text(value.name) for value in graph.output)
    return File(path, FLOATING[types.pop()], nodes, constants, inputs, outputs)


def _graph(path: Path) -> tuple[onnx.GraphProto, int]:
    """The graph of the file and the version of ONNX's own operators."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise SkipformError(f"{path}: {path.stat().st_size:,} bytes; at most {LARGEST_FILE:,} are accepted")
        model = onnx.load_model_from_string(path.read_bytes())
    except OSError as error:
        raise SkipformError(f"{path}: {error.strerror or first_line(error)}; an ONNX file is accepted") from None
    except (DecodeError, ValueError, RuntimeError) as error:
        if isinstance(error, SkipformError):
            raise
        raise SkipformError(f"{path}: not an ONNX file ({first_line(error)})") from None
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if not model.opset_import and model.ir_version < 3:
        versions = [1]
    newest = onnx.defs.onnx_opset_version()
    if not model.HasField("graph") or len(versions) != 1 or not 1 <= versions[0] <= newest:
        opsets = ", ".join(map(str, versions)) or "none"
        raise SkipformError(f"{path}: not an ONNX file with one graph and one opset (opsets: {opsets}; 1 to {newest})")
    return model.graph, versions[0]


def constant_of(tensor: TensorProto, place: str, folder: Path) -> Tensor:
    """The tensor, in its own type. folder: where its numbers are read from if they are stored in another file."""
    dtype, shape = TYPES.get(int(tensor.data_type)), tuple(tensor.dims)
    if dtype is None:
        raise SkipformError(
            f"{place}: of type {_type_name(tensor.data_type)}; accepted: {', '.join(map(_type_name, TYPES))}"
        )
    if any(size < 0 for size in shape) or math.prod(shape) > NUMBERS:
        raise SkipformError(f"{place}: shape {shown(shape)}; at most {NUMBERS:,} numbers are accepted")
    if tensor.data_location == TensorProto.EXTERNAL:
        raw = _stored_elsewhere(tensor, math.prod(shape) * dtype.itemsize, place, folder)
        tensor = TensorProto(dims=shape, data_type=tensor.data_type, raw_data=raw)
    try:
        array = numpy_helper.to_array(tensor)
        if array.shape != shape:
            raise ValueError(f"{array.size} numbers for shape {shape}")
        if dtype == torch.bfloat16:
            array = array.astype(np.float32)
        return torch.from_numpy(np.array(array)).to(dtype)
    except (ValueError, TypeError, RuntimeError) as error:
        raise SkipformError(f"{place}: damaged ({first_line(error)})") from None


def _text(name: str | bytes) -> str:
    if isinstance(name, bytes):
        raise TypeError(f"a name is {shown(name)}")
    return name


def _type_name(number: int) -> str:
    return TensorProto.DataType.Name(number) if number in TensorProto.DataType.values() else str(number)


def _stored_elsewhere(tensor: TensorProto, size: int, place: str, folder: Path) -> bytes:
    """`size` bytes of the file that the tensor names, which must lie in the folder."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    file = (folder / location).resolve()
    if not location or "\0" in location or not file.is_relative_to(folder.resolve()) or not file.is_file():
        raise SkipformError(f"{place}: its numbers are in {shown(location)}; a file in the folder {folder} is accepted")
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", size))
    except ValueError:
        offset, length = -1, -1
    if offset < 0 or length != size or offset + size > file.stat().st_size:
        raise SkipformError(
            f"{place}: {shown(location)} has no {size:,} bytes from {shown(entries.get('offset', '0'))} on"
        )
    with file.open("rb") as opened:
        opened.seek(offset)
        return opened.read(size)


def _shape(path: Path, value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    kind = value.type.tensor_type
    if value.type.WhichOneof("value") != "tensor_type" or not kind.HasField("shape"):
        raise SkipformError(f"{path}: input {shown(value.name)} has no shape; a tensor of a known shape is accepted")
    return tuple(
        size.dim_value if size.WhichOneof("value") == "dim_value" and size.dim_value > 0 else size.dim_param or "?"
        for size in kind.shape.dim
    )


def _node(path: Path, node: onnx.NodeProto, opset: int) -> Node:
    outputs = tuple(map(_text, node.output))
    name = _text(node.name) or f"{node.op_type} of {', '.join(map(shown, outputs))}"
    place = f"{path}: {node.op_type} {shown(name)}" if node.name else f"{path}: {name}"
    if node.domain not in ("", "ai.onnx"):
        raise SkipformError(f"{place}: an operator of {shown(node.domain)}; those of ONNX itself are accepted")
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        raise SkipformError(f"{place}: no operator of ONNX in opset {opset}") from None
    attributes = {
        key: _attribute(attribute.default_value, place, path.parent)
        for key, attribute in schema.attributes.items()
        if attribute.default_value.name
    }
    for attribute in node.attribute:
        if attribute.name not in schema.attributes:
            accepted = ", ".join(sorted(schema.attributes)) or "none"
            raise SkipformError(f"{place}: attribute {shown(attribute.name)}; accepted: {accepted}")
        attributes[attribute.name] = _attribute(attribute, place, path.parent)
    if missing := [key for key, a in schema.attributes.items() if a.required and key not in attributes]:
        raise SkipformError(f"{place}: it has no attribute {', '.join(missing)}, which opset {opset} requires")
    if not (schema.min_input <= len(node.input) <= schema.max_input and len(outputs) <= schema.max_output):
        raise SkipformError(
            f"{place}: {len(node.input)} inputs and {len(outputs)} outputs; accepted: {schema.min_input} to"
            f" {schema.max_input} inputs, at most {schema.max_output} outputs"
        )
    return Node(node.op_type, name, schema.since_version, tuple(map(_text, node.input)), outputs, attributes)


def _attribute(attribute: onnx.AttributeProto, place: str, folder: Path) -> Any:
    """Its value: text for bytes, a tensor, or as ONNX gives it."""
    if attribute.type == onnx.AttributeProto.TENSOR:
        return constant_of(attribute.t, f"{place}: attribute {shown(attribute.name)}", folder)
    try:
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            return value.decode()
        return [v.decode() if isinstance(v, bytes) else v for v in value] if isinstance(value, (list, tuple)) else value
    except (ValueError, UnicodeDecodeError) as error:
        raise SkipformError(f"{place}: attribute {shown(attribute.name)} is damaged ({first_line(error)})") from None
