"""The review page: every result of the pipeline on one page that loads nothing; `skipform review` writes it.

It shows what the notebooks have made (paper/generated), the learning curves (records/), the reference results
(results/) and the explorer (measures/explorer.json). Every number links to its entry of `sources`: the experiment file,
the command and the files that it comes from. Equal results give equal bytes.
"""

import csv
import json
import re
from pathlib import Path
from typing import Any

import altair as alt
import frame
import pandas as pd
import style
import vl_convert
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

HERE = Path(__file__).parent
PAGE = "build/review.html"  # where the links of the page begin
CLAIM_FIGURES = {"claim_pooling": frame.ABSTRACT[:1], "claim_blocks": frame.ABSTRACT[1:]}  # -> the claims shown
PICTURES = {  # figure -> the tasks of its nets, its caption; a run without these nets has none
    "fig_masks": ("segment", "Masks: the image, the true mask and the prediction of each variant."),
    "fig_boxes": ("detect", "Boxes: dashed the true ones, solid the predicted ones with scores above 30 %."),
    "fig_pyramids": ("detect", "Feature pyramids: root mean square over the channels, from fine to coarse."),
    "fig_attention": (
        "classify detect language_model translate",
        "Attention: how much a token (row) attends to each token (column), mean over a layer's heads.",
    ),
}
MEASURES = {  # of a net after training -> the heading in its table
    "line_regions": "regions",
    "line_pieces": "pieces",
    "feature_rank": "rank",
    "functional_dimension": "functional dimension",
}
FOLDERS = ("survey", "claims", "comparisons", "explorer", "gpu", "cpu")  # of experiments/
HEADING = re.compile(r"^# (Question|Feeds|Expect|Cost|Run) +(.*(?:\n#  .*)*)", re.MULTILINE)
CONFIG = {  # of all charts
    "background": None,
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {"titleFontWeight": "normal", "gridColor": "#ececec", "domainColor": "#8a8a8a", "tickColor": "#8a8a8a"},
    "legend": {"labelLimit": 140, "symbolStrokeWidth": 2, "symbolSize": 250, "symbolOpacity": 1, "title": None},
}
# A colour per class, of lightness (CIE L*) 66 to 95: they differ in grey too, and the borders on them are dark.
CLASS_COLORS = (
    "#f7f1d3", "#98bbdd", "#a1eeb7", "#e8c2b9", "#b79edf", "#c4eff5", "#dcbb95", "#edcadf", "#3bb29d", "#6bc655",
)  # fmt: skip


def page() -> str:
    """The whole page."""
    nets, rows = cards(), results()
    charts = {"overview": overview()} | {f"curves-{card['net']}": card.pop("chart") for card in nets}
    explorer = json.loads((frame.ROOT / "measures" / "explorer.json").read_text())
    pictures = {name: text for name, text in PICTURES.items() if (frame.GENERATED / f"{name}.svg").is_file()}
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("review.html").render(
        numbers=json.loads((frame.GENERATED / "numbers.json").read_text()),
        cards=nets,
        tasks=sorted({card["task"] for card in nets}),
        claims=dict.fromkeys(row["experiment"] for row in table("table_verdicts")),
        scales=sorted({*(card["scale"] for card in nets), *(row["scale"] for row in rows)}),
        survey=survey(),
        claim_figures=[(svg(f"fig_{name}"), " ".join(claims)) for name, claims in CLAIM_FIGURES.items()],
        verdict_figures=[svg(path.stem) for path in sorted(frame.GENERATED.glob("fig_verdicts_*.svg"))],
        verdicts=of_claims("table_verdicts"),
        comparisons=of_claims("table_comparisons"),
        **{name: table(f"table_{name}") for name in ("statements", "layers", "grammar", "refused")},
        grammar_figure=svg("fig_grammar"),
        results=rows,
        pictures=[(svg(name), tasks, caption) for name, (tasks, caption) in pictures.items()],
        sources=sources(),
        explorer=explorer,
        explorer_data=for_script(explorer | {"colors": CLASS_COLORS}),
        charts_data=for_script({"config": CONFIG, "specs": charts}),
        css=(HERE / "page.css").read_text() + (HERE / "review.css").read_text(),
        javascript=(HERE / "review.js").read_text(),
        vega=vl_convert.javascript_bundle(),
    )


