"""The analysis: what the notebooks read and write, and that an error in one is reported in one line."""

import json
import os
import re
import runpy
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import descendants
from safetensors.numpy import save_file

from skipform.errors import SkipformError
from skipform.files import write_json_lines
from skipform.stages import notebooks

ROOT = Path(__file__).parents[1]
PUBLISHED = yaml.safe_load((ROOT / "analysis" / "published.yaml").read_text())


@pytest.fixture(scope="module")
def analysis():
    """The modules of analysis/, as its notebooks import them."""
    sys.path.insert(0, str(ROOT / "analysis"))
    yield
    sys.path.remove(str(ROOT / "analysis"))


@pytest.fixture
def frame(analysis, tmp_path, monkeypatch):
    """analysis/frame.py over hand-made results: two variants of one net, three seeds."""
    import frame

    errors = {"plain": [3.0, 1.0, 2.0], "addition": [5.0, 9.0, 6.0]}
    runs = [
        {
            "config": {"variant": variant, "seed": seed, "net": {"name": "mlp"}},
            "metrics": {"variant": variant, "seed": seed, "test_error": error, "shown": ["error", "%"]},
            "history": {"epoch": [1, 2], "test_error": [50.0, error]},
        }
        for variant, final in errors.items()
        for seed, error in enumerate(final)
    ]
    (tmp_path / "records/survey").mkdir(parents=True)
    write_json_lines(tmp_path / "records/survey/mlp.jsonl", runs)
    monkeypatch.setattr(frame, "ROOT", tmp_path)
    monkeypatch.setattr(frame, "names", lambda: ["mlp", "absent"])
    return frame


@pytest.fixture
def house(tmp_path):
    """A house whose analysis has one notebook of two cells, which a test may change."""
    (tmp_path / "analysis").mkdir()
    (tmp_path / "analysis" / "page.css").write_text("body { color: black; }\n")
    write(tmp_path, "sums", "# %% [markdown]\n# # Sums\n\n# %%\nimport os\ntotal = 1 + 1\n\n# %%\n" + LEAVE + "total\n")
    return tmp_path


DRAW = "%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot([0, 1]);\n"
LEAVE = (
    "import json, pathlib\n"
    "where = pathlib.Path(os.environ['SKIPFORM_GENERATED'])\n"
    "(where / 'sums.json').write_text(json.dumps({'total': total}))\n"
)


def write(house, name, text):
    (house / "analysis" / f"{name}.py").write_text(text)


def left(house):
    return {str(p.relative_to(house)): p.read_bytes() for p in sorted(house.rglob("*")) if p.is_file()}


def test_a_notebook_writes_numbers_an_executed_copy_and_one_page_and_equal_ones_twice(house, capsys):
    assert notebooks.main(root=str(house)) == 0
    first = left(house)
    assert json.loads(first["paper/generated/numbers.json"]) == {"sums": {"total": 2}}
    executed = json.loads(first["build/notebooks/sums.ipynb"])
    assert [cell["id"] for cell in executed["cells"]] == ["cell-0", "cell-1", "cell-2"]
    assert executed["cells"][2]["outputs"][0]["data"]["text/plain"] == ["2"]
    page = first["build/notebooks/sums.html"].decode()
    assert "<h1" in page
    assert not re.search(r"(src|href)=\"(https?:)?//", page), "the page asks a network"
    assert notebooks.main(root=str(house)) == 0
    assert left(house) == first


def test_the_index_lists_each_notebook_with_its_first_sentence_and_a_picture_or_table(house):
    write(
        house, "sums", "# %% [markdown]\n# # Sums & more\n#\n# Adds **one** and `one`. Nothing else.\n\n# %%\n" + DRAW
    )
    write(
        house,
        "table",
        "# %% [markdown]\n# # A table\n#\n# One row:\n\n# %%\nimport pandas\npandas.DataFrame({'a': [7]})\n",
    )
    assert notebooks.main(root=str(house)) == 0
    index = (house / "build/notebooks/index.html").read_text()
    first, second = re.findall(r"<article>.*?</article>", index, flags=re.DOTALL)
    assert '<a href="sums.html">Sums &amp; more</a></h2><p>Adds one and one.</p>' in first
    assert '<img alt="" src="data:image/png;base64,' in first
    assert '<a href="table.html">A table</a></h2><p>One row.</p>' in second
    assert "<td>7</td>" in second
    for page in ("index", "sums", "table"):
        text = (house / f"build/notebooks/{page}.html").read_text()
        assert not re.search(r"(src|href)=\"(?!data:|index|sums|table|#)", text)
    sums = (house / "build/notebooks/sums.html").read_text().replace("\n", "")
    assert re.search(r'<details class="code"><summary>code</summary>.*?matplotlib.*?</details>', sums)


