"""An ONNX file as a torch module that the compiler takes."""

from pathlib import Path

import torch
from torch import Tensor

from skipform.compiler.from_onnx.batch import is_batch
from skipform.compiler.from_onnx.file import File, read_file
from skipform.compiler.from_onnx.network import OnnxNetwork, trace
from skipform.compiler.from_onnx.operation import Shape
from skipform.errors import SkipformError, shown

__all__ = ["OnnxNetwork", "from_onnx"]

SAMPLES = 2  # of a batch whose size the file leaves free


def from_onnx(path: str | Path) -> tuple[OnnxNetwork, tuple[Tensor, ...]]:
    """The network of an ONNX file as a torch module in eval mode, and example inputs of its shapes.

    module(*examples) is what the file computes, a tensor or a tuple of them, in the type of its inputs (float or
    double). Shapes are those of the file. The module takes any number b of samples:

        inputs (1, r, ...), or with a free first size (N, ...)   (b, r, ...)
        inputs (n, r, ...) that the file treats as n samples     (b, r, ...), the examples have b = n
        other inputs, and vectors (r,)                           (b, r, ...): the file has no batch

    Outputs likewise. The examples are standard normal. Weights are parameters, named after the initializers. Casts
    between float and double are the identity. Opsets 1 to the newest that the onnx package knows.

    The file is data that nobody vouches for: SkipformError, in one line with the node's name, for a damaged file, an
    operator without a translation (from_onnx/operators.py lists those that have one), weights outside of the file's
    folder, sizes that are free or too large.
    """
    file = read_file(path)
    free = any(isinstance(n, str) for shape in file.inputs.values() for n in shape[:1])
    if any(isinstance(n, str) for shape in file.inputs.values() for n in shape[1:]) or (
        free and not all(isinstance(n, str) for shape in file.inputs.values() for n in (*shape, 0)[:1])
    ):
        written = ", ".join(f"{shown(name)} ({', '.join(map(str, s))})" for name, s in file.inputs.items())
        raise SkipformError(f"{file.path}: inputs {written}; accepted: sizes that are fixed, but for a batch in front")
    module, shapes = _of_free_batch(file) if free else _of_fixed_shapes(file)
    generator = torch.Generator().manual_seed(0)
    return module.to(file.dtype), tuple(torch.randn(shape, generator=generator, dtype=file.dtype) for shape in shapes)


def _module(file: File, shapes: list[Shape], batched: bool = True) -> OnnxNetwork:
    return OnnxNetwork(trace(file, shapes), torch.float64, batched)


def _shapes(file: File, first: int | None = None) -> list[Shape]:
    """The shapes of the inputs, with another first size if one is given."""
    literal = [tuple(0 if isinstance(n, str) else n for n in shape) for shape in file.inputs.values()]
    return literal if first is None else [(first, *shape[1:]) for shape in literal]


def _of_free_batch(file: File) -> tuple[OnnxNetwork, list[Shape]]:
    """The module of one sample and the shapes of its inputs."""
    shapes = _shapes(file, 1)
    of_one = _module(file, shapes)
    try:
        of_all = _module(file, _shapes(file, SAMPLES))
    except SkipformError:
        return of_one, shapes  # a batch of one is fixed in the operations of the file
    if not is_batch(of_one, of_all, SAMPLES):
        raise SkipformError(f"{file.path}: mixes the samples of its free first size; a fixed size is accepted")
    return of_one, shapes


def _of_fixed_shapes(file: File) -> tuple[OnnxNetwork, list[Shape]]:
    """The module, and the shapes of its examples: of n samples if n is the first size of all inputs and a batch."""
    shapes = _shapes(file)
    sizes = {shape[0] if len(shape) > 1 else 0 for shape in shapes}  # a vector has no batch
    size = sizes.pop() if len(sizes) == 1 else 0
    whole = _module(file, shapes, size == 1)
    if size > 1:
        try:
            of_one = _module(file, _shapes(file, 1))
        except SkipformError:
            size = 0
        else:
            size = size if is_batch(of_one, whole, size) else 0
    if size > 1:
        return of_one, shapes
    return whole, shapes if size == 1 else [(1, *shape) for shape in shapes]
