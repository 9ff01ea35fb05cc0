"""Files and command lines altered at random: one line that refuses them, or what the unaltered ones give.

The examples are the same in every run: hypothesis derives them from the test itself.
"""

import contextlib
import copy
import io
import json
import os
import re
import shutil
import traceback
from fractions import Fraction

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from skipform import outputs
from skipform.errors import SkipformError
from skipform.files import checksum
from skipform.runs import CHECKED, FILES, PROVENANCE, Run, read_summary
from skipform.stages import cli, fit
from skipform.theory.affine import Affine
from skipform.theory.network import FORMAT, CanonicalNetwork, perceptron
from skipform.training import run
from skipform.training.experiment import read


def fuzz(examples):
    return settings(
        max_examples=examples, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )


NUMBERS = [-1, 0, 10**30, float("nan"), float("inf"), 1e308]
TEXTS = ["", "..", "../../x", "nan", "\u2028", "x" * 400]
NESTS = [[], {}, [[]], {"name": "mlp"}, {"name": {}}, {"a": [None]}, [1, "2"]]
ABSURD = st.sampled_from([None, True, *NUMBERS, *TEXTS, *NESTS]).map(copy.deepcopy)
EXPERIMENT = {
    "variants": {"net": {"name": "mlp", "depth": 2, "width": 8}},
    "data": {"name": "digits", "limit": 16, "batch_size": 16},
    "optimizer": {"name": "sgd", "lr": 0.05, "schedule": "cosine"},
    "trainer": {"max_epochs": 1, "accelerator": "cpu"},
    "threads": 1,
    "wandb": "disabled",
}


@st.composite
def altered(draw, content):
    """The bytes with a few of them replaced, inserted or removed, or cut off."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(len(content) - 1, 0)))
        match draw(st.sampled_from(["replace", "flip", "insert", "remove", "cut"])):
            case "replace" | "flip" if content:
                content[place] = draw(st.integers(0, 255))
            case "insert":
                content[place:place] = draw(st.binary(min_size=1, max_size=6))
            case "remove":
                del content[place : place + draw(st.integers(1, 6))]
            case "cut":
                del content[place:]
    return bytes(content)


@st.composite
def with_absurd_values(draw, value):
    """A nest of dicts and lists in which one to three entries are absurd, missing or new."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        inner = value
        while isinstance(inner, dict) and inner:
            key = draw(st.sampled_from(list(inner)))
            if isinstance(inner[key], dict) and draw(st.integers(0, 3)):
                inner = inner[key]
                continue
            match draw(st.sampled_from(["change", "change", "remove", "add"])):
                case "change":
                    inner[key] = draw(ABSURD)
                case "remove":
                    del inner[key]
                case "add":
                    inner[draw(st.sampled_from(["new", "name", "seed", "root", "..", ""]))] = draw(ABSURD)
            break
    return value


def refused(function, *arguments):
    """What the function returns, or None if it raises a SkipformError of one line; any other error is raised."""
    try:
        return function(*arguments)
    except SkipformError as error:
        if "\n" in str(error):
            raise AssertionError("an error of several lines") from error
        return None


def in_child(function):
    """Call the function in a forked process, so that a crash fails this test alone."""
    child = os.fork()
    if child == 0:
        try:
            function()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 0, f"killed by signal {-status}" if status < 0 else "the error is printed above"


MAPS = [Affine.of([[Fraction(1, 3), 2], [-1, 0]], [Fraction(1, 7), 0], exact=True), Affine.of([[1, 1]], exact=True)]
POINT = {True: np.array([Fraction(1, 2), Fraction(-3)], dtype=object), False: torch.tensor([0.5, -3.0]).double()}


@pytest.fixture(scope="module", params=[True, False], ids=["rationals", "float64"])
def network(request, tmp_path_factory):
    """A canonical network in a file, and its value at POINT."""
    path = tmp_path_factory.mktemp("network") / "net.safetensors"
    network = perceptron(MAPS) if request.param else perceptron(MAPS).float()
    network.save(path)
    return path, np.asarray(network(POINT[request.param])), POINT[request.param]


def test_an_altered_canonical_file_is_refused_or_is_the_same_function(network):
    path, value, point = network
    changed = path.with_name("changed")

    @fuzz(300)
    @given(altered(path.read_bytes()))
    def refused_or_the_same(content):
        changed.write_bytes(content)
        again = refused(CanonicalNetwork.load, changed)
        assert again is None or (np.asarray(again(point)) == value).all()

    in_child(refused_or_the_same)


