"""A copy of the checkout at a small scale, for the tests that run the whole pipeline."""

import hashlib
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def fresh_copy(folder, scale="smoke", seeds=(0, 1)):
    """The tracked and the new files of the checkout in `folder`, as a repository of its own, at a scale.

    Claims are about all the seeds, the survey has the first one alone: it is most of the trainings and measurements.
    What the pipeline writes is left out: it is to be made here, and another machine may have rounded it differently.
    """
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).exists() and not name.startswith(("records/", "measures/", "scores/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params |= {"scale": scale, "seeds": [seeds[0]], "claims": {"seeds": [*seeds]}}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    return folder


@cache
def programs():
    """Where the programs are of an environment without the tools of the tests, as `make repro` has it."""
    folder = ROOT / "build" / "lean"
    command = [os.environ.get("UV", "uv"), "sync", "--quiet", "--frozen", "--no-dev", "--python", sys.executable]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"UV_PROJECT_ENVIRONMENT": str(folder)}, check=True)
    return folder / "bin"


def environment(folder):
    """The programs as above, the sources of the copy."""
    return os.environ | {
        "PATH": f"{programs()}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder / "src"),
        "WANDB_MODE": "offline",
    }


def run(folder, *command):
    """What the command prints in `folder`; it has to succeed."""
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout + done.stderr


def made(folder):
    """Digest of every figure, table, number, notebook and page that the pipeline leaves for a reader."""
    folders = ("paper", "records", "measures", "scores", "build/notebooks")
    paths = [p for name in folders for p in sorted((folder / name).rglob("*"))]
    paths.append(folder / "build/review.html")
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths if p.is_file()}
