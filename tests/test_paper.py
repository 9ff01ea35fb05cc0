"""The paper and the review page: from made-up results through every notebook; equal results give equal bytes."""

import json
import re
import runpy
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import yaml
from browser import Browser
from safetensors.numpy import save_file

from skipform import comparisons, verdicts
from skipform.errors import SkipformError
from skipform.files import write_json_lines
from skipform.stages import notebooks, paper, review
from skipform.stages.notebooks import join_numbers

ROOT = Path(__file__).parents[1]
SOURCES = ("main.typ", "template.typ", "references.yml")
NETS = {
    "mlp": {"plain": {}, "addition": {"skip": "add"}},
    "resnet": {"residual": {}},
    "pooled": {"none": {"pool": "none"}, "max": {"pool": "max"}, "max-by-relu": {"pool": "relu"}},
    "activation_blocks": {
        "single-concat": {"skip": "concat", "blocks": 2, "activations": 1},
        "double-concat": {"skip": "concat", "blocks": 1, "activations": 2},
        "single-add": {"skip": "add", "blocks": 2, "activations": 1},
    },
}
BEYOND = {"unet": ("mean_iou", "%"), "gpt": ("loss", "nats")}  # of other scores; measured in part, each on one segment
WIDE = {"line_regions": 9, "line_pieces": 8, "feature_rank": 7, "functional_dimension": 6}
CLAIMS = {  # claim -> variant, skip of the copy -> affine pieces of six seeds
    "pooling": {
        ("average", None): range(1, 7),  # all below "none"
        ("max", None): [6, 8, 10, 12, 14, 16],  # overlapping it
        ("none", None): range(10, 16),
        ("strided", None): range(20, 26),  # all above it
    },
    "addition_concatenation": {
        ("add", None): range(28, 34),
        ("add", "concat"): range(28, 34),
        ("concat", None): range(5, 11),  # further from "add" than the margin
        ("concat", "add"): [5, 6, 7, 8, 9, 11],  # one seed differs
    },
    "activation_blocks": {
        (variant, None): range(8, 14) for variant in ("single", "double", "quadruple", "double-wide", "quadruple-wide")
    },
}


def record(variant, seed, net, data, score, unit, scores):
    """A line of records/: a run with the given test score after each epoch."""
    return {
        "config": {"scale": "smoke", "variant": variant, "seed": seed, "net": net, "data": {"name": data}},
        "metrics": {
            "variant": variant,
            "seed": seed,
            "epochs": len(scores),
            "parameters": 1234,
            f"test_{score}": scores[-1],
            "shown": [score, unit],
        },
        "history": {"epoch": list(range(1, len(scores) + 1)), f"test_{score}": scores},
    }


