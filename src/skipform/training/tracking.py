"""Weights & Biases, which receives what trainings and stages log and is never read back.

Entity, project, group and folder are those of WANDB_ENTITY, WANDB_PROJECT, WANDB_RUN_GROUP and WANDB_DIR; without them
the user's own entity, skipform, the experiment and ./wandb.
"""

import atexit
import base64
import json
import netrc
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from multiprocessing import parent_process
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from skipform.errors import SkipformError, one_line, shown
from skipform.files import read_text, read_yaml, temporary_folder
from skipform.sources import PACKAGE, nets_in

if TYPE_CHECKING:
    from wandb import Run

    from skipform.training.epoch_logger import EpochLogger

ANSWER_WITHIN = 5.0  # seconds in which W&B must answer
UNREACHED = "SKIPFORM_WANDB_UNREACHED"  # an environment variable, so that the processes started later know it too
MODES = ("online", "offline", "shared", "disabled")
LONGEST_ID, LONGEST_TAG = 64, 64  # W&B's limits, in characters


def logger(mode: str, file: Path, config: dict[str, Any], fingerprint: str) -> "EpochLogger | None":
    """The logger of a training run; None if `mode` is disabled.

    mode: see `mode_of`. file: of the experiment. config, fingerprint: of the run, see `training.run`.
    """
    mode = mode_of(mode)
    if mode == "disabled":
        return None
    from skipform.training.epoch_logger import EpochLogger

    run = start(
        mode,
        name="{experiment} {variant} s{seed}".format(**config),
        digest=fingerprint,
        group=experiment_of(file),
        job_type="fit",
        config=config | {"file": str(file), "fingerprint": fingerprint},
        tags=tags_of(file, config),
        notes=question(file),
    )
    return EpochLogger(run)


def mode_of(setting: str) -> str:
    """online, offline, shared or disabled; the setting auto is WANDB_MODE, or else online with a key and offline
    without one. It is never online once W&B has not answered."""
    mode = setting
    if setting == "auto":
        mode = os.environ["WANDB_MODE"] if "WANDB_MODE" in os.environ else "online" if key() else "offline"
    if mode not in MODES:
        raise SkipformError(f"WANDB_MODE: {mode!r}; accepted: {', '.join(MODES)}")
    return "offline" if mode in ("online", "shared") and UNREACHED in os.environ else mode


def prepare(setting: str) -> None:
    """Do once, before workers are forked, what each of them would do: ask W&B, and import it, which takes a second of
    CPU and starts no thread. Raises SkipformError for a variable WANDB_... that W&B does not accept."""
    ask(setting)
    if mode_of(setting) != "disabled":
        import_wandb()
        import wandb.sdk.launch  # noqa: F401  # which W&B imports when its first run starts

        for name in sorted(os.environ):
            if name.startswith("WANDB_"):
                _check_variable(name, os.environ[name])


def _check_variable(name: str, value: str) -> None:
    import wandb
    from pydantic import ValidationError

    try:
        wandb.Settings().update_from_env_vars({name: value})
    except (ValidationError, wandb.errors.Error) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else one_line(error)
        raise SkipformError(f"{name}: {shown(value)}; W&B: {reason}") from None


def setting_here() -> str:
    """What the scale of ./params.yaml states about W&B, for all stages of the pipeline; auto if it states nothing."""
    params = read_yaml("params.yaml") if Path("params.yaml").is_file() else {}
    file = Path(f"experiments/scale/{params.get('scale')}.yaml")
    return read_yaml(file).get("wandb", "auto") if file.is_file() else "auto"


def ask(setting: str) -> None:
    """If runs are to be online, ask W&B whether it takes the key. If it does not, or does not answer, this process and
    those that it starts log offline, and one line says so."""
    if mode_of(setting) not in ("online", "shared") or (secret := key()) is None:
        return
    request = Request(
        f"{_address()}/graphql",
        data=json.dumps({"query": "{viewer{id}}"}).encode(),
        headers={
            "Content-Type": "application/json",
            "Authorization": f"Basic {base64.b64encode(f'api:{secret}'.encode()).decode()}",
        },
    )
    try:
        urlopen(request, timeout=ANSWER_WITHIN).close()
    except HTTPError as error:
        refused = "does not accept the key" if error.code in (401, 403) else "does not work"
        _go_offline(f"it {refused} ({error.code} {error.reason})")
    except (OSError, ValueError) as error:  # ValueError: an address that is none
        _go_offline(one_line(getattr(error, "reason", error)))


def _go_offline(reason: str) -> None:
    """Let this process and those it starts log offline, and say so in one line."""
    if UNREACHED not in os.environ:
        os.environ[UNREACHED] = reason
        print(f"W&B is not reached, so runs are logged offline: {reason}", file=sys.stderr, flush=True)


