"""Expressive power as numbers: (network, domain, generator) in, a frozen record out; pure, float64, on the CPU."""

# Not lazily: line, plane, bounds and capacity carry the name of their own file, and loading a file later would bind
# the module over the function. None of these files imports numba; plane does when it is called.
from skipform.measure.bounds import Bounds, bounds
from skipform.measure.capacity import Capacity, capacity, fitting_error
from skipform.measure.line import LineRegions, line
from skipform.measure.output_range import OutputRange, output_range
from skipform.measure.plane import PlaneRegions, plane
from skipform.measure.rank import Rank, functional_dimension, jacobian_rank
from skipform.measure.trajectory import Trajectory, trajectory_length

__all__ = [
    "Bounds",
    "Capacity",
    "LineRegions",
    "OutputRange",
    "PlaneRegions",
    "Rank",
    "Trajectory",
    "bounds",
    "capacity",
    "fitting_error",
    "functional_dimension",
    "jacobian_rank",
    "line",
    "output_range",
    "plane",
    "trajectory_length",
]
