"""What experiments need is named at once, or fetched; a download continues where it ended."""

import json
import re
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import small_sets

from skipform import data
from skipform.data.catalogue import CATALOGUE
from skipform.data.fetch import fetch, has_digest
from skipform.errors import SkipformError
from skipform.stages import cli
from skipform.training import inventory, weights

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted(file for kind in ("survey", "claims") for file in (ROOT / "experiments" / kind).glob("*.yaml"))
CONTENT = bytes(range(256)) * 4096


class Part(BaseHTTPRequestHandler):
    """Sends the file, or the rest that is asked for, but never more than `most` bytes at once."""

    def __init__(self, state, *given):
        self.state = state
        super().__init__(*given)

    def do_GET(self):
        begin = 0
        if self.state["ranges"] and (asked := self.headers["Range"]):
            begin = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
        body = self.state["content"][begin:]
        self.state["begins"].append(begin)
        self.send_response(416 if begin and not body else 206 if begin else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.state["most"]])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    """What a server sends (content), how much of it before it ends a connection (most), whether it can send the rest
    of a file (ranges), where its answers have begun (begins), and its address (url)."""
    state = {"content": CONTENT, "most": None, "ranges": True, "begins": []}
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Part, state))
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    state["url"] = f"http://127.0.0.1:{server.server_port}/file.bin"
    yield state
    server.shutdown()
    server.server_close()


def right(path):
    return has_digest(path, small_sets.sha256(CONTENT))


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_continues_where_it_ended_if_the_server_can(ranges, server, tmp_path):
    server |= {"most": 300_000, "ranges": ranges}
    with pytest.raises(OSError, match=r"ended after 300,000 of 1,048,576 bytes; the same command continues there"):
        fetch(server["url"], tmp_path / "file", right)
    assert (tmp_path / "file.part").stat().st_size == 300_000
    assert not (tmp_path / "file").exists()
    server["most"] = None
    fetch(server["url"], tmp_path / "file", right)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server["begins"] == [0, 300_000 if ranges else 0]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_part_that_was_complete_is_not_fetched_again(server, tmp_path):
    (tmp_path / "file.part").write_bytes(CONTENT)
    fetch(server["url"], tmp_path / "file", right)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server["begins"] == [len(CONTENT)]


def test_a_part_of_another_version_is_discarded_and_the_file_fetched_whole(server, tmp_path):
    (tmp_path / "file.part").write_bytes(b"another version")
    fetch(server["url"], tmp_path / "file", right)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server["begins"] == [15, 0]


def test_a_file_of_another_content_is_not_used(server, tmp_path):
    server["content"] = b"something else"
    with pytest.raises(OSError, match="it has another checksum there"):
        fetch(server["url"], tmp_path / "file", right)
    assert not list(tmp_path.iterdir())


def test_a_file_without_a_checksum_is_never_continued(server, tmp_path):
    (tmp_path / "file.part").write_bytes(CONTENT[:100])
    fetch(server["url"], tmp_path / "file", None)
    assert server["begins"] == [0]


def test_every_set_that_is_read_from_files_is_in_the_catalogue_and_no_other(tmp_path):
    from_files = set()
    for name in data.sets():
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path)
            if next(data.build(0, name=name, root="none").sources(), None):
                from_files.add(name)
    assert from_files == set(CATALOGUE)


