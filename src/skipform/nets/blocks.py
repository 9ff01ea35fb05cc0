"""The blocks that the nets share; an architecture is an arrangement of them.

Letters: n batch, c channels, h w height and width, s stride. Every block keeps the batch in front, changes nothing in
place and (in eval mode) is composed of affine maps, ReLUs and the merge layers below.
"""

from collections.abc import Callable, Collection, Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from skipform.errors import SkipformError

MergeKind = Literal["add", "subtract", "multiply", "average", "maximum", "minimum", "concat", "none"]
ShortcutOption = Literal["A", "B", "C"]


def with_skip(skip: Literal["add", "none"] | tuple[str, ...], parts: Collection[str]) -> Collection[str]:
    """The parts of a net that have a skip: all for "add", none for "none", or those that a tuple names."""
    if isinstance(skip, str):
        return parts if skip == "add" else ()
    return skip


def conv(c_in: int, c_out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Convolution without bias that keeps h, w at stride 1 and gives ceil(h/s), ceil(w/s) otherwise (odd kernels)."""
    return nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)


def conv_bn(c_in: int, c_out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(conv(c_in, c_out, kernel, stride, groups), nn.BatchNorm2d(c_out))


def conv_bn_relu(c_in: int, c_out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(*conv_bn(c_in, c_out, kernel, stride, groups), nn.ReLU())


def bn_relu_conv(c_in: int, c_out: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(c_in), nn.ReLU(), conv(c_in, c_out, kernel, stride))


def chain(order: str, c_in: int, *convolutions: nn.Conv2d) -> nn.Sequential:
    """Layers in the order of the letters: c is the next convolution, b a batch norm, r a ReLU. "brcbrc" is what
    "Identity mappings in deep residual networks" calls full pre-activation."""
    layers, rest = nn.Sequential(), iter(convolutions)
    for letter in order:
        if letter == "c":
            convolution = next(rest)
            layers.append(convolution)
            c_in = convolution.out_channels
        else:
            layers.append(nn.BatchNorm2d(c_in) if letter == "b" else nn.ReLU())
    return layers


def basic(c_in: int, c_out: int, stride: int = 1, order: str = "cbrcb") -> nn.Sequential:
    """Two 3x3 convolutions: the branch of ResNet-18, ResNet-34 and the CIFAR ResNets ("Deep residual learning", Figure
    5 left)."""
    return chain(order, c_in, conv(c_in, c_out, 3, stride), conv(c_out, c_out))


def bottleneck(
    c_in: int, c_mid: int, c_out: int, stride: int = 1, groups: int = 1, order: str = "cbrcbrcb"
) -> nn.Sequential:
    """Convolutions of 1x1, 3x3 and 1x1, the stride and the groups in the second as in torchvision: "Deep residual
    learning", Figure 5 right; with groups, "Aggregated residual transformations", Figure 3(c)."""
    middle = conv(c_mid, c_mid, 3, stride, groups)
    return chain(order, c_in, conv(c_in, c_mid, 1), middle, conv(c_mid, c_out, 1))


def classifier(channels: int, num_classes: int) -> nn.Sequential:
    """The global average, then one affine map: (n, c, h, w) -> (n, classes), for any h, w."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


class ZeroPadded(nn.Module):
    """The shortcut without parameters between shapes (option A): every s-th pixel; the missing channels are zero and
    come last."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.extra, self.stride = c_out - c_in, stride

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]  # n c_in ceil(h/s) ceil(w/s)
        return F.pad(x, (0, 0, 0, 0, 0, self.extra))  # n c_out ceil(h/s) ceil(w/s)


def shortcut(option: ShortcutOption, c_in: int, c_out: int, stride: int = 1) -> nn.Module:
    """Options of "Deep residual learning", Section 4.1: A zero-padded identity; B projection where the shape changes;
    C projection always. A projection is a 1x1 convolution and batch norm."""
    if option != "C" and stride == 1 and c_in == c_out:
        return nn.Identity()
    return ZeroPadded(c_in, c_out, stride) if option == "A" else conv_bn(c_in, c_out, 1, stride)


def _average(branch: Tensor, shortcut: Tensor) -> Tensor:
    return (branch + shortcut) / 2


def _concat(branch: Tensor, shortcut: Tensor) -> Tensor:
    return torch.cat((branch, shortcut), 1)


def _none(branch: Tensor, shortcut: Tensor) -> Tensor:
    return branch


MERGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "subtract": torch.sub,
    "multiply": torch.mul,
    "average": _average,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "concat": _concat,
    "none": _none,
}


class Merge(nn.Module):
    """merge(B(x), S(x)): the elementwise merge layers of Keras, all keeping the shape (n, c, ...).

    "concat" is the concatenation (B; S) followed by the affine map that brings 2c channels back to c, without bias;
    it starts at (I I), as the addition that it can always express (Proposition 1). "none" is B(x), without the skip.
    """

    def __init__(self, kind: MergeKind, channels: int, mix: Callable[..., nn.Conv2d | nn.Linear] = nn.Conv2d):
        super().__init__()
        self.kind, self.join = kind, MERGES[kind]
        self.mix: nn.Module = nn.Identity()
        if kind == "concat":
            self.mix = mix(2 * channels, channels, **({"kernel_size": 1} if mix is nn.Conv2d else {}), bias=False)
            eye = torch.eye(channels)
            self.mix.weight = nn.Parameter(torch.cat((eye, eye), 1).view_as(self.mix.weight))

    def forward(self, branch: Tensor, shortcut: Tensor) -> Tensor:
        return self.mix(self.join(branch, shortcut))


