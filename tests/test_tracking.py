"""Runs of every stage, logged to W&B offline and read back by W&B's own reader, that of `wandb leet inspect --json`."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import wandb
import yaml
from wandb.util import get_core_path

from skipform.stages import cli, dashboard
from skipform.stages.notebooks import join_numbers
from skipform.training import stage_runs, tracking
from skipform.training.journal import Journal

ROOT = Path(__file__).parents[1]


class Logged(NamedTuple):
    """What a run has left: its first record, and what the later ones come to."""

    run: dict[str, Any]
    summary: dict[str, Any]
    history: list[dict[str, Any]]
    metrics: dict[str, dict[str, Any]]  # name, or pattern, of a metric -> how it is drawn
    environment: dict[str, Any]
    artifacts: dict[str, dict[str, Any]]
    files: list[str]

    @property
    def config(self):
        return self.run["config"]["update"]


def printed(command):
    """The lines that a program prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def reader(folder):
    """The command that `wandb leet inspect --json FOLDER` runs; wandb itself takes a second of a core to start."""
    (file,) = folder.glob("*.wandb")
    return [get_core_path(), "leet", "inspect", "--no-observability", "--json", "--run-file", file, folder]


def read(folder):
    """The run in a folder that W&B has written offline."""
    lines = printed(reader(folder))
    logged = Logged({}, {}, [], {}, {}, {}, [])
    for record in map(json.loads, lines):
        content = record.get(record["type"], {})
        match record["type"]:
            case "run":
                logged.run.update(content)
            case "summary":
                logged.summary.update(content["update"])
            case "history":
                logged.history.append(content["item"])
            case "metric":
                logged.metrics[content.get("name") or content["glob_name"]] = content
            case "environment":
                logged.environment.update(content)
            case "artifact":
                logged.artifacts[content["name"]] = content
            case "files":
                logged.files.extend(file["path"] for file in content["files"])
    assert '"type":"exit"' in "".join(lines[-3:])  # statistics of the machine may come after it
    return logged


def read_all(folder):
    """Id -> run, of all runs that were logged offline in the folder; no id twice."""
    wandb.teardown()  # which writes all that is not written yet
    folders = sorted((folder / "wandb").glob("offline-run-*"))
    with ThreadPoolExecutor(2) as pool:
        runs = [*pool.map(read, folders)]
    ids = [logged.run["run_id"] for logged in runs]
    assert len(set(ids)) == len(ids)
    return dict(zip(ids, runs, strict=True))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with the experiments and a pipeline, at scale smoke but with W&B; the working directory."""
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    scale = tmp_path / "experiments" / "scale" / "smoke.yaml"
    scale.write_text(scale.read_text().replace("wandb: disabled", ""))
    (tmp_path / "params.yaml").write_text("scale: smoke\nseeds: [0]\n")
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.chdir(tmp_path)
    environment(monkeypatch)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(tracking, "ANSWER_WITHIN", 600.0)  # also of the process that writes a run; of a loaded machine
    return tmp_path


def environment(monkeypatch):
    """No variable of W&B; those that are set while a test runs are removed after it."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", tracking.UNREACHED):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def fitted(kind, name, *options):
    command = f"fit --config experiments/{kind}/{name}.yaml --out runs/{kind}/{name}"
    assert cli.main([*command.split(), *options]) == 0


