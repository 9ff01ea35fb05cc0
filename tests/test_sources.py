"""The sources that a result depends on are those that a stage imports, in dvc.yaml and in the fingerprint of a run."""

import re
from pathlib import Path

import pytest
import yaml

from skipform.sources import PACKAGE, closure, imports_of, nets_in
from skipform.stages import cli, derive
from skipform.training import run
from skipform.training.experiment import read

ROOT = Path(__file__).parents[1]


def names(paths):
    return {str(path.relative_to(PACKAGE)) for path in paths}


def test_the_pipeline_lists_what_its_stages_import():
    assert cli.main(["derive", "--check", "--file", str(ROOT / "dvc.yaml")]) == 0


def test_a_missing_or_an_added_dependency_is_noticed():
    text = wrong = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    for right, instead in (
        ("      - src/skipform/theory/affine.py\n", ""),
        ("- src/skipform/stages/verify.py", "- src/skipform/stages/verify.py\n      - src/skipform/nets/gpt.py"),
        ("uses: nets/vgg", "uses: nets/blocks"),
    ):
        assert right in wrong
        wrong = wrong.replace(right, instead, 1)
    assert derive.derived(wrong, ROOT) == text


def test_no_pipeline_no_dependencies(tmp_path, capsys):
    assert cli.main(["derive", "--file", str(tmp_path / "dvc.yaml")]) == 2
    assert "no such file; accepted: the dvc.yaml of a checkout of the project" in capsys.readouterr().err


def test_a_closure_follows_imports_inside_functions_and_leaves_out_those_for_types():
    line = names(closure(["skipform.measure.line"]))
    assert {"measure/program.py", "theory/network.py", "compiler/rewrite.py"} <= line  # the compiler: inside Program.of
    assert not any(name.startswith(("nets/", "tasks/", "data/", "training/")) for name in line)
    assert "nets/vgg.py" not in names(closure(["skipform.nets.fcn"]))  # a backbone is chosen by its experiment


def test_a_file_of_nothing_but_a_docstring_decides_nothing():
    assert not {"theory/__init__.py", "compiler/__init__.py", "stages/__init__.py"} & names(
        closure(["skipform.stages.fit"])
    )


def test_a_notebook_has_the_closure_of_its_imports(tmp_path):
    notebook = tmp_path / "notebook.py"
    notebook.write_text("def draw():\n    from skipform.theory.pooling import maximum\n")
    assert imports_of(notebook) == closure(["skipform.theory.pooling"])


def test_nets_are_found_inside_nets():
    assert list(nets_in({"name": "fpn", "backbone": {"name": "resnet", "depth": 8}, "levels": 3})) == ["fpn", "resnet"]


@pytest.mark.parametrize(
    ("experiment", "own", "foreign"),
    [
        ("fcn", {"nets/fcn.py", "nets/vgg.py", "data/masks.py", "tasks/segment.py"}, {"nets/gpt.py", "data/text.py"}),
        ("gpt", {"nets/gpt.py", "nets/attention.py", "tasks/language_model.py"}, {"nets/resnet.py", "data/images.py"}),
    ],
)
def test_a_fingerprint_is_that_of_the_sources_which_the_pipeline_names(experiment, own, foreign, monkeypatch):
    """So that what reruns a stage discards its half-done runs, and nothing else does."""
    seen = []
    monkeypatch.setattr(run, "fingerprint", lambda config, sources: seen.extend(sources) or "digest")
    described = read(ROOT / "experiments" / "survey" / f"{experiment}.yaml", "smoke")
    block = next(iter(described.variants.values()))
    run.fingerprint_of({"net": block, "data": described.data, "task": described.task})
    assert own <= names(seen)
    assert not foreign & names(seen)
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    item = next(block["beyond"][experiment] for block in pipeline["vars"] if "beyond" in block)
    deps = [derive._filled(path, experiment, item) for path in pipeline["stages"]["fit_beyond"]["do"]["deps"]]
    assert {f"src/skipform/{name}" for name in names(seen)} <= set(deps)
    assert not [path for path in deps if re.search(r"\$\{", path)]
