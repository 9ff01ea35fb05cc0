"""`skipform repro`: the stages of dvc.yaml that are out of date, two at once, with the time left.

DVC says which stages there are and which are out of date, and runs each of them (`dvc repro --single-item`). Plain
`dvc repro` does the same one stage at a time: it takes longer, for a stage imports, reads and writes on one core.
"""

import json
import sys
import time
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

import psutil

from skipform.errors import SkipformError
from skipform.files import fields, read_json, read_yaml, write_json
from skipform.pipeline import Graph, Outcome, ask, prepare, recover, reproduce, stages
from skipform.training import tracking

SECONDS = Path("build/seconds.json")  # what each stage took when it last ran here
FIRST = "data"  # runs before all others, which do not depend on it: without the data nothing is begun


def main(*, force: bool = False, jobs: int = 0) -> int:
    """Run every stage of dvc.yaml that is out of date; a stopped run continues after the last finished stages.

    Args:
        force: Run the stages that are up to date too.
        jobs: Stages that run at once; by default 2 where the scale trains on the CPU, otherwise 1.
    """
    prepare()
    with ThreadPoolExecutor() as pool:
        changed = pool.submit(ask, "status", "--json")
        graph = stages(ask("dag", "--dot"))
    if not graph:
        raise SkipformError("dvc.yaml: it has no stages; accepted: the pipeline of a checkout of the project")
    out_of_date = set(graph) if force else with_descendants(graph, json.loads(changed.result()))
    if not out_of_date:
        print(f"all {len(graph)} stages are up to date")
        return 0
    tracking.ask(tracking.setting_here())  # so that not every stage finds out that W&B does not answer
    return _run(graph, out_of_date, jobs or default_jobs(), force)


def with_descendants(graph: Graph, names: Iterable[str]) -> set[str]:
    """The named stages and all that depend on them."""
    stages = set(names) & set(graph)
    while more := {name for name, before in graph.items() if before & stages} - stages:
        stages |= more
    return stages


def default_jobs() -> int:
    """2 where the scale of params.yaml trains on the CPU; an accelerator is one stage's alone."""
    scale = fields(read_yaml("params.yaml"), {"scale": str}, "params.yaml")["scale"]
    file = f"experiments/scale/{scale}.yaml"
    trainer = fields(read_yaml(file), {"trainer": dict}, file)["trainer"]
    return 2 if trainer.get("accelerator") == "cpu" else 1


def _run(graph: Graph, left: set[str], jobs: int, force: bool) -> int:
    """Run the stages `left`, each after those that it depends on; 1 if one of them fails."""
    seconds = _seconds()
    waiting, start, failed = [name for name in graph if name in left], time.monotonic(), 0
    running: dict[Future[Outcome], str] = {}
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while running or (waiting and not failed):
                ready = [] if failed else [name for name in waiting if not graph[name] & left]
                ready = [FIRST] if FIRST in ready else [] if FIRST in running.values() else ready
                for name in ready[: jobs - len(running)]:
                    waiting.remove(name)
                    known = (
                        f", about {_minutes(sum(seconds[n] for n in left) / jobs)} left" if left <= set(seconds) else ""
                    )
                    gone = _minutes(time.monotonic() - start)
                    print(
                        f"== stage {len(graph) - len(waiting)} of {len(graph)}: {name}, {gone} gone{known}", flush=True
                    )
                    running[pool.submit(reproduce, name, force, jobs == 1)] = name
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    name, outcome = running.pop(done), done.result()
                    print(outcome.output, end="", flush=True)
                    if outcome.status:
                        failed = failed or outcome.status
                        if outcome.status < 0:
                            continue
                        print(
                            f"skipform repro: stage {name} failed; correct it and run the same command again",
                            file=sys.stderr,
                        )
                        continue
                    left.remove(name)
                    if outcome.ran:
                        seconds[name] = outcome.seconds
                        write_json(SECONDS, seconds)
        except BaseException:  # Ctrl-C, say: no stage goes on alone
            for process in psutil.Process().children(recursive=True):
                process.terminate()
            raise
        finally:
            recover()
    if failed < 0:
        print("skipform repro: dvc was killed; the same command goes on", file=sys.stderr)
    return int(failed != 0)


def _seconds() -> dict[str, float]:
    """Stage -> seconds when it last ran here. They only say how much time is left: a damaged file counts as none."""
    try:
        seconds = read_json(SECONDS)
    except SkipformError:
        return {}
    numbers = isinstance(seconds, dict) and all(type(value) in (int, float) for value in seconds.values())
    return seconds if numbers else {}


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