def leave_results(root, epochs):
    """Write made-up results of training, measuring and verifying: three seeds, six with the pieces of CLAIMS."""
    for folder in ("records/survey", "measures/survey", "measures/claims"):
        (root / folder).mkdir(parents=True)
    for net, variants in NETS.items():
        runs, rows = [], []
        for variant, arguments in variants.items():
            for seed in range(3):
                errors = [40.0 / (epoch + 1) + seed for epoch in range(epochs)]
                runs.append(record(variant, seed, {"name": net, **arguments}, "digits", "error", "%", errors))
                most = {"feature_dim": 8, "functional_dimension_most": 6, "output_dim": 10, "jacobian_rank": 9}
                counts = WIDE | most | {"rank_gap": None, "feature_rank_gap": 1e9}
                about = {"variant": variant, "seed": seed}
                rows += [about | {"when": w, "slice": k} | counts for w in ("initial", "final") for k in range(2)]
        write_json_lines(root / "records/survey" / f"{net}.jsonl", runs)
        (root / "measures/survey" / f"{net}.json").write_text(json.dumps({"net": net, "batch": 4, "rows": rows}))
    for net, shown in BEYOND.items():
        run = record("skips", 0, {"name": net}, "scenes", *shown, [epoch + 1.0 for epoch in range(epochs)])
        write_json_lines(root / "records/survey" / f"{net}.jsonl", [run])
        counts = {"line_regions": 5, "line_pieces": 4, "line_bound": 3.5, "line_reason": None, "line_share": 0.5}
        if net == "gpt":
            counts = dict.fromkeys(counts) | {"line_reason": "layer_norm at norm (LayerNorm): no", "line_share": 1.0}
        layers = [{"name": f"layers.{k}", "rank": 8 - k, "dim": 20} for k in range(3)]
        ranks = {"feature_rank": 6, "feature_dim": 20, "feature_most": 8, "feature_rank_gap": None, "directions": 8}
        about = {"variant": "skips", "seed": 0, "slice": 0, "layers": layers, "growth": 2.0} | counts | ranks
        about |= {"functional_dimension": 5, "functional_dimension_most": 5, "jacobian_rank": 8, "output_dim": 20}
        proof = {"variant": "skips", "layer": "pool", "windows": 16, "different": 1, "proved": True}
        rows = [about | {"when": when} for when in ("initial", "final")]
        measured = {"net": net, "batch": 4, "rows": rows, "poolings": [proof] if net == "unet" else []}
        (root / "measures/survey" / f"{net}.json").write_text(json.dumps(measured))
    leave_examples(root / "measures/examples")
    for claim, pieces in CLAIMS.items():
        most = {"input_dim": 4, "output_dim": 4, "hidden_dim": 8, "functional_dimension_most": 6, "parameters": 1234}
        counts = {"regions": 14, "hidden_rank": 4, "jacobian_rank": 4, "test_error": 9.5} | most
        rows = [
            {"variant": v, "copy": c, "seed": seed, "when": w, "pieces": n, "functional_dimension": None if c else 6}
            | counts
            for (v, c), seeds in pieces.items()
            for seed, n in enumerate(seeds)
            for w in ("initial", "final")
        ]
        file = yaml.safe_load((ROOT / "experiments/claims" / f"{claim}.yaml").read_text())
        for entry in file["comparisons"]:
            entry["pairs"] = [pair for pair in entry["pairs"] if (pair[1], None) in pieces or " as " in pair[1]]
        announced = comparisons.read(file["comparisons"], file["variants"], claim)
        measured = {"claim": claim, "comparisons": verdicts.decide(announced, rows), "rows": rows}
        (root / f"measures/claims/{claim}.json").write_text(json.dumps(measured))
    entry = {"claim": "a skip helps a perceptron", "expected": ">", "measures": ["test_error"]}
    announced = comparisons.read(
        [entry | {"pairs": [["mlp/plain", "mlp/addition"]]}], ["mlp/plain", "mlp/addition"], ""
    )
    errors = {"mlp/plain": 9.0, "mlp/addition": 5.0}
    rows = [
        {"variant": v, "copy": None, "seed": seed, "when": "final", "test_error": error + seed}
        for v, error in errors.items()
        for seed in range(3)
    ]
    measured = {"claim": "training_time", "comparisons": verdicts.decide(announced, rows), "rows": rows}
    (root / "measures/claims/training_time.json").write_text(json.dumps(measured))
    statement = {
        "item": "Theorem 1",
        "statement": "max of n in any depth m >= log2 n",
        "instances": 3,
        "max_error": 2e-16,
    }
    checked = {"exact": True, "proved": None, "holds": True, "erratum": "3: an argument too many"}
    other = {"max_error": None, "exact": None, "proved": True, "erratum": None}
    layer = {"kind": "pooling", "instance": "window 3, stride 2", "depth": 4, "widths": [2, 1], "relu_count": 3}
    layers = [layer | {"name": name, "activations": ["relu"]} for name in ("MaxPooling2D", "MaxPooling2D, shallow")]
    ours = {"five": 12, "five_relus": 59, "six": 18, "six_relus": 1305, "eight": 32, "eight_relus": 5_374_194}
    maxima = [{"layers": 3, "tree": 8, "published": 11} | ours]
    statements = [statement | checked, statement | checked | other | {"proved_for": [5, 12]}]
    theorems = {"statements": statements, "constructors": layers, "maxima": maxima}
    (root / "measures/theorems.json").write_text(json.dumps(theorems))
    counts = {
        "before": {"depth": 2, "relu_count": 8, "max_poolings": 1, "held": 9},
        "after": {"depth": 4, "relu_count": 20, "carried": 27},
    }
    about = {"inputs": [[3, 32, 32]], "bypassed": [1]}
    models = [about | counts | {"net": "resnet", "variant": name} for name in ("ResNet-20", "ResNet-110")]
    models += [about | {"net": "vit", "variant": "ViT-Ti", "reason": "layer_norm at norm (LayerNorm): no"}]
    (root / "measures/grammar.json").write_text(json.dumps(models))
    work = {"exact": True, "switches": 9, "nodes": 1, "iterations": 40}
    about = {"index": 4, "label": 3, "other": 8, "proved": 0.05, "relaxed": 0.04, "exact": True}
    about |= {"image": [0.0] * 64, "forms": {"relu": work, "native": work | {"switches": 20, "nodes": 0}}}
    digits = [
        about | {"radius": 0.05, "witness": [0.05] * 64},
        about | {"radius": None, "proved": None, "witness": None},
    ]
    net = {"parameters": 146, "train_error": 15.0, "test_error": 16.0}
    (root / "measures/radii.json").write_text(json.dumps({"net": net, "shape": [1, 8, 8], "rows": digits}))
    moments = [{"epoch": k, "test_error": None, "regions": [6 + k, 9], "pieces": [5, 7 + k]} for k in range(epochs + 1)]
    watched = [{"variant": name, "parameters": 30, "moments": moments} for name in ("resnet", "resnet-plain")]
    (root / "measures/pieces.json").write_text(json.dumps({"slices": 2, "nets": watched}))
    shutil.copytree(ROOT / "experiments", root / "experiments")


