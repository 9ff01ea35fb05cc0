"""What a finished stage of the pipeline has written, as Weights & Biases runs; see `tracking`.

They are made from the files that the stage has written, after it: no stage knows of W&B. A run has the digest of what
it shows in its id, so that a stage that is done again with the same result gives the same run.
"""

import csv
import io
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skipform.errors import SkipformError, one_line
from skipform.files import checksum, digest_of, read_json, read_text
from skipform.training import tracking

Rows = list[dict[str, Any]]
Media = dict[str, Any]  # key -> what W&B draws under it


@dataclass(frozen=True)
class Entry:
    """One run. `media` makes the tables and images, which only W&B's classes can hold, when W&B is imported.

    digest: of what the run shows.
    """

    name: str
    group: str
    job_type: str
    digest: str
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    notes: str = ""
    media: Callable[[], Media] = dict
    files: dict[str, Path] = field(default_factory=dict)  # name of an artifact -> its file


def log(stage: str, options: dict[str, Any], seconds: float) -> None:
    """Log what `skipform STAGE` with these options has written in this many seconds, if it is a stage of the pipeline
    here; a line on standard error if W&B fails, which is no failure of the stage."""
    if stage not in ENTRIES or not Path("dvc.yaml").is_file():
        return
    try:
        setting = tracking.setting_here()
        tracking.prepare(setting)
        if (mode := tracking.mode_of(setting)) != "disabled":
            for entry in ENTRIES[stage](options):
                _log(entry, mode, {"command": stage, "options": _plain(options)}, seconds)
    except (SkipformError, OSError) as error:
        print(f"skipform {stage}: done, but not logged to W&B: {one_line(error)}", file=sys.stderr)


def _log(entry: Entry, mode: str, config: dict[str, Any], seconds: float) -> None:
    import wandb

    try:
        run = tracking.start(
            mode,
            name=entry.name,
            digest=entry.digest,
            group=entry.group,
            job_type=entry.job_type,
            config=config | entry.config,
            tags=entry.tags,
            notes=entry.notes,
        )
        if media := entry.media():
            run.log(media, step=0)
        for name, path in entry.files.items():
            artifact = wandb.Artifact(name, type=entry.job_type)
            artifact.add_file(str(path))
            run.log_artifact(artifact)
        run.summary.update(entry.summary | {"seconds": round(seconds, 3)})
        run.finish()
    except wandb.errors.Error as error:
        raise SkipformError(one_line(error)) from error


def _verify(options: dict[str, Any]) -> Iterator[Entry]:
    if options["out"] is None:
        return
    found = read_json(options["out"])
    statements = found["statements"]
    errors = [row["max_error"] for row in statements if row["max_error"] is not None]
    yield Entry(
        name="statements",
        group="statements",
        job_type="verify",
        digest=digest_of(found),
        summary={
            "statements": len(statements),
            "hold": sum(row["holds"] for row in statements),
            "exact": sum(row["exact"] is True for row in statements),
            "proved": sum(row["proved"] is True for row in statements),
            "max_error": max(errors, default=None),
            "constructors": len(found["constructors"]),
        },
        tags=["theory"],
        notes="Do the statements of the paper hold: in float64, in exact fractions, by proof?",
        media=lambda: {"statements": _table(statements), "constructors": _table(found["constructors"])},
    )


def _grammar(options: dict[str, Any]) -> Iterator[Entry]:
    rows = read_json(options["out"])
    flat = [
        {key: value for key, value in row.items() if key not in ("before", "after")}
        | {f"{when} {key}": value for when in ("before", "after") for key, value in row.get(when, {}).items()}
        for row in rows
    ]
    yield Entry(
        name="grammar",
        group="grammar",
        job_type="grammar",
        digest=digest_of(rows),
        summary={
            "models": len(rows),
            "rewritten": sum("after" in row for row in rows),
            "refused": sum("reason" in row for row in rows),
        },
        tags=[*dict.fromkeys(row["net"] for row in rows), options["scale"]],
        notes="Which architectures are affine maps, ReLUs and concatenation alone, and what does the rewriting cost?",
        media=lambda: {"grammar": _table(flat)},
    )


