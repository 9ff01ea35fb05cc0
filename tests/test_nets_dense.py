"""The nets for dense prediction: masks of FCN and U-Net, the pyramid and the boxes of FPN."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from skipform import SkipformError, nets
from skipform.compiler.rewrite import rewrite
from skipform.nets.blocks import strides
from skipform.nets.fcn import bilinear

VGG = {"name": "vgg", "depth": 11, "width": 2, "in_channels": 1}
RESNET = {"name": "resnet", "depth": 8, "width": 4, "in_channels": 1}
RESNET18 = {"name": "resnet", "depth": 18, "stages": 4, "first": "7x7", "width": 4, "option": "B"}
ONE_STAGE = {"name": "projection_blocks", "filters": [4]}
DETECT = {"head": "retinanet", "num_classes": 3, "channels": 8, "anchors": (4, 8, 16)}
NARROW: dict[str, list[dict]] = {
    "fcn": [
        {"backbone": VGG, "num_classes": 3, "hidden": 8},
        {"backbone": RESNET, "num_classes": 3, "hidden": 0, "skip": ["pool3"]},
        {"backbone": {"name": "densenet", "depth": 10, "growth": 4, "in_channels": 1}, "kind": "16s", "hidden": 8},
    ],
    "unet": [
        *[{"width": 2, "levels": 2, "padding": "same", "skip": s} for s in ("concat", "add", "none")],
        {"width": 2, "levels": 2, "padding": "same", "batch_norm": True, "dropout": 0.1},
    ],
    "fpn": [
        {"backbone": RESNET, "channels": 4},
        {"backbone": RESNET, "channels": 4, "skip": "none", "extra": "pool"},
        {"backbone": RESNET, "channels": 4, "top_down": False, "levels": 2, "extra": "convolutions"},
    ],
}
CASES = [(name, arguments) for name, entries in NARROW.items() for arguments in entries]
IDS = [f"{name}-{i}" for name, entries in NARROW.items() for i, _ in enumerate(entries)]


def small(name: str, **arguments) -> nn.Module:
    """The net in eval mode and float64, every parameter and running statistic away from where it starts."""
    torch.manual_seed(0)
    net = nets.build(name, **arguments).double().eval()
    with torch.no_grad():
        for tensor in [*net.parameters(), *(b for b in net.buffers() if b.is_floating_point())]:
            tensor.add_(0.2 * torch.rand_like(tensor))
    return net


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def flat(output: Tensor | dict) -> Tensor:
    return torch.cat([p.flatten() for p in output.values()]) if isinstance(output, dict) else output.flatten()


def agree(actual: Tensor, expected: Tensor, relative: float = 1e-12) -> None:
    """float64, some 20 layers of the same sums in another order: far less than 1e4 ulp of the largest output."""
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=0, atol=relative * float(expected.detach().abs().max()))


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=IDS)
def test_a_step_reaches_every_trained_parameter_and_changes_the_output(name, arguments):
    net = small(name, **arguments).train()
    flat(net(images(4, 1, 16, 16))).square().sum().backward()
    unreached = [key for key, p in net.named_parameters() if p.grad is None]
    assert unreached == (["last.weight"] if name == "fcn" else [])  # the last step of an FCN is fixed
    net.eval()
    before = flat(net(images(4, 1, 16, 16)))
    torch.optim.SGD(net.parameters(), lr=1e-6).step()
    after = flat(net(images(4, 1, 16, 16)))
    assert bool(after.isfinite().all())
    assert not torch.equal(after, before)


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=IDS)
def test_weights_survive_safetensors(name, arguments, tmp_path: Path):
    net, twin = small(name, **arguments), nets.build(name, **arguments).double().eval()
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    twin.load_state_dict(load_file(tmp_path / "net.safetensors"))
    assert torch.equal(flat(twin(images(2, 1, 16, 16))), flat(net(images(2, 1, 16, 16))))


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=IDS)
def test_the_rewritten_net_has_only_affine_relu_concatenation_and_equal_outputs(name, arguments):
    net, x = small(name, **arguments), images(2, 1, 12, 12)
    agree(flat(rewrite(net, x)(images(3, 1, 12, 12))), flat(net(images(3, 1, 12, 12))))


# FCN


@given(s=st.sampled_from([1, 2, 3, 4, 8]), h=st.integers(1, 5), w=st.integers(1, 5), c=st.integers(1, 3))
def test_the_last_step_begins_as_bilinear_interpolation(s, h, w, c):
    x = images(2, c, h, w)
    actual = bilinear(c, s).double()(x)
    assert actual.shape == (2, c, s * h, s * w)
    padded = F.pad(x, (1, 1, 1, 1))  # beyond the border it interpolates towards zero
    expected = F.interpolate(padded, scale_factor=s, mode="bilinear", align_corners=False)
    # the weights are float32, 6e-8 each; four terms below 5
    torch.testing.assert_close(actual, expected[..., s:-s, s:-s], rtol=0, atol=2e-6)


@settings(max_examples=20)
@given(h=st.integers(1, 70), w=st.integers(1, 70), kind=st.sampled_from(["32s", "16s", "8s"]))
def test_an_fcn_scores_every_pixel_of_any_image(h, w, kind):
    net = nets.build("fcn", backbone=VGG, num_classes=3, hidden=2, kind=kind).eval()
    assert net(torch.randn(1, 1, h, w)).shape == (1, 3, h, w)


def mirrored(net: nn.Module) -> dict[str, Tensor]:
    return {key: t.flip(-1) if t.dim() == 4 else t for key, t in net.state_dict().items()}


@pytest.mark.parametrize("kind", ["32s", "16s", "8s"])
def test_every_map_of_an_fcn_lies_where_its_pixels_lie(kind):
    """With mirrored kernels a mirrored image has mirrored scores: a map put one place aside would break that."""
    arguments = {"backbone": VGG, "num_classes": 3, "hidden": 4, "kind": kind}
    net, twin = small("fcn", **arguments), small("fcn", **arguments)
    twin.load_state_dict(mirrored(net))
    x = images(1, 1, 64, 96)
    agree(twin(x.flip(-1)), net(x).flip(-1))


@pytest.mark.parametrize("skips", [(), ("pool4",), ("pool3",), ("pool4", "pool3")])
def test_an_fcn_adds_the_scores_of_the_maps_it_skips_from(skips):
    net = small("fcn", backbone=VGG, num_classes=3, hidden=4, skip=skips)
    x = images(2, 1, 50, 70)
    *_, pool3, pool4, pool5 = net.backbone.maps(x)
    y = torch.relu(F.conv2d(pool5, net.top[0].weight, net.top[0].bias, padding=3))
    y = net.top[6](torch.relu(net.top[3](y)))
    for name, step, pool in zip(("pool4", "pool3"), net.steps, (pool4, pool3), strict=True):
        y = F.conv_transpose2d(y, step.up.weight, stride=2, padding=1)[..., : pool.shape[2], : pool.shape[3]]
        if name in skips:
            y = y + step.score(pool)
    y = F.conv_transpose2d(y, net.last.weight, stride=8, padding=4)[..., :50, :70]
    agree(net(x), y)


def test_an_fcn_trained_at_once_scales_pool4_by_a_hundredth_and_pool3_by_a_ten_thousandth():
    arguments = {"backbone": VGG, "num_classes": 3, "hidden": 4}
    scaled, plain = small("fcn", scaled=True, **arguments), small("fcn", **arguments)
    plain.load_state_dict({key.replace(".score.1.", ".score."): t for key, t in scaled.state_dict().items()})
    assert not torch.allclose(scaled(images(2, 1, 50, 70)), plain(images(2, 1, 50, 70)))
    with torch.no_grad():
        for step, factor in zip(plain.steps, (1e-2, 1e-4), strict=True):
            step.score.weight.mul_(factor)
    x = images(2, 1, 50, 70)
    agree(scaled(x), plain(x))


@pytest.mark.parametrize("kind", ["32s", "16s", "8s"])
def test_the_last_step_of_an_fcn_is_the_fixed_bilinear_interpolation_and_those_before_are_trained(kind):
    net = nets.build("fcn", backbone=VGG, num_classes=3, hidden=4, kind=kind)
    assert [key for key, p in net.named_parameters() if not p.requires_grad] == ["last.weight"]
    assert torch.equal(net.last.weight, bilinear(3, {"32s": 32, "16s": 16, "8s": 8}[kind]).weight)


def test_the_scores_of_an_fcn_begin_at_zero_and_a_finer_one_takes_the_weights_of_a_coarser():
    coarse = nets.build("fcn", backbone=VGG, hidden=4, kind="16s").eval()
    fine = nets.build("fcn", backbone=VGG, hidden=4, kind="8s").eval()
    assert not fine(torch.randn(1, 1, 32, 32)).any()
    taken = {key: t for key, t in coarse.state_dict().items() if not key.startswith("last")}
    assert fine.load_state_dict(taken, strict=False).unexpected_keys == []


def test_strides_are_found_without_computing():
    backbones = {"vgg": (2, 4, 8, 16, 32), "resnet": (1, 2, 4), "resnet18": (4, 8, 16, 32)}
    built = {"vgg": nets.build(**VGG), "resnet": nets.build(**RESNET)}
    built["resnet18"] = nets.build(**RESNET18)
    before = {name: {k: t.clone() for k, t in net.state_dict().items()} for name, net in built.items()}
    for name, expected in backbones.items():
        assert strides(built[name]) == list(expected)
        assert all(torch.equal(t, before[name][key]) for key, t in built[name].state_dict().items())


# U-Net


def left(size: int, levels: int) -> int:
    """The size of the output, or 0 where a maximum halves an odd size or nothing is left."""
    for _ in range(levels):
        size -= 4
        if size < 2 or size % 2:
            return 0
        size //= 2
    size -= 4
    for _ in range(levels):
        if size < 1:
            return 0
        size = 2 * size - 4
    return max(size, 0)


@pytest.mark.parametrize("levels", [0, 1, 2, 3, 4])
def test_the_sizes_a_valid_unet_takes_are_those_that_leave_something_and_halve_evenly(levels):
    net = nets.build("unet", width=1, levels=levels)
    for size in range(1, 260):
        fits = True
        try:
            net.check(size)
        except SkipformError:
            fits = False
        assert fits == (left(size, levels) > 0), size
        if fits:
            assert left(size, levels) == size - 2 * net.margin


def test_the_papers_tile_of_572_scores_its_inner_388():
    with torch.device("meta"):
        assert nets.build("unet", image_size=572)(torch.empty(1, 1, 572, 572)).shape == (1, 2, 388, 388)


def test_the_unet_has_the_papers_23_convolutions():
    with torch.device("meta"):
        net = nets.build("unet")
    assert sum(isinstance(m, nn.Conv2d | nn.ConvTranspose2d) for m in net.modules()) == 23


def test_the_unet_drops_after_the_second_convolutions_of_512_and_1024_channels():
    """dropout_d3c and dropout_d4c of the released net, whose only ones they are."""
    with torch.device("meta"):
        net = nets.build("unet", dropout=0.5)
    levels = [list(level) for level in net.down]
    assert [level[2].out_channels for level in levels] == [64, 128, 256, 512, 1024]
    ends = [[type(layer) for layer in level[3:]] for level in levels]
    assert ends == [[nn.ReLU]] * 3 + [[nn.ReLU, nn.Dropout]] * 2
    assert [m.p for m in net.modules() if isinstance(m, nn.Dropout)] == [0.5, 0.5]


def test_the_unet_is_the_papers_figure():
    net = small("unet", width=2, levels=2)
    layers = iter([m for m in net.modules() if isinstance(m, nn.Conv2d)])
    x, skipped = images(2, 1, 44, 60), []

    def two(y: Tensor) -> Tensor:
        for _ in range(2):
            layer = next(layers)
            y = torch.relu(F.conv2d(y, layer.weight, layer.bias))
        return y

    y = x
    for _ in range(2):
        skipped.append(two(y))
        y = F.max_pool2d(skipped[-1], 2)
    y = two(y)
    for join, copied in zip(net.joins, reversed(skipped), strict=True):
        y = F.conv_transpose2d(y, join.up.weight, join.up.bias, stride=2)
        cropped = torchvision.transforms.functional.center_crop(copied, list(y.shape[-2:]))
        y = two(torch.cat((y, cropped), 1))
    head = next(layers)
    agree(net(x), F.conv2d(y, head.weight, head.bias))


@settings(max_examples=40)
@given(h=st.integers(1, 40), w=st.integers(1, 40), levels=st.integers(0, 3))
def test_a_padded_unet_scores_every_pixel_of_any_image(h, w, levels):
    net = nets.build("unet", width=1, levels=levels, padding="same").eval()
    assert net(torch.randn(1, 1, h, w)).shape == (1, 2, h, w)
    assert net.margin == 0


@pytest.mark.parametrize(("skip", "copies"), [("add", (1, 1)), ("none", (1, 0))])
def test_a_unet_that_adds_or_leaves_out_is_one_that_concatenates(skip, copies):
    """Proposition 1: W (u; s) = W_u u + W_s s. Addition is W_s = W_u, no skip W_s = 0."""
    arguments = {"width": 2, "levels": 2, "padding": "same"}
    net, full = small("unet", skip=skip, **arguments), small("unet", **arguments)
    state = net.state_dict()
    for i in range(2):
        weight = state[f"up.{i}.0.weight"]
        state[f"up.{i}.0.weight"] = torch.cat([k * weight for k in copies], 1)
    full.load_state_dict(state)
    agree(full(images(2, 1, 13, 18)), net(images(2, 1, 13, 18)))


# FPN

CHANNELS = (4, 8, 16)


def pyramid_inputs() -> list[Tensor]:
    return [images(2, c, s, s + 1) for c, s in zip(CHANNELS, (11, 6, 3), strict=True)]


def test_the_pyramid_is_torchvisions():
    ours = small("fpn", backbone=RESNET, channels=5).pyramid
    theirs = torchvision.ops.FeaturePyramidNetwork(list(CHANNELS), 5).double()
    copy_in_order(theirs, ours)
    maps = pyramid_inputs()
    expected = theirs({str(i): m for i, m in enumerate(maps)})
    for actual, other in zip(ours(maps), expected.values(), strict=True):
        agree(actual, other)


def copy_in_order(to: nn.Module, source: nn.Module) -> None:
    kinds = (nn.Conv2d, nn.BatchNorm2d)
    layers = [[m for m in net.modules() if isinstance(m, kinds)] for net in (to, source)]
    for one, other in zip(*layers, strict=True):
        one.load_state_dict(other.state_dict())


def test_the_pyramid_on_resnet_50_is_as_large_as_torchvisions():
    backbone = {"name": "resnet", "depth": 50, "stages": 4, "first": "7x7", "width": 64, "option": "B"}
    with torch.device("meta"):
        net = nets.build("fpn", backbone=backbone)
        theirs = torchvision.ops.FeaturePyramidNetwork([256, 512, 1024, 2048], 256)
    counts = [sum(p.numel() for p in part.parameters()) for part in (net.pyramid, theirs)]
    assert counts == [3_344_384] * 2


@pytest.mark.parametrize(("laterals", "top_down"), [(True, True), (True, False), (False, True)])
def test_a_pyramid_is_the_sum_of_the_terms_it_has(laterals, top_down):
    net = small("fpn", backbone=RESNET, channels=5, skip="add" if laterals else "none", top_down=top_down).pyramid
    maps = pyramid_inputs()
    merged = [net.laterals[2](maps[2])]
    for i in (1, 0):
        terms = [net.laterals[i](maps[i])] if laterals else []
        if top_down:
            h, w = maps[i].shape[-2:]
            above = merged[0]
            rows = torch.arange(h) * above.shape[2] // h
            columns = torch.arange(w) * above.shape[3] // w
            terms.append(above[:, :, rows][..., columns])
        merged.insert(0, sum(terms))
    for actual, out, m in zip(net(maps), net.outs, merged, strict=True):
        agree(actual, out(m))


def test_maps_are_named_by_their_stage():
    shapes = {
        None: {"p2": 16, "p3": 8, "p4": 4},
        2: {"p3": 8, "p4": 4},
    }
    for levels, expected in shapes.items():
        actual = small("fpn", backbone=RESNET, channels=4, levels=levels)(images(1, 1, 16, 16))
        assert {key: p.shape[-1] for key, p in actual.items()} == expected


def detectors() -> tuple[nn.Module, nn.Module]:
    """Ours on an 18-layer ResNet, and torchvision's parts put together as its own builders do, with equal weights."""
    theirs_body = torchvision.models.resnet18()
    body = nets.build("resnet", depth=18, stages=4, first="7x7", width=64, option="B")
    sides = (16, 32, 64, 128, 256)
    arguments = {"levels": 3, "extra": "convolutions", "head": "retinanet", "num_classes": 4, "channels": 8}
    torch.manual_seed(0)
    ours = nets.build("fpn", backbone=body, anchors=sides, **arguments)
    extra = torchvision.ops.feature_pyramid_network.LastLevelP6P7(8, 8)
    backbone = torchvision.models.detection.backbone_utils._resnet_fpn_extractor(theirs_body, 5, [2, 3, 4], extra)
    backbone.fpn = torchvision.ops.FeaturePyramidNetwork([128, 256, 512], 8, extra)
    backbone.out_channels = 8
    octaves = tuple((a, int(a * 2 ** (1 / 3)), int(a * 2 ** (2 / 3))) for a in sides)
    anchors = torchvision.models.detection.anchor_utils.AnchorGenerator(octaves, ((0.5, 1.0, 2.0),) * 5)
    plain = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3, "min_size": 64, "max_size": 64}
    theirs = torchvision.models.detection.RetinaNet(backbone, 4, anchor_generator=anchors, **plain)
    copy_in_order(theirs, ours)
    return ours.double(), theirs.double()