def leave_examples(folder):
    """One example of everything that a page shows, in files of other nets than the trained ones."""
    folder.mkdir()
    draw, image = np.random.default_rng(0), np.zeros((3, 1, 8, 8), np.float32)
    masks = draw.integers(0, 3, (3, 8, 8))
    boxes = np.tile(np.array([[[1, 1, 5, 6], [0, 0, 0, 0]]], np.float32), (3, 1, 1))
    objects = {"boxes": boxes, "labels": np.tile(np.array([[3, -1]]), (3, 1))}
    detected = objects | {"scores": np.tile(np.array([[0.9, 0.0]], np.float32), (3, 1))}
    maps = {f"attention.{k}": np.full((2, 4, 4), 0.25, np.float32) for k in range(2)}
    examples = {
        "unet": {"images": image, "masks": masks, "predicted": masks[::-1].copy()},
        "fpn": {"images": image, **objects, **{f"predicted_{key}": value for key, value in detected.items()}}
        | {"pyramid.p2": image[0], "pyramid.p3": image[0, :, ::2, ::2].copy()},
        "gpt": maps,
    }
    texts = {"gpt": {"skips/continuation": ["to be, or"] * 3}}
    for net, arrays in examples.items():
        named = {f"skips/{name}": array for name, array in arrays.items()}
        save_file(named, folder / f"{net}.safetensors", {"texts": json.dumps(texts.get(net, {}))})


