"""The shared words of the nets that attend: attention, feed-forward, sub-layers with a norm and a skip, positions.

Letters: n batch, t tokens, s tokens that are looked at, d width, h heads. A mask is boolean, True where a token may be
looked at, and broadcasts to (n, h, t, s). None of these words but the plain sum is piecewise linear: softmax and layer
norm divide by their input, so that `rewrite` refuses every net built of them.
"""

from collections.abc import Collection
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from skipform.errors import SkipformError
from skipform.nets.blocks import MERGES

NormKind = Literal["post", "pre"]
LayerSkips = tuple[Literal["attention", "feed_forward"], ...]


def split(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)  # n h t d/h


def join(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)  # n t d


def keys(mask: Tensor | None) -> Tensor | None:
    """(n, s), True where a token is none of the padding -> the mask that hides the padding from every token."""
    return None if mask is None else mask[:, None, None, :]  # n 1 1 s


class SelfAttention(nn.Module):
    """x -> out((softmax(q k^T / sqrt(d/h)) v) of every head), (q; k; v) = qkv(x): "Attention is all you need", Section
    3.2.

    causal: a token looks at itself and what precedes it; then it takes no mask.
    """

    def __init__(self, d: int, heads: int, dropout: float = 0.0, causal: bool = False):
        super().__init__()
        self.heads, self.dropout, self.causal = heads, dropout, causal
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (split(part, self.heads) for part in self.qkv(x).chunk(3, -1))  # n h t d/h
        dropout = self.dropout * self.training
        return self.out(join(F.scaled_dot_product_attention(q, k, v, mask, dropout, self.causal)))  # n t d


class Attention(nn.Module):
    """The same where queries (n, t, d), keys (n, s, d) and values (n, s, d) are made of different tensors."""

    def __init__(self, d: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value, self.out = (nn.Linear(d, d) for _ in range(4))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (split(x, self.heads) for x in (self.query(query), self.key(key), self.value(value)))
        dropout = self.dropout * self.training
        return self.out(join(F.scaled_dot_product_attention(q, k, v, mask, dropout)))  # n t d


class Weights(TorchFunctionMode):
    """`with Weights() as seen: net(x)` leaves in seen.maps, in the order of the calls, what every attention of any net
    paid: softmax(q k^T / sqrt(d/h)), (n, h, t, s), rows summing to 1. It is the attention to the unit vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.maps: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.maps.append(_paid(*args, **(kwargs or {})))
        return func(*args, **(kwargs or {}))


def _paid(
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
    """w2 activation(w1 x), token by token."""
    return nn.Sequential(nn.Linear(d, hidden), activation, nn.Dropout(dropout), nn.Linear(hidden, d))


class PostNorm(nn.Module):
    """x -> norm(x + f(x, ...)), without skip norm(f(x, ...)): the sub-layer of "Attention is all you need"."""

    def __init__(self, f: nn.Module, d: int, skip: bool, dropout: float, eps: float):
        super().__init__()
        self.f, self.dropout, self.norm = f, nn.Dropout(dropout), nn.LayerNorm(d, eps)
        self.merge = MERGES["add" if skip else "none"]

    def forward(self, x: Tensor, *rest: Tensor | None) -> Tensor:
        return self.norm(self.merge(self.dropout(self.f(x, *rest)), x))


class PreNorm(PostNorm):
    """x -> x + f(norm(x), ...), without skip f(norm(x), ...): the skip is an identity from the first layer to the
    last."""

    def forward(self, x: Tensor, *rest: Tensor | None) -> Tensor:
        return self.merge(self.dropout(self.f(self.norm(x), *rest)), x)


def sublayers(
    d: int, parts: dict[str, nn.Module], norm: NormKind, skips: Collection[str], dropout: float, eps: float = 1e-5
) -> list[PostNorm]:
    """Each part with its norm, and a skip if its name is among `skips`."""
    kind = {"post": PostNorm, "pre": PreNorm}[norm]
    return [kind(part, d, name in skips, dropout, eps) for name, part in parts.items()]


class Layer(nn.Module):
    """Self-attention, then feed-forward, each a sub-layer with its own skip: (n, t, d) -> (n, t, d).

    skips: those of "attention", "feed_forward" that have one. inner_dropout: between the two maps of the feed-forward.
    """

    def __init__(
        self,
        d: int,
        heads: int,
        hidden: int,
        activation: nn.Module,
        *,
        norm: NormKind,
        skips: Collection[str],
        dropout: float,
        inner_dropout: float = 0.0,
        eps: float = 1e-5,
        causal: bool = False,
    ):
        super().__init__()
        parts = {
            "attention": SelfAttention(d, heads, dropout, causal),
            "feed_forward": feed_forward(d, hidden, activation, inner_dropout),
        }
        self.attention, self.feed_forward = sublayers(d, parts, norm, skips, dropout, eps)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.feed_forward(self.attention(x, mask))


def waves(position: Tensor, d: int) -> Tensor:
    """(...) -> (..., d): sin(p / 10000^(2i/d)) at 2i, cos of the same at 2i+1 ("Attention is all you need", Section
    3.5)."""
    exponent = torch.arange(0, d, 2, dtype=position.dtype, device=position.device) / d
    angle = position[..., None] / 10000**exponent  # ... d/2
    return torch.stack((angle.sin(), angle.cos()), -1).flatten(-2)  # ... d


def waves_2d(present: Tensor, d: int, dtype: torch.dtype) -> Tensor:
    """(n, h, w) booleans -> (n, h, w, d): waves of the row, then of the column, each counted from 1 along the places
    that are present and scaled to end at 2 pi ("End-to-end object detection with Transformers", Appendix A.4)."""
    counts = [present.cumsum(axis).to(dtype) for axis in (1, 2)]  # n h w; whole numbers sum the same in any order
    ends = (counts[0][:, -1:, :], counts[1][:, :, -1:])
    # 1e-6, as published: a row or column without any place divides by it
    return torch.cat([waves(2 * torch.pi * c / (end + 1e-6), d // 2) for c, end in zip(counts, ends, strict=True)], -1)


class Sinusoidal(nn.Module):
    """(n, t, d) -> (n, t, d): x plus the waves of its places 0, ..., t-1, for any t."""

    def forward(self, x: Tensor) -> Tensor:
        fine = torch.promote_types(x.dtype, torch.float32)  # half of the precision would not tell places apart
        return x + waves(torch.arange(x.shape[1], dtype=fine, device=x.device), x.shape[2]).to(x.dtype)


class Learned(nn.Module):
    """(n, t, d) -> (n, t, d): x plus one trained vector for each place; t at most `context`, or a SkipformError."""

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


def divides(net: str, argument: str, value: int, by: int, why: str) -> None:
    """SkipformError unless `by` divides a positive value."""
    if by < 1 or value < 1 or value % by:
        raise SkipformError(f"net {net!r}: {argument}={value} is not accepted; it takes multiples of {by} ({why})")
