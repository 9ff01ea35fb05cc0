"""Experiment files: those of the project are complete and run; a wrong one is refused in one line, before any work."""

import json
import re
import shlex
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml

from skipform import data, nets, tasks
from skipform.arguments import complete
from skipform.data.images import Images
from skipform.errors import SkipformError
from skipform.stages import cli, fit
from skipform.training import run
from skipform.training.experiment import NOT_IN_FILES, read

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
FILES = sorted(EXPERIMENTS.glob("survey/*.yaml")) + sorted(EXPERIMENTS.glob("claims/*.yaml"))
SCALES = ["smoke", "embedded", "paper"]
GOOD = """
variants: {one: {name: mlp, depth: 1, width: 4}}
data: {name: digits, limit: 40}
trainer: {max_epochs: 1, accelerator: cpu}
wandb: disabled
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder with GOOD as experiments/claims/good.yaml, at two scales that add nothing."""
    for scale in ("small", "large"):
        (tmp_path / "experiments" / "scale").mkdir(parents=True, exist_ok=True)
        (tmp_path / "experiments" / "scale" / f"{scale}.yaml").write_text("# nothing\n")
    (tmp_path / "experiments" / "claims").mkdir()
    (tmp_path / "experiments" / "claims" / "good.yaml").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SKIPFORM_DATA", raising=False)
    return tmp_path


