"""Expressive power as numbers: (network, domain, generator) in, a frozen record out; pure, float64, on the CPU."""

# Not lazily: line, plane and bounds carry the name of their own file, and loading a file later would bind
# the module over the function. None of these files imports numba; plane and line do when they are called.
from skipform.measure.bounds import Bounds, bounds
from skipform.measure.line import LineRegions, line
from skipform.measure.output_range import OutputRange, output_range
from skipform.measure.plane import PlaneRegions, plane
from skipform.measure.program import Program
from skipform.measure.rank import Rank, functional_dimension, jacobian_rank
from skipform.measure.robust_radius import RobustRadius, robust_radius
from skipform.measure.trajectory import Trajectory, trajectory_length

__all__ = [
    "Bounds",
    "LineRegions",
    "OutputRange",
    "PlaneRegions",
    "Program",
    "Rank",
    "RobustRadius",
    "Trajectory",
    "bounds",
    "functional_dimension",
    "jacobian_rank",
    "line",
    "output_range",
    "plane",
    "robust_radius",
    "trajectory_length",
]
