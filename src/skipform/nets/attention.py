"""The blocks that the Transformers share: attention, feed-forward, sub-layers with a norm and a skip, positions.

Letters: n batch, t tokens of the queries, s tokens of the keys, d width, h heads. A mask is boolean, True where a query
may attend to a key, and broadcasts to (n, h, t, s). Softmax and layer norm divide by functions of their input: they are
not piecewise linear, and `rewrite` refuses every net that has them.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from skipform.errors import SkipformError
from skipform.nets.blocks import MERGES, with_skip

NormKind = Literal["post", "pre"]
# The sub-layers that have a skip: all ("add"), none, or those named.
EncoderSkip = Literal["add", "none"] | tuple[Literal["attention", "feed_forward"], ...]
DecoderSkip = Literal["add", "none"] | tuple[Literal["attention", "cross", "feed_forward"], ...]


def split_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)  # n h t d/h


def concatenate_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)  # n t d


def padding_mask(mask: Tensor | None) -> Tensor | None:
    """(n, s), True where a token is not padding -> the mask that hides the padding from every query."""
    return None if mask is None else mask[:, None, None, :]  # n 1 1 s


class SelfAttention(nn.Module):
    """x -> out((softmax(q k^T / sqrt(d/h)) v) of every head), (q; k; v) = qkv(x): "Attention is all you need", Section
    3.2.

    causal: a token attends to itself and to those before it; then no mask is taken. dropout: of the attention weights.
    """

    def __init__(self, d: int, heads: int, dropout: float = 0.0, causal: bool = False):
        super().__init__()
        self.heads, self.dropout, self.causal = heads, dropout, causal
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, -1))  # n h t d/h
        dropout = self.dropout * self.training
        return self.out(concatenate_heads(F.scaled_dot_product_attention(q, k, v, mask, dropout, self.causal)))  # n t d


class Attention(nn.Module):
    """Attention whose queries, keys and values are affine images of different tensors: (n, t, d), (n, s, d), (n, s, d)
    -> (n, t, d)."""

    def __init__(self, d: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value, self.out = (nn.Linear(d, d) for _ in range(4))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (split_heads(x, self.heads) for x in (self.query(query), self.key(key), self.value(value)))
        dropout = self.dropout * self.training
        return self.out(concatenate_heads(F.scaled_dot_product_attention(q, k, v, mask, dropout)))  # n t d


class AttentionRecorder(TorchFunctionMode):
    """Records the attention weights of any net: `with AttentionRecorder() as recorder: net(x)`.

    `recorder.weights` then holds, for every attention in the order of the calls, softmax(q k^T / sqrt(d/h)), (n, h, t,
    s), whose rows sum to 1. It is computed as the attention to the unit vectors.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.weights.append(_weights(*args, **(kwargs or {})))
        return func(*args, **(kwargs or {}))


def _weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **rest: Any,
) -> Tensor:
    units = torch.eye(key.shape[-2], dtype=key.dtype, device=key.device).expand(*key.shape[:-1], -1)  # n h s s
    return F.scaled_dot_product_attention(query, key, units, attn_mask, 0.0, is_causal, **rest)


def feed_forward(d: int, hidden: int, activation: nn.Module, dropout: float = 0.0) -> nn.Sequential:
    """x -> w2 activation(w1 x) for every token. dropout: of activation(w1 x)."""
    return nn.Sequential(nn.Linear(d, hidden), activation, nn.Dropout(dropout), nn.Linear(hidden, d))


class PostNorm(nn.Module):
    """x -> norm(x + f(x, ...)), without a skip norm(f(x, ...)): the sub-layer of "Attention is all you need"."""

    def __init__(self, f: nn.Module, d: int, skip: bool, dropout: float, eps: float):
        super().__init__()
        self.f, self.dropout, self.norm = f, nn.Dropout(dropout), nn.LayerNorm(d, eps)
        self.merge = MERGES["add" if skip else "none"]

    def forward(self, x: Tensor, *rest: Tensor | None) -> Tensor:
        return self.norm(self.merge(self.dropout(self.f(x, *rest)), x))


