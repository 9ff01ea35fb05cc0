"""Seconds to a fixed training loss, with skips and without: how many steps it takes, times what a step takes here.

    python benchmarks/bench_seconds.py [net ...]      from the top folder of a checkout; about a minute

The pairs and losses are those of the claim `training_time`, the steps those of the committed records, the median over
the seeds; a net that never reaches the loss has none. A step is forward, backward and optimiser on the first batch of
the records' data, on one thread, its time the median of processor time over 9 interleaved rounds, each the least of 3
steps. Processor times differ between machines, so that this is no claim of the paper: the number of steps is.
"""

import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from skipform import data, records, tasks
from skipform.files import read_yaml
from skipform.runs import data_root
from skipform.training import run

CLAIM = Path("experiments/comparisons/training_time.yaml")
ROUNDS = 9


def main(only: list[str]) -> None:
    torch.set_num_threads(1)
    side = f"{'variant':>10} {'steps':>6} {'ms':>7} {'s':>6}"
    print(f"{'net':12} {'loss':>5} {side} {side}")
    for comparison in read_yaml(CLAIM)["comparisons"]:
        (measure,), (names,) = comparison["measures"], comparison["pairs"]
        net = names[0].partition("/")[0]
        if only and net not in only:
            continue
        of_net = records.read(Path("records/survey", f"{net}.jsonl"))
        pair = [[r for r in of_net if r["config"]["variant"] == name.partition("/")[2]] for name in names]
        steps = [statistics.median(records.reached(r, measure) for r in side) for side in pair]
        line = f"{net:12} {measure.split()[1]:>5}"
        for name, count, spent in zip(names, steps, step_seconds([side[0]["config"] for side in pair]), strict=True):
            total = f"{count * spent:6.1f}" if math.isfinite(count) else " never"
            number = f"{count:6.0f}" if math.isfinite(count) else "      "
            line += f" {name.partition('/')[2]:>10} {number} {1e3 * spent:7.1f} {total}"
        print(line, flush=True)


def step_seconds(configs: list[dict[str, Any]]) -> list[float]:
    """The median seconds of a training step of each configuration, interleaved."""
    steps = [Step(config) for config in configs]
    times: list[list[float]] = [[] for _ in steps]
    for round_ in range(ROUNDS + 1):
        for step, into in zip(steps, times, strict=True):
            spent = min(step.seconds() for _ in range(3))
            if round_:  # the first one warms up
                into.append(spent)
    return [statistics.median(side) for side in times]


class Step:
    """A training step of a configuration."""

    def __init__(self, config: dict[str, Any]) -> None:
        module = data.build(config["seed"], **config["data"], root=data_root(), download=False)
        module.setup()
        self.batch = next(iter(module.train_dataloader()))
        net = run.initial(config, data_root()).train()
        self.task = tasks.build(net=net, optimizer=config["optimizer"], **config["task"])
        self.optimizer = self.task.optimizer.build(net, 1000)["optimizer"]

    def seconds(self) -> float:
        start = time.process_time()
        self.optimizer.zero_grad()
        self.task.step(*self.batch)["loss"].backward()
        self.optimizer.step()
        return time.process_time() - start


if __name__ == "__main__":
    main(sys.argv[1:])