def test_every_run_of_a_claim_is_read_back_with_every_key(project):
    fitted("claims", "pooling", "--trainer.max_epochs", "2")
    file, runs = "experiments/claims/pooling.yaml", "runs/claims/pooling"
    assert cli.main(["claims", runs, "--config", file, "--out", "p.json", "--workers", "1"]) == 0
    assert cli.main(["measure", runs, "--out", "m.json", "--slices", "1", "--batch", "2", "--workers", "1"]) == 0
    assert cli.main(["probe", runs, "--of", "cost", "--out", "c.json", "--images", "2", "--workers", "1"]) == 0
    runs = read_all(project)
    variants = ["none", "average", "max", "max-by-relu", "strided"]
    names = [re.sub("-[0-9a-f]{8}$", "", name) for name in runs]
    assert sorted(names) == sorted(
        [f"pooling-{variant}-{job}" for variant in variants for job in ("s0", "claims", "measure", "cost")]
        + ["pooling-verdicts"]
    )
    for name, logged in runs.items():
        assert logged.run["run_group"] == "claims/pooling"
        assert logged.run["project"] == "skipform"
        assert logged.run["notes"].startswith("Does pooling lower expressive power: none, average, maximum,")
        assert "claim pooling" in logged.run["tags"]
        assert logged.summary["seconds"] > 0
        assert logged.environment["cpu_count"] == os.cpu_count()
        assert "requirements.txt" in logged.files
        if name.startswith("pooling-verdicts"):
            continue
        assert logged.run["tags"] == ["pooled", "classify", "digits", "smoke", "claim pooling"]
        assert logged.config["data"]["name"] == "digits"
        assert logged.config["optimizer"]["lr"] == 0.03
        assert logged.config["net"]["width"] == 2
        assert logged.summary["score_name"] == "test error in %"
        assert 0 <= logged.summary["score"] <= 100
        assert logged.summary["parameters"] > 0
    jobs = {
        job: [run for run in runs.values() if run.run["job_type"] == job]
        for job in ("fit", "claims", "measure", "probe")
    }
    for logged in jobs["probe"]:
        assert logged.summary["operations"] > 0
        assert logged.summary["memory"] > 0
        assert logged.summary["measures._type"] == "table-file"
    for logged in jobs["fit"]:
        assert [row["epoch"] for row in logged.history] == [1, 2]
        assert {"train/loss", "train/error", "test/loss", "test/error"} <= logged.history[-1].keys()
        assert not {"trainer/global_step", "lr"} & logged.history[-1].keys()
        assert logged.metrics["epoch"]["options"]["hidden"]
        assert {logged.metrics[f"{split}/*"]["step_metric"] for split in ("train", "test")} == {"epoch"}
    for logged in [*jobs["claims"], *jobs["measure"]]:
        if "holds" not in logged.summary:
            measured = {"regions", "pieces", "jacobian_rank", "functional_dimension", "initial/regions"}
            assert measured <= logged.summary.keys()
            assert logged.summary["measures._type"] == "table-file"
            assert logged.config["seeds"] == [0]
    (verdicts,) = (run for run in jobs["claims"] if "holds" in run.summary)
    decided = json.loads((project / "p.json").read_text())["comparisons"]
    assert sum(verdicts.summary[verdict] for verdict in ("holds", "does not hold", "open")) == len(decided)
    (table,) = (project / "wandb").glob("*-pooling-verdicts-*/files/media/table/pooling/verdicts_*.table.json")
    assert len(json.loads(table.read_text())["data"]) == len(decided)


def test_a_run_that_is_killed_or_done_again_is_one_run(project, monkeypatch):
    class Killed(Exception):
        pass

    checkpoint = Journal.on_train_epoch_end

    def dying(self, trainer, pl_module):
        checkpoint(self, trainer, pl_module)
        raise Killed

    options = ("--trainer.max_epochs", "2", "--workers", "1")
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "on_train_epoch_end", dying)
        assert cli.main(["fit", "--config", "experiments/survey/vgg.yaml", *options]) == 70
    fitted("survey", "vgg", *options)
    resumed = read_all(project)
    assert all([row["epoch"] for row in logged.history] == [1, 2] for logged in resumed.values())
    shutil.rmtree("runs")
    fitted("survey", "vgg", *options)
    again = read_all(project)
    assert again.keys() == resumed.keys()
    assert all([row["epoch"] for row in logged.history] == [1, 2] for logged in again.values())


def test_a_run_that_is_done_again_within_the_same_second_is_one_run(project, monkeypatch):
    moment = time.time()
    monkeypatch.setattr(time, "time", lambda: moment)
    for _ in range(3):
        stage_runs.log("verify", {"out": ROOT / "measures" / "theorems.json"}, 1.0)
    assert len(read_all(project)) == 1


