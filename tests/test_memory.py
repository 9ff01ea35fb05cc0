"""Every experiment at scale paper fits a GPU of 80 GB, by an estimate on the meta device, where nothing is computed;
its nets are measured within the memory that `skipform measure` and `skipform claims` take."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet

from skipform import nets
from skipform.arguments import arguments
from skipform.measure.rank import MEMORY, _bytes_of_pass, _jacobian_bytes, functional_dimension, points_within
from skipform.nets import features
from skipform.stages import claims, measure
from skipform.stages.measure import dimension_over
from skipform.training.experiment import Experiment, read

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
FILES = sorted(
    file for folder in ("survey", "gpu") for file in EXPERIMENTS.glob(f"{folder}/*.yaml") if file.stem != "table"
)
GPU = 80e9  # bytes
# Data set -> the shapes of one training example, at its largest.
IMAGES = {
    "cifar10": (3, 32, 32),
    "isbi2012": (1, 700, 700),  # a slice of 512 x 512 and what it is mirrored by
    "voc2012": (3, 512, 512),
    "coco2017": (3, 800, 1333),
}
TOKENS = {"tiny_shakespeare": 1, "multi30k": 2}  # texts of an example
LONGEST = 64  # tokens of a sentence of Multi30k


def inputs(experiment: Experiment) -> list[Tensor]:
    """A batch of what the nets of the experiment read, on the meta device."""
    name, count = experiment.data["name"], experiment.data["batch_size"]
    if name in IMAGES:
        return [torch.empty(count, *IMAGES[name], device="meta")]
    length = experiment.data.get("context", LONGEST)
    return [torch.zeros(count, length, dtype=torch.long, device="meta") for _ in range(TOKENS[name])]


def training_bytes(block: dict[str, Any], batch: list[Tensor], optimizer: str, precision: str) -> int:
    """An estimate: the weights, their gradients and the optimiser's one (momentum) or two (Adam) numbers per weight, in
    float32; and all tensors that a forward pass stores for the backward pass, of two bytes a number in bfloat16."""
    with torch.device("meta"):
        net = nets.build(**block).train()
    stored: dict[int, Tensor] = {}  # storage -> a tensor in it; to hold the tensor reserves the number

    def store(x: Tensor) -> Tensor:
        stored[x.untyped_storage()._cdata] = x
        return x

    weights = {x.untyped_storage()._cdata for x in (*net.parameters(), *net.buffers())}
    with torch.autograd.graph.saved_tensors_hooks(store, lambda x: x):
        if isinstance(net, RetinaNet):  # in training it takes a list of images with their boxes
            net.head(list(net.backbone(*batch).values()))
        else:
            net(*batch)
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    held = sum(p.numel() for p in net.parameters())
    activations = sum(x.untyped_storage().nbytes() for key, x in stored.items() if key not in weights)
    per_weight = 1 + (2 if "adam" in optimizer else 1)
    return 4 * (held + per_weight * trained) + activations // (2 if precision == "bf16-mixed" else 1)


def test_the_estimate_of_two_layers_is_that_by_hand():
    """W of 3 x 5 and V of 5 x 2 without batch norm: the first layer stores its input, the ReLU and the second layer the
    same 5 numbers, of 7 examples each."""
    weights, activations = 3 * 5 + 5 + 5 * 2 + 2, 7 * (3 + 5)

    class Two(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nets, "build", lambda **block: Two())
        batch = [torch.empty(7, 3, device="meta")]
        assert training_bytes({}, batch, "sgd", "32-true") == 4 * (3 * weights + activations)
        assert training_bytes({}, batch, "adamw", "bf16-mixed") == 4 * 4 * weights + 2 * activations


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_experiment_at_scale_paper_fits_a_gpu(file):
    experiment = read(file, "paper")
    sizes = {
        label: training_bytes(block, inputs(experiment), experiment.optimizer["name"], experiment.trainer["precision"])
        for label, block in experiment.variants.items()
    }
    if stated := re.search(r"paper: ([\d.]+) GB \(estimate\)", file.read_text()):
        assert max(sizes.values()) == pytest.approx(1e9 * float(stated[1]), rel=0.1), sizes
    assert max(sizes.values()) < GPU, sizes


CLASSIFIERS = [
    file
    for file in sorted(EXPERIMENTS.glob("[sc]*/*.yaml"))
    if file.parent.name in ("survey", "claims") and read(file, "paper").task["name"] == "classify"
]


@pytest.mark.parametrize("file", CLASSIFIERS, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_every_classifier_at_scale_paper_is_measured_within_the_memory(file):
    """On the meta device the sizes are those of the computation: the Jacobian of all parameters at one image at least
    (of the claims at all images), that of the features, and one derivative of each."""
    experiment, pixels = read(file, "paper"), torch.empty(IMAGES["cifar10"], device="meta")
    for label, block in experiment.variants.items():
        with torch.device("meta"):
            net = nets.build(**block).eval()
            inner = features(net)
            scores, width = net(pixels[None]).shape[1], inner(pixels[None]).numel()
        wanted = 1 if file.parent.name == "survey" else 150  # claims: the largest --batch of dvc.yaml
        assert points_within(MEMORY, net, scores) >= wanted, label
        assert _jacobian_bytes(width, pixels.numel()) < MEMORY, label
        assert max(scores * _bytes_of_pass(net, pixels), _bytes_of_pass(inner, pixels)) < MEMORY, label
    assert arguments(measure.main)["memory"][0] * 2**30 == MEMORY
    assert arguments(claims.main)["batch"][0] <= 150


def test_a_dimension_is_measured_over_as_many_images_as_the_memory_has_room_for():
    torch.manual_seed(0)
    net = nets.build("mlp", in_channels=1, image_size=2, num_classes=3, depth=1, width=5).eval()
    images = torch.randn(4, 1, 2, 2, dtype=torch.float64)
    of_one = _jacobian_bytes(3, sum(p.numel() for p in net.parameters())) / 2**30
    whole, part, none = (dimension_over(net, images, factor * of_one) for factor in (4, 2.5, 0.5))
    assert set(whole) == {"functional_dimension", "functional_dimension_gap", "functional_dimension_most"}
    assert (whole["functional_dimension"], whole["functional_dimension_most"]) == (
        functional_dimension(net, images).rank,
        12,
    )
    assert part["functional_dimension"] == functional_dimension(net, images[:2]).rank
    assert (part["functional_dimension_most"], part["functional_dimension_images"]) == (6, 2)
    assert (none["functional_dimension"], none["functional_dimension_images"]) == (None, 0)
