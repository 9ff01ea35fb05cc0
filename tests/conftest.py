"""Settings of all tests: hypothesis has no deadline, because a slow machine is not a failure.

`--hypothesis-profile=fresh` draws new random modules in test_compiler_random.py, which are otherwise always the same.
"""

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from hypothesis import settings

settings.register_profile("patient", deadline=None)
settings.register_profile("fresh", deadline=None, print_blob=True)
settings.load_profile("patient")


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
