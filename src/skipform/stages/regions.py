"""`skipform regions`: the exact linear regions of a network on a plane through points: counts, a table, a picture."""

import csv
import io
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from skipform.arguments import Factor, Natural, Seed
from skipform.errors import SkipformError, shown
from skipform.files import whole, write_text
from skipform.measure import PlaneRegions, plane
from skipform.outputs import check_file
from skipform.runs import Run
from skipform.stages.models import is_file, read_inputs, with_shape

SUFFIXES = (".svg", ".png", ".pdf")
COLUMNS = ["region", "piece", "area", "corners"]  # of the table


def main(
    source: str,
    *,
    out: Path = Path("regions.svg"),
    input: str | None = None,
    arguments: str = "{}",
    points: Path | None = None,
    images: list[Natural] | None = None,
    box: list[float] | None = None,
    seed: Seed = 0,
    memory_gib: Factor = 4.0,
) -> None:
    """Count the activation regions, affine pieces and distinct affine maps of a network on a plane, and draw them.

    The plane is p0 + s (p1 - p0) + t (p2 - p0) through three points: given (--points), test images of the run's data
    set (--images), or random ones (--seed). A network of two inputs is measured on its own input plane.

    Args:
        source: A run's folder (runs/survey/resnet/residual/seed0), MODULE:FACTORY that returns a torch model, or an
            ONNX file of one input.
        out: The picture, one colour per piece (.svg, .png or .pdf); the table of regions is written next to it (.csv).
        input: For MODULE:FACTORY, the shape of one input, e.g. 3,32,32.
        arguments: For MODULE:FACTORY, its keyword arguments, as JSON.
        points: A .npy file of three inputs, shape (3, ...).
        images: Three indices of test images, for a run's folder.
        box: The lowest and highest s, the lowest and highest t; by default -1 1 -1 1.
        seed: The seed of the random points, which are standard normal, and of the weights of MODULE:FACTORY.
        memory_gib: A computation that needs more memory than this is refused.
    """
    check_file(out, suffixes=SUFFIXES)
    table = out.with_suffix(".csv")
    _check_table(table)
    net, example, candidates = _network(source, input, arguments, images, seed)
    low_s, high_s, low_t, high_t = _box(box)
    origin, u, v = _plane(example, candidates, points, seed)
    start = time.perf_counter()
    shape = "{desc} |{bar:30}| {percentage:3.0f} % [{elapsed}]"
    with tqdm(total=1.0, desc="regions", leave=False, disable=None, bar_format=shape) as bar:
        regions = plane(
            net,
            origin,
            u,
            v,
            (low_s, high_s, low_t, high_t),
            memory=int(memory_gib * 2**30),
            progress=lambda share: bar.update(share - bar.n),
        )
    print(f"activation regions   {regions.count:,}   counted in {time.perf_counter() - start:.2f} s")
    print(f"affine pieces        {regions.pieces:,}")
    print(f"distinct affine maps {regions.maps:,}")
    write_text(table, _table(regions))
    _draw(out, regions)
    print(f"written              {out}, {table}")


def _network(
    source: str, input: str | None, arguments: str, images: list[Natural] | None, seed: Seed
) -> tuple[nn.Module, Tensor, Tensor | None]:
    """The net in eval mode, an input of the right shape, and three points if the source is a run's folder."""
    folder = Path(source)
    if (folder / "config.yaml").is_file():
        run = Run(folder).of_task("classify")
        test = run.test_images()  # (N, c, h, w)
        chosen = images or [0, 1, 2]
        if len(chosen) != 3 or not all(0 <= i < len(test) for i in chosen):
            raise SkipformError(f"--images {chosen}: three indices from 0 to {len(test) - 1} are accepted")
        return run.net(), test[0], test[chosen]
    if ":" not in source and not is_file(source):
        raise SkipformError(
            f"{shown(source)}: neither a run's folder (with config.yaml) nor MODULE:FACTORY nor an ONNX file"
        )
    if images is not None:
        raise SkipformError(f"{source}: --images needs a run's folder; other networks take --points or --seed")
    net, shape = with_shape(source, input, arguments, seed=seed)
    return net, torch.zeros(shape, dtype=torch.float64), None


def _box(box: list[float] | None) -> tuple[float, float, float, float]:
    low_s, high_s, low_t, high_t = box if box and len(box) == 4 else (-1.0, 1.0, -1.0, 1.0)
    if box and len(box) != 4:
        raise SkipformError(f"--box {box}: four numbers are accepted, e.g. [-1, 1, -1, 1]")
    return low_s, high_s, low_t, high_t


def _plane(example: Tensor, candidates: Tensor | None, points: Path | None, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The origin and the directions u, v of the plane; see `main`."""
    if points is not None:
        candidates = read_inputs(points, (3, *example.shape), "--points")
    if candidates is None and example.numel() == 2:
        first, second = torch.eye(2, dtype=torch.float64)
        return example, first.reshape(example.shape), second.reshape(example.shape)
    if candidates is None:
        generator = torch.Generator().manual_seed(seed)
        candidates = torch.randn(3, *example.shape, generator=generator, dtype=torch.float64)
    u, v = candidates[1] - candidates[0], candidates[2] - candidates[0]
    if not bool(candidates.isfinite().all()):
        raise SkipformError(f"--points {points}: a number is NaN or infinite; finite ones are accepted")
    if torch.linalg.matrix_rank(torch.stack([u, v]).flatten(1)) < 2:
        raise SkipformError("the three points lie on one line; three that span a plane are accepted")
    return candidates[0], u, v


def _check_table(table: Path) -> None:
    """Refuse a table that cannot be written, or in whose place stands a file that is no such table: nobody named it."""
    check_file(table, "the table of --out,", suffixes=[".csv"])
    if table.exists():
        with table.open("rb") as file:
            if file.readline(100).split() != [",".join(COLUMNS).encode()]:
                raise SkipformError(
                    f"{table}: the table of regions would replace it; give another --out, or move it away"
                )


def _table(regions: PlaneRegions) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    columns = regions.polygons(), regions.areas(), regions.labels
    for region, (polygon, area, piece) in enumerate(zip(*columns, strict=True)):
        corners = " ".join(f"{s:.17g},{t:.17g}" for s, t in polygon)
        table.writerow([region, piece, f"{area:.17g}", corners])
    return text.getvalue()


def _draw(out: Path, regions: PlaneRegions) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "skipform"}):
        figure = Figure(figsize=(6, 6), layout="constrained")
        regions.plot(figure.subplots())
        with whole(out) as temporary:
            dates = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": {}}[out.suffix]
            figure.savefig(temporary, format=out.suffix[1:], dpi=150, metadata=dates)