def test_tables_of_the_notebooks_are_shown_in_full(frame):
    long, many = "statement " * 50, 80
    shown = pd.DataFrame({"text": [long] * many, **{f"column {k}": range(many) for k in range(30)}})._repr_html_()
    assert shown.count(long.strip()) == many
    assert "..." not in shown


def test_a_failing_notebook_is_one_line_and_replaces_nothing(house, capsys):
    assert notebooks.main(root=str(house)) == 0
    before = left(house)
    capsys.readouterr()
    write(house, "broken", "# %%\nimport os\ntotal = 3\n\n# %%\n" + LEAVE + "{}['absent']\n")
    del before["analysis/sums.py"]
    assert notebooks.main(root=str(house), kernels=1) == 1
    message = capsys.readouterr().err
    assert message == "notebook analysis/broken.py, cell 1 ('import json, pathlib'): KeyError: 'absent'\n"
    after = left(house)
    assert {name: after[name] for name in before} == before
    assert not [name for name in after if name.startswith("paper/.")]
    assert not descendants(os.getpid(), "ipykernel_launcher")


@pytest.mark.parametrize("count", [1, 2, 3, 4])  # in the batch of a run; of masks 2 are drawn, of boxes 3
def test_as_many_examples_are_drawn_as_a_batch_has_and_at_most_three(frame, monkeypatch, tmp_path, count):
    images, corners = np.zeros((count, 1, 8, 8), np.float32), np.tile(np.float32([1, 1, 5, 6]), (count, 1, 1))
    mask = np.arange(count * 64).reshape(count, 8, 8) % 3
    boxes = {"boxes": corners, "labels": np.ones((count, 1), np.int64), "scores": np.ones((count, 1), np.float32)}
    segmented = {"images": images, "masks": mask, "predicted": mask}
    detected = {"images": images} | boxes | {f"predicted_{key}": value for key, value in boxes.items()}
    (tmp_path / "measures/examples").mkdir(parents=True)
    for net, arrays in (("mlp", segmented), ("absent", detected)):
        stored = {f"plain/{name}": np.ascontiguousarray(value) for name, value in arrays.items()}
        save_file(stored, tmp_path / f"measures/examples/{net}.safetensors", metadata={"texts": "{}"})
    monkeypatch.setattr(frame, "names", lambda: {"mlp": "MLP", "absent": "Absent"})
    monkeypatch.setattr(frame, "GENERATED", tmp_path)
    notebook = runpy.run_path(str(ROOT / "analysis" / "examples.py"))
    assert notebook["figures"] == ["fig_masks", "fig_boxes"]
    assert notebook["images"] == min(count, 2)
    assert len(notebook["grid"]) == min(count, 3)  # of the boxes


@pytest.mark.parametrize("head", ["", "# Question  Why?\n#           Why not?\n# Run       make\n"])
def test_an_experiment_that_states_nothing_has_a_place_on_the_review_page(frame, tmp_path, head):
    import review

    (file := tmp_path / "experiments" / "own.yaml").parent.mkdir()
    file.write_text(f"{head}variants:\n")
    expected = ("Why? Why not?", "make") if head else ("", "skipform fit --config experiments/own.yaml")
    stated = review.heading(file)
    assert (stated["Question"], stated["Run"]) == expected
    assert ("Question" in review.origin_of("own", "own", "make", [], stated)["lines"]) == bool(head)


def test_an_unknown_notebook_is_refused_with_the_known_names(house):
    with pytest.raises(SkipformError, match=r"unknown notebook 'absent' .* there are: sums"):
        notebooks.main(only=["absent"], root=str(house))


def test_notebooks_are_the_percent_files_and_begin_with_a_title():
    by_name = notebooks.read_all(ROOT / "analysis")
    assert list(by_name) == [
        "architectures",
        "claims",
        "examples",
        "expressiveness",
        "grammar",
        "learning",
        "radii",
        "schematics",
        "statements",
        "survey",
        "training",
    ]
    for name, notebook in by_name.items():
        assert notebook.cells[0].cell_type == "markdown", name
        assert notebook.cells[0].source.startswith("# "), name


