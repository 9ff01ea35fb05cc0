"""The files that experiments need, data sets and ImageNet weights: what there is, what is missing, and fetching it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skipform.data.catalogue import CATALOGUE, Entry
from skipform.errors import SkipformError
from skipform.files import read_yaml

# What imports torch is imported by the functions that need it: where nothing is needed, the answer is there at once.

WEIGHTS = "weights/"  # and a model of torchvision: the name of ImageNet weights, as their file's in the data's folder


@dataclass
class Needed:
    """A data set, or the weights of one model, that some experiments need."""

    name: str
    entry: Entry
    experiments: list[str] = field(default_factory=list)
    modules: list[Any] = field(default_factory=list)  # data modules of the set, one per choice of its files

    def sources(self, root: str) -> Iterator[Any]:
        """The `Source`s of the files; one may need those before it."""
        if self.name.startswith(WEIGHTS):
            from skipform.training import weights

            yield weights.source(self.name.removeprefix(WEIGHTS), root)
        for module in self.modules:
            yield from module.sources()

    def damaged(self, root: str) -> dict[Path, str]:
        """The files that are not intact -> "missing", or "altered or cut short"; of the first source that has any, for
        the files of later ones may be listed in it."""
        for source in self.sources(root):
            if damaged := source.damaged():
                return {source.folder / file: state for file, state in damaged.items()}
        return {}

    def prepare(self, root: str) -> None:
        """Fetch what is missing or damaged. Raises SkipformError if that fails."""
        for source in self.sources(root):
            source.prepare(download=True, command="")

    def checksums(self, root: str) -> dict[str, str | None]:
        """File, as a path below `root`, -> its checksum, None if it is unknown."""
        return {
            str((source.folder / file).relative_to(root)): checksum
            for source in self.sources(root)
            for file, checksum in source.checksums.items()
        }


def needed(files: Iterable[Path], scale: str, root: str) -> dict[str, Needed]:
    """Name -> what the experiments of these files need at a scale, in the order of the names.

    Raises:
        SkipformError: a file is no experiment; one line that names the file.
    """
    found: dict[str, Needed] = {}
    for file in files:
        name, weights = _named(file, scale)
        if name in CATALOGUE or weights:
            for one in _of(file, scale, root):
                before = found.setdefault(one.name, one)
                if before is not one:
                    before.experiments += one.experiments
                    known = [module.arguments() for module in before.modules]
                    before.modules += [module for module in one.modules if module.arguments() not in known]
    return dict(sorted(found.items()))


def named(name: str, root: str) -> Needed:
    """The data set or the weights of this name, whether an experiment needs them or not.

    Raises:
        SkipformError: neither a set that is fetched nor a model with weights.
    """
    from skipform import data
    from skipform.training import weights

    if name in CATALOGUE:
        return Needed(name, CATALOGUE[name], modules=[data.build(0, name=name, root=root)])
    models = [f"{WEIGHTS}{model}" for model in weights.models()]
    if name not in models:
        raise SkipformError(f"{name!r} is nothing that is fetched; accepted: {', '.join([*CATALOGUE, *models])}")
    return Needed(name, weights.entry(name.removeprefix(WEIGHTS)))


def _named(file: Path, scale: str) -> tuple[str | None, bool]:
    """The name of the data set of an experiment at a scale, and whether it needs weights: no other key is read."""
    shared, own = read_yaml(file.parent.parent / "scale" / f"{scale}.yaml"), read_yaml(file)
    name, weights = None, "random"
    for layer in (shared, own, own.get(scale) if isinstance(own, dict) else None):
        if isinstance(layer, dict):
            block = layer.get("data")
            name = block.get("name", name) if isinstance(block, dict) else name
            weights = layer.get("backbone_weights", weights)
    return name, weights != "random"


def _of(file: Path, scale: str, root: str) -> Iterator[Needed]:
    from skipform import data
    from skipform.training import weights
    from skipform.training.experiment import read

    experiment = read(file, scale)
    if (name := experiment.data["name"]) in CATALOGUE:
        yield Needed(name, CATALOGUE[name], [file.stem], [data.build(0, **experiment.data, root=root)])
    if experiment.backbone_weights == "imagenet":
        for model in sorted({weights.model_of(block) for block in experiment.variants.values()}):
            yield Needed(f"{WEIGHTS}{model}", weights.entry(model), [file.stem])
