"""`make torture`: the pipeline at scale smoke, disturbed. Not part of the tests: it takes an hour.

    kills         KILLS times `skipform repro` is killed (SIGKILL to all its processes) at a random moment and started
                  again; in the end it has left the same bytes as a pipeline that nobody disturbed
    two at once   two `skipform repro` in one folder
    clock         every file is dated a day ahead, as after the clock was set back
    full disk     `skipform fit` into a file system of 80 kB, which the first runs fill
    read-only     `skipform fit` into a read-only file system
    no network    `skipform fit` with a W&B key and no network

Prints one line per row: what was expected, what happened. Full disk, read-only and no network need Linux name spaces.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from pipeline_copy import environment, fresh_copy, made, run

KILLS = 50
MEAN_SECONDS = 15.0  # from a start to its kill
FIT = "skipform fit --config experiments/survey/mlp.yaml --scale smoke --seeds 0"


def main(kills: int = KILLS) -> int:
    failed = False
    with tempfile.TemporaryDirectory(prefix="torture") as top:
        quiet, killed = fresh_copy(Path(top) / "quiet"), fresh_copy(Path(top) / "killed")
        run(quiet, "skipform", "repro")
        rows = {
            "kills": lambda: after_kills(killed, quiet, kills),
            "two at once": lambda: two_at_once(quiet),
            "clock": lambda: clock_set_back(quiet),
            "full disk": lambda: on_a_disk(quiet, "mount -t tmpfs -o size=80k none disk"),
            "read-only": lambda: on_a_disk(quiet, "mount -t tmpfs none disk && mount -o remount,ro disk"),
            "no network": lambda: without_network(quiet),
        }
        for name, row in rows.items():
            fault, text = row()
            failed |= bool(fault)
            print(f"{name:12} {'FAILED' if fault else 'ok':7} {text}", flush=True)
    return int(failed)


def after_kills(folder: Path, quiet: Path, kills: int) -> tuple[bool, str]:
    """Kill and start again; in the end all is as the undisturbed pipeline left it."""
    moments, done, refused, torn, orphans, force = random.Random(0), 0, 0, 0, 0, []
    while done < kills:
        process = start(folder, "skipform", "repro", *force)
        try:
            status = process.wait(1 + moments.expovariate(1 / MEAN_SECONDS))
            refused += status != 0
            force = ["--force"]  # the pipeline has come to its end: once more from its start
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            done, force = done + 1, []
        time.sleep(1)
        torn += sum(not readable(path) for path in folder.rglob("*.json"))
        orphans += len(running_in(folder))
    run(folder, "skipform", "repro")
    expected, found = made(quiet), made(folder)
    differing = sorted(name for name in expected | found if expected.get(name) != found.get(name))
    text = f"{done} kills: {refused} starts failed, {torn} torn files, {orphans} orphans, {len(differing)} files differ"
    return bool(refused or torn or orphans or differing), f"{text} {differing[:3] or ''}"


def two_at_once(folder: Path) -> tuple[bool, str]:
    """Both end, or the second one is refused in one line; the files are the same as before."""
    before = made(folder)
    shutil.rmtree(folder / "runs" / "survey" / "mlp")
    processes = [start(folder, "skipform", "repro") for _ in range(2)]
    output = [process.communicate()[0].decode() for process in processes]
    statuses = sorted(process.returncode for process in processes)
    return 0 not in statuses or made(folder) != before, f"exit statuses {statuses}; {last_line(output[1])}"


def clock_set_back(folder: Path) -> tuple[bool, str]:
    """Files dated a day ahead are taken for what they hold."""
    before, tomorrow = made(folder), time.time() + 86400
    for path in folder.rglob("*"):
        if path.is_file() and ".git" not in path.parts:
            os.utime(path, (tomorrow, tomorrow))
    text = run(folder, "skipform", "repro")
    return made(folder) != before, last_line(text)


def on_a_disk(folder: Path, mount: str) -> tuple[bool, str]:
    """A training into a file system that cannot hold it: one line, status 2."""
    (folder / "disk").mkdir(exist_ok=True)
    begun = time.monotonic()
    done = confined(folder, "-rm", f"{mount} && {FIT} --out disk/mlp")
    lines = done.stderr.strip().splitlines()
    return done.returncode != 2 or len(lines) != 1, f"{time.monotonic() - begun:.0f} s, {lines[-1] if lines else ''}"


def without_network(folder: Path) -> tuple[bool, str]:
    """W&B with a key but without a network: the run goes on offline and says so in one line."""
    begun = time.monotonic()
    command = f"{FIT} --workers 1 --wandb auto --out build/offline"
    done = confined(folder, "-rn", f"env -u WANDB_MODE WANDB_API_KEY={'0' * 40} {command}")
    lines = done.stderr.strip().splitlines()
    return done.returncode != 0 or len(lines) > 1, f"{time.monotonic() - begun:.0f} s, {lines[-1] if lines else ''}"


def confined(folder: Path, spaces: str, command: str) -> subprocess.CompletedProcess[str]:
    """Run a shell command in Linux name spaces of its own."""
    words = ["unshare", spaces, "bash", "-c", command]
    return subprocess.run(words, cwd=folder, env=environment(folder), capture_output=True, text=True)


def start(folder: Path, *command: str) -> subprocess.Popen[bytes]:
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=folder, env=environment(folder), start_new_session=True, **output)


def readable(path: Path) -> bool:
    try:
        json.loads(path.read_text())
    except ValueError:
        return False
    return True


def running_in(folder: Path) -> list[int]:
    """The processes whose working directory is `folder`."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(folder.resolve()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
