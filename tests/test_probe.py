"""What claims about learning measure: gradients, lesions, the loss around a net, cost; the stage that writes them."""

import json
import math
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from skipform import nets
from skipform.errors import SkipformError
from skipform.measure import gradients, landscape, lesions
from skipform.nets.blocks import Skip
from skipform.stages import cli, probe
from skipform.training.cost import step

CLAIMS = Path(__file__).parent.parent / "experiments" / "claims"


def small(seed: int, **arguments) -> nn.Module:
    torch.manual_seed(seed)
    return nets.build("merges", in_channels=1, num_classes=3, **{"depth": 8, "width": 2} | arguments).double()


def batch(seed: int, n: int):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, 1, 6, 6, generator=generator, dtype=torch.float64)
    return images, torch.randint(3, (n,), generator=generator)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 999), batch_norm=st.booleans(), skip=st.sampled_from(["add", "none"]))
def test_a_gradient_norm_is_the_length_of_the_slopes_of_the_loss_along_every_weight(seed, batch_norm, skip):
    net, (images, labels) = small(seed, batch_norm=batch_norm, skip=skip), batch(seed, 5)
    before = {key: x.clone() for key, x in net.state_dict().items()}
    norms = gradients.gradient_norms(net, images, labels)
    assert all(torch.equal(x, before[key]) for key, x in net.state_dict().items())  # running statistics too
    assert all(p.grad is None for p in net.parameters())
    layers = dict(net.named_modules())
    assert list(norms) == [name for name in layers if isinstance(layers[name], nn.Conv2d | nn.Linear)]
    net.train()
    name = list(norms)[seed % len(norms)]
    slopes = []
    with torch.no_grad():
        weight = layers[name].weight.view(-1)
        for i in range(len(weight)):
            values, start = [], float(weight[i])
            for move in (1e-6, -1e-6):
                weight[i] = start + move
                values.append(float(functional.cross_entropy(net(images), labels)))
            weight[i] = start
            slopes.append((values[0] - values[1]) / 2e-6)
    # Central differences err by h^2 = 1e-12 times a third derivative and by rounding, 1e-16 / h = 1e-10 times the loss;
    # a kink of a ReLU within h of a pre-activation is as unlikely as h. 1e-5 relative leaves room for both.
    assert norms[name] == pytest.approx(math.sqrt(sum(s * s for s in slopes)), rel=1e-5, abs=1e-8)


@given(norms=st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=6), factor=st.floats(1e-3, 1e3))
def test_the_spread_of_gradients_is_zero_for_equal_norms_and_does_not_depend_on_their_scale(norms, factor):
    named = dict(zip("abcdef", norms, strict=False))
    spread = gradients.gradient_spread(named)
    assert spread >= 0
    assert gradients.gradient_spread({key: factor * x for key, x in named.items()}) == pytest.approx(spread, abs=1e-9)
    assert gradients.gradient_spread(dict.fromkeys(named, norms[0])) == 0
    assert gradients.gradient_spread(named | {"dead": 0.0}) == math.inf


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), n=st.integers(2, 5), batch_norm=st.booleans())
def test_the_correlation_of_gradients_is_the_mean_cosine_over_pairs_of_images_and_scores(seed, n, batch_norm):
    net, (images, _) = small(seed, batch_norm=batch_norm), batch(seed, n)
    expected = small(seed, batch_norm=batch_norm)
    for module in expected.modules():
        if isinstance(module, nn.BatchNorm2d):  # with statistics that the next pass forgets
            module.momentum = 1
    expected(images)
    cosines = []
    for k in range(3):
        g = []
        for image in images:  # one by one: no image has a part in the gradient of another
            x = image[None].clone().requires_grad_()
            g += torch.autograd.grad(expected.eval()(x)[0, k], x)
        cosines += [
            float((a * b).sum() / (a.norm() * b.norm())) if a.norm() > 0 and b.norm() > 0 else 0.0
            for a, b in combinations(g, 2)
        ]
    # sums of 36 products, each rounded at 1e-16
    assert gradients.gradient_correlation(net, images) == pytest.approx(sum(cosines) / len(cosines), abs=1e-10)


def test_an_affine_net_has_equal_gradients_everywhere_and_a_constant_one_has_none():
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    assert gradients.gradient_correlation(net, batch(0, 4)[0]) == pytest.approx(1, abs=1e-12)
    nn.init.zeros_(net[1].weight)
    assert gradients.gradient_correlation(net, batch(0, 4)[0]) == 0
    with pytest.raises(SkipformError, match="1 images; 2 or more are accepted"):
        gradients.gradient_correlation(net, batch(0, 1)[0])


class Chain(nn.Module):
    """x -> f_k(... f_1(x)) with blocks of the same shape."""

    def __init__(self, blocks: list[nn.Module]):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def blocks(seed: int, count: int) -> list[nn.Module]:
    torch.manual_seed(seed)
    linear = [nn.Linear(3, 3).double() for _ in range(count)]
    return [Skip(layer, nn.Identity(), Sum(), nn.ReLU()) for layer in linear]


