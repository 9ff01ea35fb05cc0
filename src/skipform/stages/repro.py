"""`skipform repro`: the stages of dvc.yaml that are out of date, two at once, with the time left.

DVC says which stages there are and which are out of date, and runs each of them (`dvc repro --single-item`). Plain
`dvc repro` does the same one stage at a time: it takes longer, for a stage imports, reads and writes on one core.
Stages that run at once share the cores, so that no stage starts processes for which there is no core.
At the first run there are no times of this machine: those in results/ are used, corrected as stages finish.
"""

import statistics
import sys
import time
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from skipform.cores import cores
from skipform.errors import SkipformError
from skipform.files import fields, read_yaml, write_json
from skipform.pipeline import (
    PUBLISHED,
    SECONDS,
    Graph,
    Outcome,
    ask,
    end_all,
    prepare,
    read_seconds,
    recover,
    reproduce,
    seconds_of,
    stages,
    status,
)
from skipform.training import tracking

FIRST = "data"  # runs before all others, which do not depend on it: without the data nothing is begun


def main(*, force: bool = False, jobs: int = 0) -> int:
    """Run every stage of dvc.yaml that is out of date; a stopped run continues after the last finished stages.

    Args:
        force: Run the stages that are up to date too.
        jobs: Stages that run at once, and share the cores; by default 2 where the scale trains on the CPU, otherwise 1.
    """
    prepare()
    with ThreadPoolExecutor() as pool:
        changed = pool.submit(status)
        graph = stages(ask("dag", "--dot"))
    if not graph:
        raise SkipformError("dvc.yaml: it has no stages; accepted: the pipeline of a checkout of the project")
    out_of_date = set(graph) if force else with_descendants(graph, changed.result())
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
    file = f"experiments/scale/{_scale()}.yaml"
    trainer = fields(read_yaml(file), {"trainer": dict}, file)["trainer"]
    return 2 if trainer.get("accelerator") == "cpu" else 1


def _scale() -> str:
    return fields(read_yaml("params.yaml"), {"scale": str}, "params.yaml")["scale"]


def seconds_left(left: Iterable[str], here: dict[str, float], elsewhere: dict[str, float]) -> float | None:
    """About how long the stages `left` take one after another; None where nothing is known.

    here: what stages took on this machine. elsewhere: the same on another one, whose speed relative to this one is
    estimated from the stages that both have run. A stage that neither has run counts as their median.
    """
    both = here.keys() & elsewhere.keys()
    speed = sum(here[name] for name in both) / sum(elsewhere[name] for name in both) if both else 1.0
    known = {name: speed * seconds for name, seconds in elsewhere.items()} | here
    if not known:
        return None
    typical = statistics.median(known.values())
    return sum(known.get(name, typical) for name in left)


def _run(graph: Graph, left: set[str], jobs: int, force: bool) -> int:
    """Run the stages `left`, each after those that it depends on; 1 if one of them fails."""
    available, seconds = cores(), seconds_of(read_seconds(SECONDS))
    published = seconds_of(read_seconds(PUBLISHED).get(_scale())) if PUBLISHED.is_file() else {}
    waiting, start, failed = [name for name in graph if name in left], time.monotonic(), 0
    running: dict[Future[Outcome], str] = {}
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while running or (waiting and not failed):
                ready = [] if failed else [name for name in waiting if not graph[name] & left]
                ready = [FIRST] if FIRST in ready else [] if FIRST in running.values() else ready
                ready = ready[: jobs - len(running)]
                share = max(1, available // jobs) if len(ready) + len(running) > 1 else None
                for name in ready:
                    waiting.remove(name)
                    expected = seconds_left(left, seconds, published)
                    rest = "" if expected is None else f", about {_minutes(expected / jobs)} left"
                    number, gone = len(graph) - len(waiting), _minutes(time.monotonic() - start)
                    print(f"== stage {number} of {len(graph)}: {name}, {gone} gone{rest}", flush=True)
                    running[pool.submit(reproduce, name, force, jobs == 1, share)] = name
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
            end_all()
            raise
        finally:
            recover()
    if failed < 0:
        print("skipform repro: dvc was killed; the same command goes on", file=sys.stderr)
    return int(failed != 0)


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
