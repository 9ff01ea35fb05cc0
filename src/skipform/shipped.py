"""The experiment files that come with the project: experiments/ in a checkout, skipform/experiments/ in a wheel."""

from pathlib import Path

from skipform.errors import SkipformError

PACKAGE = Path(__file__).parent


def root() -> Path:
    """The folder that holds experiments/: the working directory, or else the package, or the checkout around it."""
    for folder in (Path(), PACKAGE, PACKAGE.parents[1]):
        if (folder / "experiments").is_dir():
            return folder
    return Path()


def experiment_file(name: str) -> Path:
    """The file of this path, or the experiment of this name: "survey/resnet" is experiments/survey/resnet.yaml.

    Raises:
        SkipformError: there is neither; one line that says what is accepted.
    """
    path = Path(name)
    if path.is_file():
        return path
    known = root() / "experiments" / f"{name}.yaml"
    if known.is_file():
        return known
    if path.suffix != ".yaml":
        raise SkipformError(
            f"{name}: no such experiment; accepted: a file, or a name that `skipform list` shows, such as survey/resnet"
        )
    present = sorted(other.name for other in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
    accepted = ", ".join(present) or "none; a checkout of the project has experiments/"
    raise SkipformError(f"{path}: no such experiment file; {path.parent} has {accepted}")