@st.composite
def without_a_checksum(draw, path):
    """The arrays and the header of a canonical file, of which one or two have entries that no network has."""
    arrays = {name: array.copy() for name, array in load_file(path).items()}
    header = {"exact": arrays["0.data"].dtype == np.uint8, "in_features": [2, 4]}
    header |= {"input_shape": None, "output_shape": None}
    for _ in range(draw(st.integers(0, 2))):
        name, key = draw(st.sampled_from(sorted(arrays))), draw(st.sampled_from(sorted(header)))
        number = draw(st.sampled_from([0, 1, 2, 3, 5, 47, 255, -1, 2**40, 2**62, -(2**63)]))
        size, dtype = len(arrays[name]), arrays[name].dtype
        match draw(st.sampled_from(["entry", "entry", "longer", "shorter", "dtype", "shape", "header"])):
            case "entry" if size:
                arrays[name][draw(st.integers(0, size - 1))] = np.array(number).astype(dtype)
            case "longer":
                arrays[name] = np.concatenate([arrays[name], arrays[name]])
            case "shorter":
                arrays[name] = arrays[name][: draw(st.integers(0, size))]
            case "dtype":
                arrays[name] = arrays[name].astype(draw(st.sampled_from(["int32", "int64", "float32", "uint8"])))
            case "shape":
                arrays[name] = arrays[name].reshape(1, -1)
            case "header":
                header[key] = draw(ABSURD | st.sampled_from([[2], [2, 5], [2, 2**62], [2**62, 2**62 + 2], [2.0, 4]]))
    return arrays, header


