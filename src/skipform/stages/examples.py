"""`skipform examples`: the outputs of trained nets for a few held-out inputs, as plain data for the notebooks."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from skipform import outputs
from skipform.arguments import Count
from skipform.errors import SkipformError
from skipform.files import whole
from skipform.nets import attention, fpn
from skipform.runs import Run, finished


def main(runs: str, *, out: str, count: Count = 4) -> None:
    """Run every variant of every net in RUNS, with its first seed, on `count` test inputs.

    OUT/NET.safetensors holds, under "VARIANT/NAME", what the task's `examples` returns as NAME (inputs, targets,
    predictions): a tensor with one entry per example, or a list of texts, which is stored in the file's metadata, as
    JSON under "texts". Nets with attention add "attention.K", the weights (heads, t, s) of the K-th attention for the
    first example; nets with a feature pyramid add its maps for the first example, "pyramid.p2" and so on.

    Args:
        runs: The folder of experiments that `skipform fit` has written, for example runs/survey.
        out: The folder to write into.
        count: The number of examples.
    """
    outputs.check_folder(out, command="examples")
    nets = sorted(path.parent for path in Path(runs).glob("*/summary.json"))
    nets = [net for net in nets if net.suffix not in outputs.WORKING]
    if not nets:
        raise SkipformError(f"{runs}: no finished experiment (NET/summary.json) in it; `skipform fit` writes them")
    outputs.mark(out, [f"{net.name}.safetensors" for net in nets], "examples")
    torch.set_num_threads(1)  # sums must not depend on the number of cores
    for net in tqdm(nets, desc="examples", unit="net", leave=False, disable=None):
        write(net, Path(out, f"{net.name}.safetensors"), count)


def write(folder: Path, out: Path, count: int) -> None:
    """Write the file of one net; see `main`."""
    first: dict[str, Run] = {}  # variant -> its run of the lowest seed
    for run in sorted(finished(folder), key=lambda run: (run.config["variant"], run.config["seed"])):
        first.setdefault(run.config["variant"], run)
    tensors: dict[str, Tensor] = {}
    texts: dict[str, list[str]] = {}
    for variant, run in first.items():
        for name, value in examples_of(run, count).items():
            if isinstance(value, list):
                texts[f"{variant}/{name}"] = value
            else:
                tensors[f"{variant}/{name}"] = value.contiguous()
    with whole(out) as temporary:
        # a single entry, because safetensors writes several entries in no fixed order
        save_file(tensors, temporary, {"texts": json.dumps(texts, ensure_ascii=False)})


@torch.no_grad()
def examples_of(run: Run, count: int) -> dict[str, Any]:
    """The examples of one run by name; see `main`."""
    module = run.data()
    batch = tuple(part[:count] for part in next(iter(module.val_dataloader()[-1])))
    task = run.task()
    examples: dict[str, Any] = task.examples(*batch)
    if hasattr(module, "text"):  # tokens (n, t) are shown as text
        examples = {
            name: module.text(x) if isinstance(x, Tensor) and x.ndim == 2 else x for name, x in examples.items()
        }
    with attention.AttentionRecorder() as recorder:
        task.step(*(part[:1] for part in batch))
    examples |= {f"attention.{k}": weights[0] for k, weights in enumerate(recorder.weights)}
    for pyramid in (part for part in task.net.modules() if isinstance(part, fpn.FPN)):
        examples |= {f"pyramid.{name}": maps[0] for name, maps in pyramid(batch[0][:1]).items()}
    return examples