def run_notebooks(root):
    """Every notebook in this process: the kernels of the pipeline run the same code, slower."""
    import frame

    frame.ROOT, frame.GENERATED = root, root / "paper/generated"
    frame.GENERATED.mkdir(parents=True, exist_ok=True)
    names = list(notebooks.read_all(ROOT / "analysis"))
    for name in names:
        runpy.run_path(str(ROOT / "analysis" / f"{name}.py"))
        plt.close("all")
    join_numbers(frame.GENERATED, names)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with hand-made results, everything the notebooks make of them, and the sources of the paper."""
    root = tmp_path_factory.mktemp("house")
    leave_results(root, epochs=3)
    (root / "analysis").mkdir()
    for name in ("published.yaml", "second_machine.csv"):
        shutil.copy(ROOT / "analysis" / name, root / "analysis")
    sys.path.insert(0, str(ROOT / "analysis"))
    matplotlib.use("Agg")
    run_notebooks(root)
    for name in SOURCES:
        shutil.copy(ROOT / "paper" / name, root / "paper")
    yield root
    sys.path.remove(str(ROOT / "analysis"))
    for name in ("frame", "style", "layered"):
        sys.modules.pop(name)


def compiled(root):
    assert paper.main(source=str(root / "paper/main.typ"), output=str(root / "paper/paper.pdf")) == 0
    return (root / "paper/paper.pdf").read_bytes()


def test_the_paper_typesets_and_its_bytes_depend_on_the_results_alone(made):
    first = compiled(made)
    assert first.startswith(b"%PDF-")
    assert b"CreationDate" not in first
    assert compiled(made) == first


def test_figures_and_tables_are_equal_bytes_for_equal_results(made, tmp_path):
    shutil.copytree(made, tmp_path / "again", ignore=shutil.ignore_patterns("generated"))
    first = {p.name: p.read_bytes() for p in (made / "paper/generated").iterdir()}
    run_notebooks(tmp_path / "again")
    again = {p.name: p.read_bytes() for p in (tmp_path / "again/paper/generated").iterdir()}
    assert first.keys() == again.keys()
    assert [name for name in first if first[name] != again[name]] == []
    assert {name.split(".")[1] for name in first} == {"svg", "pdf", "csv", "json"}


def test_the_verdicts_of_the_paper_are_those_of_the_rule(made):
    table = pd.read_csv(made / "paper/generated/table_verdicts.csv").set_index("claim")
    # By hand, from CLAIMS: all that is not pieces is equal. In every comparison six networks are against six, of which
    # all that lie apart have p = 1/924, times 24, 12 or 8 comparisons.
    assert dict(table["verdict"]) == {
        "(i) none : pooled": "does not hold",
        "(ii) net : exact copy": "does not hold",
        "(ii) equal parameters": "does not hold",
        "(iii) equal width": "open",
        "(iii) equal parameters": "open",
        "a skip helps a perceptron": "holds",
    }
    assert table.loc["(i) none : pooled", "evidence"] == "24 comparisons: 2 holds, 2 does not hold, 20 open"
    assert table.loc["a skip helps a perceptron", "evidence"] == "error: 10 against 6"
    every = pd.read_csv(made / "paper/generated/table_comparisons.csv")
    for claim, rows in every.groupby("claim"):
        assert verdicts.verdict_of([*rows["verdict"]]) == table.loc[claim, "verdict"]
    pieces = every[(every["measure"] == "affine pieces") & (every["when"] == "final")].set_index(["first", "second"])
    assert pieces.loc[("none", "average"), "verdict"] == "holds"
    assert float(pieces.loc[("none", "average"), "p"]) == round(24 / 924, 3)
    assert pieces.loc[("none", "max"), "verdict"] == "open"
    assert pieces.loc[("none", "strided"), "verdict"] == "does not hold"
    assert pieces.loc[("concatenation", "concatenation, copied as addition"), "verdict"] == "does not hold"
    numbers = json.loads((made / "paper/generated/numbers.json").read_text())["claims"]
    assert (numbers["holds"], numbers["does_not_hold"], numbers["open"]) == (1, 3, 2)
    assert [p["holds"] for p in numbers["paragraphs"]] == [["a skip helps a perceptron (error: 10 against 6)"]]


def test_every_generated_file_the_paper_reads_is_made_and_every_figure_is_shown(made):
    source = (ROOT / "paper/main.typ").read_text()
    read = set(re.findall(r'"generated/([a-z_]+\.(?:csv|json|pdf))"', source))
    read |= {f"fig_{name}.pdf" for name in re.findall(r'(?:schematic|natural)\("([a-z_]+)"', source)}
    there = {p.name for p in (made / "paper/generated").iterdir()}
    # Figures that a run may lack: a notebook names those it made, the source says what they show.
    read |= {f"{name}.pdf" for name in re.findall(r"^  (fig_[a-z]+): \[", source, flags=re.MULTILINE)}
    # A figure of several parts: the source writes the name and lets the notebook say how many there are.
    parted = re.findall(r'"generated/([a-z_]+_)" \+ str\(k\)', source)
    assert parted
    for name in parted:
        parts = {part for part in there if re.fullmatch(rf"{name}\d+\.pdf", part)}
        assert parts, name
        read |= parts
    assert read <= there
    assert {name for name in there if name.endswith(".pdf")} <= read


def test_variants_are_printed_as_a_reader_reads_them(made):
    import frame

    names = {"mlp": "Perceptron", "fpn": "FPN"}
    assert names.items() <= frame.names().items()
    printed = {
        "mlp/plain": "Perceptron, plain",
        "fpn/no-laterals": "FPN, no-laterals",
        "no_skips": "no skips",
        "fcn/no_skips": "FCN-8s, no skips",
        "overfitting_untreated/residual-net": "residual-net, untreated",
        "plain-20": "plain-20",
    }
    assert {variant: frame.readable(variant) for variant in printed} == printed
    every = pd.read_csv(made / "paper/generated/table_comparisons.csv")
    assert "Perceptron, addition" in set(every["second"])
    for column in ("first", "second", "measure"):
        assert not every[column].str.contains("[_/]").any()


def test_every_character_is_in_a_font_of_the_typesetter(made):
    """The typesetter has no East Asian glyphs and does not report a missing glyph."""
    texts = [ROOT / "paper" / name for name in SOURCES]
    texts += [p for p in (made / "paper/generated").iterdir() if p.suffix in (".csv", ".json")]
    for path in texts:
        assert not re.findall(r"[\u2e80-\uffff]", path.read_text()), path


def test_what_is_missing_is_one_line_and_the_old_paper_stays(made, tmp_path, capsys):
    shutil.copytree(made / "paper", tmp_path / "paper")
    (tmp_path / "paper/generated/numbers.json").unlink()
    (tmp_path / "paper/paper.pdf").write_bytes(b"old")
    assert paper.main(source=str(tmp_path / "paper/main.typ"), output=str(tmp_path / "paper/paper.pdf")) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "numbers.json" in message
    assert "skipform notebooks" in message
    assert (tmp_path / "paper/paper.pdf").read_bytes() == b"old"


def test_the_picture_of_the_readme_is_what_the_schematics_draw(made):
    """paper/readme.svg is fig_canonical.svg; renew it with: cp paper/generated/fig_canonical.svg paper/readme.svg"""
    drawn = (made / "paper/generated/fig_canonical.svg").read_text()
    # Coordinates to a hundredth of a point: another processor may round the last digits otherwise.
    assert coordinates(drawn) == coordinates((ROOT / "paper/readme.svg").read_text())


def coordinates(svg):
    return [f"{float(number):.2f}" for number in re.findall(r"-?\d+\.\d+", svg)]


# The review page


@pytest.fixture(scope="module")
def page(made):
    """The review page of the made-up results, with the experiments and the explorer of the project, in its folder."""
    for name in ("results", "src/skipform/nets", "src/skipform/theory"):
        shutil.copytree(ROOT / name, made / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "measures/explorer.json", made / "measures")
    made_page(made)
    return made / "build/review.html"


def made_page(root):
    """Write the page as `skipform review` does, whose analysis/ is that of the project."""
    import frame

    frame.ROOT, frame.GENERATED = root, root / "paper/generated"
    text = runpy.run_path(str(ROOT / "analysis/review.py"))["page"]()
    (root / "build").mkdir(exist_ok=True)
    (root / "build/review.html").write_text(text)


class Elements(HTMLParser):
    """The tables of a page by their ids, rows of cells; its links, its identifiers, and the numbers that it names."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.links, self.ids, self.numbers, self.loaded = {}, [], [], {}, []
        self.row = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.links += [attributes["href"]] if tag == "a" else []
        self.loaded += [attributes[key] for key in ("src", "srcset", "action", "data", "poster") if key in attributes]
        if tag in ("link", "base", "iframe", "object", "embed"):
            self.loaded.append(tag)
        if "data-number" in attributes:
            self.numbers[attributes["data-number"]] = attributes["value"]
        if tag == "table":
            self.rows = self.tables.setdefault(attributes.get("id"), [])
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.row = self.rows[-1]
            self.row.append("")

    def handle_endtag(self, tag):
        if tag == "td":
            self.row = None

    def handle_data(self, data):
        if self.row is not None:
            self.row[-1] += data


