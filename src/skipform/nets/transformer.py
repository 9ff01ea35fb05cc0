"""Transformer, encoder and decoder: Vaswani et al., "Attention is all you need" (NeurIPS 2017).

Base (Table 3): 6 + 6 layers of width 512, 8 heads, feed-forward 2048; WMT 2014 BLEU 27.3 En-De, 38.1 En-Fr (Table 2).
One embedding serves source, target and, transposed, the scores. The paper has no norm after the last layers;
torch.nn.Transformer has one after each stack, and with final_norm=True and without embeddings (vocab_size=None) this is
its net, 44,140,544 parameters, with equal outputs. norm="pre" puts the norms inside the branches and needs the final
ones. Not piecewise linear.

Dropout is where Section 5.4 has it: on the output of every sub-layer, before it is added, and on the sums of embeddings
and positions; torch.nn.Transformer has it on the attention weights and inside the feed-forward as well. Deviation: the
projections of attention have biases, as torch's do (Section 3.2.2 has none). The paper states no initial weights; ours
are torch's, and for embeddings normal with deviation d^(-1/2).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from skipform.arguments import Depth, Natural, Share, Size
from skipform.nets.attention import (
    Attention,
    DecoderSkip,
    Layer,
    NormKind,
    SelfAttention,
    Sinusoidal,
    check_multiple,
    feed_forward,
    padding_mask,
    sublayers,
)

SURVEY = {
    "paper": "Vaswani et al., NeurIPS 2017",
    "year": 2017,
    "skip": "addition",
    "levels": 1,
    "piecewise_linear": False,
}
_BIG = {"width": 1024, "heads": 16, "hidden": 4096}
VARIANTS = {
    "base, 37,000 words": ({}, 6, 63_082_496),
    "base, the layers alone": ({"vocab_size": None}, 6, 44_138_496),
    "torch.nn.Transformer": ({"vocab_size": None, "final_norm": True}, 6, 44_140_544),
    "big, torch.nn.Transformer": (_BIG | {"vocab_size": None, "final_norm": True}, 6, 176_361_472),
}


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the memory, feed-forward: x (n, t, d), memory (n, s, d) -> (n, t, d)."""

    def __init__(self, d: int, heads: int, hidden: int, norm: NormKind, skip: DecoderSkip, dropout: float):
        super().__init__()
        parts = {
            "attention": SelfAttention(d, heads, causal=True),
            "cross": Attention(d, heads),
            "feed_forward": feed_forward(d, hidden, nn.ReLU()),
        }
        self.attention, self.cross, self.feed_forward = sublayers(d, parts, norm, skip, dropout)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.feed_forward(self.cross(self.attention(x), memory, memory, mask))


class Transformer(nn.Module):
    """source (n, s, d), target (n, t, d) -> (n, t, d). mask: (n, s) boolean, True where the source is not padding. The
    target needs none: it is padded at its end, to which nothing before it attends."""

    def __init__(self, encoder: list[Layer], decoder: list[DecoderLayer], norms: list[nn.Module]):
        super().__init__()
        self.encoder, self.decoder = nn.ModuleList(encoder), nn.ModuleList(decoder)
        self.encoder_norm, self.decoder_norm = norms

    def encode(self, source: Tensor, mask: Tensor | None = None) -> Tensor:
        visible = padding_mask(mask)
        for layer in self.encoder:
            source = layer(source, visible)
        return self.encoder_norm(source)

    def decode(self, target: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        visible = padding_mask(mask)
        for layer in self.decoder:
            target = layer(target, memory, visible)
        return self.decoder_norm(target)

    def forward(self, source: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.decode(target, self.encode(source, mask), mask)


class Translator(nn.Module):
    """source (n, s), target (n, t) tokens -> (n, t, vocab_size): scores of the token after every token of the target.

    `encode` once and `decode` repeatedly generate a sentence token by token. Tokens enter as their embedding times
    sqrt(d) plus the sinusoids of their positions.
    """

    def __init__(self, core: Transformer, embeddings: list[nn.Embedding], pad: int, dropout: float):
        super().__init__()
        self.core, self.pad = core, pad
        self.embeddings = nn.ModuleList(embeddings)  # of the source, of the target; or one for both
        self.position = nn.Sequential(Sinusoidal(), nn.Dropout(dropout))
        self.scale = embeddings[0].embedding_dim ** 0.5

    def encode(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """(memory (n, s, d), mask (n, s))."""
        mask = source != self.pad
        return self.core.encode(self.position(self.embeddings[0](source) * self.scale), mask), mask

    def decode(self, target: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        x = self.position(self.embeddings[-1](target) * self.scale)  # n t d
        x = self.core.decode(x, memory, mask)
        return F.linear(x, self.embeddings[-1].get_parameter("weight"))  # n t vocab_size

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return self.decode(target, *self.encode(source))


def build(
    *,
    vocab_size: Size | None = 37_000,
    source_vocab_size: Size | None = None,
    pad: Natural = 0,
    depth: Depth = 6,
    width: Size = 512,
    heads: Size = 8,
    hidden: Size = 2048,
    norm: NormKind = "post",
    final_norm: bool | None = None,
    skip: DecoderSkip = "add",
    dropout: Share = 0.1,
) -> nn.Module:
    """source (n, s), target (n, t) tokens -> (n, t, vocab_size), for any s, t.

    vocab_size: of the target, and of the source too unless source_vocab_size gives the source its own embedding. None
        leaves out the embeddings: (n, s, width), (n, t, width) -> (n, t, width).
    pad: the source token that is padding, to which nothing attends. depth: layers of the encoder, and of the decoder.
    width: d. hidden: width inside the feed-forward.
    final_norm: whether a norm follows encoder and decoder; None: only for norm="pre", which needs it.
    skip: around every sub-layer of both ("add"), around none, or around those named.
    dropout: on the output of every sub-layer and on the sums of embeddings and positions.
    """
    check_multiple("transformer", "width", width, heads, "heads")
    check_multiple("transformer", "width", width, 2, "a sine and a cosine")
    final = norm == "pre" if final_norm is None else final_norm
    encoder = [
        Layer(
            width,
            SelfAttention(width, heads),
            feed_forward(width, hidden, nn.ReLU()),
            norm=norm,
            skip=skip,
            dropout=dropout,
        )
        for _ in range(depth)
    ]
    decoder = [DecoderLayer(width, heads, hidden, norm, skip, dropout) for _ in range(depth)]
    core = Transformer(encoder, decoder, [nn.LayerNorm(width) if final else nn.Identity() for _ in range(2)])
    for p in core.parameters():
        if p.dim() > 1:
            nn.init.xavier_uniform_(p)
    if vocab_size is None:
        return core
    sizes = [vocab_size] if source_vocab_size is None else [source_vocab_size, vocab_size]
    embeddings = [nn.Embedding(size, width) for size in sizes]
    for embedding in embeddings:
        nn.init.normal_(embedding.weight, std=width**-0.5)  # scaled to 1 on entry, and to scores of size 1 on leaving
    return Translator(core, embeddings, pad, dropout)
