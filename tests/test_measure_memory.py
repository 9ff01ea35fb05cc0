"""Every classifier at scale paper is measured within the memory that `skipform measure` and `skipform claims` take."""

from pathlib import Path

import pytest
import torch

from skipform import nets
from skipform.arguments import arguments
from skipform.comparisons import EXPRESSIVE
from skipform.measure.rank import MEMORY, _bytes_of_pass, _jacobian_bytes, functional_dimension, points_within
from skipform.nets import features
from skipform.stages import claims, measure
from skipform.stages.measure import dimension_over
from skipform.training.experiment import read

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
CIFAR = (3, 32, 32)
CLASSIFIERS = [
    file
    for file in sorted(EXPERIMENTS.glob("[sc]*/*.yaml"))
    if file.parent.name in ("survey", "claims") and read(file, "paper").task["name"] == "classify"
]


@pytest.mark.parametrize("file", CLASSIFIERS, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_every_classifier_at_scale_paper_is_measured_within_the_memory(file):
    """On the meta device the sizes are those of the computation: the Jacobian of all parameters at one image at least
    (of the claims at all images), that of the features, and one derivative of each."""
    experiment, pixels = read(file, "paper"), torch.empty(CIFAR, device="meta")
    for label, block in experiment.variants.items():
        with torch.device("meta"):
            net = nets.build(**block).eval()
            inner = features(net)
            scores, width = net(pixels[None]).shape[1], inner(pixels[None]).numel()
        # claims about expressive power: the largest --batch of dvc.yaml
        wanted = 150 if {name for claim in experiment.comparisons for name in claim.measures} & {*EXPRESSIVE} else 1
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