def test_examples_are_read_back_as_masks_boxes_attention_and_texts(project):
    for net in ("unet", "detr", "gpt"):
        fitted("survey", net)
    assert cli.main(["examples", "runs/survey", "--out", "measures/examples", "--count", "2"]) == 0
    runs = {name.partition("-")[0]: run for name, run in read_all(project).items() if "-examples-" in name}
    assert runs.keys() == {"unet", "detr", "gpt"}
    for net, logged in runs.items():
        assert logged.run["job_type"] == "examples"
        assert logged.run["run_group"] == f"survey/{net}"
        assert logged.run["tags"][0] == net
        assert logged.run["notes"]
    unet, detr, gpt = (runs[net].history[0] for net in ("unet", "detr", "gpt"))
    assert all(masks.keys() == {"true", "predicted"} for masks in unet["masks.all_masks"])
    assert "true" in detr["boxes.all_boxes"][0]
    assert detr["attention/0._type"] == "images/separated"
    assert gpt["texts._type"] == "table-file"


def test_statements_grammar_figures_regions_and_the_paper_are_read_back(project):
    generated = project / "paper" / "generated"
    generated.mkdir(parents=True)
    (generated / "fig_square.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" width="30" height="20"><rect width="30" height="20" fill="red"/></svg>'
    )
    (generated / "table_survey.csv").write_text("net,error\nmlp,3\n")
    (generated / "survey.json").write_text('{"nets": 1}')
    join_numbers(generated, ["survey"])
    (project / "paper" / "paper.pdf").write_bytes(b"%PDF-1.7")
    stage_runs.log("verify", {"out": ROOT / "measures" / "theorems.json"}, 1.0)
    stage_runs.log("grammar", {"out": str(ROOT / "measures" / "grammar.json"), "scale": "embedded"}, 1.0)
    planes = {"out": ROOT / "measures" / "explorer.json", "config": "experiments/explorer/planes.yaml"}
    stage_runs.log("explore", planes, 1.0)
    near = {"out": ROOT / "measures" / "radii.json", "config": "experiments/explorer/radii.yaml"}
    stage_runs.log("radii", near, 1.0)
    while_training = {"out": ROOT / "measures" / "pieces.json", "config": "experiments/explorer/training.yaml"}
    stage_runs.log("pieces", while_training, 1.0)
    stage_runs.log("notebooks", {"root": "."}, 1.0)
    stage_runs.log("paper", {"output": "paper/paper.pdf"}, 1.0)
    shutil.copy(generated / "fig_square.svg", "regions.svg")
    Path("regions.csv").write_text("region,piece,area,corners\n0,0,1.0,...\n1,0,2.0,...\n")
    stage_runs.log("regions", {"source": "runs/mlp/seed0", "out": Path("regions.svg")}, 1.0)
    runs = {logged.run["job_type"]: logged for logged in read_all(project).values()}
    assert runs.keys() == {"verify", "grammar", "explore", "radii", "pieces", "figures", "paper", "regions"}
    assert (runs["regions"].summary["regions"], runs["regions"].summary["pieces"]) == (2, 1)
    theorems, grammar = (json.loads((ROOT / f"measures/{name}.json").read_text()) for name in ("theorems", "grammar"))
    assert runs["verify"].summary["statements"] == runs["verify"].summary["hold"] == len(theorems["statements"]) > 0
    assert {runs["verify"].summary[f"{key}._type"] for key in ("statements", "constructors")} == {"table-file"}
    assert runs["grammar"].summary["rewritten"] + runs["grammar"].summary["refused"] == len(grammar) > 0
    explored = json.loads((ROOT / "measures" / "explorer.json").read_text())["nets"]
    assert runs["explore"].summary["nets"] == len(explored)
    assert runs["explore"].summary["explorer.nrows"] == sum(len(net["moments"]) for net in explored)
    rows = json.loads((ROOT / "measures" / "radii.json").read_text())["rows"]
    assert runs["radii"].summary["radii.nrows"] == runs["radii"].summary["images"] == len(rows)
    counted = json.loads((ROOT / "measures" / "pieces.json").read_text())
    moments = sum(len(net["moments"]) for net in counted["nets"])
    assert runs["pieces"].summary["pieces.nrows"] == moments * counted["slices"]
    assert runs["figures"].summary["numbers"] == {"survey": {"nets": 1}}
    figure = runs["figures"].history[0]
    assert (figure["figure/square._type"], figure["table/survey._type"]) == ("image-file", "table-file")
    assert figure["figure/square.width"] / figure["figure/square.height"] == pytest.approx(1.36, abs=0.05)
    assert runs["paper"].artifacts["paper"]["manifest"]["contents"][0]["path"] == "paper.pdf"
    assert all(logged.summary["seconds"] == 1.0 for logged in runs.values())


