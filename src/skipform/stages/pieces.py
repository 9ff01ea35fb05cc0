"""`skipform pieces`: how many affine pieces each architecture has on segments between test images, epoch by epoch."""

from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from skipform import outputs
from skipform.arguments import Count, Seed
from skipform.errors import SkipformError
from skipform.files import write_json
from skipform.measure.line import line_of
from skipform.measure.program import Program
from skipform.training.watched import Watched


def main(
    *,
    config: Path = Path("experiments/explorer/training.yaml"),
    scale: str = "embedded",
    seed: Seed = 0,
    slices: Count = 3,
    out: Path = Path("measures/pieces.json"),
) -> None:
    """Train the nets of an experiment file with one seed, and count their regions and pieces after every epoch.

    Per net and epoch, 0 being before training: the test error, and on every segment from test image 2k to test image
    2k + 1 the activation regions and the affine pieces, exactly. Equal nets give equal bytes.

    Args:
        config: The experiment file; its nets are piecewise linear and classify images.
        scale: A file of experiments/scale.
        seed: The seed of the trainings.
        slices: The number of segments.
        out: The JSON file to write.
    """
    outputs.check_file(out, suffixes=[".json"])
    watched = Watched.of(config, scale, seed)
    images = watched.data.splits["test"][0][: 2 * slices].double()
    if len(images) < 2 * slices:
        raise SkipformError(f"--slices: {slices}; {len(images)} test images are enough for {len(images) // 2}")
    nets = watched.train(partial(counts, images=images))
    write_json(out, {"experiment": str(config), "scale": scale, "seed": seed, "slices": slices, "nets": nets})


def counts(net: nn.Module, images: Tensor) -> dict[str, Any]:
    """The regions and pieces of a net on the segments between images 2k and 2k + 1, in order."""
    program = Program.of(net, images[0])
    lines = [line_of(program, ends.flatten(1)) for ends in images.split(2)]
    return {"regions": [found.count for found in lines], "pieces": [found.pieces for found in lines]}
