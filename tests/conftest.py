"""What holds for all tests.

Hypothesis draws the same examples at every run, on every machine and in whatever order the tests run: not at random,
without a deadline, which a loaded machine would miss, and without the constants that it would collect from those of the
project's modules that happen to be imported. Fresh examples, with the blob that repeats a failure:

    pytest --hypothesis-profile=fresh [--hypothesis-seed=N]
"""

import os
import platform
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers

# Without stored bytecode every process that a test starts would compile the sources of torch and Lightning again, which
# takes it 15 seconds of a core.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# The tests themselves take all cores. The variable is for processes that they start: here torch has read it already.
torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))
os.environ.setdefault("WANDB_MODE", "disabled")  # where a test does not say otherwise
assert providers._get_local_constants  # hypothesis has no public setting for this
providers._get_local_constants = providers.Constants
settings.register_profile(
    "same", deadline=None, derandomize=True, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("fresh", settings.get_profile("same"), derandomize=False)
settings.load_profile("same")
# torch.export pretends that there is a CUDA device. A first backward pass after it starts threads for that device, and
# a process that has them can fork none that trains. A first pass before it starts none.
torch.ones((), requires_grad=True).backward()

# The wheels of maraboupy 2.0.0 are for CPython up to 3.11; the condition is that of the marker in pyproject.toml.
HAS_MARABOU = sys.version_info < (3, 12) and sys.platform == "linux" and platform.machine() == "x86_64"
collect_ignore = [] if HAS_MARABOU else ["test_marabou.py"]


@pytest.fixture(autouse=True)
def plain_plots():
    """The notebooks of analysis/, which some tests import, have a style of their own, and leave figures open."""
    if "matplotlib" in sys.modules:
        sys.modules["matplotlib"].rcdefaults()
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(autouse=True)
def free_algorithms():
    """A training makes torch deterministic for the rest of its process."""
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def config(request, tmp_path, monkeypatch):
    """The options that name the EXPERIMENT of the test's module, in an otherwise empty project."""
    monkeypatch.chdir(tmp_path)
    for file, text in (("scale/embedded", "# nothing\n"), ("explorer/small", request.module.EXPERIMENT)):
        path = tmp_path / "experiments" / f"{file}.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return ["--config", "experiments/explorer/small.yaml", "--scale", "embedded"]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def home(tmp_path_factory):
    """A folder and the address at which a server of this machine serves it."""
    folder = tmp_path_factory.mktemp("home")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