def start(
    mode: str,
    *,
    name: str,
    digest: str,
    group: str,
    job_type: str,
    config: dict[str, Any],
    tags: Sequence[str] = (),
    notes: str = "",
) -> "Run":
    """Start a run, online only with a key and a network; it never asks a question.

    Its id is made from its name and the first 8 digits of `digest`. An online run that is done again goes on under its
    id, and W&B ignores the steps that it has. W&B cannot go on with an offline run: the new one, which is to be given
    all steps, replaces the older one.
    """
    import_wandb()
    import wandb

    folder = os.environ.get("WANDB_DIR", ".")
    for kind in ("DATA", "CACHE"):  # by default folders of the user's home
        os.environ.setdefault(f"WANDB_{kind}_DIR", str(Path(folder, "wandb", kind.lower()).absolute()))
    settings = wandb.Settings(
        silent=True,
        console="off",
        disable_git=Path.cwd() / "src" != PACKAGE.parent,  # the commit would be that of another project
        init_timeout=ANSWER_WITHIN,
    )
    wandb.setup(settings)
    _write_all_at_the_end_of(os.getpid())
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[: LONGEST_ID - 9]
    options: dict[str, Any] = {
        "entity": os.environ.get("WANDB_ENTITY"),
        "project": os.environ.get("WANDB_PROJECT", "skipform"),
        "id": f"{stem}-{digest[:8]}",
        "name": name,
        "group": os.environ.get("WANDB_RUN_GROUP", group),
        "job_type": job_type,
        "config": config,
        "tags": [tag[:LONGEST_TAG] for tag in tags],
        "notes": notes,
        "dir": folder,
        "resume": "allow",
        "reinit": "create_new",  # a run that failed in this process may still be open
        "settings": settings,
    }
    try:
        run = wandb.init(mode=mode, **options)  # type: ignore[arg-type]
    except wandb.errors.CommError as error:
        _go_offline(one_line(error))
        run = wandb.init(mode="offline", **options)
    own = Path(run.settings.sync_dir)
    # W&B numbers the folders of one id that were made in the same second: -1, -2, ...
    folders = re.compile(rf"offline-run-\d{{8}}_\d{{6}}-{re.escape(run.id)}(-\d{{1,7}})?")
    for older in own.parent.iterdir():
        if folders.fullmatch(older.name) and older != own:
            shutil.rmtree(older)
    return run


@cache
def _write_all_at_the_end_of(process: int) -> None:
    """Let W&B write what it has not written when this process ends. By itself it does so with `atexit`, which processes
    of multiprocessing run since Python 3.13 only; there it is done before, since W&B's own second time is an error."""
    import wandb

    if parent_process() is not None:
        Finalize(None, wandb.teardown, exitpriority=1)
        atexit.register(wandb.teardown)


def experiment_of(path: Path) -> str:
    """The experiment of a file or of a folder of runs: survey/resnet of experiments/survey/resnet.yaml."""
    return f"{path.absolute().parent.name}/{path.stem}"


def tags_of(path: Path, config: dict[str, Any]) -> list[str]:
    """Nets, task, data set, scale and, if the experiment belongs to a claim, the claim. path: see `experiment_of`."""
    kind, _, name = experiment_of(path).partition("/")
    claim = [f"claim {name}"] if kind == "claims" else []
    return list(
        dict.fromkeys(
            [*nets_in(config["net"]), config["task"]["name"], config["data"]["name"], config["scale"], *claim]
        )
    )


def question(file: Path) -> str:
    """The question that an experiment file states in its introduction, on one line; "" if it states none."""
    match = re.match(r"# Question +(.*(?:\n#  +.*)*)", read_text(file))
    return " ".join(match[1].replace("\n#", " ").split()) if match else ""


_temporary = ExitStack()  # of `import_wandb`; a forked worker that lost its last reference would remove the folder


def import_wandb() -> None:
    """Import W&B, so that none of its temporary folders outlives this process for good.

    It makes them when it is imported, and removes them when Python exits, which neither a worker nor a killed process
    does. Here they are inside one folder, which a worker removes at its end, and otherwise the next process.
    """
    if "wandb" in sys.modules:
        return
    usual = tempfile.gettempdir()
    folder = _temporary.enter_context(temporary_folder(Path(usual, f"wandb-{os.getuid()}")))
    Finalize(None, _temporary.close, exitpriority=0)
    tempfile.tempdir = str(folder)
    try:
        import wandb
    finally:
        tempfile.tempdir = usual
    # W&B lists the installed packages for every run anew, which is most of what a short run costs.
    if hasattr(wandb.util, "working_set"):
        packages = tuple(wandb.util.working_set())
        wandb.util.working_set = lambda: packages


def key() -> str | None:
    """The key with which W&B can log in without asking: of the environment or of netrc, where `wandb login` leaves it;
    None without one."""
    if given := os.environ.get("WANDB_API_KEY"):
        return given
    try:
        entry = netrc.netrc(os.environ.get("NETRC", Path.home() / ".netrc")).authenticators(urlsplit(_address()).netloc)
    except (FileNotFoundError, netrc.NetrcParseError):
        return None
    return entry[2] if entry else None


def _address() -> str:
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").rstrip("/")
