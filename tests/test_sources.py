"""A result depends on the sources that a stage imports, in the pipeline and in the fingerprint of a run."""

import re
from pathlib import Path

import pytest
from dvc.repo import Repo

from skipform import data, nets, tasks
from skipform.sources import PACKAGE, closure, digest, imports_of, nets_in
from skipform.stages import sources as stages
from skipform.training import run
from skipform.training.experiment import read

ROOT = Path(__file__).parents[1]
FOLDERS = ("survey", "claims", "explorer", "cpu")
EXPERIMENTS = [file for folder in FOLDERS for file in sorted((ROOT / "experiments" / folder).glob("*.yaml"))]


def names(paths):
    return {str(path.relative_to(PACKAGE)) for path in paths}


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    """The name of every list of sources -> its lines."""
    out = tmp_path_factory.mktemp("sources") / "out"
    stages.main(root=ROOT, out=out)
    files = [path for path in out.rglob("*") if path.is_file() and path.name != ".skipform"]
    return {str(file.relative_to(out)): file.read_text().splitlines() for file in files}


def test_every_stage_depends_on_the_list_of_its_command(lists):
    """As DVC itself resolves dvc.yaml."""
    with Repo(ROOT) as repo:
        pipeline = {stage.addressing: stage for stage in repo.index.stages}
    own = pipeline.pop("sources")
    assert {dep.def_path for dep in own.deps} == {"analysis", "experiments", "src/skipform"}
    for name, stage in pipeline.items():
        deps = {dep.def_path for dep in stage.deps}
        command = stage.cmd.split()[1]
        experiment = re.search(r"(?:experiments|runs)/(survey|claims|explorer)/\w+", stage.cmd)
        expected = f"{command}/{experiment[0].split('/', 1)[1]}.txt" if experiment else f"{command}.txt"
        assert expected in lists
        assert {dep for dep in deps if dep.startswith("build/sources")} == {f"build/sources/{expected}"}, name
        assert not [dep for dep in deps if dep.startswith("src")]


def test_a_list_has_the_sources_of_a_command_with_their_digests(lists):
    for line in lists["fit/survey/fcn.txt"]:
        sha256, name = line.split("  ")
        assert sha256 == digest(PACKAGE / name)
    named = {name: {line.split()[1] for line in lines} for name, lines in lists.items()}
    fcn = named["fit/survey/fcn.txt"]
    assert {"stages/fit.py", "nets/fcn.py", "nets/vgg.py", "data/masks.py", "tasks/segment.py"} <= fcn
    assert not {"nets/gpt.py", "data/text.py", "measure/line.py", "stages/measure.py"} & fcn
    assert {"theory/pooling.py", "stages/verify.py"} <= named["verify.txt"]
    assert not [name for name in named["verify.txt"] if name.startswith(("nets/", "training/"))]
    assert {f"nets/{net}.py" for net in nets.names()} <= named["notebooks.txt"] & named["grammar.txt"]
    planes = named["explore/explorer/planes.txt"]
    assert {"measure/plane.py", "theory/trees.py", "tasks/classify.py", "nets/pooled.py"} <= planes
    assert "nets/resnet.py" not in planes
    assert "nets/resnet.py" in named["pieces/explorer/training.txt"]
    assert {"nets/gpt.py", "nets/fpn.py", "tasks/detect.py", "data/text.py"} <= named["examples.txt"]
    assert {"data/masks.py", "data/text.py", "data/images.py"} <= named["data.txt"]
    assert "nets/highway.py" in named["claims/claims/shortcuts.txt"] - named["claims.txt"]


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_the_names_in_an_experiment_are_those_of_its_checked_blocks(file):
    expected = set()
    for experiment in (read(file, scale.stem) for scale in (ROOT / "experiments" / "scale").glob("*.yaml")):
        expected |= {data.kind(experiment.data["name"]).__module__, tasks.kind(experiment.task["name"]).__module__}
        for block in experiment.variants.values():
            expected |= {f"skipform.nets.{net}" for net in nets_in(block)}
    assert set(stages._chosen(file, trained=True)) == expected
    assert set(stages._chosen(file, trained=False)) == {name for name in expected if ".tasks." not in name}


def test_what_is_wrong_in_an_experiment_is_left_to_the_next_stage(tmp_path):
    for folder in ("scale", "survey"):
        (tmp_path / folder).mkdir()
    (tmp_path / "scale" / "smoke.yaml").write_text("data: {name: digits}\n")
    file = tmp_path / "survey" / "some.yaml"
    text = "data: {name: nothing}\ntask: {name: ../nets/vgg}\nsmoke: 3\n"
    file.write_text(text + "variants: {a: {name: nothing}, b: 5, c: {name: vgg}}\n")
    assert list(stages._chosen(file, trained=True)) == ["skipform.nets.vgg"]


def test_a_digest_is_that_of_the_statements(tmp_path):
    def of(text):
        (file := tmp_path / f"{len(list(tmp_path.iterdir()))}.py").write_text(text, encoding="utf-8")
        return digest(file)

    text = '"""What it is."""\n\nx = "# no comment"\n\n\ndef f():\n    """Of f."""\n    return """a\n\n# b"""\n'
    same = [
        text + "# a comment\n",
        text.replace('"# no comment"', '"# no comment"  # a comment: ä'),
        text.replace('"""What it is."""\n\n', ""),
        text.replace('"""Of f."""', '"""Of f.\n\n    It returns "a".\n    """'),
        text.replace("\n\n\ndef", "\n\n# of f\n\ndef"),
    ]
    other = [
        text.replace("no comment", "some text"),
        text.replace("# b", "# c"),
        text.replace("a\n\n# b", "a\n# b"),  # what stands in a string is no layout
        text.replace("a\n\n# b", "a \n\n# b"),
        text.replace('    """Of f."""\n', '    """Of f."""; y = 1\n'),
        text.replace('x = "# no comment"', 'x = """# no comment"""'),
        text + '"""An expression that is no docstring."""\n',
        text.replace("    return", "    if x:\n        return"),
    ]
    assert {of(each) for each in same} == {of(text)}
    assert len({of(each) for each in other} | {of(text)}) == len(other) + 1


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
def test_a_fingerprint_is_that_of_the_sources_which_the_pipeline_names(experiment, own, foreign, lists, monkeypatch):
    """So that what reruns a stage discards its half-done runs, and nothing else does."""
    seen = []
    monkeypatch.setattr(run, "fingerprint", lambda config, sources: seen.extend(sources) or "digest")
    described = read(ROOT / "experiments" / "survey" / f"{experiment}.yaml", "smoke")
    block = next(iter(described.variants.values()))
    run.fingerprint_of({"net": block, "data": described.data, "task": described.task})
    assert own <= names(seen)
    assert not foreign & names(seen)
    assert names(seen) <= {line.split()[1] for line in lists[f"fit/survey/{experiment}.txt"]}