def test_the_review_page_holds_the_tables_and_the_numbers_of_the_paper(made, page):
    found = Elements(page.read_text())
    for name in ("survey", "verdicts", "comparisons", "statements", "layers", "grammar", "refused"):
        table = pd.read_csv(made / f"paper/generated/table_{name}.csv", dtype=str, keep_default_na=False)
        if name == "survey":
            table = table.drop(columns="paper")  # where it is cited
        if name == "layers":
            table = table[["kind", "name", "instance", "depth", "widths", "relu_count"]]
        assert [row for row in found.tables[f"table_{name}"] if row] == table.to_numpy().tolist(), name
    numbers = json.loads((made / "paper/generated/numbers.json").read_text())
    assert {"claims.holds", "statements.hold", "survey.runs"} <= found.numbers.keys()
    for key, value in found.numbers.items():
        part, name = key.split(".")
        assert value == str(numbers[part][name])


def test_the_explorer_shows_the_counts_that_were_measured(page):
    explorer = json.loads((ROOT / "measures/explorer.json").read_text())
    rows = [row for row in Elements(page.read_text()).tables["table_explorer"] if row]
    assert [row[0] for row in rows] == [net["variant"] for net in explorer["nets"]]
    for row, net in zip(rows, explorer["nets"], strict=True):
        assert row[2:-1] == [f"{moment['regions']:,} / {moment['pieces']:,}" for moment in net["moments"]]


