"""Weights & Biases, which receives what a task logs and is never read back."""

import netrc
import os
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger

from skipform.errors import SkipformError, one_line
from skipform.files import temporary_folder

_reached = True  # until W&B has not answered
ANSWER_WITHIN = 5.0  # seconds in which W&B must answer; asking who the key belongs to comes before, 2 seconds more


def logger(mode: str, config: dict[str, Any]) -> WandbLogger | None:
    """A W&B run in ./wandb (or WANDB_DIR), online only with a key and a network; it never asks a question.

    mode: auto, online, offline or disabled; auto is WANDB_MODE, or else online with a key and offline without one.
    """
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE", "auto")
    if mode == "auto":
        mode = "online" if has_key() else "offline"
    if mode == "disabled":
        return None
    import_wandb()
    import wandb

    if mode not in ("online", "offline", "shared"):
        raise SkipformError(f"WANDB_MODE: {mode!r}; accepted: online, offline, shared, disabled")
    # what W&B would gather about machine and packages is in provenance.json, and takes half a second per run
    settings = wandb.Settings(
        silent=True,
        console="off",
        x_disable_meta=True,
        x_disable_stats=True,
        disable_git=True,
        init_timeout=ANSWER_WITHIN,
    )
    wandb.setup(settings)
    start = partial(
        wandb.init,
        project="skipform",
        group="{experiment} {scale}".format(**config),
        name="{experiment} {variant} seed{seed}".format(**config),
        dir=os.environ.get("WANDB_DIR", "."),
        config=config,
        reinit="create_new",  # a run that failed in this process may still be open
        settings=settings,
    )
    global _reached
    try:
        return WandbLogger(experiment=start(mode=mode if _reached else "offline"))  # type: ignore[arg-type]
    except wandb.errors.CommError as error:
        _reached = False  # the runs that follow in this process do not wait for it again
        print(f"W&B is not reached, so runs are logged offline: {one_line(error)}", file=sys.stderr, flush=True)
        return WandbLogger(experiment=start(mode="offline"))


def import_wandb() -> None:
    """Import W&B, so that none of its temporary folders outlives this process for good.

    It makes them when it is imported, and removes them when Python exits, which neither a worker nor a killed process
    does. Here they are inside one folder, which a worker removes at its end, and otherwise the next process.
    """
    if "wandb" in sys.modules:
        return
    stack, usual = ExitStack(), tempfile.gettempdir()
    folder = stack.enter_context(temporary_folder(Path(usual, f"wandb-{os.getuid()}")))
    Finalize(None, stack.close, exitpriority=0)
    tempfile.tempdir = str(folder)
    try:
        import wandb  # noqa: F401
    finally:
        tempfile.tempdir = usual


def has_key() -> bool:
    """Whether W&B can log in without asking: by environment or by netrc, where `wandb login` leaves the key."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").partition("://")[2].partition("/")[0]
    try:
        return netrc.netrc(os.environ.get("NETRC", Path.home() / ".netrc")).authenticators(host) is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False