class Sum(nn.Module):
    def forward(self, branch, shortcut):
        return branch + shortcut


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), count=st.integers(1, 5), data=st.data())
def test_a_net_without_blocks_is_the_chain_of_the_others(seed, count, data):
    parts = blocks(seed, count)
    net, x = Chain(parts), torch.randn(4, 3, dtype=torch.float64)
    left_out = data.draw(st.sets(st.integers(0, count - 1)))
    expected = Chain([part for i, part in enumerate(parts) if i not in left_out])(x)
    assert torch.equal(lesions.without(net, [f"blocks.{i}" for i in left_out])(x), expected)
    order = data.draw(st.permutations(range(count)))
    places = {f"blocks.{i}": f"blocks.{j}" for i, j in enumerate(order)}
    assert torch.equal(lesions.exchanged(net, places)(x), Chain([parts[j] for j in order])(x))
    assert torch.equal(net(x), Chain(parts)(x))


def test_blocks_that_are_no_permutation_are_refused():
    with pytest.raises(SkipformError, match="a permutation of the blocks is accepted"):
        lesions.exchanged(Chain(blocks(0, 2)), {"blocks.0": "blocks.1", "blocks.1": "blocks.1"})


@given(order=st.permutations(range(5)))
def test_disorder_is_kendalls_tau_from_zero_to_one(order):
    from scipy.stats import kendalltau

    places = {str(i): str(j) for i, j in enumerate(order)}
    assert lesions.disorder(places) == pytest.approx((1 - kendalltau(range(5), order).statistic) / 2, abs=1e-12)


def test_the_mean_disorder_over_all_orders_is_a_half():
    values = [lesions.disorder({str(i): str(j) for i, j in enumerate(order)}) for order in permutations(range(4))]
    assert sum(values) / len(values) == 0.5  # halves of small integers: exact
    assert (min(values), max(values)) == (0.0, 1.0)
    assert lesions.disorder({"a": "a"}) == 0


@given(scores=st.lists(st.lists(st.integers(-3, 3), min_size=3, max_size=3, unique=True), min_size=1, max_size=6))
def test_the_error_counts_images_whose_largest_score_is_another_class(scores):
    labels = torch.zeros(len(scores), dtype=torch.int64)
    expected = 100 * sum(max(row) != row[0] for row in scores) / len(scores)
    images = torch.tensor(scores, dtype=torch.float64)
    assert lesions.classification_error(nn.Identity(), images, labels) == pytest.approx(expected, abs=1e-12)


def test_the_blocks_of_a_residual_net_are_those_that_keep_the_shape_by_stage():
    for skip in ("add", "none"):
        net = nets.build("resnet", in_channels=1, depth=20, width=2, skip=skip).eval()
        groups = probe.blocks_of_equal_shape(net, torch.zeros(1, 1, 8, 8))
        assert groups == [["stages.0.0", "stages.0.1", "stages.0.2"]] + [
            [f"stages.{k}.1", f"stages.{k}.2"] for k in (1, 2)
        ]
    nested = nets.build("ror", in_channels=1, depth=14, width=2).eval()  # three levels; one unit a stage
    (group,) = probe.blocks_of_equal_shape(nested, torch.zeros(1, 1, 8, 8))
    assert [isinstance(nested.get_submodule(name), Skip) for name in group] == [True]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999))
def test_a_filter_normalised_direction_has_the_norms_of_the_filters_and_no_biases(seed):
    net = small(seed)
    direction = landscape.filter_normalised(net, torch.Generator().manual_seed(seed))
    weights = {name: p for name, p in net.named_parameters() if p.dim() > 1}
    assert direction.keys() == weights.keys()
    for name, weight in weights.items():
        for filter_, own in zip(direction[name], weight.detach(), strict=True):
            # one multiplication and one division per entry, a norm of at most 72 entries
            assert float(filter_.norm()) == pytest.approx(float(own.norm()), rel=1e-12)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 999))
def test_the_surface_is_the_loss_of_nets_with_moved_weights_and_the_net_stays(seed):
    net, (images, labels) = small(seed).eval(), batch(seed, 4)
    generator = torch.Generator().manual_seed(seed)
    u, v = (landscape.filter_normalised(net, generator) for _ in range(2))
    before = {key: x.clone() for key, x in net.state_dict().items()}
    surface = landscape.loss_surface(net, images, labels, u, v, torch.tensor([-0.5, 0.0, 1.0], dtype=torch.float64))
    assert all(torch.equal(x, before[key]) for key, x in net.state_dict().items())
    for i, a in enumerate((-0.5, 0.0, 1.0)):
        for j, b in enumerate((-0.5, 0.0, 1.0)):
            moved = small(seed).eval()
            moved.load_state_dict(before | {key: before[key] + a * u[key] + b * v[key] for key in u})
            with torch.no_grad():
                expected = float(functional.cross_entropy(moved(images), labels))
            # the same operations on the same numbers, but for the order of at most a few products
            assert surface[i, j] == pytest.approx(expected, rel=1e-12)


