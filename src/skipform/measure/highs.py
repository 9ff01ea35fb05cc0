"""HiGHS on one thread, to the end or until its time or its nodes are over."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import highspy
import numpy as np

from skipform.errors import SkipformError

FEASIBILITY = 1e-9  # of the solver: by how much a constraint or an integer may be missed
NODES = 2**31 - 1  # no limit

Report = Callable[[float, float], None]


@dataclass(frozen=True)
class Solution:
    """bound: no value of the program is below it, inf if the program has no point. point: the best one, if there is
    one. nodes and iterations: of branch and bound, and of the simplex method, the same whenever the program is."""

    bound: float
    point: np.ndarray | None
    nodes: int
    iterations: int


class _Silent(highspy.Highs):
    """HiGHS without the banner that it prints when callbacks are enabled, before any option can be set."""

    def enableCallbacks(self) -> Any:
        self.setOptionValue("output_flag", False)
        return super().enableCallbacks()


def minimum(
    lp: highspy.HighsLp, seconds: float, report: Report | None = None, *, nodes: int = NODES, command: str
) -> Solution:
    """report: called with the value found and the bound proved so far. Raises SkipformError if HiGHS fails."""
    solver = _Silent()
    solver.setOptionValue("output_flag", False)
    for option, value in {
        "time_limit": seconds,
        "threads": 1,
        "mip_max_nodes": nodes,
        "mip_rel_gap": 0.0,
        "mip_abs_gap": FEASIBILITY,
        "mip_feasibility_tolerance": FEASIBILITY,
        "primal_feasibility_tolerance": FEASIBILITY,
        "dual_feasibility_tolerance": FEASIBILITY,
    }.items():
        solver.setOptionValue(option, value)
    if report is not None:
        solver.cbMipLogging.subscribe(
            lambda event: report(event.data_out.mip_primal_bound, event.data_out.mip_dual_bound)
        )
    solver.passModel(lp)
    solver.run()
    status, info, kinds = solver.getModelStatus(), solver.getInfo(), highspy.HighsModelStatus
    has_switches = any(kind == highspy.HighsVarType.kInteger for kind in lp.integrality_)
    work = max(info.mip_node_count, 0), max(info.simplex_iteration_count, 0)
    if status == kinds.kInfeasible:
        return Solution(math.inf, None, *work)
    if status not in (kinds.kOptimal, kinds.kTimeLimit, kinds.kSolutionLimit):
        raise SkipformError(f"{command}: HiGHS ended with {solver.modelStatusToString(status)}")
    has_point = math.isfinite(info.objective_function_value) and info.primal_solution_status == 2
    point = np.array(solver.getSolution().col_value) if has_point else None
    if status == kinds.kOptimal and not has_switches:
        return Solution(info.objective_function_value, point, *work)  # a linear program has no bound of its own
    return Solution(info.mip_dual_bound if has_switches else -math.inf, point, *work)
