"""The structure of the project: which folder may import which, files derived from pyproject.toml, file names."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from skipform.stages.cli import STAGES

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "skipform"

# room -> rooms it may import; errors.py and arguments.py are open to all, a file alone in the package is its own room.
OPEN = {"errors", "arguments"}
ARROWS = {
    "errors": set(),
    "cores": set(),
    "arguments": set(),
    "theory": set(),
    "compiler": {"theory"},
    "measure": {"theory", "compiler"},
    "nets": {"theory"},
    "data": set(),
    "tasks": {"nets"},  # only to rebuild the net of a checkpoint
    "files": set(),
    "outputs": {"files"},
    "recovery": {"files"},
    "pipeline": {"cores", "recovery", "files"},
    "sources": {"files"},
    "shipped": set(),
    "runs": {"tasks", "data", "nets", "files"},
    "comparisons": {"files"},
    "verdicts": {"comparisons"},
    "records": {"files"},
    "results": {"runs", "files"},
    "training": {"cores", "runs", "comparisons", "tasks", "data", "nets", "files", "outputs", "sources"},
    "stages": {
        "cores",
        "comparisons",
        "verdicts",
        "pipeline",
        "records",
        "training",
        "runs",
        "results",
        "tasks",
        "data",
        "nets",
        "measure",
        "compiler",
        "theory",
        "files",
        "outputs",
        "recovery",
        "sources",
        "shipped",
    },
    "__main__": {"stages"},
}


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """Modules of skipform that a file imports, anywhere in it."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in modules if name.split(".")[0] == "skipform"}


def sources():
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_follow_the_arrows(path):
    here = room(path)
    targets = {name.split(".")[1] for name in imports(path) if name.count(".")}
    assert targets - OPEN - {here, "__version__"} <= ARROWS[here]


def test_a_net_never_imports_a_sibling_architecture():
    shared = {"blocks", "attention", "build"}
    for path in sorted((PACKAGE / "nets").glob("*.py")):
        if path.stem in ("__init__", "blocks", "attention"):
            continue
        siblings = {name.split(".")[2] for name in imports(path) if name.startswith("skipform.nets.")}
        assert siblings <= shared, path.name


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_no_other_stage(stage):
    others = {f"skipform.stages.{name}" for name in STAGES} - {f"skipform.stages.{stage}"}
    assert not imports(PACKAGE / "stages" / f"{stage}.py") & others


def test_a_finished_run_is_read_and_measured_without_lightning():
    code = (
        "import sys, skipform.runs, skipform.stages.measure, skipform.stages.claims, skipform.stages.grammar;"
        "import skipform.stages.verify;"
        "print([m for m in ('lightning', 'torchvision', 'wandb', 'jsonargparse') if m in sys.modules])"
    )
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert seen.strip() == "[]"


