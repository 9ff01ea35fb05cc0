"""The architectures in the grammar: the counts before and after rewriting, against counts by hand."""

import json

import pytest
import torch
from torch import nn

from skipform import nets
from skipform.compiler.flatten import canonical
from skipform.compiler.skips import bypassed
from skipform.stages import grammar


def test_a_small_resnet_has_the_layers_the_relus_and_the_state_counted_by_hand():
    """ResNet-8 of width 4 on 3 x 8 x 8: a ReLU after the stem and two in each of three blocks, of 4 x 8 x 8,
    8 x 4 x 4 and 16 x 2 x 2 numbers. Inside the first block its input and its first ReLU are held, 256 each."""
    relus = (4 * 64) + 2 * (4 * 64) + 2 * (8 * 16) + 2 * (16 * 4)
    actual = grammar.described(nets.build("resnet", depth=8, width=4).eval(), torch.zeros(1, 3, 8, 8))
    assert actual == {
        "before": {"depth": 7, "relu_count": relus, "max_poolings": 0, "held": 512},
        "after": {"depth": 7, "relu_count": relus, "carried": 512},
    }


def test_a_max_pooling_costs_two_layers_and_three_relus_per_window_of_four():
    """2 x 4 x 4 ReLUs, then eight windows: (a - b)+ and (c - d)+ along with b and d, then one more."""
    module = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)).eval()
    assert grammar.described(module, torch.zeros(1, 1, 4, 4)) == {
        "before": {"depth": 1, "relu_count": 32, "max_poolings": 1, "held": 32},
        "after": {"depth": 3, "relu_count": 32 + 8 * 3, "carried": 32},
    }


@pytest.mark.parametrize(
    ("net", "arguments"),
    [
        ("resnet", {"depth": 8, "width": 2}),
        ("preact", {"depth": 8, "width": 2}),
        ("densenet", {"depth": 7, "growth": 3}),
        ("pooled", {"pool": "max", "width": 2}),
    ],
)
def test_what_is_carried_is_what_the_matrices_of_the_canonical_network_still_read(net, arguments):
    module = nets.build(net, **arguments).eval()
    x = torch.zeros(1, 3, 8, 8)
    expected = canonical(module, x)
    actual = grammar.described(module, x)["after"]
    assert actual == {
        "depth": expected.depth,
        "relu_count": expected.relu_count,
        "carried": max(expected.carried),
    }


@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_a_sum_without_relu_is_carried_as_what_it_is_a_sum_of(blocks):
    """x + f_1 + ... + f_b, f_i = W relu(.) of width 5: one tensor of 3 in the module; x and all ReLUs in the form."""

    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branches = nn.ModuleList(
                nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 3)) for _ in range(blocks)
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for branch in self.branches:
                x = x + branch(x)
            return x

    actual = grammar.described(Stream().eval(), torch.zeros(1, 3))
    assert actual["before"] == {"depth": blocks, "relu_count": 5 * blocks, "max_poolings": 0, "held": 8}
    assert actual["after"] == {"depth": blocks, "relu_count": 5 * blocks, "carried": 3 + 5 * blocks}