def test_the_installed_packages_are_listed_once():
    code = (
        "import importlib.metadata\n"
        "from skipform.training.tracking import import_wandb\n"
        "import_wandb()\n"
        "import wandb.util\n"
        "importlib.metadata.distributions = None\n"
        "print({package.key: package.version for package in wandb.util.working_set()}['torch'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == version("torch")


def test_every_stage_of_the_pipeline_that_computes_is_logged():
    commands = re.findall(r"^ *(?:cmd: )?skipform (\w+)", (ROOT / "dvc.yaml").read_text(), re.MULTILINE)
    commands += re.findall(r"cmd: skipform (\w+)", (ROOT / "dvc.yaml").read_text())
    quiet = {"sources", "data", "scores", "review"}  # look for files, or show what the others have found
    assert set(cli.LOGGED) | {"fit"} == (set(commands) - quiet) | {"regions"}
    assert set(cli.LOGGED) == stage_runs.ENTRIES.keys()


def test_project_entity_group_and_folder_are_those_of_the_environment(project, monkeypatch, tmp_path):
    for name, value in (("ENTITY", "me"), ("PROJECT", "mine"), ("RUN_GROUP", "ours"), ("DIR", str(tmp_path / "there"))):
        monkeypatch.setenv(f"WANDB_{name}", value)
    (tmp_path / "there").mkdir()
    stage_runs.log("verify", {"out": ROOT / "measures" / "theorems.json"}, 1.0)
    (logged,) = read_all(tmp_path / "there").values()
    assert [logged.run[key] for key in ("entity", "project", "run_group")] == ["me", "mine", "ours"]
    (folder,) = (tmp_path / "there" / "wandb").glob("offline-run-*")
    wandb_itself = Path(sys.executable).with_name("wandb")
    assert printed([wandb_itself, "leet", "inspect", "--json", folder]) == printed(reader(folder))
    assert not (project / "wandb").exists()


@pytest.mark.parametrize("setting", ["no pipeline", "WANDB_MODE", "the scale"])
def test_a_stage_is_not_logged_outside_a_pipeline_or_when_it_is_disabled(setting, project, monkeypatch):
    if setting == "no pipeline":
        (project / "dvc.yaml").unlink()
    elif setting == "WANDB_MODE":
        monkeypatch.setenv("WANDB_MODE", "disabled")
    else:
        (project / "experiments" / "scale" / "smoke.yaml").write_text("wandb: disabled\n")
    stage_runs.log("verify", {"out": ROOT / "measures" / "theorems.json"}, 1.0)
    assert not (project / "wandb").exists()


@contextmanager
def server(monkeypatch, answer):
    """A server in place of W&B's, which is given a key; `answer` is called with the handler of every request."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            answer(self)

        def log_message(self, *_):
            pass

    there = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=there.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{there.server_port}")
    yield
    there.shutdown()
    there.server_close()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda handler: handler.send_error(403), "it does not accept the key (403 Forbidden)"),
        (lambda handler: handler.send_error(404), "it does not work (404 Not Found)"),  # the address of something else
        (lambda handler: handler.send_error(500), "it does not work (500 Internal Server Error)"),
        # no answer: what is read ends when the other side gives up
        (lambda handler: handler.rfile.read(), "timed out"),
        (lambda handler: handler.send_response_only(200) or handler.end_headers(), None),
    ],
)
def test_runs_are_offline_unless_wandb_answers_well_and_in_time(answer, words, project, monkeypatch, capsys):
    if words == "timed out":
        monkeypatch.setattr(tracking, "ANSWER_WITHIN", 0.2)
    with server(monkeypatch, answer):
        assert tracking.mode_of("auto") == "online"
        tracking.ask("auto")
        tracking.ask("auto")
    assert tracking.mode_of("auto") == ("online" if words is None else "offline")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"W&B is not reached, so runs are logged offline: {words}"] * (words is not None)


def test_a_key_that_is_not_accepted_is_found_out_once_for_all_workers(project, monkeypatch, capfd):
    asked = []

    def refuse(handler):
        asked.append((handler.path, handler.headers["Authorization"]))
        handler.send_error(401)

    with server(monkeypatch, refuse):
        fitted("survey", "mlp", "--workers", "2")
    assert [path for path, _ in asked if "/sdk/" not in path] == ["/graphql"]  # there W&B's own process counts its use
    lines = [line for line in capfd.readouterr().err.splitlines() if "W&B" in line or "wandb" in line]
    assert lines == [
        "W&B is not reached, so runs are logged offline: it does not accept the key (401 Unauthorized)",
    ]
    assert len(read_all(project)) == 4


@pytest.mark.parametrize("file", sorted((ROOT / "experiments").glob("*/*.yaml")), ids=lambda file: file.stem)
def test_the_question_of_an_experiment_file_is_read_whole(file):
    stated = [line for line in file.read_text().splitlines() if line.startswith("#")]
    question = tracking.question(file)
    if not stated[0].startswith("# Question"):
        assert question == ""
        return
    end = next(k for k, line in enumerate(stated) if re.match("# (Feeds|Expect|Cost|Run)", line))
    words = " ".join(stated[:end]).replace("#", " ").split()
    assert question.split() == words[1:]


def test_a_dashboard_has_a_section_per_claim_and_per_task_and_is_written_without_a_key(project, monkeypatch, capsys):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("NETRC", str(project / "none"))
    assert cli.main(["dashboard", "--entity", "me", "--project", "mine", "--out", "d.json"]) == 0
    assert "`wandb login`" in capsys.readouterr().out
    made = json.loads((project / "d.json").read_text())
    sections = [section["name"] for section in made["workspace"]["spec"]["section"]["panelBankConfig"]["sections"]]
    files = [path for kind in ("claims", "comparisons") for path in (ROOT / "experiments" / kind).glob("*.yaml")]
    claims = [path.stem.replace("_", " ") for path in files]
    used = {"classify"} | {
        yaml.safe_load(file.read_text()).get("task", {}).get("name", "classify")
        for file in (ROOT / "experiments" / "survey").glob("*.yaml")
    }
    expected = {f"Claim: {claim}" for claim in claims} | {f"Task: {task.replace('_', ' ')}" for task in used}
    assert {section for section in sections if ":" in section} == expected
    text = json.dumps(made["report"])
    assert all(title in text for title in expected)
    assert all(made[view].get("entity", "me") == "me" for view in made)
    assert made["workspace"]["project"] == "mine"


def test_a_dashboard_is_made_in_wandb_where_there_is_a_key(project, monkeypatch, capsys):
    made = []
    for kind in (dashboard.ws.Workspace, dashboard.wr.Report):
        monkeypatch.setattr(kind, "save", lambda self: made.append(self))
        monkeypatch.setattr(kind, "url", property(lambda self: f"https://there/{self.entity}/{self.project}"))
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_ENTITY", "me")
    monkeypatch.setattr(dashboard.tracking, "ask", lambda setting: None)
    assert cli.main(["dashboard", "--out", "d.json"]) == 0
    assert [type(view).__name__ for view in made] == ["Workspace", "Report"]
    assert capsys.readouterr().out.splitlines()[1:] == ["https://there/me/skipform"] * 2


def test_what_goes_wrong_with_wandb_is_a_line_and_no_failure_of_a_stage(project, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "loud")
    stage_runs.log("verify", {"out": ROOT / "measures" / "theorems.json"}, 1.0)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("skipform verify: done, but not logged to W&B: WANDB_MODE: 'loud'; accepted: online")