def test_p6_is_computed_from_c5_where_retinanets_paper_does_so():
    """P6 = conv(C5), P7 = conv(relu(P6)), both 3x3 of stride 2, even where C5 has as many channels as the pyramid."""
    for channels in (5, 16):
        net = small("fpn", backbone=RESNET, channels=channels, extra="convolutions-c5")
        x = images(2, 1, 32, 32)
        c5 = net.backbone.maps(x)[-1]
        assert c5.shape[1] == 16
        p6 = F.conv2d(c5, net.extra.p6.weight, net.extra.p6.bias, 2, 1)
        p7 = F.conv2d(torch.relu(p6), net.extra.p7.weight, net.extra.p7.bias, 2, 1)
        *_, actual6, actual7 = net(x).values()
        agree(actual6, p6)
        agree(actual7, p7)


def test_a_frozen_pyramid_trains_neither_norms_nor_stem_nor_first_stage_and_changes_no_output():
    free, frozen = (small("fpn", backbone=RESNET, channels=4, frozen=f) for f in (False, True))
    state = free.state_dict()
    frozen.load_state_dict({key: state[key] for key in frozen.state_dict()})
    agree(flat(frozen(images(2, 1, 16, 16))), flat(free(images(2, 1, 16, 16))), 1e-8)
    assert not [m for m in frozen.modules() if isinstance(m, nn.BatchNorm2d)]
    fixed = {key.rsplit(".", 1)[0] for key, p in frozen.named_parameters() if not p.requires_grad}
    convolutions = {key for key, m in frozen.backbone.named_modules() if isinstance(m, nn.Conv2d)}
    assert fixed == {f"backbone.{key}" for key in convolutions if key.startswith(("stem.", "stages.0."))}