def _measure(options: dict[str, Any]) -> Iterator[Entry]:
    names = {"line_regions": "regions", "line_pieces": "pieces"}
    rows = read_json(options["out"])["rows"]
    flat = [{key: value for key, value in row.items() if key != "layers"} for row in rows]
    yield from _measured("measure", options, flat, names)


def _probe(options: dict[str, Any]) -> Iterator[Entry]:
    rows = read_json(options["out"])["rows"]
    measured = {key: key for row in rows for key, x in row.items() if isinstance(x, int | float) and key != "seed"}
    yield from _measured("probe", options, rows, measured, kind=options["of"])


def _explore(options: dict[str, Any]) -> Iterator[Entry]:
    found = read_json(options["out"])
    shown = ("epoch", "test_error", "regions", "pieces", "maps")
    rows = [
        {"variant": net["variant"], "parameters": net["parameters"], **{key: moment[key] for key in shown}}
        for net in found["nets"]
        for moment in net["moments"]
    ]
    summary = {"nets": len(found["nets"]), "moments": len(rows), "regions": sum(row["regions"] for row in rows)}
    yield _of_one_seed("explorer", "explore", options, found, rows, summary)


def _pieces(options: dict[str, Any]) -> Iterator[Entry]:
    found = read_json(options["out"])
    rows = [
        {"variant": net["variant"], "epoch": moment["epoch"], "test_error": moment["test_error"], "segment": k}
        | {"regions": moment["regions"][k], "pieces": moment["pieces"][k]}
        for net in found["nets"]
        for moment in net["moments"]
        for k in range(found["slices"])
    ]
    summary = {"nets": len(found["nets"]), "pieces": sum(row["pieces"] for row in rows)}
    yield _of_one_seed("pieces", "pieces", options, found, rows, summary)


def _radii(options: dict[str, Any]) -> Iterator[Entry]:
    found = read_json(options["out"])
    rows = [
        {key: row[key] for key in ("index", "label", "other", "radius", "proved", "relaxed", "exact")}
        | {f"{form} {key}": value for form, work in row["forms"].items() for key, value in work.items()}
        for row in found["rows"]
    ]
    summary = {"images": len(rows), "exact": sum(row["exact"] for row in rows), **found["net"]}
    yield _of_one_seed("radii", "radii", options, found, rows, summary)


def _of_one_seed(
    name: str, job_type: str, options: dict[str, Any], found: dict[str, Any], rows: Rows, summary: dict[str, Any]
) -> Entry:
    """The run of a stage that trains the nets of an experiment file itself, with its rows as a table."""
    file = Path(options["config"])
    return Entry(
        name=name,
        group=tracking.experiment_of(file),
        job_type=job_type,
        digest=digest_of(found),
        summary=summary,
        tags=["explorer", found["scale"]],
        notes=_question(file.with_suffix("")),
        media=lambda: {name: _table(rows)},
    )


def _claims(options: dict[str, Any]) -> Iterator[Entry]:
    found = read_json(options["out"])
    if any("regions" in row for row in found["rows"]):
        yield from _measured("claims", options, found["rows"], {})
    decided = found["comparisons"]
    folder = Path(options["folder"])
    if folder.name != found["claim"]:  # a claim about the runs of other experiments: FOLDER is that of the records
        folder = Path("runs", "comparisons", found["claim"])
    verdicts = [row["verdict"] for row in decided]
    yield Entry(
        name=f"{folder.name} verdicts",
        group=tracking.experiment_of(folder),
        job_type="claims",
        digest=digest_of(found),
        summary={verdict: verdicts.count(verdict) for verdict in ("holds", "does not hold", "open")},
        tags=[f"claim {folder.name}", *dict.fromkeys(row["claim"] for row in decided)],
        notes=_question(folder),
        media=lambda: {f"{folder.name}/verdicts": _table(decided)},
    )


