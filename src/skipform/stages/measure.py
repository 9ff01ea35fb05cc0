"""Measure the nets of one experiment, before and after training: regions between test images, ranks."""

import json
import math
import shutil
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import nn

from skipform import data
from skipform.compiler.emit import UnsupportedOperation
from skipform.errors import SkipformError
from skipform.measure import functional_dimension, jacobian_rank
from skipform.measure.line import line_of
from skipform.measure.program import Program
from skipform.nets import features
from skipform.stages import grid
from skipform.stages.files import fingerprint, write_json
from skipform.stages.run import load


def main(
    folder: str,
    *,
    out: str,
    metrics: str | None = None,
    slices: int = 3,
    batch: int = 16,
    executor: grid.Executor = "local",
    workers: int | None = None,
    slurm: dict[str, Any] | None = None,
) -> None:
    """Measure every run of FOLDER (what `skipform fit` left) and write one JSON file; equal nets give equal bytes.

    Per variant, seed, moment (initial, final) and slice: activation regions and affine pieces on the segment from test
    image 2k to test image 2k + 1; the rank of the Jacobian at test image 2k, of the scores and of the features, the
    input of the last linear layer. Per variant, seed and moment: the functional dimension over the first `batch` test
    images. A net that is not piecewise linear (a gate multiplies) has no regions: null, with its ranks. What is
    measured is kept in OUT.partial: a killed measurement goes on where it was.

    Args:
        folder: Where `skipform fit` left the runs, for example runs/survey/resnet.
        out: The JSON file to write.
        metrics: Another one for a flat summary: medians over the seeds of the experiment's first variant, when trained.
        slices: How many segments.
        batch: How many images for the functional dimension.
        executor: local processes, or submitit for a SLURM cluster.
        workers: Local processes; one per core when not given.
        slurm: Parameters of submitit's executor, for example {slurm_partition: cpu}.
    """
    options = {"slices": slices, "batch": batch}
    with over_runs(measure, folder, out, options, executor, workers, slurm, Path(__file__)) as rows:
        write_json(out, {"net": Path(folder).name, "batch": batch, "rows": rows})
        if metrics:
            write_json(metrics, summary(json.loads(Path(folder, "summary.json").read_text()), rows))


@contextmanager
def over_runs(
    function: Callable[..., list[dict[str, Any]]],
    folder: str,
    out: str,
    options: dict[str, Any],
    executor: grid.Executor,
    workers: int | None,
    slurm: dict[str, Any] | None,
    source: Path,
) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of function(run=..., when=..., **options) over the runs of `folder` and both moments, in order.

    Each call's rows are kept in OUT.partial, under a mark made from the runs, the measuring sources and `source`, until
    the block that writes `out` has ended.
    """
    runs = sorted(path.parent for path in Path(folder).glob("*/seed*/provenance.json"))
    if not runs:
        raise SkipformError(f"{folder}: no finished run (VARIANT/seedK) in it; `skipform fit` leaves them")
    for each in runs:
        configuration(each)
    package = Path(__file__).parent.parent
    trained = [json.loads((run / "provenance.json").read_text())["fingerprint"] for run in runs]
    sources = {
        *package.glob("compiler/*.py"),
        *package.glob("measure/*.py"),
        *package.glob("theory/*.py"),
        Path(__file__),
        source,
    }
    partial = Path(f"{out}.partial")
    found = grid.measured(
        function,
        [{"run": str(run), "when": when, **options} for run in runs for when in ("initial", "final")],
        partial,
        mark=fingerprint(trained, sources),
        title=f"measure {Path(folder).name}",
        executor=executor,
        workers=workers,
        slurm=slurm,
    )
    yield [row for cell in found for row in cell]
    shutil.rmtree(partial)


def summary(trained: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The first variant in one line: what `skipform fit` found of it, and the medians of what was measured of it."""
    variant = next(iter(trained))
    chosen = [row for row in rows if row["variant"] == variant and row["when"] == "final"]
    return {
        "variant": variant,
        "parameters": trained[variant]["parameters"],
        "train_error": trained[variant]["train_error"]["middle"],
        "test_error": trained[variant]["test_error"]["middle"],
        **{key: _middle([row[key] for row in chosen]) for key in ("line_regions", "line_pieces", "feature_rank")},
    }


def _middle(values: list[int | None]) -> float | None:
    """The median of a variant's measurements; null where its net has no such measure."""
    return None if None in values else statistics.median(values)  # type: ignore[type-var]


def measure(run: str, when: Literal["initial", "final"], slices: int, batch: int) -> list[dict[str, Any]]:
    """One row a slice for the net of one run at one moment; see `main`."""
    # Nets of this size are slower on several threads, and their sums must not depend on the number of cores.
    torch.set_num_threads(1)
    config = configuration(Path(run))
    images = test_images(config)
    net = load(Path(run), when)
    dimension = functional_dimension(net, images[:batch])
    about = {
        "variant": config["variant"],
        "seed": config["seed"],
        "when": when,
        "functional_dimension": dimension.rank,
        "functional_dimension_gap": finite(dimension.gap),
        "functional_dimension_most": min(dimension.shape),
    }
    return [about | row for row in measured(net, images, slices)]


def configuration(run: Path) -> dict[str, Any]:
    """The config.yaml of a run, of a task that can be measured: one image in, a few scores out."""
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    if config["task"]["name"] != "classify":
        raise SkipformError(f"{run}: a net of task {config['task']['name']!r}; accepted: classify")
    return config


def test_images(config: dict[str, Any]) -> torch.Tensor:
    """The test images of a run, (N, c, h, w), in float64."""
    images = data.build(0, **config["data"])
    images.prepare_data()
    images.setup()
    return images.splits["test"][0].double()


def measured(net: nn.Module, images: torch.Tensor, slices: int) -> list[dict[str, Any]]:
    """One row a slice; see `main`."""
    inner, rows = features(net), []
    try:
        program = Program.of(net, images[0])  # rewritten once for all slices
    except UnsupportedOperation:
        program = None
    for k in range(slices):
        start, end = images[2 * k], images[2 * k + 1]
        regions = line_of(program, torch.stack([start, end]).flatten(1)) if program else None
        rows.append(
            {
                "slice": k,
                "line_regions": regions.count if regions else None,
                "line_pieces": regions.pieces if regions else None,
                **ranks(net, inner, start),
            }
        )
    return rows


def ranks(net: nn.Module, inner: nn.Module, x: torch.Tensor, name: str = "feature") -> dict[str, Any]:
    """The ranks of two Jacobians at x: of the scores, and of the output of `inner`, under its `name`."""
    scores, hidden = jacobian_rank(net, x), jacobian_rank(inner, x)
    return {
        "jacobian_rank": scores.rank,
        "rank_gap": finite(scores.gap),
        "output_dim": scores.shape[0],
        f"{name}_rank": hidden.rank,
        f"{name}_rank_gap": finite(hidden.gap),
        f"{name}_dim": hidden.shape[0],
    }


def finite(gap: float) -> float | None:
    """JSON has no infinity: null where no singular value is left below the rank."""
    return gap if math.isfinite(gap) else None
