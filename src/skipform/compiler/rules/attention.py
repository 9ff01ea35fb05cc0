"""Attention whose queries and keys are constant: its weights are constants too, and what is left is a linear map."""

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from skipform.compiler.emit import Emitter
from skipform.compiler.rules.affine import multiply_matrices
from skipform.compiler.rules.values import Operand, real, size_of


def attention(
    e: Emitter,
    query: Operand,
    key: Operand,
    value: Operand,
    mask: Operand | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> fx.Node:
    """softmax(scale q k^T + mask) v, for q (..., t, d), k (..., s, d), v (..., s, e): a matrix (t, s) for each head.

    The matrix is what torch itself makes of the unit vectors as values."""
    if isinstance(query, fx.Node) or isinstance(key, fx.Node) or isinstance(mask, fx.Node):
        raise e.unsupported("is not piecewise linear", "a linear map with constant weights")
    assert isinstance(value, fx.Node), "one operand must be an activation"
    if dropout > 0:
        raise e.unsupported("is random", "dropout_p=0.0 in eval mode")
    bias = real(e, mask) if isinstance(mask, Tensor) and mask.is_floating_point() else mask
    q, k = real(e, query), real(e, key)
    unit = torch.eye(k.shape[-2], dtype=torch.float64, device=e.device).expand(*k.shape[:-2], -1, -1)
    weights = F.scaled_dot_product_attention(q, k, unit, bias, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa)
    heads = value.meta["val"].ndim - 3
    if enable_gqa and size_of(value, heads) != q.shape[-3]:  # every head of the values serves several of the queries
        repeats = q.shape[-3] // size_of(value, heads)
        value = e.take(value, heads, [i // repeats for i in range(q.shape[-3])])
    return multiply_matrices(e, weights, value)
