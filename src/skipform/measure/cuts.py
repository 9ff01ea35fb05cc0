"""Where units cut the intervals between points along a segment: new points, and how well they are located.

A new point is where h_a + s (h_b - h_a) = 0; an error tau in h moves s by tau / |h_b - h_a|. Two cuts are one point
when these intervals overlap (coincident units). Where the point is off, a later unit is off by its slope times that.
Taking every unit to climb at most four times its largest value over the segment, that is 4 max |h| len / |h_b - h_a|
times its own error: what the kappa of a point adds to those of its neighbours.

n points, m cuts, p new points.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

SLOPE = 4.0
KAPPA_LIMIT = 1e5  # bounds kappa where only the neighbours locate a point, so that it does not hide other cuts


@dataclass(frozen=True, eq=False)
class Cuts:
    """New points in the order of t, and the cuts that are there, in any order."""

    interval: Tensor  # (p,) between which points a new one lies: i and i + 1
    share: Tensor  # (p,) s
    t: Tensor  # (p,)
    kappa: Tensor  # (p,)
    point: Tensor  # (m,) the new point of each cut
    unit: Tensor  # (m,)

    @staticmethod
    def of(
        t: Tensor, kappa: Tensor, interval: Tensor, unit: Tensor, left: Tensor, rise: Tensor, tau: Tensor, size: Tensor
    ) -> "Cuts":
        """m cuts of intervals between the points t (n,) by units: h_a, h_b - h_a, tau and max |h|, each (m,)."""
        share = -left / rise
        blur = tau * torch.maximum(kappa[interval], kappa[interval + 1]) / rise.abs()
        order = _sorted(interval, share)
        interval, unit, share, blur, rise, size = (v[order] for v in (interval, unit, share, blur, rise, size))
        fresh = torch.ones(len(interval), dtype=torch.bool, device=t.device)
        fresh[1:] = (interval[1:] != interval[:-1]) | (share[1:] - share[:-1] > blur[1:] + blur[:-1])
        point = fresh.cumsum(0) - 1
        # Coincident cuts are one point, placed by the least uncertain of them: the first when sorted by blur.
        chosen = _sorted(point, blur)[fresh.nonzero()[:, 0]]
        i, s = interval[chosen], share[chosen]
        length = t[i + 1] - t[i]
        spread = torch.lerp(kappa[i], kappa[i + 1], s) + SLOPE * size[chosen] * length / rise[chosen].abs()
        return Cuts(i, s, torch.lerp(t[i], t[i + 1], s), spread.clamp(max=KAPPA_LIMIT), point, unit)

    def places(self, old: int) -> tuple[Tensor, Tensor]:
        """Among all points, where the old ones and where the new ones come."""
        new = self.interval + 1 + torch.arange(len(self.interval), device=self.interval.device)
        is_old = torch.ones(old + len(new), dtype=torch.bool, device=new.device).index_fill_(0, new, False)
        return is_old.nonzero()[:, 0], new


def _sorted(first: Tensor, second: Tensor) -> Tensor:
    """The order by the first key and, where it is equal, by the second."""
    order = second.argsort(stable=True)
    return order[first[order].argsort(stable=True)]
