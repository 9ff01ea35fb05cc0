"""Convolutions of images in float64, for which torch has no fast code on a CPU.

torch copies every window of every image and multiplies small matrices: 3.6 GFlop/s on one core for 16 channels, where a
product of large matrices reaches 23. Here the points are the innermost dimension, so that the windows need no copy:

    P  (h, c, w, n)    the padded images;  its rows y, ..., y + kh - 1 are one matrix of kh c rows and w n columns
    out[y] = sum over the kw columns j of the kernel:  W_j (o, kh c)  P[y : y + kh][:, j n : (j + w') n]

n points, c input channels, o output channels, kernel kh x kw, results w' wide.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

FEWEST = 16  # points: with fewer the matrices are small, and torch is as fast


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """F.conv2d; in float64 on a CPU as above, if the kernel has no gaps, no groups and x (n, c, h, w) enough points."""
    plain = groups == 1 and weight[0, 0].numel() > 1 and pair(dilation) == (1, 1) and not isinstance(padding, str)
    if not plain or isinstance(padding, str) or len(x) < FEWEST or x.dtype != torch.float64 or x.device.type != "cpu":
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    n, c, h, w = x.shape
    o, _, kh, kw = weight.shape
    (sy, sx), (py, px) = pair(stride), pair(padding)
    rows, columns = (h + 2 * py - kh) // sy + 1, (w + 2 * px - kw) // sx + 1
    padded = x.new_zeros(h + 2 * py, c, w + 2 * px, n)
    padded[py : py + h, :, px : px + w] = x.permute(2, 1, 3, 0)
    phases = [padded[:, :, phase::sx].contiguous() for phase in range(min(sx, kw))]  # every sx-th column
    weights = weight.permute(3, 0, 2, 1).reshape(kw, o, kh * c).contiguous()  # (kw, o, kh c)
    out = x.new_empty(rows, o, columns * n)
    for y in range(rows):
        for j in range(kw):
            source = phases[j % sx][y * sy : y * sy + kh].view(kh * c, -1)
            first = j // sx * n
            part = source[:, first : first + columns * n]
            if j == 0:
                torch.mm(weights[j], part, out=out[y])
            else:
                out[y].addmm_(weights[j], part)
    result = x.new_empty(n, o, rows, columns)
    turned = out.view(rows, o, columns, n).permute(3, 1, 0, 2)
    return result.copy_(turned) if bias is None else torch.add(turned, bias[:, None, None], out=result)


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (value[0], value[-1])
