"""`skipform examples`: the outputs of trained nets for a few held-out inputs, as plain data for the notebooks."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from skipform.arguments import Count
from skipform.errors import SkipformError
from skipform.files import whole
from skipform.nets import attention, fpn
from skipform.runs import Run


def main(runs: str, *, out: str, count: Count = 4) -> None:
    """Show `count` test inputs to every variant of every net in RUNS (of its seeds the first).

    OUT/NET.safetensors holds "VARIANT/NAME" -> what the task's `examples` calls NAME: inputs, targets, predictions, a
    tensor with one entry an example, or texts, which stand in the file's metadata as JSON under "texts". Of nets that
    attend also "attention.K", the weights (heads, t, s) of the K-th attention on the first example; of nets with a
    feature pyramid "pyramid.p2" and so on, its maps of the first example.

    Args:
        runs: The folder of the experiments that `skipform fit` left, for example runs/survey.
        out: The folder to write into.
        count: How many examples.
    """
    nets = sorted(path.parent for path in Path(runs).glob("*/summary.json"))
    if not nets:
        raise SkipformError(f"{runs}: no finished experiment (NET/summary.json) in it; `skipform fit` leaves them")
    torch.set_num_threads(1)  # sums must not depend on the number of cores
    for net in tqdm(nets, desc="examples", unit="net", leave=False, disable=None):
        write(net, Path(out, f"{net.name}.safetensors"), count)


def write(folder: Path, out: Path, count: int) -> None:
    """One net's file; see `main`."""
    variants = sorted(path for path in folder.glob("*") if path.is_dir())
    tensors: dict[str, Tensor] = {}
    texts: dict[str, list[str]] = {}
    for variant in variants:
        run = min(variant.glob("seed*"), key=lambda path: int(path.name.removeprefix("seed")))
        for name, value in examples_of(Run(run), count).items():
            if isinstance(value, list):
                texts[f"{variant.name}/{name}"] = value
            else:
                tensors[f"{variant.name}/{name}"] = value.contiguous()
    with whole(out) as temporary:
        # one entry, because safetensors writes several in any order
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