def refused(arguments: list[str], capsys) -> str:
    """The one line with which `skipform fit` refuses; nothing may have been made by then."""
    before = sorted(Path.cwd().rglob("*"))
    assert cli.main(["fit", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    assert sorted(Path.cwd().rglob("*")) == before
    return err.strip()


WRONG = {  # what is wrong: (in the file, with what it is replaced, what the line says)
    "unknown net": (
        "name: mlp",
        "name: mpl",
        r"variants\.one\.name: unknown net 'mpl'; accepted: .*\bmlp\b.*\bresnet\b",
    ),
    "unknown key of a net": (
        "depth: 1",
        "dept: 1",
        r"variants\.one: unknown key 'dept' \(did you mean depth\?\); accepted: depth, width, skip$",
    ),
    "wrong type in a net": ("depth: 1", "depth: deep", r"variants\.one\.depth: 'deep' is not accepted; accepted: int$"),
    "a value outside a choice": (
        "depth: 1",
        "skip: both",
        r"variants\.one\.skip: 'both' is not accepted; accepted: 'add' \| .*'concat' \| 'none'$",
    ),
    "a value that the net refuses": (
        "depth: 1",
        "depth: -1",
        r"variants\.one\.depth: -1; accepted: 0 to 10000$",
    ),
    "what the data set states": ("depth: 1", "in_channels: 3", r"one\.in_channels: the data set states it \(1\)"),
    "no net": ("{name: mlp, depth: 1, width: 4}", "{depth: 1}", r"variants\.one: accepted is \{name: NAME"),
    "no variants": (
        "variants: {one: {name: mlp, depth: 1, width: 4}}",
        "variants: {}",
        r"variants: accepted is one or more",
    ),
    "a label that is no folder": ("one:", "../one:", r"variants: label '\.\./one'; accepted: letters, digits"),
    "unknown data set": (
        "name: digits",
        "name: mnist",
        r"data\.name: unknown 'mnist'; accepted: .*\bdigits, cifar10, fashion_mnist\b",
    ),
    "no data set": ("name: digits, ", "", r"data\.name: missing; accepted: .*\bdigits, cifar10, fashion_mnist\b"),
    "unknown key of the data": (
        "limit: 40",
        "limits: 40",
        r"data: unknown key 'limits' \(did you mean limit\?\); accepted: ",
    ),
    "where a machine keeps its data": (
        "limit: 40",
        "root: here",
        r"data: unknown key 'root'; accepted: ",
    ),
    "wrong type in the data": ("limit: 40", "limit: 4.5", r"data\.limit: 4\.5 is not accepted; accepted: int \| None$"),
    "unknown key of the trainer": ("max_epochs", "max_epoch", r"trainer: unknown key 'max_epoch' .*max_epochs"),
    "wrong type in the trainer": (
        "max_epochs: 1",
        "max_epochs: [1]",
        r"trainer\.max_epochs: \[1\] is not accepted; accepted: int",
    ),
    "no epoch": ("max_epochs: 1", "max_epochs: 0", r"trainer\.max_epochs: 0; accepted: 1 or more$"),
    "unknown key of the optimizer": (
        "wandb:",
        "optimizer: {rate: 1}\nwandb:",
        r"optimizer: unknown key 'rate'.*; accepted: .*\blr\b",
    ),
    "unknown task": (
        "wandb:",
        "task: {name: clasify}\nwandb:",
        r"task\.name: unknown 'clasify'; accepted: .*\bclassify\b",
    ),
    "a task for other data": (
        "wandb:",
        "task: {name: segment}\nwandb:",
        r"task\.name: 'segment' takes masks, data set 'digits' has labels; accepted: classify$",
    ),
    "unknown key of the task": ("wandb:", "task: {lr: 1}\nwandb:", r"task: unknown key 'lr'"),
    "unknown key at the top": (
        "wandb:",
        "seeds: 3\nwandb:",
        r"unknown key 'seeds'; accepted: threads, wandb, backbone_weights, comparisons, data, task, .*small$",
    ),
    "wrong type at the top": (
        "disabled",
        "sometimes",
        r"wandb: 'sometimes' is not accepted; accepted: 'auto' \| 'online'",
    ),
    "no section": (
        "data: {name: digits, limit: 40}",
        "data: digits",
        r"data: accepted is `key: value` lines, got 'digits'",
    ),
    "no YAML": ("}}", "}", r"good\.yaml: not YAML: .* line \d"),
    "a key given twice": ("limit: 40", "limit: 40, limit: 41", r"good\.yaml: not YAML: .*'limit' twice"),
    "a list": ("\n", "\n- ", r"good\.yaml: not YAML|`key: value` lines"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_experiment_file_is_refused_in_one_line_that_names_file_key_and_what_is_accepted(wrong, folder, capsys):
    old, new, message = WRONG[wrong]
    assert old in GOOD
    Path("experiments/claims/good.yaml").write_text(GOOD.replace(old, new, 1))
    line = refused(["--config", "experiments/claims/good.yaml", "--scale", "small"], capsys)
    assert line.startswith("skipform fit: error: experiments/claims/good.yaml")
    assert re.search(message, line), line


def test_a_mistake_at_another_scale_is_found_too(folder, capsys):
    Path("experiments/claims/good.yaml").write_text(GOOD + "large: {optimizer: {lr: fast}}\n")
    line = refused(["--config", "experiments/claims/good.yaml", "--scale", "small"], capsys)
    assert line == (
        "skipform fit: error: experiments/claims/good.yaml (large): "
        "optimizer.lr: 'fast' is not accepted; accepted: float"
    )


def test_a_mistake_in_a_scale_file_is_found(folder, capsys):
    Path("experiments/scale/large.yaml").write_text("trainer: {epochs: 3}\n")
    line = refused(["--config", "experiments/claims/good.yaml", "--scale", "small"], capsys)
    assert re.search(r"\(large\): trainer: unknown key 'epochs'", line), line
    Path("experiments/scale/large.yaml").write_text("small: {}\n")
    line = refused(["--config", "experiments/claims/good.yaml", "--scale", "small"], capsys)
    assert re.search(r"experiments/scale/large\.yaml: unknown key 'small'", line), line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], r"--config FILE is missing; accepted: an experiment file"),
        (["--config", "experiments/claims/god.yaml"], r"claims/god\.yaml: no such experiment file; .* has good\.yaml$"),
        (
            ["--config", "experiments/none/x.yaml"],
            r"none/x\.yaml: no such experiment file; experiments/none has none; a checkout .* has experiments/$",
        ),
        (["--config", "GOOD", "--scale", "huge"], r"unknown scale 'huge'; accepted: large, small$"),
        (["--config", "GOOD"], r"unknown scale 'embedded'; accepted: large, small$"),
        (["--config", "GOOD", "--scale", "small", "--trainer.max_epoch", "3"], r"--trainer\.max_epoch"),
        (
            ["--config", "GOOD", "--scale", "small", "--trainer.max_epochs", "x"],
            r"trainer\.max_epochs: 'x' is not accepted; accepted: int$",
        ),
        (["--config", "GOOD", "--scale", "small", "--data.name", "mnist"], r"data\.name.*digits.*mnist"),
        (["--config", "GOOD", "--scale", "small", "--seeds", "a"], r"seeds.*int.*a"),
        (
            ["--config", "GOOD", "--scale", "small", "--seeds", "1", "1"],
            r"seeds: \[1, 1\]; accepted: one or more different",
        ),
        (
            ["--config", "GOOD", "--scale", "small", "--data.validation", "1347"],
            r"data\.validation: 1347; accepted: 0 to 1346 images",
        ),
        (
            ["--config", "GOOD", "--scale", "small", "--data.batch_size", "0"],
            r"data\.batch_size: 0; accepted: 1 or more",
        ),
        (
            ["--config", "GOOD", "--scale", "small", "--data.name", "cifar10"],
            r"data/cifar-10-batches-py/.*: missing; mend it",
        ),
    ],
)
def test_a_wrong_command_line_is_refused_in_one_line(arguments, says, folder, capsys):
    line = refused([{"GOOD": "experiments/claims/good.yaml"}.get(word, word) for word in arguments], capsys)
    assert re.search(says, line), line


