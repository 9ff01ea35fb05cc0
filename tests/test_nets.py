"""Every net of the folder: the facts it states, its errors, and the properties that all nets have."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from skipform import SkipformError, nets
from skipform.compiler.rewrite import UnsupportedOperation, rewrite

ROWS = nets.survey()
# The image classifiers, narrow enough for 1x8x8 digits: piecewise linear ones, and those that are not.
LINEAR: dict[str, list[dict]] = {
    "mlp": [{"depth": 0}, {"width": 8, "depth": 3}, {"width": 8, "skip": "concat"}],
    "vgg": [{"width": 2, "depth": 11}, {"width": 2, "depth": 11, "batch_norm": False}],
    "resnet": [
        *[{"depth": 8, "width": 4, "skip": m} for m in ("add", "maximum", "concat", "none")],
        {"depth": 18, "stages": 4, "width": 4, "first": "7x7", "option": "B"},
    ],
    "preact": [
        {"depth": 14, "width": 4},
        *[{"depth": 8, "width": 4, "order": o} for o in ("bn-after", "relu-before", "relu-only")],
        {"depth": 8, "width": 4, "order": "no-first-relu-last-bn", "skip": "concat"},
        {"depth": 11, "width": 4, "bottleneck": True, "width_factor": 2},
    ],
    "shortcuts": [{"depth": 8, "width": 4, "kind": k} for k in ("constant", "convolution")],
    "resnext": [{"depth": 11, "width": 4, "cardinality": 2, "bottleneck_width": 4, "unit": u} for u in ("post", "pre")],
    "densenet": [
        {"depth": 10, "growth": 4, "dropout": 0.2},
        {"depth": 10, "growth": 4, "bottleneck": True, "compression": 0.5, "memory_efficient": True},
        {"depth": 7, "growth": 4, "skip": "none"},
    ],
    "pyramidnet": [
        {"depth": 8, "width": 4, "alpha": 6},
        {"depth": 11, "width": 4, "alpha": 2.5, "growth": "multiplicative", "bottleneck": True},
    ],
    "fractalnet": [
        {"blocks": 4, "columns": 2, "width": 4},
        {"blocks": 1, "width": 4, "drop_path": 0.15, "global_ratio": 0.5, "dropout": 0.1, "expand": "block"},
    ],
    "ror": [
        *[{"depth": 14, "width": 4, "levels": m} for m in (1, 3)],
        {"depth": 10, "width": 4, "unit": "pre", "width_factor": 2},
        {"depth": 14, "width": 4, "skip": "none"},
    ],
    "projection_blocks": [{"filters": [4, 8]}],
    "pooled": [
        *[{"width": 4, "pool": p} for p in ("max", "average", "relu", "relu-trainable", "strided", "none")],
        {"width": 4, "pool": "relu", "size": 3, "depth": 1},
    ],
    "merges": [
        *[{"depth": 14, "width": 4, "skip": m} for m in ("add", "subtract", "average", "minimum", "concat")],
        {"depth": 8, "width": 4, "batch_norm": False},
    ],
    "activation_blocks": [
        {"width": 8, "activations": a, "blocks": b, "skip": s} for a, b in ((1, 2), (2, 1)) for s in ("concat", "add")
    ],
}
CURVED: dict[str, list[dict]] = {
    "merges": [{"depth": 8, "width": 4, "skip": m} for m in ("multiply", "dot")],
    "resnet": [{"depth": 8, "width": 4, "skip": "multiply"}],
    "highway": [{"width_factor": 0.1}, {"depth": 8, "body": "block", "width_factor": 0.25, "gate_bias": -6.0}],
    "shortcuts": [{"depth": 8, "width": 4, "kind": "exclusive"}, {"depth": 8, "width": 4, "kind": "gated"}],
}
NARROW = [(n, kw) for table in (LINEAR, CURVED) for n, entries in table.items() for kw in entries]


def small(name: str, arguments: dict) -> nn.Module:
    """The net on 1x8x8 images, its batch norms no longer at their start, in eval mode and float64."""
    torch.manual_seed(0)
    sized = {"image_size": 8} if name in ("mlp", "activation_blocks") else {}
    net = nets.build(name, in_channels=1, **sized, **arguments).double()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    tensor.copy_(tensor + 0.2 * torch.rand_like(tensor))
    return net.eval()


def images(n: int) -> Tensor:
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(n), dtype=torch.float64)


def named(cases: list[tuple[str, dict]]) -> list[str]:
    return [f"{name}-{'-'.join(map(str, arguments.values()))}" for name, arguments in cases]


@pytest.mark.parametrize("name", nets.names())
def test_every_variant_has_the_parameters_it_claims(name, monkeypatch):
    for filler in (
        "kaiming_normal_",
        "kaiming_uniform_",
        "xavier_uniform_",
        "uniform_",
    ):
        monkeypatch.setattr(nn.init, filler, lambda tensor, *_, **__: tensor)
    counted = {}
    for row in (row for row in ROWS if row["net"] == name):
        with torch.device("meta"):
            net = nets.build(name, **row["arguments"])
        counted[row["variant"]] = sum(p.numel() for p in net.parameters())
    assert counted == {row["variant"]: row["parameters"] for row in ROWS if row["net"] == name}


def test_every_net_states_its_paper_and_the_terms_of_the_survey():
    for row in ROWS:
        assert {"paper", "year", "skip", "levels", "depth"} <= row.keys(), row["net"]


def test_every_narrow_net_is_a_net_of_the_folder():
    assert LINEAR.keys() | CURVED.keys() <= set(nets.names())


@pytest.mark.parametrize(("name", "arguments"), NARROW, ids=named(NARROW))
def test_a_step_reaches_every_parameter_and_changes_the_output(name, arguments):
    net = small(name, arguments)
    net.train()
    torch.manual_seed(1)  # drop-path and stochastic depth keep every branch at least once in four steps
    for _ in range(4):
        nn.functional.cross_entropy(net(images(8)), torch.arange(8) % 10).backward()
    trained = {key: p for key, p in net.named_parameters() if p.requires_grad}
    assert [key for key, p in trained.items() if p.grad is None] == []
    net.eval()
    before = net(images(8))
    assert before.shape == (8, 10)
    torch.optim.SGD(trained.values(), lr=0.01).step()
    assert not torch.equal(net(images(8)), before)


@pytest.mark.parametrize("name", sorted(LINEAR.keys() | CURVED.keys()))
def test_weights_survive_safetensors(name, tmp_path: Path):
    arguments = {**CURVED, **LINEAR}[name][-1]
    net = small(name, arguments)
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    twin = small(name, arguments)
    twin.load_state_dict({key: torch.zeros_like(value) for key, value in twin.state_dict().items()})
    twin.load_state_dict(load_file(tmp_path / "net.safetensors"))
    assert torch.equal(twin(images(3)), net(images(3)))


REWRITTEN = [(name, arguments) for name, entries in LINEAR.items() for arguments in entries]


@pytest.mark.parametrize(("name", "arguments"), REWRITTEN, ids=named(REWRITTEN))
def test_the_rewritten_net_has_only_affine_relu_concatenation_and_equal_outputs(name, arguments):
    net = small(name, arguments)
    expected = net(images(5))
    # float64, some 20 layers of sums of at most a few hundred terms: both round by far less than 1e4 ulp of the output
    tolerance = 1e4 * torch.finfo(torch.float64).eps * float(expected.detach().abs().max())
    torch.testing.assert_close(rewrite(net, images(2))(images(5)), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("name", "arguments"), [(name, kw) for name, entries in CURVED.items() for kw in entries])
def test_gates_and_products_have_no_piecewise_linear_form(name, arguments):
    with pytest.raises(UnsupportedOperation):
        rewrite(small(name, arguments), images(2))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnt", {}, "unknown net 'resnt'; accepted: activation_blocks, "),
        ("resnet", {"dpth": 20}, "net 'resnet': unknown key 'dpth' (did you mean depth?); accepted: in_channels, "),
        ("resnet", {"depth": "20"}, "net 'resnet'.depth: '20' is not accepted; accepted: int"),
        ("resnet", {"depth": True}, "net 'resnet'.depth: True is not accepted"),
        ("resnet", {"depth": 21}, "depth=21 is not accepted; it takes 6n+2 with n >= 1"),
        ("resnet", {"depth": 20, "stages": 4}, "it takes 18, 34, 50, 101, 152"),
        ("resnet", {"skip": "sum"}, "accepted: 'add' | 'subtract' | "),
        ("resnext", {"depth": 52, "stages": 4}, "it takes 50, 101"),
        ("densenet", {"depth": 41}, "it takes 3n+4 with n >= 1"),
        ("densenet", {"first": "7x7"}, "it takes 121, 169, 201, 161"),
        ("highway", {"depth": 20}, "it takes 19 or 32"),
        ("mlp", {"depth": -1}, "depth: -1; accepted: 0 to 10000"),
        ("projection_blocks", {"filters": [4, 8.5]}, "accepted: tuple[int, ...]"),
        ("activation_blocks", {"width": [4, 4, 4]}, "it takes one width, or one for each"),
        ("mlp", {"depth": {"name": "nowhere"}}, "unknown net 'nowhere'"),
        ("mlp", {"depth": {"name": "mlp"}}, "net 'mlp'.depth: Sequential is not accepted; accepted: int"),
    ],
)
def test_a_request_that_cannot_be_met_is_one_line_that_says_what_is_accepted(name, arguments, message):
    with pytest.raises(SkipformError) as raised:
        nets.build(name, **arguments)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_argument_is_named(monkeypatch):
    def build(*, in_channels: int, backbone: nn.Module) -> nn.Module:
        return backbone

    monkeypatch.setattr("skipform.nets.mlp.build", build)
    with pytest.raises(SkipformError, match=r"net 'mlp'\.in_channels: missing; accepted: int"):
        nets.build("mlp", backbone=nn.Identity())
    inner = {"name": "vgg", "width": 2}
    assert isinstance(nets.build("mlp", in_channels=1, backbone=inner), nn.Module)
    assert inner == {"name": "vgg", "width": 2}
