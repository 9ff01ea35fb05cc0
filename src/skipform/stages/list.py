"""`skipform list`: the names of everything that can be built, trained and run."""

from pathlib import Path

from skipform import nets, tasks
from skipform.data import sets
from skipform.errors import SkipformError


def main(*, root: str = ".") -> None:
    """Print the networks, the data sets, the tasks and the experiment files.

    Args:
        root: The folder that holds experiments/.
    """
    if not Path(root).is_dir():
        raise SkipformError(f"--root {root}: no such folder; accepted: the folder that holds experiments/")
    files = [path for kind in ("survey", "claims") for path in sorted(Path(root, "experiments", kind).glob("*.yaml"))]
    experiments = [str(path.relative_to(root)) for path in files]
    kinds = {"networks": nets.names(), "data sets": sorted(sets()), "tasks": tasks.names(), "experiments": experiments}
    for title, names in kinds.items():
        print(f"{title}:")
        for name in names or [f"none in {root}; a checkout of the project has some"]:
            print(f"  {name}")
