"""`skipform radii`: the exact robust radius of one digit of every class, and the solver's work in two encodings."""

import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from skipform import outputs
from skipform.arguments import Count, Seed
from skipform.data.images import SETS
from skipform.errors import SkipformError
from skipform.files import write_json
from skipform.measure import RobustRadius, robust_radius
from skipform.runs import Run, data_root
from skipform.training import plan
from skipform.training.executor import configure_process
from skipform.training.experiment import read

TIME = 3600.0  # seconds of the solver: its nodes end first, so that equal nets give equal bytes
DIGITS = 6  # decimals of a number of grey levels in the file
# How a max pooling is encoded -> `maxima` of robust_radius.
FORMS: tuple[Literal["relu", "native"], ...] = ("relu", "native")


def main(
    *,
    config: Path = Path("experiments/explorer/radii.yaml"),
    scale: str = "embedded",
    seed: Seed = 0,
    nodes: Count = 500,
    out: Path = Path("measures/radii.json"),
) -> None:
    """Train the net of an experiment file with one seed, and find the robust radius of ten test images.

    They are, of every class, the first test image that the net classifies rightly (a class without one has no row).
    A radius is in the infinity norm, in units of the grey levels 0 (white) to 1 (black), within which the images stay.
    Per image: `proved` and `found`, equal if the radius is exact; the part that linear bounds prove; the nearest image
    of another class, checked by the net itself; and for max pooling as ReLUs and as it is, the binary variables of the
    largest program, and nodes and simplex iterations of all. The two encodings have to agree. Equal nets give equal
    bytes; the seconds are printed only.

    Args:
        config: The experiment file, of one net that classifies images.
        scale: A file of experiments/scale.
        seed: The seed of the training.
        nodes: Branch-and-bound nodes for each image and other class, at most; then what is proved so far is written.
        out: The JSON file to write.
    """
    outputs.check_file(out, suffixes=[".json"])
    experiment, storage = read(config, scale), {"root": data_root(), "download": False}
    if experiment.task["name"] != "classify" or len(experiment.variants) != 1:
        raise SkipformError(f"{config}: accepted: one variant, of task classify")
    configure_process(1)  # sums must not depend on the number of cores
    batches = plan.check(config, experiment, storage)
    (variant,) = experiment.variants
    with tempfile.TemporaryDirectory() as folder:
        with plan.progress_bar(batches * experiment.trainer["max_epochs"]) as bar:
            bar.set_description(variant)
            metrics = plan.train(Path(folder), experiment, "radii", storage, variant, seed, bar)
        run = Run(Path(folder, variant, f"seed{seed}"))
        net, images = run.net().double(), run.test_images()
        labels = run.data().splits["test"][1]
    box = grey_levels(experiment.data["name"], images.shape[1:])
    images = images.clamp(*box)  # a float32 may lie a rounding beyond
    rows: list[dict[str, Any]] = []
    total: dict[str, float] = dict.fromkeys(FORMS, 0.0)
    for index in first_right(net, images, labels):
        radii: dict[str, RobustRadius] = {}
        for form in FORMS:
            start = time.process_time()
            radii[form] = robust_radius(net, images[index], *box, maxima=form, time_limit=TIME, nodes=nodes)
            total[form] += time.process_time() - start
        rows.append({"index": index} | row(images[index], radii, box))
        print("class {label}: class {other} at {radius}, at least {proved}".format(**rows[-1]), flush=True)
    print("CPU time: {relu:.0f} s with max pooling by ReLUs, {native:.0f} s with maxima as they are".format(**total))
    errors = {key: metrics[key] for key in ("train_error", "test_error")}
    about = {"experiment": str(config), "scale": scale, "seed": seed, "nodes": nodes}
    about["net"] = {"parameters": sum(p.numel() for p in net.parameters())} | errors
    write_json(out, about | {"shape": list(images.shape[1:]), "rows": rows})


def grey_levels(name: str, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """An image of white, grey level 0, and one of black, 1, as a net takes them."""
    mean, deviation = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in SETS[name][-2:])
    return (-mean / deviation).expand(shape), ((1 - mean) / deviation).expand(shape)


@torch.no_grad()
def first_right(net: nn.Module, images: Tensor, labels: Tensor) -> list[int]:
    """Of every class in order, the place of the first image that the net classifies rightly."""
    right = net(images).argmax(1) == labels
    places = [(right & (labels == label)).nonzero().flatten().tolist() for label in labels.unique(sorted=True)]
    return [of_class[0] for of_class in places if of_class]


def row(image: Tensor, radii: dict[str, RobustRadius], box: tuple[Tensor, ...]) -> dict[str, Any]:
    """The row of one image; see `main`. Raises SkipformError if the encodings contradict each other."""
    white, black = box
    grey = 1 / float((black - white).max())  # of one unit of the standardised image
    proved, best = max(r.proved for r in radii.values()), min(radii.values(), key=lambda r: r.found)
    if proved > best.found + 1e-6 * (1 + best.found):
        raise SkipformError(f"radii: one encoding proves {proved}, the other finds {best.found}: a defect")

    def levels(x: Tensor) -> list[float]:
        return [round(v, DIGITS) for v in ((x - white) / (black - white)).flatten().tolist()]

    return {
        "label": best.label,
        "other": best.other,
        "radius": _rounded(best.found * grey),
        "proved": _rounded(proved * grey),
        "relaxed": _rounded(best.relaxed * grey),
        "exact": any(r.is_exact for r in radii.values()),
        "image": levels(image),
        "witness": None if best.witness is None else levels(best.witness),
        "forms": {
            form: {"exact": r.is_exact, "switches": r.switches, "nodes": r.nodes, "iterations": r.iterations}
            for form, r in radii.items()
        },
    }


def _rounded(value: float) -> float | None:
    """None for a radius that is infinite: within the grey levels no image is of another class."""
    return None if value == float("inf") else round(value, DIGITS)