def test_a_canonical_file_without_a_checksum_is_refused_or_is_some_network(network):
    """Files of earlier versions have none: nothing outside the arrays is read, and the unaltered file is accepted."""
    path, value, point = network
    changed = path.with_name("changed")

    @fuzz(300)
    @given(without_a_checksum(path))
    def refused_or_some_network(content):
        arrays, header = content
        save_file(arrays, changed, metadata={FORMAT: json.dumps(header)})
        again = refused(CanonicalNetwork.load, changed)
        if again is not None and again.in_features == 2:
            refused(again, point)

    in_child(refused_or_some_network)
    unaltered = {"exact": value.dtype == object, "in_features": [2, 4], "input_shape": None, "output_shape": None}
    save_file(load_file(path), changed, metadata={FORMAT: json.dumps(unaltered)})
    assert (np.asarray(CanonicalNetwork.load(changed)(point)) == value).all()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An experiment of one finished run, and the checkpoint that the run had after its last epoch."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "survey").mkdir()
    (folder / "scale").mkdir()
    (folder / "scale" / "embedded.yaml").write_text("")
    (folder / "survey" / "some.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    config, out = folder / "survey" / "some.yaml", folder / "out"
    argv = ["--config", str(config), "--scale", "embedded", "--seeds", "0", "--workers", "1", "--out", str(out)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "write_results", lambda *_, **__: 1 / 0)  # as if killed before it wrote them
        with pytest.raises(ZeroDivisionError):
            fit.main(argv)
    shutil.copytree(folder / "out.partial" / "net" / "seed0", folder / "unfinished")
    fit.main(argv)
    return folder, argv


def copied(folder):
    """A copy of the experiment's folder, in which the run may be altered."""
    shutil.copytree(folder / "out", changed := folder / "changed", dirs_exist_ok=True)
    return changed


def renew_checksums(run):
    """Let the checksums of an altered run be those of its files."""
    (run / "checksums.json").write_text(json.dumps({"sha256": {name: checksum(run / name) for name in CHECKED}}))


def everything(folder):
    """All that a finished run and its experiment's summary hold, but the checksums."""
    finished = Run(folder / "net" / "seed0")
    scores = finished.task()(torch.linspace(0, 1, 64).reshape(1, 1, 8, 8)).tolist()
    provenance = {key: finished.provenance[key] for key in PROVENANCE}
    return finished.config, finished.metrics, finished.history, scores, provenance, read_summary(folder)


@pytest.fixture(scope="module")
def unaltered(trained):
    folder, _ = trained
    return everything(folder / "out")


@fuzz(100)
@given(data=st.data())
def test_an_altered_run_is_refused_or_is_the_same_run(trained, unaltered, data):
    folder, _ = trained
    changed = copied(folder)
    name = data.draw(st.sampled_from([*FILES, "summary.json"]))
    path = changed / name if name == "summary.json" else changed / "net" / "seed0" / name
    if name.endswith(("yaml", "json")) and data.draw(st.booleans()):
        value = data.draw(with_absurd_values(yaml.safe_load(path.read_text())))
        path.write_text(yaml.safe_dump(value) if name.endswith("yaml") else json.dumps(value))
    else:
        path.write_bytes(data.draw(altered(path.read_bytes())))
    assert refused(everything, changed) in (None, unaltered)


@fuzz(80)
@given(data=st.data())
def test_an_altered_run_whose_checksums_were_renewed_is_refused_or_read(trained, data):
    folder, _ = trained
    home = (changed := copied(folder)) / "net" / "seed0"
    path = home / data.draw(st.sampled_from(["config.yaml", "final.safetensors", "history.csv", "metrics.json"]))
    if path.suffix in (".yaml", ".json") and data.draw(st.integers(0, 3)):
        value = data.draw(with_absurd_values(yaml.safe_load(path.read_text())))
        path.write_text(yaml.safe_dump(value) if path.suffix == ".yaml" else json.dumps(value))
    else:
        path.write_bytes(data.draw(altered(path.read_bytes())))
    renew_checksums(home)
    refused(everything, changed)


@fuzz(100)
@given(data=st.data())
def test_an_altered_checkpoint_is_resumed_only_if_it_is_the_same(trained, data):
    folder, _ = trained
    shutil.copytree(folder / "unfinished", changed := folder / "half", dirs_exist_ok=True)
    digest = json.loads((changed / "begun.json").read_text())["fingerprint"]
    path = changed / data.draw(st.sampled_from(["begun.json", "last.ckpt", "last.ckpt"]))
    before = path.read_bytes()
    path.write_bytes(data.draw(altered(before)))
    same = path.read_bytes() == before
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        metrics, checkpoint = run.previous(changed, digest, changed / "last.ckpt", tqdm(disable=True))
    assert metrics is None
    if path.name == "last.ckpt":
        assert (checkpoint is not None) == same
        assert errors.getvalue().count("\n") == (not same)
    if checkpoint is None:
        assert [file.name for file in changed.iterdir()] == ["begun.json"]


@fuzz(100)
@given(data=st.data())
def test_an_altered_experiment_file_is_refused_or_read(trained, data):
    folder, _ = trained
    path = folder / "survey" / "changed.yaml"
    text = yaml.safe_dump(EXPERIMENT)
    if data.draw(st.booleans()):
        path.write_text(yaml.safe_dump(data.draw(with_absurd_values(EXPERIMENT))))
    else:
        path.write_bytes(data.draw(altered(text.encode())))
    refused(read, path, "embedded")


OPTIONS = "--help -o --out --nope --config --scale --seeds --workers --batch --box --input --data.name --optimizer.lr"
VALUES = "x.json / .. absent.yaml nan -1 0 1e999 [ { null 1,x torch:nn os:getcwd : --slices --points --count --runs"
WORDS = st.sampled_from([*OPTIONS.split(), *VALUES.split(), "", "\0", '{"a":', "--arguments"])
READERS = ["fit", "measure", "claims", "examples", "publish", "regions", "rewrite"]  # they do nothing without a file


@fuzz(80)
@given(stage=st.sampled_from([*READERS, "nope", ""]), words=st.lists(WORDS, max_size=5))
def test_a_senseless_command_line_is_refused_in_one_line(stage, words, tmp_path_factory):
    with (
        contextlib.chdir(tmp_path_factory.getbasetemp()),
        contextlib.redirect_stderr(io.StringIO()) as errors,
        contextlib.redirect_stdout(io.StringIO()),
    ):
        try:
            status = cli.main([stage, *words])
        except SystemExit as end:  # --help
            status = end.code
    assert status == (0 if "--help" in words else 2) or status == 2
    assert errors.getvalue().count("\n") == (status == 2), errors.getvalue()


@pytest.mark.parametrize("key", ["training_seconds", "commit", "versions", "command"])
def test_an_altered_provenance_is_refused(trained, key):
    shutil.copytree(trained[0] / "out", changed := trained[0] / "changed", dirs_exist_ok=True)
    path = changed / "net" / "seed0" / "provenance.json"
    provenance = json.loads(path.read_text())
    provenance[key] = {"training_seconds": 1.0, "versions": provenance["versions"] | {"torch": "9"}}.get(key, "other")
    path.write_text(json.dumps(provenance))
    with pytest.raises(SkipformError, match=r"provenance\.json: changed since the end of its run"):
        Run(path.parent).provenance  # noqa: B018


def test_a_run_that_begins_again_removes_only_what_a_run_writes(trained, tmp_path):
    for name in [*FILES, *run.UNFINISHED_FILES, ".metrics.json.skipform.12345678.json"]:
        (tmp_path / name).write_text("of another run")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "mine.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SkipformError, match=r"inner/mine\.txt stands there, and no run of skipform wrote it"):
        run.previous(tmp_path, "a", tmp_path / "last.ckpt", tqdm(disable=True))
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "inner" / "mine.txt").unlink()
    assert run.previous(tmp_path, "a", tmp_path / "last.ckpt", tqdm(disable=True)) == (None, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["begun.json", "inner"]


def test_a_scale_that_names_another_folder_publishes_nothing(trained, capsys):
    folder, _ = trained
    runs = copied(folder)
    config = runs / "net" / "seed0" / "config.yaml"
    config.write_text(config.read_text().replace("scale: embedded", "scale: ../../published"))
    renew_checksums(runs / "net" / "seed0")
    with contextlib.chdir(runs):
        assert cli.main(["publish", "--runs", str(folder)]) == 2
    assert "scale: '../../published'; accepted: letters, digits" in capsys.readouterr().err
    assert not list(folder.parent.rglob("published.csv"))


def test_an_experiment_with_an_unfinished_run_is_not_measured_and_no_run_in_the_place_of_another(
    trained, capsys, tmp_path
):
    commands = (
        ["measure", "exp", "--out", "out.json"],
        ["claims", "exp", "--out", "out.json"],
        ["examples", ".", "--out", "out"],
    )
    for change, line in {
        lambda home: (home / "seed0" / "checksums.json").unlink(): "seed0: no finished run",
        lambda home: (home / "seed0" / "final.safetensors").unlink(): "final.safetensors: cannot be read",
        lambda home: shutil.copytree(home, home.with_name("copy")): "exp/copy/seed0: the run of net, seed 0",
        lambda home: (home.parent / "summary.json").write_text("{"): "exp/summary.json: not JSON",
    }.items():
        shutil.copytree(trained[0] / "out", tmp_path / "exp")
        change(tmp_path / "exp" / "net")
        if (tmp_path / "exp" / "copy").exists():
            summary = json.loads((tmp_path / "exp" / "summary.json").read_text())
            (tmp_path / "exp" / "summary.json").write_text(json.dumps(summary | {"copy": summary["net"]}))
        for command in commands:
            with contextlib.chdir(tmp_path):
                assert cli.main(command) == 2
            assert re.fullmatch(rf"skipform \w+: error: [^\n]*{line}[^\n]*\n", capsys.readouterr().err)
        assert not (tmp_path / "out.json").exists()
        shutil.rmtree(tmp_path / "exp")


def test_what_cannot_be_measured_of_a_run_is_refused(trained, capsys, tmp_path):
    runs = str(trained[0] / "out")
    for words, line in (
        (["--copies"], "--copies: .*net/seed0: the net mlp; accepted: activation_blocks"),
        (["--executor", "submitit"], "--executor submitit: no SLURM on this machine"),
    ):
        assert cli.main(["claims", runs, "--out", str(tmp_path / "out.json"), "--workers", "1", *words]) == 2
        assert re.search(line, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_weights_that_are_no_numbers_are_refused(trained):
    weights = (home := copied(trained[0]) / "net" / "seed0") / "final.safetensors"
    arrays = load_file(weights)
    name = sorted(arrays)[0]
    arrays[name].flat[0] = np.nan
    save_file(arrays, weights)
    renew_checksums(home)
    with pytest.raises(SkipformError, match=f"{name} has an entry that is NaN or infinite"):
        Run(home).net()


def test_a_run_whose_checkpoint_is_damaged_begins_again_and_ends_with_the_same_bytes(trained, capsys):
    folder, argv = trained
    shutil.copytree(folder / "unfinished", work := folder / "again.partial" / "net" / "seed0")
    outputs.mark(folder / "again.partial", [f"net/seed0/{path.name}" for path in work.iterdir()])
    content = bytearray((work / "last.ckpt").read_bytes())
    content[len(content) // 2] ^= 1
    (work / "last.ckpt").write_bytes(content)
    assert fit.main([*argv[:-1], str(folder / "again")]) == 0
    assert f"{work / 'last.ckpt'}: damaged, or of another run; this run begins again\n" in capsys.readouterr().err
    for name in CHECKED:
        first, again = (folder / out / "net" / "seed0" / name for out in ("out", "again"))
        assert first.read_bytes() == again.read_bytes(), name