class Skip(nn.Module):
    """x -> after(merge(branch(x), shortcut(x)))."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module, merge: nn.Module, after: nn.Module | None = None):
        super().__init__()
        self.branch, self.shortcut, self.merge = branch, shortcut, merge
        self.after = after or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.merge(self.branch(x), self.shortcut(x)))


class Gated(nn.Module):
    """x -> t * branch(x) + (1 - t) * shortcut(x) elementwise, t = gate(x) in (0, 1): the layer of a highway network. It
    is not piecewise linear."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module, gate: nn.Module):
        super().__init__()
        self.branch, self.shortcut, self.gate = branch, shortcut, gate

    def forward(self, x: Tensor) -> Tensor:
        carried = self.shortcut(x)
        return carried + self.gate(x) * (self.branch(x) - carried)


class Staged(nn.Module):
    """A stem, stages and a head. `maps` returns the outputs of all stages, of `channels` channels: what a dense
    predictor needs of its backbone."""

    def __init__(self, stem: nn.Module, stages: Iterable[nn.Module], head: nn.Module, channels: Iterable[int]):
        super().__init__()
        self.stem, self.stages, self.head = stem, nn.ModuleList(stages), head
        self.channels = tuple(channels)

    def maps(self, x: Tensor) -> list[Tensor]:
        x, maps = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.maps(x)[-1])


def stack(
    c_in: int, channels: Iterable[int], counts: Iterable[int], block: Callable[[int, int, int], nn.Module]
) -> list[nn.Module]:
    """The stages of a net, counts[k] blocks block(c_in, c_out, stride) in stage k; all but the first begin with stride
    2."""
    stages: list[nn.Module] = []
    for c, count in zip(channels, counts, strict=True):
        strides = [2 if stages else 1] + [1] * (count - 1)
        stages.append(nn.Sequential(*[block(c if i else c_in, c, stride) for i, stride in enumerate(strides)]))
        c_in = c
    return stages


def stem(kind: Literal["3x3", "7x7"], c_in: int, c_out: int) -> nn.Sequential:
    """A 3x3 convolution for small images; for ImageNet a 7x7 convolution and max pooling, both of stride 2, which give
    (n, c_out, ceil(h/4), ceil(w/4))."""
    if kind == "3x3":
        return conv_bn_relu(c_in, c_out)
    return conv_bn_relu(c_in, c_out, 7, 2).append(nn.MaxPool2d(3, 2, 1))


def init_he(net: nn.Module, mode: Literal["fan_in", "fan_out"] = "fan_out") -> nn.Module:
    """He initialisation, in place: weights of convolutions ~ N(0, 2 / fan), biases of linear layers 0. fan_out = k^2
    c_out is what the authors of the residual nets and of DenseNet publish. The affine map of a concatenating merge
    keeps its (I I)."""
    merged = {module.mix for module in net.modules() if isinstance(module, Merge)}
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module not in merged:
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
        elif isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    return net


def units(net: str, depth: int, per: int, rest: int) -> int:
    """n with depth = per * n + rest and n >= 1, or a SkipformError."""
    n, left = divmod(depth - rest, per)
    if left or n < 1:
        raise SkipformError(f"net {net!r}: depth={depth} is not accepted; it takes {per}n+{rest} with n >= 1")
    return n


def without_head(net: str, backbone: nn.Module) -> Staged:
    """Stem and stages of the backbone of `net`, sharing its parameters; a SkipformError unless it is `Staged`."""
    if not isinstance(backbone, Staged):
        kind = type(backbone).__name__
        raise SkipformError(f"net {net!r}: backbone {kind} has no stages; it takes one that has, such as vgg or resnet")
    return Staged(backbone.stem, backbone.stages, nn.Identity(), backbone.channels)


def freeze(body: Staged) -> None:
    """Change a backbone in place: its batch norms become the affine maps they are in eval mode, which nothing trains,
    and stem and first stage no longer train. The treatment of ImageNet weights in RetinaNet and DETR."""
    from torchvision.ops import FrozenBatchNorm2d  # torchvision is slow to import, and most nets need none of it

    for parent in list(body.modules()):
        for name, norm in list(parent.named_children()):
            if isinstance(norm, nn.BatchNorm2d):
                constant = FrozenBatchNorm2d(norm.num_features, norm.eps)
                constant.load_state_dict(norm.state_dict())
                setattr(parent, name, constant)
    body.stem.requires_grad_(False)
    body.stages[0].requires_grad_(False)


class Maps(nn.Module):
    """The `maps` of a net of stages as its output, which `functional_call` needs."""

    def __init__(self, body: Staged):
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.body.maps(x)


def strides(body: Staged, size: int = 128) -> list[int]:
    """The stride of every map: how many pixels of the image lie between two neighbours. Read off the shapes that an
    image of `size` pixels gives on the meta device, where nothing is computed."""
    maps = Maps(body)
    tensors = {key: t.to("meta") for key, t in [*maps.named_parameters(), *maps.named_buffers()]}
    c = next(module.in_channels for module in body.modules() if isinstance(module, nn.Conv2d))
    x = torch.empty(2, c, size, size, device="meta", dtype=next(body.parameters()).dtype)
    return [size // m.shape[-1] for m in functional_call(maps, tensors, (x,))]