def test_branches_side_by_side_count_once_for_depth():
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(2, 4), nn.Linear(2, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat((self.left(x).relu(), self.right(x).relu().relu()), 1)

    actual = grammar.described(Fork().eval(), torch.zeros(1, 2))
    assert actual["before"]["depth"] == 2
    assert actual["before"]["relu_count"] == 4 + 3 + 3


def test_what_is_not_piecewise_linear_has_the_compilers_reason():
    actual = grammar.described(nn.Sequential(nn.Linear(2, 2), nn.Sigmoid()).eval(), torch.zeros(1, 2))
    assert set(actual) == {"reason"}
    assert actual["reason"].startswith("sigmoid at 1 (Sigmoid)")


def test_every_net_has_a_row_and_every_row_is_a_published_variant():
    rows = grammar.chosen()
    claims = {(claim["net"], claim["variant"]) for claim in nets.survey()}
    assert {net for net, _ in rows} == set(nets.names())
    assert len(set(rows)) == len(rows)
    assert set(rows) | set(grammar.SMOKE) <= claims


def test_the_stage_writes_one_file_of_equal_bytes_and_no_other(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(grammar, "SMOKE", (("mlp", "MLP-2"), ("activation_blocks", "M2 add")))
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    for out in (first, second):
        grammar.main(out=str(out), scale="smoke", workers=1)
    assert first.read_bytes() == second.read_bytes()
    assert [row["variant"] for row in json.loads(first.read_text())] == ["MLP-2", "M2 add"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "b.json"]


BYPASSED = {  # net: {variant of it: (arguments, what its skips bypass)}
    "resnet": {"ReLU after the sum": ({"depth": 14, "width": 2}, [1]), "plain": ({"depth": 8, "skip": "none"}, [])},
    "preact": {  # the first unit of a stage activates before the fork
        "full": ({"depth": 14, "width": 2}, [1, 2]),
        "original": ({"depth": 14, "width": 2, "order": "original"}, [1]),
        "no first ReLU": ({"depth": 14, "width": 2, "order": "no-first-relu"}, [1]),
        "bottleneck": ({"depth": 20, "width": 2, "bottleneck": True}, [2, 3]),
    },
    "shortcuts": {"convolution": ({"depth": 8}, [1])},
    "resnext": {"post": ({"depth": 11, "width": 4, "cardinality": 2, "bottleneck_width": 2}, [2])},
    "densenet": {
        "dense": ({"depth": 7, "growth": 2}, [1]),
        "bottleneck": ({"depth": 10, "growth": 2, "bottleneck": True}, [2]),
    },
    "pyramidnet": {"additive": ({"depth": 8, "width": 2, "alpha": 3}, [1])},
    "ror": {  # a unit; two units and the activation between them; three groups and the activations between them
        "three levels": ({"depth": 20, "width": 2}, [1, 3, 11]),
        "one level": ({"depth": 20, "width": 2, "levels": 1}, [1]),
    },
    "fractalnet": {"three columns": ({"blocks": 1, "columns": 3, "width": 2}, [2, 4])},
    "highway": {"gates": ({"width_factor": 0.05}, [1])},
    "projection_blocks": {"the listing": ({}, [1])},
    "vgg": {"no skip": ({"width": 2}, [])},
    "mlp": {"plain": ({"width": 4, "skip": "none"}, []), "concatenation": ({"width": 4, "skip": "concat"}, [1])},
    "pooled": {"native": ({"pool": "max", "width": 2}, []), "relu(x - y) + y": ({"pool": "relu", "width": 2}, [1])},
    "merges": {"addition": ({"depth": 14, "width": 2}, [2]), "none": ({"depth": 8, "width": 2, "skip": "none"}, [])},
    "activation_blocks": {str(n): ({"activations": n, "blocks": 2, "width": 4}, [n]) for n in (1, 2, 4)},
    "unet": {"four scales": ({"width": 2}, [2, 6, 10, 14])},
    "fcn": {  # conv6 and conv7; with those of the fifth stage of VGG
        "8s": ({"kind": "8s", "num_classes": 3, "backbone": {"name": "vgg", "width": 2}}, [5, 8])
    },
    "fpn": {  # a unit; the stages between two laterals
        "ResNet-18": ({"backbone": {"name": "resnet", "depth": 18, "stages": 4, "width": 4}}, [1, 4, 8, 12])
    },
    "vit": {"attention, feed-forward": ({"depth": 1, "width": 12, "heads": 3, "image_size": 32, "patch": 16}, [0, 1])},
}
LAYERS = {  # net: (arguments, the part that takes vectors, their shapes); one skip bypasses attention, one the MLP
    "bert": ({"vocab_size": 9, "width": 12, "heads": 3, "depth": 1}, "layers.0", [(5, 12)]),
    "gpt": ({"vocab_size": 9, "width": 12, "heads": 3, "depth": 1}, "layers.0", [(5, 12)]),
    "transformer": ({"vocab_size": None, "width": 12, "heads": 3, "depth": 2, "hidden": 8}, "", [(5, 12), (5, 12)]),
    "detr": (
        {"width": 12, "heads": 3, "hidden": 8, "queries": 3, "encoder_depth": 1, "decoder_depth": 2}
        | {"backbone": {"name": "resnet", "depth": 18, "stages": 4, "width": 4}},
        "",
        [(3, 64, 64)],
    ),
}


@pytest.mark.parametrize("net", LAYERS)
def test_attention_bypasses_no_activation_and_the_feed_forward_net_one(net):
    arguments, part, shapes = LAYERS[net]
    module = nets.build(net, **arguments).get_submodule(part).eval()
    assert bypassed(module, tuple(torch.zeros(1, *shape) for shape in shapes)) == [0, 1]


def test_every_net_is_counted_by_a_test():
    assert {*BYPASSED, *LAYERS} == set(nets.names())


@pytest.mark.parametrize(("net", "variant"), [(net, variant) for net, cases in BYPASSED.items() for variant in cases])
def test_a_skip_bypasses_the_activations_between_its_fork_and_its_merge(net, variant):
    arguments, expected = BYPASSED[net][variant]
    size = {"unet": (1, 188, 188)}.get(net, (3, 32, 32))
    assert bypassed(nets.build(net, **arguments).eval(), torch.zeros(1, *size)) == expected
