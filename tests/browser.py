"""Headless Chromium, driven over its DevTools protocol through a pipe: no package and no port."""

import json
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path


class Browser:
    """A page in a window of its own, with all requests that it made and all that it wrote to the console."""

    def __init__(self, path):
        self.path, self.requests, self.messages, self.number = Path(path), [], [], 0

    def __enter__(self):
        program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        assert program, "no program chromium on the PATH; Debian has it in the package chromium"
        with ExitStack() as stack:
            profile = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            (to_read, self.to), (self.from_, to_write) = os.pipe(), os.pipe()

            def connect():  # Chromium reads from 3 and writes to 4
                one, two = os.dup(to_read), os.dup(to_write)
                os.dup2(one, 3)
                os.dup2(two, 4)

            options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={profile}"]
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            command = [program, *options, "--remote-debugging-pipe", "about:blank"]
            process = subprocess.Popen(command, preexec_fn=connect, close_fds=False, start_new_session=True, **quiet)
            for end in (to_read, to_write):
                os.close(end)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            self.answers, self.buffer, self.session = {}, b"", None
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Network", "Runtime", "Log"):
                self.call(f"{domain}.enable")
            self.call("Page.navigate", url=self.path.as_uri())
            self.started = time.monotonic()
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *_):
        self.stack.close()
        for end in (self.to, self.from_):
            os.close(end)

    def call(self, method, **parameters):
        """The result of a command of the protocol."""
        self.number += 1
        number, message = self.number, {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while number not in self.answers:
            self._read()
        answer = self.answers.pop(number)
        assert "error" not in answer, f"{method}: {answer}"
        return answer["result"]

    def _read(self):
        """Take in what the browser has sent."""
        received = os.read(self.from_, 1 << 20)
        assert received, "the browser has ended"
        *messages, self.buffer = (self.buffer + received).split(b"\0")
        for message in map(json.loads, messages):
            parameters = message.get("params", {})
            match message.get("method"):
                case None:
                    self.answers[message["id"]] = message
                case "Network.requestWillBeSent":
                    url = parameters["request"]["url"]
                    self.requests += [] if url.startswith("data:") else [url]  # such an address holds its own content
                case "Runtime.consoleAPICalled":
                    self.messages.append(" ".join(str(part.get("value", part)) for part in parameters["args"]))
                case "Runtime.exceptionThrown":
                    self.messages.append(str(parameters["exceptionDetails"]))
                case "Log.entryAdded":
                    self.messages.append(parameters["entry"]["text"])

    def value(self, expression):
        """The value of a JavaScript expression on the page, after what it promises."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, f"{expression}: {answer}"
        return answer["result"].get("value")

    def wait(self, condition, limit=60):
        """The seconds from the opening of the page until the condition holds."""
        while not self.value(condition):
            assert time.monotonic() - self.started < limit, (
                f"{condition} does not hold after {limit} s: {self.messages}"
            )
            time.sleep(0.02)
        return time.monotonic() - self.started

    def choose(self, name, value):
        """Choose an entry of a menu."""
        change = "dispatchEvent(new Event('change', {bubbles: true}))"
        self.value(
            f"(() => {{ const m = document.querySelector('[name={name}]'); m.value = {value!r}; m.{change}; }})()"
        )

    def slide(self, name, value):
        """Move a slider."""
        change = "dispatchEvent(new Event('input', {bubbles: true}))"
        self.value(f"(() => {{ const s = document.getElementById('{name}'); s.value = {value}; s.{change}; }})()")

    def resize(self, width):
        """Give the window another width, in pixels."""
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        self.call("Emulation.setDeviceMetricsOverride", **size)