def test_only_the_drawings_of_nets_and_survey_import_the_package():
    texts = {path.stem: path.read_text() for path in (ROOT / "analysis").glob("*.py")}
    importing = [name for name, text in texts.items() if re.search(r"^(from|import) skipform", text, re.M)]
    assert sorted(importing) == ["architectures", "layered", "schematics", "survey"]
    assert not [
        name for name, text in texts.items() if re.search(r"^(from|import) (lightning|torchvision)", text, re.M)
    ]


def test_every_score_that_an_experiment_shows_has_a_name_in_tables(analysis):
    import frame

    from skipform import tasks
    from skipform.training.experiment import read

    shown = set()
    for file in [*(ROOT / "experiments/survey").glob("*.yaml"), *(ROOT / "experiments/claims").glob("*.yaml")]:
        for scale in ("smoke", "embedded", "paper"):
            task = read(file, scale).task
            shown.add(task.get("shown", tasks.kind(task["name"]).MAIN_SCORE[0]))
    assert {"ap", "ap50", "bleu", "exact_match"} <= shown  # they differ from scale to scale
    assert shown <= set(frame.SCORES)


def test_published_numbers_have_a_source_and_a_cited_paper():
    references = yaml.safe_load((ROOT / "paper" / "references.yml").read_text())
    for net, entry in PUBLISHED.items():
        assert entry.get("paper") is None or entry["paper"] in references, net
        assert entry["source"], net
        assert ("result" in entry) == ("benchmark" in entry), net


def test_every_net_has_a_row_and_every_row_a_net():
    from skipform import nets

    assert set(nets.names()) == set(PUBLISHED)


def test_rebuilt_models_have_the_published_size():
    """To 7 %: papers round to two figures, and GPT-2's printed 117 M are 124 M in its authors' own code."""
    from skipform import nets

    counted = {(row["net"], row["variant"]): row["parameters"] for row in nets.survey()}
    for net, entry in PUBLISHED.items():
        if "variant" in entry:
            count = counted[net, entry["variant"]]
            assert "params" not in entry or abs(count / 1e6 / entry["params"] - 1) < 0.07, net


@pytest.mark.parametrize("net", [net for net, entry in PUBLISHED.items() if "result" in entry])
def test_a_published_result_belongs_to_our_experiment_or_says_what_differs(net):
    """Data set, score, epochs and net are those of the experiment at scale paper."""
    from skipform import nets, tasks
    from skipform.training.experiment import read

    entry = PUBLISHED[net]
    experiment = read(ROOT / "experiments" / "survey" / f"{net}.yaml", "paper")
    label = entry.get("ours", next(iter(experiment.variants)))
    assert label in experiment.variants
    if "other" in entry:
        assert not {"data", "score", "epochs"} & set(entry)
        return
    assert entry["data"] == experiment.data["name"]
    assert entry["epochs"] == experiment.trainer["max_epochs"]
    assert entry["score"] == experiment.task.get("shown", tasks.kind(experiment.task["name"]).MAIN_SCORE[0])
    with torch.device("meta"):
        parameters = sum(p.numel() for p in nets.build(**experiment.variants[label]).parameters())
    counted = {(row["net"], row["variant"]): row["parameters"] for row in nets.survey()}
    assert parameters == counted[net, entry["variant"]]


def test_tables_keep_the_order_of_the_experiment_and_give_median_and_range(frame):
    assert frame.records()["variant"].unique().tolist() == ["plain", "addition"]
    spread = frame.spread(frame.metrics(), ["variant"], "test_error").set_index("variant")
    assert spread.loc["plain"].tolist() == [2.0, 1.0, 3.0, 3]
    assert spread.loc["addition"].tolist() == [6.0, 5.0, 9.0, 3]
    assert len(frame.histories()) == 12


def test_further_scores_are_named_with_their_medians(frame):
    rows = frame.metrics()
    assert frame.further(rows) == ""
    rows["further"] = [["pixel_error", "rand_error"]] * 3 + [float("nan")] * 3
    rows["test_pixel_error"], rows["test_rand_error"] = 2 * rows["test_error"], rows["test_error"]
    assert frame.further(rows[:3]) == "; 4.0 % pixel error; 2.0 % Rand error"
    assert frame.further(rows[3:]) == ""