def table(name: str) -> list[dict[str, str]]:
    """The rows of a table that a notebook has written, as printed in the paper."""
    with (frame.GENERATED / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def for_script(value: Any) -> str:
    """JSON that can stand inside a script element."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")


def svg(name: str) -> str:
    """A figure, to stand in the page: without a head, and with no identifier that the page or another figure has."""
    text = (frame.GENERATED / f"{name}.svg").read_text(encoding="utf-8")
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text[text.index("<svg") :], flags=re.DOTALL)
    used = set(re.findall(r'(?:href="#|url\(#)([\w-]+)', text))
    text = re.sub(r' id="([\w-]+)"', lambda match: match[0] if match[1] in used else "", text)
    text = re.sub(r'( id="|href="#|url\(#)(?=[\w-])', rf"\g<1>{name}-", text)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    return re.sub(r"\n\s*", "\n", text)


# Where numbers come from


def heading(file: Path) -> dict[str, str]:
    """What an experiment file states about itself: Question, Feeds, Expect, Cost, Run, one line each; of one that
    states nothing, no question and the command that trains it."""
    stated = {key: re.sub(r"\n# +", " ", text) for key, text in HEADING.findall(file.read_text(encoding="utf-8"))}
    return {"Question": "", "Run": f"skipform fit --config {file.relative_to(frame.ROOT)}"} | stated


def experiments() -> dict[str, Path]:
    """The experiment files by their place, such as survey-resnet."""
    files = [path for folder in FOLDERS for path in sorted((frame.ROOT / "experiments" / folder).glob("*.yaml"))]
    return {f"{path.parent.name}-{path.stem}": path for path in files if path.stem != "table"}


def nets_of(file: Path) -> list[str]:
    """The architectures that the variants of an experiment file are, or those of the runs that it names."""
    content = yaml.safe_load(file.read_text())
    if "variants" in content:
        return sorted({block["name"] for block in content["variants"].values()})
    return sorted({net for run in runs_of(content) for net in nets_of(run)})


def task_of(file: Path) -> str:
    """The tasks of an experiment file, or of the runs that it names."""
    content = yaml.safe_load(file.read_text())
    if "runs" in content:
        return " ".join(sorted({task_of(run) for run in runs_of(content)}))
    return content.get("task", {}).get("name", "classify")


def runs_of(content: dict[str, Any]) -> list[Path]:
    """The experiment files of the runs that a file without trainings names."""
    names = content["runs"] if isinstance(content["runs"], list) else [content["runs"]]
    return [frame.ROOT / "experiments" / f"{name}.yaml" for name in names]


def sources() -> list[dict[str, Any]]:
    """One entry per origin of numbers: name, title, lines of text, the command, and links to files of the repository.

    `published` is where a number that others have published is printed.
    """
    published, entries = frame.published(), []
    for name, file in experiments().items():
        folder, stem = file.parent.name, file.stem
        stated, nets = heading(file), nets_of(file)
        paths = [
            f"experiments/{folder}/{stem}.yaml",
            f"records/{folder}/{stem}.jsonl",
            f"measures/{folder}/{stem}.json",
        ]
        drawn = {"planes": "explorer", "training": "pieces"}.get(stem, stem)
        paths += [f"measures/{drawn}.json"] * (folder == "explorer") + [f"results/{stem}.csv"]
        paths += [f"src/skipform/nets/{net}.py" for net in nets]
        entry = published.get(stem, {}) if folder == "survey" else {}
        origin = f"{entry['model']}: {entry['source']}" if entry else ""
        title = f"{folder}/{stem}" + (f", {entry['name']}" if entry else "")
        entries.append(origin_of(name, title, stated["Run"], paths, stated) | {"published": origin, "nets": nets})
    theory = ["src/skipform/theory/statements.py", "src/skipform/theory/check.py", "measures/theorems.json"]
    compiler = ["src/skipform/stages/grammar.py", "src/skipform/compiler/rewrite.py", "measures/grammar.json"]
    entries.append(origin_of("statements", "the statements", "skipform verify", ["analysis/statements.py", *theory]))
    entries.append(origin_of("grammar", "the grammar", "skipform grammar", ["analysis/grammar.py", *compiler]))
    return entries


def origin_of(
    name: str, title: str, command: str, paths: list[str], stated: dict[str, str] | None = None
) -> dict[str, Any]:
    """An entry of `sources`; files that this run does not have are left out."""
    files = [path for path in paths if (frame.ROOT / path).is_file()]
    lines = {key: text for key, text in (stated or {}).items() if text and key in ("Question", "Expect", "Cost")}
    return {
        "name": name,
        "title": title,
        "lines": lines,
        "command": command,
        "files": files,
        "published": "",
        "nets": [],
    }


# The survey


def survey() -> list[dict[str, str]]:
    """The rows of the survey's table, each with its net and its task."""
    rows = dict(zip(frame.surveyed(), table("table_survey"), strict=True))
    files = experiments()
    return [
        row | {"net": net, "task": task_of(files[f"survey-{net}"]), "claims": claims_of(net)}
        for net, row in rows.items()
    ]


def claims_of(net: str) -> str:
    """The experiments of claims that are about this net, in one text; empty for most."""
    decided = {row["experiment"] for row in table("table_verdicts")}
    return " ".join(path.stem for path in experiments().values() if path.stem in decided and net in nets_of(path)
                    and path.parent.name in ("claims", "comparisons"))  # fmt: skip


def cards() -> list[dict[str, Any]]:
    """One card per trained net: its variants with scores and measures, and the chart of its learning curves."""
    trained, measured = pd.DataFrame(table("table_training")), pd.DataFrame(table("table_expressiveness"))
    runs, history, names = frame.records(), frame.histories(), frame.names()
    files = experiments()
    result = []
    for net, rows in trained.groupby("net", sort=False):
        own = measured[(measured["net"] == net) & (measured["when"] == "final")] if len(measured) else measured
        variants = []
        for row in rows.to_dict("records"):
            digits = 2 if row["unit"] == "nats" else 1
            middle, low, high = (f"{float(row[key]):.{digits}f}" for key in ("middle", "low", "high"))
            numbers = own[own["variant"] == row["variant"]].set_index("measure") if len(own) else own
            shown = {"measures": [spread(numbers, key) for key in MEASURES]}
            size = f"{int(row['parameters']):,}".replace(",", "\u2009")
            variants.append(
                {"variant": row["variant"], "parameters": size, "score": f"{middle} ({low}–{high})", **shown}
            )
        first = rows.iloc[0]
        result.append(
            {
                "net": net,
                "name": names[net],
                "task": task_of(files[f"survey-{net}"]),
                "claims": claims_of(net),
                "scale": runs[runs["net"] == net].iloc[0]["config"]["scale"],
                "question": heading(files[f"survey-{net}"])["Question"],
                "seeds": first["seeds"],
                "score": f"{frame.SCORES[first['score']]} ({first['unit']})",
                "variants": variants,
                "measured": len(own) > 0,
                "chart": curves(history[history["net"] == net], first["score"], first["unit"]),
            }
        )
    return result


def spread(numbers: pd.DataFrame, measure: str) -> tuple[str, str]:
    """The median of a measure and, in words, its range; a dash and nothing where it was not measured."""
    if measure not in numbers.index or not numbers.loc[measure, "median"]:
        return "–", ""
    middle, low, high = (f"{float(numbers.loc[measure, key]):g}" for key in ("median", "low", "high"))
    return middle, f"{low} to {high}, {numbers.loc[measure, 'n']} measurements"


# Charts


def specification(chart: alt.Chart | alt.LayerChart) -> dict[str, Any]:
    """What Vega-Lite draws; the page holds one configuration for all charts."""
    entries = chart.to_dict()
    return {key: value for key, value in entries.items() if key not in ("$schema", "config", "usermeta")}


def curves(history: pd.DataFrame, score: str, unit: str) -> dict[str, Any]:
    """The score on the test set after each epoch: the median over the seeds in a band from the best to the worst."""
    rows = frame.spread(history, ["variant", "epoch"], f"test_{score}")
    rows[["median", "low", "high"]] = rows[["median", "low", "high"]].map(lambda value: float(f"{value:.5g}"))
    looks = style.marks(rows["variant"].unique())
    names = list(looks)
    color = alt.Color("variant:N", sort=names).scale(domain=names, range=[look.color for look in looks.values()])
    dashes = alt.StrokeDash("variant:N", sort=names).scale(
        domain=names, range=[[2 * x for x in look.dashes] or [1, 0] for look in looks.values()]
    )
    lowest, highest = float(rows["low"].min()), float(rows["high"].max())
    scale = alt.Scale(zero=False)
    if score == "error" and lowest > 0:
        scale = alt.Scale(type="log", domain=[lowest / 1.1, min(100.0, highest * 1.1)], nice=False)
    epochs = sorted(rows["epoch"].unique().tolist())
    ticks = epochs if len(epochs) <= 12 else alt.Undefined
    legend = alt.Legend(orient="bottom", columns=3, symbolType="stroke")
    base = alt.Chart(alt.Data(values=rows.drop(columns="n").to_dict("records"))).encode(
        x=alt.X("epoch:Q", title="epoch").axis(values=ticks, format="d", grid=False).scale(zero=False, nice=False),
        color=color.legend(legend),
    )
    band = base.mark_area(opacity=0.13).encode(y=alt.Y("low:Q", scale=scale), y2="high:Q")
    line = base.mark_line(strokeWidth=1.8, point=rows["epoch"].nunique() == 1).encode(
        y=alt.Y("median:Q", scale=scale, title=f"test {frame.SCORES[score]} ({unit})").axis(tickCount=5),
        strokeDash=dashes.legend(legend),
    )
    tooltip = [alt.Tooltip("variant:N"), alt.Tooltip("epoch:Q")]
    tooltip += [alt.Tooltip(f"{key}:Q", format=".4~g") for key in ("median", "low", "high")]
    hover = base.mark_point(size=90, opacity=0).encode(y=alt.Y("median:Q", scale=scale), tooltip=tooltip)
    return specification((band + line + hover).properties(width="container", height=170))


def overview() -> dict[str, Any]:
    """Test error and affine pieces of all classifiers that were measured, one mark per variant, medians."""
    trained, measured = pd.DataFrame(table("table_training")), pd.DataFrame(table("table_expressiveness"))
    pieces = measured[(measured["measure"] == "line_pieces") & (measured["when"] == "final")]
    pieces = pieces[pieces["median"] != ""]  # nets that are not piecewise linear have no pieces
    rows = trained[trained["score"] == "error"].merge(pieces, on=["net", "variant"])
    rows = pd.DataFrame(
        {
            "net": rows["net"],
            "name": rows["net"].map(frame.names()),
            "variant": rows["variant"],
            "error": rows["middle"].astype(float).round(3),
            "pieces": rows["median"].astype(float),
            "parameters": rows["parameters"].astype(int),
        }
    )
    chosen = alt.param(name="net", value="")
    tooltip = [alt.Tooltip("name:N", title="net"), "variant:N"]
    tooltip += [alt.Tooltip(f"{key}:Q", format=",.4~g") for key in ("error", "pieces", "parameters")]
    is_chosen = "net == '' || datum.net == net"
    marks = alt.Chart(alt.Data(values=rows.to_dict("records"))).add_params(chosen)
    marks = marks.encode(
        x=alt.X("pieces:Q", title="affine pieces on a segment between two test images, after training").scale(
            type="log"
        ),
        y=alt.Y("error:Q", title="test error (%)").scale(type="log", nice=False, padding=14),
    )
    dots = marks.mark_circle(size=80, stroke="white", strokeWidth=0.6, cursor="pointer").encode(
        color=alt.condition(is_chosen, alt.value(style.BLUE), alt.value(style.PALE)), tooltip=tooltip
    )
    names = marks.mark_text(align="left", dx=7, fontSize=10, color=style.INK).encode(
        text="label:N", opacity=alt.condition("net != '' && datum.net == net", alt.value(1), alt.value(0))
    )
    names = names.transform_calculate(label="datum.variant")
    return specification((dots + names).properties(width="container", height=330))


# Claims and reference results


def of_claims(name: str) -> list[dict[str, str]]:
    """A table about the claims, each row with the experiment it comes from, and the nets and tasks of that."""
    rows, files = [], experiments()
    for row in table(name):
        (source,) = {f"{kind}-{row['experiment']}" for kind in ("claims", "comparisons")} & files.keys()
        rows.append(row | {"source": source, "nets": " ".join(nets_of(files[source])), "task": task_of(files[source])})
    return rows


def results() -> list[dict[str, str]]:
    """The rows of results/*.csv: runs of full length on the hardware that they name."""
    rows, files = [], experiments()
    for path in sorted((frame.ROOT / "results").glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                folder = re.search(r"experiments/(\w+)/", row["command"])
                name = f"{folder[1]}-{row['experiment']}"
                middle, low, high = (row[f"test_{key}"] for key in ("middle", "low", "high"))
                rows.append(
                    row
                    | {
                        "file": f"results/{path.name}",
                        "source": name,
                        "nets": " ".join(nets_of(files[name])),
                        "task": task_of(files[name]),
                        "test": middle if low == high else f"{middle} ({low}–{high})",
                        "label": f"{frame.SCORES[row['score']]}, {row['unit']}",
                    }
                )
    return rows