def test_the_review_page_loads_nothing_and_fits_into_three_megabytes(page):
    text = page.read_text()
    found = Elements(text)
    assert found.loaded == []
    styles = "".join(re.findall(r"<style>(.*?)</style>", text, flags=re.DOTALL))
    assert not re.search(r"@import|url\(|@font-face", styles)
    (charts,) = re.findall(r'id="charts-data">(.*?)</script>', text)
    assert '"url"' not in charts
    assert len(text.encode()) < 3_000_000  # of this scale; one of long trainings is larger


def test_every_link_of_the_review_page_leads_to_a_file_or_a_place_on_it(made, page):
    found = Elements(page.read_text())
    assert len(found.ids) == len(set(found.ids))
    later = {"../paper/paper.pdf", "notebooks/index.html"}  # by the stages `paper` and `notebooks`
    for link in {*found.links} - later:
        assert link[1:] in found.ids if link.startswith("#") else (page.parent / link).exists(), link


def test_every_source_of_a_number_has_a_command_and_an_experiment_or_a_check(page):
    for entry in re.findall(r'<article id="source-.*?</article>', page.read_text(), flags=re.DOTALL):
        assert re.search(r"<code>skipform \w+.*?</code>", entry)
        assert re.search(
            r'href="\.\./(experiments/\w+/\w+\.yaml|src/skipform/theory/\w+\.py|analysis/grammar\.py)"', entry
        ) or ("source-grammar" in entry)


def test_equal_results_give_an_equal_review_page(made, page):
    first = page.read_bytes()
    made_page(made)
    assert page.read_bytes() == first


def test_a_review_page_without_what_it_shows_is_refused(tmp_path):
    with pytest.raises(SkipformError, match=r"analysis/review\.py: no such file; accepted: --root with a checkout"):
        review.main(out=tmp_path / "review.html", root=tmp_path)
    (tmp_path / "analysis").symlink_to(ROOT / "analysis")
    with pytest.raises(SkipformError, match=r"generated/numbers\.json: no such file; skipform notebooks writes it"):
        review.main(out=tmp_path / "review.html", root=tmp_path)


@pytest.mark.page
def test_the_review_page_opens_filters_and_explores_in_a_browser(page):
    """From disk, without a request, an error or a message on the console."""
    with Browser(page) as browser:
        assert browser.wait("document.documentElement?.dataset.ready === 'true'") < 3  # seconds
        assert browser.value("document.querySelectorAll('.chart svg').length") == 1 + len(NETS | BEYOND)

        visible = "[...document.querySelectorAll('#curves article')].filter((a) => !a.hidden).map((a) => a.dataset.net)"
        browser.choose("net", "pooled")
        assert browser.value(visible) == ["pooled"]
        assert browser.value("document.querySelectorAll('#table_survey tbody tr:not([hidden])').length") == 1
        browser.choose("net", "")
        browser.choose("task", "segment")
        assert browser.value(visible) == ["unet"]
        browser.choose("task", "")
        browser.choose("claim", "pooling")
        rows = "[...document.querySelectorAll('#table_comparisons tbody tr:not([hidden])')]"
        assert browser.value(f"[...new Set({rows}.map((row) => row.dataset.claim))]") == ["pooling"]
        browser.choose("claim", "")
        browser.choose("scale", "paper")
        assert browser.value(visible) == []
        browser.choose("scale", "")
        assert len(browser.value(visible)) == len(NETS | BEYOND)

        explorer = json.loads((ROOT / "measures/explorer.json").read_text())
        for k, net in enumerate(explorer["nets"]):
            for m, moment in enumerate(net["moments"]):
                browser.slide("which", k)
                browser.slide("moment", m)
                shown = browser.value(
                    "[...document.querySelectorAll('#counts dd')].slice(0, 3).map((d) => d.textContent)"
                )
                assert shown == [f"{moment[key]:,}" for key in ("regions", "pieces", "maps")]
                assert (
                    browser.value("document.querySelector('#plane .pieces').getAttribute('d')")
                    == moment["piece_borders"]
                )

        browser.value("document.querySelector('#table_survey a.n').click()")
        assert browser.value("!popover.hidden && popover.querySelector('code').textContent.startsWith('skipform ')")
        for width in (360, 1280):
            browser.resize(width)
            assert browser.value("document.documentElement.scrollWidth <= innerWidth"), f"wider than {width} pixels"
        assert browser.requests == [page.as_uri()]
        assert browser.messages == []
