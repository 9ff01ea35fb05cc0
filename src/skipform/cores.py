"""How many cores of the machine this process may use."""

import os
import re

from skipform.errors import SkipformError, shown

SHARE = "SKIPFORM_CORES"  # an environment variable: the share of one of several stages that run at once


def cores() -> int:
    """The cores that the system lets this process use, such as those of its SLURM job, and at most SKIPFORM_CORES.

    Raises:
        SkipformError: SKIPFORM_CORES is no whole number from 1.
    """
    # Where there is no affinity (macOS), a process may use all cores.
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get(SHARE)
    if given is None:
        return own
    if not re.fullmatch("[1-9][0-9]{0,8}", given):
        raise SkipformError(f"{SHARE}: {shown(given)}; accepted: a whole number from 1, or not set")
    return min(own, int(given))