RANKS = ("jacobian_rank", "feature_rank", "hidden_rank", "functional_dimension")


def _measured(
    job_type: str, options: dict[str, Any], rows: Rows, names: dict[str, str], kind: str | None = None
) -> Iterator[Entry]:
    """A run per variant of the experiment in FOLDER: medians over its seeds, of the trained nets and, under initial/,
    before training; under copy/, those of its exact copies. names: of the measures -> in the summary. kind: what the
    run's name says was done, by default the job type."""
    from skipform.runs import Run, read_summary

    folder = Path(options["folder"])
    for variant, trained in read_summary(folder).items():
        config = Run(folder / variant / f"seed{trained['seeds'][0]}").config
        config = {key: value for key, value in config.items() if key != "seed"} | {"seeds": trained["seeds"]}
        own = [row for row in rows if row["variant"] == variant]
        shown = [*dict.fromkeys(key for row in own for key in row if key in {*names, "regions", "pieces", *RANKS})]
        medians = {}
        for when, copy in dict.fromkeys((row["when"], row.get("copy")) for row in own):
            prefix = "initial/" * (when == "initial") + "copy/" * (copy is not None)
            for key in shown:
                values = [row[key] for row in own if (row["when"], row.get("copy")) == (when, copy) and key in row]
                if values and None not in values:
                    medians[f"{prefix}{names.get(key, key)}"] = statistics.median(values)
        score, unit = trained["shown"]
        yield Entry(
            name=f"{folder.name} {variant} {kind or job_type}",
            group=tracking.experiment_of(folder),
            job_type=job_type,
            digest=digest_of([config, own]),
            config=config,
            summary={
                "score": trained[f"test_{score}"]["middle"],
                "score_name": f"test {score} in {unit}",
                "parameters": trained["parameters"],
                **medians,
                # the same under keys of the claim: a section of a W&B workspace has no filter but its keys
                **({f"{folder.name}/{key}": value for key, value in medians.items()} if job_type == "claims" else {}),
            },
            tags=tracking.tags_of(folder, config),
            notes=_question(folder),
            media=lambda own=own: {"measures": _table(own)},  # type: ignore[misc]
        )