def test_the_detector_is_torchvisions_retinanet():
    ours, theirs = detectors()
    x = [images(3, 64, 64), images(3, 64, 64).flip(-1)]
    boxes = torch.tensor([[4.0, 6.0, 30.0, 28.0], [20.0, 10.0, 60.0, 60.0]], dtype=torch.float64)
    labels = torch.tensor([0, 3])
    targets = [{"boxes": boxes, "labels": labels}, {"boxes": boxes[:0], "labels": labels[:0]}]
    losses, expected = ours.train()(x, targets), theirs.train()(x, targets)
    assert losses.keys() == expected.keys() == {"classification", "bbox_regression"}
    for key, loss in losses.items():
        agree(loss, expected[key])
    copy_in_order(theirs, ours)
    for net in (ours, theirs):
        net.eval().score_thresh = 0.0
    for actual, other in zip(ours(x), theirs(x), strict=True):
        assert len(actual["boxes"]) > 0
        for key in ("scores", "boxes"):
            agree(actual[key], other[key])
        assert torch.equal(actual["labels"], other["labels"])


def test_a_narrow_detector_learns_two_boxes_and_survives_safetensors(tmp_path: Path):
    torch.manual_seed(0)
    net = nets.build("fpn", backbone=RESNET, **DETECT)
    canvas = torch.zeros(1, 24, 24)
    canvas[0, 2:10, 2:10], canvas[0, 12:22, 12:20] = 1, -1
    target = {"boxes": torch.tensor([[2.0, 2, 10, 10], [12.0, 12, 20, 22]]), "labels": torch.tensor([0, 2])}
    optimizer, totals = torch.optim.Adam(net.parameters(), 3e-3), []
    for _ in range(60):
        loss = torch.stack(list(net([canvas] * 2, [target] * 2).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(loss.item())
    assert totals[-1] < 0.2 * totals[0]  # it learns: the loss is far below where it started
    assert [key for key, p in net.named_parameters() if p.grad is None] == []
    net.eval()
    (actual,) = net([canvas])
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    twin = nets.build("fpn", backbone=RESNET, **DETECT).eval()
    twin.load_state_dict(load_file(tmp_path / "net.safetensors"))
    (again,) = twin([canvas])
    assert all(torch.equal(actual[key], again[key]) for key in ("boxes", "scores", "labels"))
    # the two best boxes of different classes lie on the two squares
    best = [actual["boxes"][actual["labels"] == label][:1] for label in (0, 2)]
    overlap = torchvision.ops.box_iou(torch.cat(best), target["boxes"])
    assert bool((overlap.diag() > 0.5).all())


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("fcn", {}, "net 'fcn'.backbone: missing"),
        ("fcn", {"backbone": {"name": "mlp"}}, "net 'fcn': backbone Sequential has no stages; it takes one that has"),
        ("fcn", {"backbone": VGG, "kind": "4s"}, "accepted: '32s' | '16s' | '8s'"),
        (
            "fcn",
            {"backbone": ONE_STAGE},
            "kind='8s' takes a backbone of 3 stages, not 1",
        ),
        ("unet", {"image_size": 570}, "images of 570 are not accepted without padding; it takes 188, 204, 220, ..."),
        ("unet", {"image_size": 570}, "(steps of 16; nearest 572)"),
        ("unet", {"skip": "cat"}, "accepted: 'concat' | 'add' | 'none'"),
        ("fpn", {"backbone": RESNET, "skip": "none", "top_down": False}, "it takes one of them, or neither"),
        ("fpn", {"backbone": RESNET, "levels": 4}, "levels=4 is not accepted; it takes 1 to 3"),
        ("fpn", {"backbone": RESNET} | DETECT | {"anchors": (8, 16)}, "it takes one side for each of 3"),
    ],
)
def test_a_request_that_cannot_be_met_is_one_line_that_says_what_is_accepted(name, arguments, message):
    with pytest.raises(SkipformError) as raised:
        nets.build(name, **arguments)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("h", "w"), [(572, 571), (100, 188), (16, 16)])
def test_an_image_that_does_not_fit_is_an_error_that_names_the_sizes_that_do(h, w):
    with pytest.raises(SkipformError, match=f"images of {h}x{w} are not accepted without padding; it takes 188, 204"):
        nets.build("unet", width=1)(torch.zeros(1, 1, h, w))
