"""The grammar with additions left as they are, which is the same by Proposition 1, and carries fewer numbers."""

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from skipform.compiler.emit import Emitter
from skipform.compiler.rewrite import rewrite_in_float64
from skipform.compiler.targets import Settings


class AddingEmitter(Emitter):
    """Writes sums as `torch.add`."""

    def _sum(self, terms: Sequence[tuple[fx.Node, float]]) -> fx.Node:
        (total, first), *others = terms
        total = self.scale(total, first, 0.0)
        for x, c in others:
            total = self.emit(torch.add, total, x, **({} if c == 1 else {"alpha": c}))
        return total

    def _terms(self, x: fx.Node, c: float) -> list[tuple[fx.Node, float]]:
        return [(x, c)]


def rewritten(module: nn.Module, inputs: tuple[Tensor, ...], settings: Settings) -> fx.GraphModule:
    """What `grammar` has, and `torch.add` of two activations."""
    return rewrite_in_float64(module, inputs, AddingEmitter, check=settings.check)
