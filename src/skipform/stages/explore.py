"""`skipform explore`: the regions on one plane, for several nets and moments of their training, for the review page."""

import copy
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from tqdm import tqdm

from skipform import data, outputs, tasks
from skipform.arguments import Seed
from skipform.errors import SkipformError
from skipform.files import write_json
from skipform.measure import plane
from skipform.measure.outlines import GRID, outlines
from skipform.runs import data_root
from skipform.training import plan, run
from skipform.training.executor import configure_process
from skipform.training.experiment import Experiment, read
from skipform.training.journal import Journal

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
    nets = []
    with plan.progress_bar(len(experiment.variants) * batches * experiment.trainer["max_epochs"]) as bar:
        for variant in experiment.variants:
            bar.set_description(variant)
            moments = train(experiment, variant, seed, storage, bar)
            pictures = [{"epoch": epoch, "test_error": error, **picture(net, images)} for epoch, net, error in moments]
            parameters = sum(p.numel() for p in moments[0][1].parameters())
            nets.append({"variant": variant, "parameters": parameters, "moments": pictures})
    pixels = module.pixels["test"][0][:3].flatten(1).tolist()
    plane_ = {"box": BOX, "grid": GRID, "labels": labels.tolist(), "images": pixels, "shape": list(images.shape[1:])}
    write_json(out, {"experiment": str(config), "scale": scale, "seed": seed, **plane_, "nets": nets})


class Moments(Journal):
    """The journal of a run, which also copies the net after some of its epochs."""

    def __init__(self, epochs: set[int], checkpoint: Path, seed: int, bar: tqdm) -> None:
        super().__init__(checkpoint, seed, bar)
        self.epochs, self.nets = epochs, list[tuple[int, nn.Module, float | None]]()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        epoch, error = trainer.current_epoch + 1, self.rows[-1]["test_error"]
        if epoch in self.epochs:
            self.nets.append((epoch, copy.deepcopy(pl_module.net), error))


def train(
    experiment: Experiment, variant: str, seed: int, storage: dict[str, Any], bar: tqdm
) -> list[tuple[int, nn.Module, float | None]]:
    """(epoch, the net after it, its test error) at the moments that `main` states, trained as `skipform fit` trains."""
    last = experiment.trainer["max_epochs"]
    config = {"net": experiment.variants[variant], "seed": seed, "backbone_weights": experiment.backbone_weights}
    net = run.initial(config, storage["root"])
    before = copy.deepcopy(net)
    with tempfile.TemporaryDirectory() as folder:
        journal = Moments({1, -(-last // 3), last}, Path(folder, "last.ckpt"), seed, bar)
        trainer = run.build_trainer(**experiment.trainer, callback=journal)
        task = tasks.build(net=net, optimizer=experiment.optimizer, **experiment.task)
        run.fit(trainer, task, data.build(seed, lightning=True, **experiment.data | storage), None)
    return [(0, before, None), *journal.nets]


def picture(net: nn.Module, images: Tensor) -> dict[str, Any]:
    """The numbers and outlines of the regions of a net on the plane through three images (3, c, h, w)."""
    x, y, z = images.double()
    regions = plane(net.double().eval(), x, y - x, z - x, BOX)
    drawn = outlines(regions)
    counts = {"regions": regions.count, "pieces": regions.pieces, "maps": regions.maps}
    borders = {"piece_borders": drawn.pieces, "region_borders": drawn.regions}
    return counts | {"areas": drawn.areas, "area_labels": drawn.labels, **borders}
