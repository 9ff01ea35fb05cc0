"""What the training of an experiment takes: time, memory and disk, estimated on the meta device, where nothing is
computed; and what its file states.

An experiment file states it under # Cost, a sentence per scale, for all variants with that number of seeds:

    paper (1 seed): 3.1 h of an A100, 0.56 GB of memory, 45 MB on disk, estimated.
    paper (1 seed): 17 min of a core of an Intel Xeon, measured; 0.22 GB of memory, 26 MB on disk, estimated.

Memory is that of the largest run. `skipform costs` writes the estimates into the files, `skipform list --scale paper`
adds them up.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from skipform import nets
from skipform.files import read_text
from skipform.training.experiment import Experiment

# Operations (a multiply-add is two) per second and seconds per step that the estimates assume, of an NVIDIA A100: a
# thirtieth of its 312e12 in bfloat16, because narrow nets, small images and detectors are far from filling it.
THROUGHPUT, LEAST_STEP = 10e12, 1e-3
# Data set -> the training examples, and the shape of one of them at its largest.
IMAGES = {
    "cifar10": (50_000, (3, 32, 32)),
    "fashion_mnist": (60_000, (1, 28, 28)),
    "isbi2012": (24, (1, 700, 700)),  # a slice of 512 x 512 and what it is mirrored by
    "voc2012": (1_464, (3, 512, 512)),
    "bccd": (205, (3, 240, 320)),  # at the size in experiments/cpu
    "coco2017": (118_287, (3, 800, 1333)),
}
TOKENS = {"tiny_shakespeare": 1, "multi30k": 2}  # texts of an example
PAIRS, LONGEST = 29_000, 64  # training pairs of Multi30k, tokens of a sentence
RECORDS, EPOCH = 10_000, 200  # bytes of a run's files besides the weights, and of an epoch in them


@dataclass(frozen=True)
class Cost:
    """hours: of one GPU, or of the CPU; memory and disk in bytes."""

    hours: float
    on_gpu: bool
    memory: float
    disk: float


def estimate(experiment: Experiment) -> Cost:
    """The cost of one seed of every variant; memory is that of the largest."""
    batch, trainer, data = inputs(experiment), experiment.trainer, experiment.data
    seconds, memory, disk = 0.0, 0, 0
    for block in experiment.variants.values():
        operations, taken, weights = step(block, batch, experiment.optimizer["name"], trainer["precision"])
        seconds += steps_of_epoch(data) * trainer["max_epochs"] * max(operations / THROUGHPUT, LEAST_STEP)
        memory = max(memory, taken)
        disk += 2 * weights + RECORDS + EPOCH * trainer["max_epochs"]
    return Cost(seconds / 3600, trainer["accelerator"] != "cpu", memory, disk)


def steps_of_epoch(data: dict[str, Any]) -> int:
    """The batches of an epoch."""
    if "steps" in data:
        return data["steps"]
    examples = IMAGES[data["name"]][0] * data.get("crops", 1) if data["name"] in IMAGES else PAIRS
    return max(1, examples // data["batch_size"])


def inputs(experiment: Experiment) -> list[Tensor]:
    """A batch of what the nets of the experiment read, on the meta device."""
    name, count = experiment.data["name"], experiment.data["batch_size"]
    if name in IMAGES:
        shape = IMAGES[name][1]
        if name == "isbi2012" and (crop := experiment.data["crop"]):
            shape = (1, crop, crop)
        return [torch.empty(count, *shape, device="meta")]
    length = experiment.data.get("context", LONGEST)
    return [torch.zeros(count, length, dtype=torch.long, device="meta") for _ in range(TOKENS[name])]


def step(block: dict[str, Any], batch: list[Tensor], optimizer: str, precision: str) -> tuple[int, int, int]:
    """Estimates for a net: the operations of a training step, the bytes that it needs, and the bytes of its weights.

    The operations are those of products, forward and backward. The bytes are the weights, their gradients and the
    optimiser's one (momentum) or two (Adam) numbers per weight, in float32; and all tensors that a forward pass stores
    for the backward pass, of two bytes a number in bfloat16. CUDA itself, the workspace of its kernels and the images
    on the device come on top, half a gigabyte or so.
    """
    with torch.device("meta"):
        net = nets.build(**block).train()
    stored: dict[int, Tensor] = {}  # storage -> a tensor in it; to hold the tensor reserves the number

    def store(x: Tensor) -> Tensor:
        stored[x.untyped_storage()._cdata] = x
        return x

    weights = {x.untyped_storage()._cdata for x in (*net.parameters(), *net.buffers())}
    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(store, lambda x: x):
            outputs = _outputs(net, batch)
        results = [y for y in pytree.tree_leaves(outputs) if isinstance(y, Tensor) and y.requires_grad]
        activations = sum(x.untyped_storage().nbytes() for key, x in stored.items() if key not in weights)
        torch.autograd.backward(results, [torch.ones_like(y) for y in results])
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    held = sum(p.numel() for p in net.parameters())
    per_weight = 1 + (2 if "adam" in optimizer else 1)
    taken = 4 * (held + per_weight * trained) + activations // (2 if precision == "bf16-mixed" else 1)
    return counter.get_total_flops(), taken, sum(x.nbytes for x in net.state_dict().values())


def _outputs(net: nn.Module, batch: list[Tensor]) -> Any:
    from torchvision.models.detection import RetinaNet

    if isinstance(net, RetinaNet):  # in training it takes a list of images with their boxes
        return net.head(list(net.backbone(*batch).values()))
    return net(*batch)


HEADING = re.compile(r"^# Cost +(.*(?:\n#  .*)*)", re.MULTILINE)
AMOUNT = r"([\d.]+) ([MG]B)"
SENTENCE = re.compile(r"(\w+) \((\d+) seeds?\): ([\d.]+) (s|min|h)\b(.*?)(?= \w+ \(\d+ seeds?\):|$)")
HOURS = {"s": 1 / 3600, "min": 1 / 60, "h": 1.0}
BYTES = {"MB": 1e6, "GB": 1e9}


def text_of(file: Path) -> str:
    """What stands under # Cost in an experiment file, as one line; nothing if there is no such heading."""
    lines = HEADING.search(read_text(file))
    return re.sub(r"\n# +", " ", lines[1]) if lines else ""


