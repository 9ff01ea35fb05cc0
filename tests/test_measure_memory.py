"""Every classifier at scale paper is measured within the memory that `skipform measure` and `skipform claims` take."""

from pathlib import Path

import pytest
import torch

from skipform import nets
from skipform.arguments import arguments
from skipform.comparisons import EXPRESSIVE
from skipform.measure.rank import MEMORY, _bytes_of_pass, _jacobian_bytes, functional_dimension
from skipform.nets import features
from skipform.stages import claims, measure
from skipform.stages.measure import dimension_over
from skipform.stages.subjects import Subject
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
        # Of the survey one image, for larger Jacobians are projected; of claims about expressive power the largest
        # --batch of dvc.yaml.
        wanted = 150 if {name for claim in experiment.comparisons for name in claim.measures} & {*EXPRESSIVE} else 1
        parameters = sum(p.numel() for p in net.parameters() if p.requires_grad)
        assert _jacobian_bytes(wanted * scores, parameters) <= MEMORY, label
        assert _jacobian_bytes(width, pixels.numel()) < MEMORY, label
        assert max(scores * _bytes_of_pass(net, pixels), _bytes_of_pass(inner, pixels)) < MEMORY, label
    assert arguments(measure.main)["memory"][0] * 2**30 == MEMORY
    assert arguments(claims.main)["batch"][0] <= 150


def test_a_dimension_beyond_the_memory_is_projected_or_null_and_the_record_says_so():
    torch.manual_seed(0)
    net = nets.build("mlp", in_channels=1, image_size=2, num_classes=3, depth=1, width=50).eval()
    images = torch.randn(4, 1, 2, 2, dtype=torch.float64)
    rows, size = 12, sum(p.numel() for p in net.parameters())
    dense, small = (_jacobian_bytes(rows, columns) / 2**30 for columns in (size, 4 * rows))
    subject = Subject(net, images, classifier=True)
    whole, part, none = (dimension_over(subject, 4, memory) for memory in (dense, 0.99 * dense, 0.99 * small))
    keys = {"functional_dimension", "functional_dimension_gap", "functional_dimension_most"}
    assert set(whole) == keys
    assert set(part) == keys | {"functional_dimension_by"}
    expected = functional_dimension(net, images).rank
    assert [(row["functional_dimension"], row["functional_dimension_most"]) for row in (whole, part)] == [
        (expected, rows)
    ] * 2
    assert part["functional_dimension_by"] == "projection"
    assert none["functional_dimension"] is None
    assert "GiB" in none["functional_dimension_reason"]
