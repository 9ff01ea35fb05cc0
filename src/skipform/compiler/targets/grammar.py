"""The paper's grammar, strictly: an addition is a concatenation and the fixed map (I I) (Theorem 2)."""

from torch import Tensor, fx, nn

from skipform.compiler.rewrite import rewrite_in_float64
from skipform.compiler.targets import Settings


def rewritten(module: nn.Module, inputs: tuple[Tensor, ...], settings: Settings) -> fx.GraphModule:
    """Affine maps, `torch.relu`, `torch.cat` and what moves entries; nothing else."""
    return rewrite_in_float64(module, inputs, check=settings.check)