def test_an_architecture_is_before_and_after_or_has_its_reason(frame, tmp_path, monkeypatch):
    """In the order of the survey; a lower-case variant goes by its net's name."""
    monkeypatch.setattr(frame, "names", lambda: {"vgg": "VGG", "pooled": "Pooling", "vit": "ViT"})
    before = {"depth": 1, "relu_count": 9, "max_poolings": 2, "held": 8}
    after = {"depth": 5, "relu_count": 11, "carried": 7}
    rows = [
        {"net": "pooled", "variant": "max", "inputs": [[3, 8, 8]], "before": before, "after": after},
        {"net": "vit", "variant": "ViT-Ti", "inputs": [[2, 4], [1, 4]], "reason": "layer_norm at norm: is not"},
        {"net": "vgg", "variant": "VGG-11", "inputs": [[3, 8, 8]], "before": before, "after": after},
    ]
    (tmp_path / "measures").mkdir()
    path = tmp_path / "measures" / "grammar.json"
    path.write_text(json.dumps(rows))
    table, refused = frame.grammar()
    assert table["label"].tolist() == ["VGG-11", "Pooling, max"]
    assert table.iloc[0].to_dict() == {
        "net": "vgg", "label": "VGG-11", "input": "3×8×8", "layers": 1, "relus": 9, "poolings": 2, "held": 8,
        "depth": 5, "canonical_relus": 11, "carried": 7,
    }  # fmt: skip
    assert refused[["label", "input", "operation"]].to_numpy().tolist() == [["ViT-Ti", "2×4 + 1×4", "layer_norm"]]
    path.write_text(json.dumps(rows[:1]))
    assert frame.grammar()[1].empty


@settings(deadline=None)  # importing matplotlib takes its time
@given(positions=st.lists(st.floats(-100, 100), max_size=9), gap=st.floats(0.1, 20))
def test_names_are_apart_in_order_and_as_near_as_possible(analysis, positions, gap):
    from style import apart

    placed = apart(positions, gap)
    order = sorted(range(len(positions)), key=lambda i: (positions[i], i))
    # 1e-9: the sums behind a place have at most nine terms below 1,000, so rounding is below 1e-11.
    assert all(placed[b] - placed[a] >= gap - 1e-9 for a, b in pairwise(order))

    # The least sum of squares under these constraints, by quadratic programming in the gaps beyond the least: as the
    # problem is convex, no feasible step from the answer may come nearer. Steps: move a whole upper or lower part.
    def cost(values):
        return sum((v - p) ** 2 for v, p in zip(values, positions, strict=True))

    here = cost(placed)
    for first in range(len(order)):
        for last in range(first, len(order)):
            for step in (-1e-3, 1e-3):
                moved = list(placed)
                for i in order[first : last + 1]:
                    moved[i] += step
                if all(moved[b] - moved[a] >= gap for a, b in pairwise(order)):
                    assert cost(moved) >= here - 1e-9


def test_colours_keep_their_order_in_grey(analysis):
    """CIE lightness of neighbouring marks differs by at least five, so that a grey print tells them apart."""
    from style import MARKS

    def lightness(color):
        rgb = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        y = linear @ [0.2126, 0.7152, 0.0722]
        return 116 * np.cbrt(y) - 16 if y > 0.008856 else 903.3 * y

    values = [lightness(mark.color) for mark in MARKS]
    assert all(b - a >= 5 for a, b in pairwise(values)), values
    assert len({mark.dashes for mark in MARKS}) == len({mark.marker for mark in MARKS}) == len(MARKS)


def test_the_text_credits_the_five_models_that_section_4_names_and_cites_what_names_the_others():
    text = (ROOT / "paper" / "main.typ").read_text()
    named = re.search(r"Section 4 of the paper places five .*?: (.*?)\.\n", text)[1]
    assert re.findall(r"\w*Net|RoR", named) == ["ResNet", "DenseNet", "FractalNet", "RoR", "PyramidNet", "DenseNet"]
    assert {"skiparticle", "residualarticle", "srivastava2015a"} <= set(re.findall(r"@(\w+)", text))


def test_the_first_schematic_numbers_its_weights_from_input_to_output():
    """w_ij leads from input i to output j, as in the paper."""
    text = (ROOT / "analysis" / "schematics.py").read_text()
    assert 'draw_edge(axes, xs[i], ys[j], PLAIN, f"$w_{{{i + 1}{j + 1}}}$"' in text
