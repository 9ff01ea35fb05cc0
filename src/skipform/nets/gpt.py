"""GPT: Radford et al., "Language models are unsupervised multitask learners" (2019, GPT-2) and "Improving language
understanding by generative pre-training" (2018, GPT).

A stack of causal layers between an embedding and the same embedding transposed. GPT-2: norms inside the skip's branch
and one at the end, 12 layers of 768, 124,439,808 parameters (first published as 117 M); GPT: norms after the sum,
norm="post". With their weights both equal the nets of the `transformers` library. No deviation. Not piecewise linear.

A small net of 6 layers of 384, context 256, reaches 1.4697 nats per character on tiny Shakespeare (karpathy/nanoGPT).
"""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from skipform.arguments import Depth, Share, Size
from skipform.nets.attention import EncoderSkip, Layer, Learned, NormKind, SelfAttention, check_multiple, feed_forward

SURVEY = {
    "paper": "Radford et al. 2019",
    "year": 2019,
    "skip": "addition",
    "levels": 1,
    "piecewise_linear": False,
}
VARIANTS = {
    "GPT-2 small": ({}, 12, 124_439_808),
    "GPT": ({"vocab_size": 40_478, "context": 512, "norm": "post"}, 12, 116_534_784),
}


class GPT(nn.Module):
    """(n, t) tokens -> (n, t, vocab_size): scores of the token after every token."""

    def __init__(self, vocab_size: int, context: int, d: int, layers: list[Layer], norm: nn.Module, dropout: float):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab_size, d), Learned(context, d)
        self.dropout, self.layers, self.norm = nn.Dropout(dropout), nn.Sequential(*layers), norm

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.dropout(self.positions(self.tokens(tokens)))  # n t d
        return F.linear(self.norm(self.layers(x)), self.tokens.weight)  # n t vocab_size


def build(
    *,
    vocab_size: Size = 50_257,
    context: Size = 1024,
    depth: Depth = 12,
    width: Size = 768,
    heads: Size = 12,
    hidden: Size | None = None,
    norm: NormKind = "pre",
    skip: EncoderSkip = "add",
    dropout: Share = 0.1,
) -> nn.Module:
    """(n, t) tokens below vocab_size -> (n, t, vocab_size), t at most `context`.

    depth: layers. width: d. hidden: width inside the feed-forward, by default 4 d.
    norm: "pre" as in GPT-2, with a last norm; "post" as in GPT, without one.
    skip: around every sub-layer ("add"), around none, or around those named.
    dropout: after the embedding, on the attention weights and on the output of every sub-layer.
    """
    check_multiple("gpt", "width", width, heads, "heads")
    layers = [
        Layer(
            width,
            SelfAttention(width, heads, dropout, causal=True),
            feed_forward(width, hidden or 4 * width, nn.GELU(approximate="tanh")),
            norm=norm,
            skip=skip,
            dropout=dropout,
        )
        for _ in range(depth)
    ]
    net = GPT(vocab_size, context, width, layers, nn.LayerNorm(width) if norm == "pre" else nn.Identity(), dropout)
    for key, p in net.named_parameters():
        if key.endswith(("f.out.weight", "f.3.weight")):  # the branches of 2 depth skips, whose outputs add up
            nn.init.normal_(p, std=0.02 / math.sqrt(2 * max(depth, 1)))
        elif p.dim() > 1:
            nn.init.normal_(p, std=0.02)
        elif key.endswith("bias"):
            nn.init.zeros_(p)
    return net
