"""BERT: Devlin, Chang, Lee, Toutanova, "BERT: pre-training of deep bidirectional transformers" (NAACL 2019).

Post-norm layers over the sum of word, position and segment embeddings; every token attends to every other. Base: 12
layers of 768, 109,482,240 parameters with the pooler; with their weights equal to the nets of the `transformers`
library, under all heads. No deviation. Not piecewise linear.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipform.arguments import Depth, Share, Size
from skipform.nets.attention import (
    EncoderSkip,
    Layer,
    Learned,
    NormKind,
    SelfAttention,
    check_multiple,
    feed_forward,
    padding_mask,
)

SURVEY = {
    "paper": "Devlin et al., NAACL 2019",
    "year": 2019,
    "skip": "addition",
    "levels": 1,
    "piecewise_linear": False,
}
VARIANTS = {
    "BERT-base": ({"head": "pooled"}, 12, 109_482_240),
    "BERT-base, masked words": ({}, 12, 109_514_298),
    "BERT-base, pre-training": ({"head": "both"}, 12, 110_106_428),
    "BERT-large": ({"head": "pooled", "depth": 24, "width": 1024, "heads": 16}, 24, 335_141_888),
}


class BERT(nn.Module):
    """The layers, then one of the heads below, whose output it returns.

    tokens (n, t); segments (n, t) in {0, 1}, by default all 0; mask (n, t) boolean, True where a token is not padding,
    by default everywhere.
    """

    def __init__(self, vocab_size: int, context: int, d: int, layers: list[Layer], dropout: float):
        super().__init__()
        self.tokens, self.segments = nn.Embedding(vocab_size, d), nn.Embedding(2, d)
        self.positions = Learned(context, d)
        self.norm, self.dropout = nn.LayerNorm(d, 1e-12), nn.Dropout(dropout)
        self.layers = nn.ModuleList(layers)
        self.head: nn.Module = nn.Identity()

    def hidden(self, tokens: Tensor, segments: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        segments = torch.zeros_like(tokens) if segments is None else segments
        x = self.positions(self.tokens(tokens) + self.segments(segments))  # n t d
        x = self.dropout(self.norm(x))
        for layer in self.layers:
            x = layer(x, padding_mask(mask))
        return x

    def forward(
        self, tokens: Tensor, segments: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor | dict[str, Tensor]:
        return self.head(self.hidden(tokens, segments, mask), self.tokens.weight)


class Pooler(nn.Module):
    """-> {"hidden": (n, t, d), "pooled": tanh of an affine map of the first token, (n, d)}."""

    def __init__(self, d: int):
        super().__init__()
        self.map = nn.Linear(d, d)

    def forward(self, x: Tensor, embedding: Tensor) -> dict[str, Tensor]:
        return {"hidden": x, "pooled": self.map(x[:, 0]).tanh()}


class MaskedWords(nn.Module):
    """-> (n, t, vocab_size): scores of the word at every position, by the transposed embedding of the words."""

    def __init__(self, vocab_size: int, d: int):
        super().__init__()
        self.map = nn.Sequential(nn.Linear(d, d), nn.GELU(), nn.LayerNorm(d, 1e-12))
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return F.linear(self.map(x), embedding, self.bias)


class PreTraining(nn.Module):
    """-> {"words": (n, t, vocab_size), "next": (n, 2): whether the second segment follows the first}."""

    def __init__(self, vocab_size: int, d: int):
        super().__init__()
        self.words, self.pooled, self.next = MaskedWords(vocab_size, d), Pooler(d), nn.Linear(d, 2)

    def forward(self, x: Tensor, embedding: Tensor) -> dict[str, Tensor]:
        return {"words": self.words(x, embedding), "next": self.next(self.pooled(x, embedding)["pooled"])}


def build(
    *,
    vocab_size: Size = 30_522,
    context: Size = 512,
    depth: Depth = 12,
    width: Size = 768,
    heads: Size = 12,
    hidden: Size | None = None,
    norm: NormKind = "post",
    skip: EncoderSkip = "add",
    head: Literal["words", "pooled", "both"] = "words",
    dropout: Share = 0.1,
) -> nn.Module:
    """(n, t) tokens below vocab_size, t at most `context` -> the output of the head.

    depth: layers. width: d. hidden: width inside the feed-forward, by default 4 d.
    head: "words" (n, t, vocab_size), the masked language model; "pooled" {"hidden", "pooled"}; "both" {"words",
        "next"}, the two tasks of the pre-training.
    norm: "post" as in the paper; "pre" has no norm after the last layer but those of the heads.
    skip: around every sub-layer ("add"), around none, or around those named.
    """
    check_multiple("bert", "width", width, heads, "heads")
    layers = [
        Layer(
            width,
            SelfAttention(width, heads, dropout),
            feed_forward(width, hidden or 4 * width, nn.GELU()),
            norm=norm,
            skip=skip,
            dropout=dropout,
            eps=1e-12,
        )
        for _ in range(depth)
    ]
    net = BERT(vocab_size, context, width, layers, dropout)
    heads_of: dict[str, Callable[[], nn.Module]] = {
        "words": partial(MaskedWords, vocab_size, width),
        "pooled": partial(Pooler, width),
        "both": partial(PreTraining, vocab_size, width),
    }
    net.head = heads_of[head]()
    for key, p in net.named_parameters():
        if p.dim() > 1:
            nn.init.normal_(p, std=0.02)
        elif key.endswith("bias"):
            nn.init.zeros_(p)
    return net