@given(
    planes=st.lists(st.tuples(*[st.integers(-5, 5)] * 3), min_size=1, max_size=4),
    k=st.integers(3, 6),
)
def test_a_maximum_of_planes_is_convex_and_its_negative_is_nowhere_below_zero_percent(planes, k):
    a, b = np.meshgrid(np.arange(k), np.arange(k), indexing="ij")
    convex = np.max([p * a + q * b + r for p, q, r in planes], axis=0).astype(float)
    assert landscape.nonconvexity(convex) == 0
    flat = all(np.ptp(np.diff(convex, axis=axis)) == 0 for axis in (0, 1)) and len({*planes}) == 1
    assert not flat or landscape.nonconvexity(-convex) == 0


def test_a_strictly_concave_surface_is_convex_nowhere_and_one_dent_is_seen_along_every_direction():
    a, b = np.meshgrid(np.arange(5.0), np.arange(5.0), indexing="ij")
    assert landscape.nonconvexity(-(a**2) - b**2) == 100
    saddle = a * b  # straight along rows and columns, bent down along one diagonal alone
    assert landscape.nonconvexity(saddle) == 100
    assert landscape.nonconvexity(a[:, ::-1] * b) == landscape.nonconvexity(saddle.T)
    bump = np.zeros((5, 5))
    bump[2, 2] = 1.0
    assert landscape.nonconvexity(bump) == pytest.approx(100 / 9)


def test_a_net_without_blocks_has_no_lesions():
    with pytest.raises(SkipformError, match="no block that keeps the shape"):
        probe.lesions(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.zeros(1, 1, 2, 2), torch.zeros(1), None)


KINDS = {
    "gradients": {"gradient_norms", "gradient_spread", "gradient_correlation"},
    "lesions": {"own_error", "deletion_rise", "half_deleted_error", "reordered_error"},
    "landscape": {"surface", "nonconvexity", "loss_rise"},
    "cost": {"operations", "memory"},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The runs of two small nets."""
    folder = tmp_path_factory.mktemp("probe")
    (folder / "experiments" / "claims").mkdir(parents=True)
    (folder / "experiments" / "scale").mkdir()
    (folder / "experiments" / "scale" / "tiny.yaml").write_text("# nothing\n")
    (folder / "experiments" / "claims" / "some.yaml").write_text(
        "variants:\n  residual: {name: resnet, depth: 14, width: 2}\n"
        "  plain: {name: resnet, depth: 14, width: 2, skip: none}\n"
        "data: {name: digits, limit: 40}\ntrainer: {max_epochs: 1, accelerator: cpu}\nthreads: 1\nwandb: disabled\n"
    )
    file = str(folder / "experiments" / "claims" / "some.yaml")
    words = ["--scale", "tiny", "--seeds", "0", "--workers", "1", "--out", str(folder / "runs")]
    assert cli.main(["fit", "--config", file, *words]) == 0
    return folder / "runs"


@pytest.mark.parametrize("kind", KINDS)
def test_a_probe_has_one_row_per_net_and_moment_and_equal_bytes_the_second_time(kind, trained, tmp_path):
    texts = []
    for _ in range(2):
        out = tmp_path / "some.json"
        words = ["probe", str(trained), "--out", str(out), "--of", kind, "--images", "8", "--workers", "1"]
        assert cli.main(words) == 0
        texts.append(out.read_bytes())
        out.unlink()
    assert texts[0] == texts[1]
    rows = json.loads(texts[0])["rows"]
    moments = ["initial", "final"] if kind == "gradients" else ["final"]
    assert [(row["variant"], row["when"]) for row in rows] == [
        (variant, when) for variant in ("plain", "residual") for when in moments
    ]
    for row in rows:
        assert KINDS[kind] <= row.keys()
        if kind == "lesions":
            assert len(row["deletion_errors"]) == row["blocks"] == 4
            assert row["deleted"] == [1, 2, 3, 4]
            assert row["deletion_rise"] == pytest.approx(np.mean(row["deletion_errors"]) - row["own_error"])
            assert row["half_deleted_error"] == row["errors_without"][1]
        if kind == "landscape":
            surface = np.array(row["surface"])
            assert row["loss_rise"] == pytest.approx(surface.mean() - surface[3, 3])
        if kind == "cost":
            block = {"name": "resnet", "in_channels": 1, "depth": 14, "width": 2}
            block |= {"skip": "none"} if row["variant"] == "plain" else {}
            operations, memory, _ = step(block, [torch.empty(8, 1, 8, 8, device="meta")], "sgd", "32-true")
            assert (row["operations"], row["memory"]) == (operations, memory)