class PreNorm(PostNorm):
    """x -> x + f(norm(x), ...), without a skip f(norm(x), ...): the skips are an identity from the first layer to the
    last."""

    def forward(self, x: Tensor, *rest: Tensor | None) -> Tensor:
        return self.merge(self.dropout(self.f(self.norm(x), *rest)), x)


def sublayers(
    d: int, parts: dict[str, nn.Module], norm: NormKind, skip: DecoderSkip, dropout: float, eps: float = 1e-5
) -> list[PostNorm]:
    """A sub-layer for every part, each with its own norm; those that `skip` names have a skip."""
    kind, skipped = {"post": PostNorm, "pre": PreNorm}[norm], with_skip(skip, parts)
    return [kind(part, d, name in skipped, dropout, eps) for name, part in parts.items()]


class Layer(nn.Module):
    """Self-attention, then feed-forward, two sub-layers: (n, t, d) -> (n, t, d).

    skip: the sub-layers that have one. dropout: of the output of every sub-layer; the papers differ in whether there is
    another one on the attention weights or within the feed-forward, which these state themselves.
    """

    def __init__(
        self,
        d: int,
        attention: SelfAttention,
        feed_forward: nn.Module,
        *,
        norm: NormKind,
        skip: DecoderSkip,
        dropout: float,
        eps: float = 1e-5,
    ):
        super().__init__()
        parts = {"attention": attention, "feed_forward": feed_forward}
        self.attention, self.feed_forward = sublayers(d, parts, norm, skip, dropout, eps)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.feed_forward(self.attention(x, mask))


def sinusoids(position: Tensor, d: int) -> Tensor:
    """(...) -> (..., d): sin(p / 10000^(2i/d)) at 2i, cos of the same at 2i+1 ("Attention is all you need", Section
    3.5)."""
    exponent = torch.arange(0, d, 2, dtype=position.dtype, device=position.device) / d
    angle = position[..., None] / 10000**exponent  # ... d/2
    return torch.stack((angle.sin(), angle.cos()), -1).flatten(-2)  # ... d


def sinusoids_2d(present: Tensor, d: int, dtype: torch.dtype) -> Tensor:
    """(n, h, w) booleans -> (n, h, w, d): sinusoids of the row, then of the column.

    Rows and columns are counted from 1 along the pixels that are present, and scaled to end at 2 pi ("End-to-end object
    detection with Transformers", Appendix A.4).
    """
    counts = [present.cumsum(axis).to(dtype) for axis in (1, 2)]  # n h w; sums of integers are exact in any order
    ends = (counts[0][:, -1:, :], counts[1][:, :, -1:])
    # 1e-6, as published: a row or column without any pixel divides by it
    return torch.cat(
        [sinusoids(2 * torch.pi * c / (end + 1e-6), d // 2) for c, end in zip(counts, ends, strict=True)], -1
    )


class Sinusoidal(nn.Module):
    """(n, t, d) -> (n, t, d): x plus the sinusoids of the positions 0, ..., t-1, for any t."""

    def forward(self, x: Tensor) -> Tensor:
        fine = torch.promote_types(x.dtype, torch.float32)  # half precision cannot tell large positions apart
        return x + sinusoids(torch.arange(x.shape[1], dtype=fine, device=x.device), x.shape[2]).to(x.dtype)


class Learned(nn.Module):
    """(n, t, d) -> (n, t, d): x plus one trained vector for each position; a SkipformError if t exceeds `context`."""

    def __init__(self, context: int, d: int):
        super().__init__()
        self.context = context
        self.weight = nn.Parameter(torch.empty(context, d))
        nn.init.normal_(self.weight, std=0.02)
        self.register_forward_pre_hook(_within_context)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight[: x.shape[1]]


def _within_context(module: Learned, args: tuple[Tensor, ...]) -> None:
    if args[0].shape[1] > module.context:
        raise SkipformError(f"tokens: {args[0].shape[1]} in a row are not accepted; it takes at most {module.context}")


def check_multiple(net: str, argument: str, value: int, by: int, why: str) -> None:
    """SkipformError unless the value is a positive multiple of `by`."""
    if by < 1 or value < 1 or value % by:
        raise SkipformError(f"net {net!r}: {argument}={value} is not accepted; it takes multiples of {by} ({why})")
