"""Random maps that keep a rank: a matrix too large for the memory is replaced by its product with one of them.

d columns of the matrix, k columns of the product.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

COPIES = 4


@dataclass(frozen=True)
class Projection:
    """A random linear map R^d -> R^k: coordinate j is multiplied by COPIES normal numbers and added to COPIES of the k
    coordinates, drawn at random (a sparse embedding, Nelson and Nguyen 2013, with normal numbers in place of signs).

    For every matrix A, rank(A P) <= rank(A). With rank r there are r independent columns; A P has rank r unless, for
    all choices of them, the drawn places are too few for them (Rado's theorem, as the numbers are in general position):
    for k >= 2 r and four copies a probability that is negligible. It needs d numbers of memory at a time.
    """

    d: int
    k: int
    seed: int = 0

    def __call__(self, rows: Tensor) -> Tensor:
        """(n, d) -> (n, k)."""
        generator = torch.Generator().manual_seed(self.seed)
        out = rows.new_zeros(len(rows), self.k)
        for _ in range(COPIES):
            place = torch.randint(self.k, (self.d,), generator=generator)
            factor = torch.randn(self.d, generator=generator, dtype=torch.float64).to(
                rows
            )  # drawn on the CPU everywhere
            out.index_add_(1, place.to(rows.device), rows * factor)
        return out


def gaussian(rows: int, columns: int, seed: int = 0) -> Tensor:
    """A matrix of independent normal numbers of variance 1 / columns, in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64) / columns**0.5