def test_the_last_value_of_a_key_is_used(folder):
    path = Path("experiments/claims/good.yaml")
    Path("experiments/scale/large.yaml").write_text("optimizer: {lr: 1.0, momentum: 0.1, decay: 0.2, warmup: 1}\n")
    path.write_text(GOOD + "optimizer: {lr: 2.0, momentum: 0.3, warmup: 2}\nlarge: {optimizer: {lr: 3.0, warmup: 3}}\n")
    optimizer = read(path, "large", {"optimizer": {"lr": 4.0}}).optimizer
    assert (optimizer["lr"], optimizer["warmup"], optimizer["momentum"], optimizer["decay"]) == (4.0, 3, 0.3, 0.2)
    assert read(path, "small", {"optimizer": {"lr": 4.0}}).optimizer["decay"] == 0.1  # the default


def test_a_variant_of_another_net_at_a_scale_takes_none_of_the_arguments(folder):
    path = Path("experiments/claims/good.yaml")
    path.write_text(GOOD + "large: {variants: {one: {name: resnet, depth: 8}}}\n")
    block = read(path, "large").variants["one"]
    assert (block["name"], block["depth"], block["width"]) == ("resnet", 8, 16)
    assert read(path, "small").variants["one"]["width"] == 4


def test_yaml_numbers_without_a_point_are_numbers(folder):
    path = Path("experiments/claims/good.yaml")
    path.write_text(GOOD + "optimizer: {lr: 5e-4, milestones: [0.5]}\n")
    optimizer = read(path, "small").optimizer
    assert optimizer["lr"] == 5e-4
    assert optimizer["milestones"] == (0.5,)


CROPS = {  # data set: (task, net, {what is given as --data.crop: what becomes of it, or that it is refused})
    "digits": ("classify", {"name": "mlp"}, {"1": 1, "2.5": "refused"}),
    "digit_masks": ("segment", {"name": "unet"}, {"48": 48, "null": None, "1.5": "refused"}),
    "digit_boxes": ("detect", {"name": "fpn", "backbone": {"name": "resnet"}}, {"0.5": 0.5, "1": 1.0, "x": "refused"}),
}


@pytest.mark.parametrize(("name", "given"), [(name, given) for name, (_, _, cases) in CROPS.items() for given in cases])
def test_an_option_of_several_kinds_of_data_has_the_type_of_the_kind_in_use(name, given, folder):
    task, net, cases = CROPS[name]
    path = Path("experiments/claims/good.yaml")
    blocks = {"variants": {"one": net}, "data": {"name": name}, "task": {"name": task}, "trainer": {"max_epochs": 1}}
    path.write_text(yaml.safe_dump(blocks))
    _, overrides, _ = fit._options(["--config", str(path), "--data.crop", given])
    if cases[given] == "refused":
        with pytest.raises(SkipformError, match=r"data\.crop: .* is not accepted; accepted: "):
            read(path, "small", overrides)
    else:
        crop = read(path, "small", overrides).data["crop"]
        assert (crop, type(crop)) == (cases[given], type(cases[given]))


