"""`skipform explore`: the regions on one plane, for several nets and moments of their training, for the review page."""

from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from skipform import data, outputs
from skipform.arguments import Seed
from skipform.errors import SkipformError
from skipform.files import write_json
from skipform.measure import plane
from skipform.measure.outlines import GRID, outlines
from skipform.runs import data_root
from skipform.training import plan, watched
from skipform.training.executor import configure_process
from skipform.training.experiment import read

BOX = (-0.2, 1.2, -0.2, 1.2)  # of s and t: the plane reaches a little beyond the parallelogram of the images


def main(
    *,
    config: Path = Path("experiments/explorer/planes.yaml"),
    scale: str = "embedded",
    seed: Seed = 0,
    out: Path = Path("measures/explorer.json"),
) -> None:
    """Train the nets of an experiment file with one seed, and draw their regions before, during and after training.

    The plane x + s (y - x) + t (z - x) goes through the first three test images. It is measured before training, after
    the first epoch, after a third of the epochs and after the last one. Per net and moment: the test error, activation
    regions, affine pieces, distinct affine maps, and the outlines that `measure.outlines` describes.

    Args:
        config: The experiment file; its nets classify images.
        scale: A file of experiments/scale.
        seed: The seed of the trainings.
        out: The JSON file to write.
    """
    outputs.check_file(out, suffixes=[".json"])
    experiment, storage = read(config, scale), {"root": data_root(), "download": False}
    if experiment.task["name"] != "classify":
        raise SkipformError(f"{config}: task.name: {experiment.task['name']!r}; accepted: classify")
    configure_process(1)  # these nets are too small for more, and sums must not depend on the number of cores
    batches = plan.check(config, experiment, storage)
    module = data.build(seed, **experiment.data | storage)
    module.prepare_data()
    module.setup()
    images, labels = (part[:3] for part in module.splits["test"])
    nets, last, look = [], experiment.trainer["max_epochs"], partial(picture, images=images)
    with plan.progress_bar(len(experiment.variants) * batches * last) as bar:
        for variant in experiment.variants:
            bar.set_description(variant)
            nets.append(watched.train(experiment, variant, seed, storage, bar, look, {0, 1, -(-last // 3), last}))
    pixels = module.pixels["test"][0][:3].flatten(1).tolist()
    plane_ = {"box": BOX, "grid": GRID, "labels": labels.tolist(), "images": pixels, "shape": list(images.shape[1:])}
    write_json(out, {"experiment": str(config), "scale": scale, "seed": seed, **plane_, "nets": nets})


def picture(net: nn.Module, images: Tensor) -> dict[str, Any]:
    """The numbers and outlines of the regions of a net on the plane through three images (3, c, h, w)."""
    x, y, z = images.double()
    regions = plane(net, x, y - x, z - x, BOX)
    drawn = outlines(regions)
    counts = {"regions": regions.count, "pieces": regions.pieces, "maps": regions.maps}
    borders = {"piece_borders": drawn.pieces, "region_borders": drawn.regions}
    return counts | {"areas": drawn.areas, "area_labels": drawn.labels, **borders}
