"""`skipform explore`: the regions on one plane, for several nets and moments of their training, for the review page."""

from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from skipform import outputs
from skipform.arguments import Seed
from skipform.files import write_json
from skipform.measure import plane
from skipform.measure.outlines import GRID, outlines
from skipform.training.watched import Watched

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
    watched = Watched.of(config, scale, seed)
    images, labels = (part[:3] for part in watched.data.splits["test"])
    last = watched.epochs
    nets = watched.train(partial(picture, images=images), {0, 1, -(-last // 3), last})
    pixels = watched.data.pixels["test"][0][:3].flatten(1).tolist()
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