def test_a_wrong_option_of_any_stage_is_refused_before_torch_is_imported(tmp_path):
    code = (
        "import sys; from skipform.stages import cli\n"
        "for stage in cli.STAGES:\n"
        "    print(stage, cli.main([stage, '--nope']), 'torch' in sys.modules)\n"
        "print('help', cli.main(['--help']), 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    refused = done.stdout.splitlines()[: len(STAGES)]
    assert refused == [f"{stage} 2 False" for stage in STAGES]
    assert done.stdout.splitlines()[-1] == "help 0 False"
    for stage, line in zip(STAGES, done.stderr.splitlines(), strict=True):
        assert line.startswith(f"skipform {stage}: error: unrecognized arguments: --nope; accepted: --help"), line


def test_the_pipeline_trains_every_experiment_of_the_survey():
    groups = {
        key: value for block in yaml.safe_load((ROOT / "dvc.yaml").read_text())["vars"] for key, value in block.items()
    }
    assert sorted(groups["nets"]) == sorted(path.stem for path in (ROOT / "experiments" / "survey").glob("*.yaml"))


def test_no_module_has_a_name_without_meaning():
    banned = {"utils", "helpers", "common", "misc", "base", "registry"}
    assert not [p for p in [*PACKAGE.rglob("*.py"), *(ROOT / "analysis").glob("*.py")] if p.stem in banned]


def test_importing_skipform_imports_no_heavy_library():
    code = (
        "import sys, skipform; print([m for m in ('torch', 'numba', 'lightning', 'wandb', 'dvc') if m in sys.modules])"
    )
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert seen.strip() == "[]"


def test_every_public_name_exists():
    import skipform

    for name in (
        "build",
        "canonical",
        "data",
        "from_onnx",
        "rewrite",
        "measure",
        "task",
        "CanonicalNetwork",
        "SkipformError",
        "UnsupportedOperation",
    ):
        assert getattr(skipform, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'absent'; it has"):
        skipform.absent  # noqa: B018


def test_help_and_dir_show_the_seven_public_names_and_no_others():
    import inspect
    import pydoc

    import skipform

    names = ["build", "canonical", "data", "from_onnx", "measure", "rewrite", "task"]
    assert dir(skipform) == names
    assert all(inspect.getdoc(getattr(skipform, name)) for name in names)
    text = pydoc.render_doc(skipform, renderer=pydoc.plaintext)
    functions = text.partition("\nFUNCTIONS\n")[2].partition("\nVERSION\n")[0]
    assert re.findall(r"^    (\w+)", functions, re.MULTILINE) == ["build", "canonical", "from_onnx", "rewrite", "task"]
    assert "\nDATA\n" not in text
    assert "\nCLASSES\n" not in text
    for name in ("data", "measure"):  # pydoc describes no modules, so the docstring of the package names them
        assert re.search(rf"^        {name}\b", text.partition("\nPACKAGE CONTENTS\n")[0], re.MULTILINE)


def test_what_the_package_returns_has_a_short_repr():
    import torch

    import skipform

    net = skipform.build("mlp", in_channels=1, image_size=4, width=32).eval()
    x = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    measure = skipform.measure
    canonical = skipform.canonical(net, x)
    measured = [measure.line(net, x[0], x[1]), measure.plane(net, *x), measure.functional_dimension(net, x)]
    for value in (canonical, canonical.readout, skipform.data("digits"), *measured):
        assert len(repr(value)) <= 100
        assert repr(value).startswith(f"{type(value).__name__}(")


def test_a_refused_module_raises_one_error_with_no_other_above_it():
    import torch
    from torch import nn

    import skipform

    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    calls = [
        lambda: skipform.rewrite(skipform.build("resnet", depth=8).eval(), torch.zeros(1, 1, 4)),
        lambda: skipform.canonical(Branching().eval(), torch.zeros(1, 3)),
        lambda: skipform.measure.line(nn.Linear(3, 2).eval(), torch.zeros(4), torch.ones(4)),
        lambda: skipform.measure.jacobian_rank(nn.Linear(3, 2).eval(), torch.zeros(4)),
    ]
    for call in calls:
        with pytest.raises(skipform.SkipformError) as raised:
            call()
        assert raised.value.__cause__ is None
        assert raised.value.__suppress_context__ or raised.value.__context__ is None


@pytest.mark.parametrize("module", ["skipform", "skipform.stages.cli"])
def test_the_package_runs_as_a_module(module):
    done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True)
    assert done.stdout.startswith("skipform ")
    assert done.returncode == 0


def test_pyproject_lock_requirements_and_conda_environment_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lock = {p["name"]: p for p in tomllib.loads((ROOT / "uv.lock").read_text())["package"] if "version" in p}
    pins = {}
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if match := re.match(r"([A-Za-z0-9_.-]+)(?:\[.*\])?==([^ ;]+)", line):
            pins.setdefault(match[1].lower(), set()).add(match[2])
    versions = {}
    for package in tomllib.loads((ROOT / "uv.lock").read_text())["package"]:
        versions.setdefault(package["name"], set()).add(package.get("version"))
    assert pins, "requirements.txt pins nothing"
    for name, pinned in pins.items():
        assert pinned <= versions[name], f"{name}: requirements.txt {pinned}, uv.lock {versions[name]}"
    locked = {d["name"] for d in lock["skipform"]["dependencies"]}
    direct = {re.match(r"[A-Za-z0-9_.-]+", d)[0].lower() for d in project["dependencies"]}
    assert direct == locked, "uv.lock is older than pyproject.toml; renew it with: make derived"
    assert direct <= set(pins)
    requires = {d["name"]: d.get("specifier", "") for d in lock["skipform"]["metadata"]["requires-dist"]}
    for dependency in project["dependencies"]:
        name, specifier = re.match(r"([A-Za-z0-9_.-]+)(?:\[.*\])?(.*)", dependency).groups()
        wanted = {part for part in specifier.split(",") if part}
        assert {part for part in requires[name.lower()].split(",") if part} == wanted, name
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    lowest = re.search(r">=(\d+\.\d+)", project["requires-python"])[1]
    assert conda == [f"python={lowest}", "pip", {"pip": ["-r requirements.txt"]}]


def test_versions_agree():
    import skipform

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert skipform.__version__ == project["version"] == citation["version"]


def test_the_lock_names_public_registries_only():
    hosts = set(re.findall(r"https?://([^/\"]+)", (ROOT / "uv.lock").read_text()))
    assert hosts == {"pypi.org", "files.pythonhosted.org"}
