"""Whether the first size of a file's inputs is that of a batch, so that the file is one function of every sample."""

from collections.abc import Sequence

import torch
from torch import Tensor

from skipform.compiler.check import AGREEMENT, agree, samples
from skipform.compiler.from_onnx.network import OnnxNetwork

KINDS = ("normal", "kinks", "wide")
SLACK = 1000 * AGREEMENT  # the sums of a batch and of one sample differ by rounding; samples that mix, by far more


@torch.no_grad()
def is_batch(of_one: OnnxNetwork, of_all: OnnxNetwork, size: int) -> bool:
    """Whether the file at `size` samples, of_all, computes of_one of every sample. Both in float64.

    Samples whose number has a 1 at some binary digit are made NaN, which every operation passes on: those with a 0
    there must stay what they were, and the same with 0 and 1 exchanged. Any two samples differ in a digit, so none
    reads another. That all are treated alike is tested on random samples.
    """
    if any(shape[:1] != (size,) for _, shape, _ in of_all.results):
        return False
    if any(shape[:1] != (1,) for _, shape, _ in of_one.results):
        return False
    shapes = [shape[1:] for shape in of_all.input_shapes]
    inputs = samples(shapes, (KINDS * size)[:size])
    outputs = of_all.on_the_file(*inputs)
    for digit in range((size - 1).bit_length()):
        ones = (torch.arange(size) >> digit) % 2 == 1
        for spoiled in (ones, ~ones):
            if not _unread(outputs, of_all.on_the_file(*(_spoil(x, spoiled) for x in inputs)), ~spoiled):
                return False
    alone = of_one(*inputs)
    alone = alone if isinstance(alone, tuple) else (alone,)
    return all(agree(y.double(), z.double(), 0, SLACK) for y, z in zip(outputs, alone, strict=True))


def _spoil(x: Tensor, rows: Tensor) -> Tensor:
    x = x.clone()
    x[rows] = torch.nan
    return x


def _unread(before: Sequence[Tensor], after: Sequence[Tensor], rows: Tensor) -> bool:
    return all(torch.equal(y[rows].isnan(), z[rows].isnan()) for y, z in zip(before, after, strict=True))