def test_what_is_complete_stays_as_it_is(folder):
    experiment = asdict(read(Path("experiments/claims/good.yaml"), "small"))
    for section, function in {"data": Images, "optimizer": tasks.Optimizer, "trainer": run.build_trainer}.items():
        assert complete(function, experiment[section], section, skip=NOT_IN_FILES[section]) == experiment[section]


def test_scale_and_seeds_come_from_params_and_the_data_root_from_the_environment(folder, monkeypatch, capsys):
    Path("params.yaml").write_text("scale: large\nseeds: [4, 7]\n")
    monkeypatch.setenv("SKIPFORM_DATA", "elsewhere")
    cifar10 = ["--config", "experiments/claims/good.yaml", "--data.name", "cifar10"]
    assert " elsewhere/cifar-10-batches-py/" in refused(cifar10, capsys)
    assert " there/cifar-10-batches-py/" in refused([*cifar10, "--data.root", "there"], capsys)
    assert cli.main(["fit", "--config", "experiments/claims/good.yaml"]) == 0
    assert json.loads(Path("runs/claims/good/summary.json").read_text())["one"]["seeds"] == [4, 7]
    config = yaml.safe_load(Path("runs/claims/good/one/seed4/config.yaml").read_text())
    assert config["scale"] == "large"
    assert config["data"].keys().isdisjoint({"root", "download"})


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_an_experiment_file_introduces_itself(path):
    """Five headings, the last of them one line, the command; notes may follow under a bare #."""
    head, _, notes = path.read_text().partition("\n\n")[0].partition("\n#\n")
    assert all(line.startswith("# ") for line in [*head.splitlines(), *notes.splitlines()])
    headings = [line.split()[1] for line in head.splitlines() if not line.startswith("#  ")]
    assert headings == ["Question", "Feeds", "Expect", "Cost", "Run"]
    assert f"experiments/{path.parent.name}/{path.name}" in head.splitlines()[-1]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
@pytest.mark.parametrize("scale", SCALES)
def test_every_variant_is_built_and_classifies_the_images_of_its_scale(path, scale):
    experiment = read(path, scale)
    stated = data.kind(experiment.data["name"]).states(**experiment.data)
    for block in experiment.variants.values():
        with torch.device("meta"):  # shapes only
            net = nets.build(**block)
            if experiment.task["name"] == "classify":
                scores = net(torch.empty(2, stated["in_channels"], stated["image_size"], stated["image_size"]))
                assert scores.shape == (2, stated["num_classes"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_command_of_an_experiment_file_runs_at_scale_smoke(path, tmp_path, monkeypatch):
    (run_line,) = re.findall(r"^# Run +(.*)$", path.read_text(), re.MULTILINE)
    command = shlex.split(run_line)
    assert command[:2] == ["skipform", "fit"]
    monkeypatch.chdir(EXPERIMENTS.parent)
    out = tmp_path / "out"
    # A process that has differentiated, as that of the tests has, cannot fork workers.
    assert cli.main([*command[1:], "--scale", "smoke", "--seeds", "0", "--workers", "1", "--out", str(out)]) == 0
    assert json.loads((out / "summary.json").read_text()).keys() == read(path, "smoke").variants.keys()


def test_paper_scale_takes_the_steps_of_the_resnet_paper():
    experiment = read(EXPERIMENTS / "survey" / "resnet.yaml", "paper")
    steps = experiment.trainer["max_epochs"] * (50_000 // experiment.data["batch_size"])
    assert abs(steps - 64_000) < 390  # to within an epoch
    assert (experiment.data["crop"], experiment.data["flip"]) == (4, True)


def test_the_sections_are_checked_against_what_they_build():
    with pytest.raises(SkipformError, match=r"here: unknown key 'seed'"):
        complete(Images, {"name": "digits", "seed": 1}, "here", skip=NOT_IN_FILES["data"])