def stated(file: Path) -> dict[str, Cost]:
    """Scale -> the cost of one seed that an experiment file states. An amount that it does not state is NaN."""
    costs = {}
    for scale, seeds, time, unit, rest in SENTENCE.findall(text_of(file)):
        memory, disk = (re.search(f"{AMOUNT} {what}", rest) for what in ("of memory", "on disk"))
        costs[scale] = Cost(
            hours=float(time) * HOURS[unit] / int(seeds),
            on_gpu="A100" in rest,
            memory=float(memory[1]) * BYTES[memory[2]] if memory else math.nan,
            disk=float(disk[1]) * BYTES[disk[2]] / int(seeds) if disk else math.nan,
        )
    return costs


def sentence(scale: str, cost: Cost, time: str | None = None) -> str:
    """The sentence that states an estimate. time: what stands in it in place of the estimated time."""
    hours = f"{duration(cost.hours)} of an A100," if time is None else f"{time};"
    return f"{scale} (1 seed): {hours} {size_of(cost.memory)} of memory, {size_of(cost.disk)} on disk, estimated."


def duration(hours: float) -> str:
    """The time with two digits that count, as 3.1 h, 17 min or 9 s."""
    seconds = 3600 * hours
    unit = "h" if hours >= 1 else "min" if seconds >= 60 else "s"
    return f"{_rounded(hours / HOURS[unit])} {unit}"


def size_of(count: float) -> str:
    """The bytes with two digits that count, as 0.56 GB or 26 MB."""
    unit = "GB" if count >= 1e8 else "MB"
    return f"{_rounded(count / BYTES[unit])} {unit}"


def _rounded(x: float) -> str:
    return f"{float(f'{x:.2g}'):.10g}"