def test_scale_paper_needs_six_sets_and_two_weights_and_the_other_scales_nothing():
    needed = inventory.needed(EXPERIMENTS, "paper", "data")
    sets = ["cifar10", "coco2017", "isbi2012", "multi30k", "tiny_shakespeare", "voc2012"]
    assert list(needed) == [*sets, "weights/resnet50", "weights/vgg16"]
    assert needed["coco2017"].experiments == ["detr", "fpn"]
    assert needed["weights/vgg16"].experiments == ["fcn"]
    assert needed["weights/vgg16"].entry.size == pytest.approx(553_433_881, abs=1000)  # the file's length
    for scale in ("smoke", "embedded"):
        assert inventory.needed(EXPERIMENTS, scale, "data") == {}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with experiments on CIFAR-10, on COCO with weights, and on digits, at a scale `paper`."""
    for name, content in {
        "experiments/scale/paper.yaml": {"data": {"name": "cifar10"}, "trainer": {"max_epochs": 1}},
        "experiments/scale/embedded.yaml": {"data": {"name": "digits"}, "trainer": {"max_epochs": 1}},
        "experiments/survey/mlp.yaml": {"variants": {"one": {"name": "mlp"}}},
        "experiments/survey/fpn.yaml": {
            "variants": {"one": {"name": "fpn", "backbone": {"name": "resnet", "stages": 4, "depth": 18}}},
            "task": {"name": "detect"},
            "embedded": {"data": {"name": "digit_boxes"}},
            "paper": {"data": {"name": "coco2017"}},
        },
        "experiments/claims/mlp.yaml": {"variants": {"one": {"name": "mlp"}}, "paper": {"data": {"name": "digits"}}},
        "params.yaml": {"scale": "paper"},
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SKIPFORM_DATA", raising=False)
    return tmp_path


def test_all_that_is_missing_is_listed_before_the_command_refuses(project, capsys):
    assert cli.main(["data", "--out", "build/data.json"]) == 2
    out, err = capsys.readouterr()
    for name in ("cifar10", "coco2017"):
        entry = CATALOGUE[name]
        assert re.search(
            rf"^  {name} .*missing +{re.escape(entry.licence)} +{re.escape(entry.home)}$", out, re.MULTILINE
        )
    assert "170 MB" in out
    assert "20.4 GB" in out
    commands = r"`skipform data --download` \(170 MB\) and `skipform data coco2017 --download` \(20\.4 GB\)"
    assert re.fullmatch(
        rf"skipform data: error: missing or damaged: cifar10, coco2017; fetch them with {commands}\n", err
    )
    assert not Path("build/data.json").exists()


def test_a_set_that_is_asked_for_by_name_is_alone_checked_and_fetched(project, home, monkeypatch, capsys):
    small = small_sets.cifar10(monkeypatch)
    small.serve(*home, monkeypatch)
    assert cli.main(["data", "cifar10", "--out", "build/data.json"]) == 2
    assert "`skipform data cifar10 --download` (170 MB)\n" in capsys.readouterr().err
    assert cli.main(["data", "cifar10", "--download", "--out", "build/data.json"]) == 0
    assert all((project / "data" / name).read_bytes() == content for name, content in small.files.items())
    record = json.loads(Path("build/data.json").read_text())
    assert record["scale"] == "paper"
    assert record["sets"]["cifar10"]["files"] == len(small.files)
    assert len(record["sets"]["cifar10"]["sha256"]) == 64


def test_coco_is_fetched_only_by_its_name(project, home, monkeypatch, capsys):
    for make in (small_sets.cifar10, small_sets.coco2017):
        make(monkeypatch).serve(*home, monkeypatch)
    assert cli.main(["data", "--download"]) == 2
    out, err = capsys.readouterr()
    assert "cifar10: fetched and checked, in data" in out
    assert err.endswith("missing or damaged: coco2017; fetch them with `skipform data coco2017 --download` (20.4 GB)\n")
    assert not Path("data/coco").exists()
    assert cli.main(["data", "coco2017", "--download"]) == 0
    assert cli.main(["data", "--out", "build/data.json"]) == 0
    assert set(json.loads(Path("build/data.json").read_text())["sets"]) == {"cifar10", "coco2017"}


def test_where_nothing_is_needed_nothing_is_imported(project, capsys):
    assert cli.main(["data", "--scale", "embedded", "--out", "build/data.json"]) == 0
    assert capsys.readouterr().out == "scale embedded: no data set has to be fetched\n"
    assert json.loads(Path("build/data.json").read_text()) == {"scale": "embedded", "sets": {}}


def test_an_unknown_name_says_what_is_accepted(project, capsys):
    assert cli.main(["data", "mnist"]) == 2
    names = ", ".join([*CATALOGUE, *(f"weights/{model}" for model in weights.models())])
    assert capsys.readouterr().err == f"skipform data: error: 'mnist' is nothing that is fetched; accepted: {names}\n"
    with pytest.raises(SkipformError, match="'digits' is nothing that is fetched"):
        inventory.named("digits", "data")
