"""The rank of a net's representation, layer by layer: in how many directions it can move when the input does.

All layers are differentiated in one pass, along a number of directions that need not be all of the input's.

d inputs, r directions, m numbers of a layer's output.
"""

import torch
from torch import Tensor, nn
from torch.func import jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from skipform.errors import SkipformError
from skipform.measure.program import output, points, promoted
from skipform.measure.projection import Projection, gaussian
from skipform.measure.rank import MEMORY, Rank, _bytes_of_pass

OUTPUT = ""  # the name of the output among the layers


@torch.inference_mode(False)
def layer_ranks(
    f: nn.Module, x: Tensor, names: list[str], *, directions: int = 256, memory: int = MEMORY
) -> dict[str, Rank]:
    """Name -> the rank of the Jacobian at x, one input without a batch dimension, of the output of that submodule of f
    (of the first tensor that it returns), and under OUTPUT that of f itself; in float64.

    Where there are more inputs than `directions`, the Jacobian J (m, d) is multiplied by a fixed random matrix (d, r):
    the rank of J T is min(r, rank J) with probability one. The shape of a Rank is (m, r). Outputs of which the memory
    has not room for r columns are projected too (see `Projection`), to 4 r numbers.

    Raises SkipformError for a module in training mode, an input that does not fit or is not of floating point, a
    submodule that is not called, and values that are not finite.
    """
    if not torch.as_tensor(x).is_floating_point():
        raise SkipformError(f"layer_ranks: x is {torch.as_tensor(x).dtype}; a floating-point input is accepted")
    (x,) = points("layer_ranks", x=x)
    module, d = promoted(f).requires_grad_(False), x.numel()
    along = torch.eye(d, dtype=torch.float64) if d <= directions else gaussian(directions, d)  # (r, d)
    most = memory // (4 * 8 * len(along))  # numbers of one layer

    returned: dict[str, Tensor] = {}
    for name in names:

        def keep(part: nn.Module, inputs: object, result: object, name: str = name) -> None:
            returned[name] = pytree.tree_leaves(result)[0]

        module.get_submodule(name).register_forward_hook(keep)

    def values(point: Tensor) -> dict[str, Tensor]:
        returned.clear()
        returned[OUTPUT] = output(module, point[None].clone())
        return {name: y.reshape(-1) for name, y in returned.items()}

    def slopes(direction: Tensor) -> dict[str, Tensor]:
        return jvp(values, (x,), (direction.reshape(x.shape),))[1]

    with torch.no_grad():
        sizes = {name: y.numel() for name, y in values(x).items()}
    if missing := [name for name in names if name not in sizes]:
        raise SkipformError(f"layer_ranks: {missing[0]}: not called for this input; a submodule that is, is accepted")
    projections = {name: Projection(m, 4 * len(along)) for name, m in sizes.items() if m > most}
    at_once = max(1, min(len(along), memory // _bytes_of_pass(module, x)))
    columns: dict[str, list[Tensor]] = {name: [] for name in sizes}
    with sdpa_kernel(SDPBackend.MATH):
        for chunk in along.split(at_once):
            for name, rows in vmap(slopes)(chunk).items():  # (chunk, m)
                columns[name].append(projections[name](rows) if name in projections else rows)
    wholes = {name: (m, len(along)) for name, m in sizes.items() if name in projections}
    return {name: Rank.of(torch.cat(columns[name]).T, wholes.get(name)) for name in (*names, OUTPUT)}