def _examples(options: dict[str, Any]) -> Iterator[Entry]:
    from safetensors import safe_open

    from skipform.runs import Run, read_summary

    for path in sorted(Path(options["out"]).glob("*.safetensors")):
        folder = Path(options["runs"], path.stem)
        trained = read_summary(folder)
        config = {
            variant: Run(folder / variant / f"seed{min(trained[variant]['seeds'])}").config for variant in trained
        }
        first = next(iter(config.values()))
        with safe_open(path, "np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
            texts = json.loads(file.metadata()["texts"])
        yield Entry(
            name=f"{path.stem} examples",
            group=tracking.experiment_of(folder),
            job_type="examples",
            digest=checksum(path),
            config={"scale": first["scale"], "data": first["data"], "task": first["task"]}
            | {"variants": {variant: block["net"] for variant, block in config.items()}},
            summary={"variants": len(trained)},
            tags=tracking.tags_of(folder, first),
            notes=_question(folder),
            media=lambda trained=trained, arrays=arrays, texts=texts: _shown(list(trained), arrays, texts),  # type: ignore[misc]
        )


def _shown(variants: list[str], arrays: dict[str, Any], texts: dict[str, list[str]]) -> Media:
    """The examples of a net by kind: images with masks, boxes or classes, attention weights, texts."""
    from skipform.training import example_media

    media: dict[str, list[Any]] = {}
    written: Rows = []
    for variant in variants:
        own = {name.removeprefix(f"{variant}/"): x for name, x in arrays.items() if name.startswith(f"{variant}/")}
        for kind, images in example_media.images(variant, own).items():
            media.setdefault(kind, []).extend(images)
        lists = {name.removeprefix(f"{variant}/"): x for name, x in texts.items() if name.startswith(f"{variant}/")}
        for row in zip(*lists.values(), strict=True):
            written.append({"variant": variant, **dict(zip(lists, row, strict=True))})
    return media | ({"texts": _table(written)} if written else {})


def _regions(options: dict[str, Any]) -> Iterator[Entry]:
    picture = Path(options["out"])
    table = picture.with_suffix(".csv")
    rows = list(csv.DictReader(io.StringIO(read_text(table))))
    yield Entry(
        name=f"regions {options['source']}",
        group="regions",
        job_type="regions",
        digest=digest_of([checksum(picture), checksum(table)]),
        summary={"regions": len(rows), "pieces": len({row["piece"] for row in rows})},
        media=lambda: {"regions": _picture(picture)},
    )


def _figures(options: dict[str, Any]) -> Iterator[Entry]:
    folder = Path(options["root"], "paper", "generated")
    pictures = {path.stem.removeprefix("fig_"): path for path in sorted(folder.glob("fig_*.svg"))}
    tables = {path.stem.removeprefix("table_"): path for path in sorted(folder.glob("table_*.csv"))}
    numbers = read_json(folder / "numbers.json")
    yield Entry(
        name="figures",
        group="paper",
        job_type="figures",
        digest=digest_of([numbers, *map(checksum, [*pictures.values(), *tables.values()])]),
        summary={"figures": len(pictures), "tables": len(tables), "numbers": numbers},
        tags=["paper"],
        notes="The figures, tables and numbers of the paper.",
        media=lambda: (
            {f"figure/{name}": _picture(path) for name, path in pictures.items()}
            | {f"table/{name}": _table(list(csv.DictReader(io.StringIO(read_text(p))))) for name, p in tables.items()}
        ),
    )


def _paper(options: dict[str, Any]) -> Iterator[Entry]:
    path = Path(options["output"])
    yield Entry(
        name="paper",
        group="paper",
        job_type="paper",
        digest=checksum(path),
        summary={"bytes": path.stat().st_size},
        tags=["paper"],
        notes="The paper.",
        files={"paper": path},
    )


ENTRIES: dict[str, Callable[[dict[str, Any]], Iterable[Entry]]] = {
    "verify": _verify,
    "grammar": _grammar,
    "measure": _measure,
    "probe": _probe,
    "claims": _claims,
    "explore": _explore,
    "radii": _radii,
    "pieces": _pieces,
    "examples": _examples,
    "regions": _regions,
    "notebooks": _figures,
    "paper": _paper,
}


def _question(folder: Path) -> str:
    """The question of the experiment whose runs are in the folder; "" if its file is not here."""
    file = Path("experiments", f"{tracking.experiment_of(folder)}.yaml")
    return tracking.question(file) if file.is_file() else ""


def _table(rows: Rows) -> Any:
    """A W&B table with a column for every key. Lists and mappings are written as JSON: a column has one type."""
    import wandb

    columns: list[str | int] = [*dict.fromkeys(key for row in rows for key in row)]

    def cell(value: Any) -> Any:
        return json.dumps(value) if isinstance(value, dict | list) else value

    return wandb.Table(
        columns=columns, data=[[cell(row.get(str(key))) for key in columns] for row in rows], allow_mixed_types=True
    )


def _picture(path: Path) -> Any:
    """A W&B image of a picture file. W&B takes no vectors: typst draws them in 192 pixels per inch."""
    import typst
    import wandb
    from PIL import Image

    if path.suffix == ".png":
        return wandb.Image(str(path))
    page = f'#set page(width: auto, height: auto, margin: 4pt)\n#image("{path.name}")'
    files = {"main.typ": page.encode(), path.name: path.read_bytes()}
    png = typst.compile(files, format="png", ppi=192)  # type: ignore[call-overload]  # its stub has no mapping
    return wandb.Image(Image.open(io.BytesIO(png)))


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a stage as JSON values."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in options.items()}
