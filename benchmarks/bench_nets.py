"""The cost of a training step of our nets, divided by that of the same net of a library.

    python benchmarks/bench_nets.py [part of a name ...]      about 2 minutes

A step is forward, backward and SGD with momentum, for the mean square of the outputs, in a bare loop on one thread. The
ratio is that of the medians of processor time over 9 interleaved rounds, each the minimum of 3 steps. No dropout. The
target is 1.0.

Our nets do not work in place; torchvision's do (ReLU, addition), which saves memory traffic where maps do not fit the
cache. A second ratio, against their net with activations that are not in place, shows how much this matters.
"""

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torchvision
import transformers
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from skipform import nets

ROUNDS = 9
SMALL = {"stages": 4, "first": "7x7", "width": 64, "option": "B"}
IMAGENET = {"num_classes": 1000, "first": "7x7"}


class Twin(NamedTuple):
    library: str
    ours: Callable[[], nn.Module]
    theirs: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]


def images(*shape: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randn(shape),)


def tokens(*shape: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randint(512, shape),)


def torchvision_resnet20() -> nn.Module:
    """ResNet-20 from torchvision's blocks: it has none for small images."""
    layers, c_in = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)], 16
    for c, stride in ((16, 1), (16, 1), (16, 1), (32, 2), (32, 1), (32, 1), (64, 2), (64, 1), (64, 1)):
        side = nn.Sequential(nn.Conv2d(c_in, c, 1, stride, bias=False), nn.BatchNorm2d(c)) if stride > 1 else None
        layers.append(BasicBlock(c_in, c, stride, side))
        c_in = c
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class Seq2Seq(nn.Transformer):
    """torch's Transformer with a causal mask, which ours always has."""

    def forward(self, source: Tensor, target: Tensor) -> Tensor:  # type: ignore[override]
        mask = self.generate_square_subsequent_mask(target.shape[1])
        return super().forward(source, target, tgt_mask=mask, tgt_is_causal=True)


class PlainUNet(nn.Module):
    """The padded U-Net, written directly with torch.nn."""

    def __init__(self, width: int, levels: int):
        super().__init__()
        c = [width * 2**i for i in range(levels + 1)]
        self.down = nn.ModuleList(self.two(a, b) for a, b in zip([1, *c], c, strict=False))
        self.wider = nn.ModuleList(nn.ConvTranspose2d(c[i + 1], c[i], 2, 2) for i in reversed(range(levels)))
        self.up = nn.ModuleList(self.two(2 * c[i], c[i]) for i in reversed(range(levels)))
        self.head = nn.Conv2d(width, 2, 1)

    @staticmethod
    def two(c_in: int, c: int) -> nn.Sequential:
        first, second = nn.Conv2d(c_in, c, 3, padding=1), nn.Conv2d(c, c, 3, padding=1)
        return nn.Sequential(first, nn.ReLU(inplace=True), second, nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        maps = []
        for level in self.down:
            x = level(functional.max_pool2d(x, 2) if maps else x)
            maps.append(x)
        for wider, level, copied in zip(self.wider, self.up, maps[-2::-1], strict=True):
            x = level(torch.cat((wider(x), copied), 1))
        return self.head(x)


def torchvision_fpn() -> nn.Module:
    extractor = torchvision.models.detection.backbone_utils._resnet_fpn_extractor
    backbone = extractor(torchvision.models.resnet18(), 5, [1, 2, 3, 4])
    backbone.fpn = torchvision.ops.FeaturePyramidNetwork([64, 128, 256, 512], 64, LastLevelMaxPool())
    return backbone


def transformers_detr() -> nn.Module:
    sizes = {"embedding_size": 16, "hidden_sizes": [16, 32, 64, 128], "depths": [2, 2, 2, 2], "layer_type": "basic"}
    encoder = {"encoder_layers": 2, "encoder_ffn_dim": 256, "encoder_attention_heads": 4}
    decoder = {"decoder_layers": 2, "decoder_ffn_dim": 256, "decoder_attention_heads": 4}
    body = transformers.ResNetConfig(out_features=["stage4"], **sizes)
    heads = {"d_model": 64, "num_queries": 20, "num_labels": 5, "dropout": 0.0}
    net = transformers.DetrForObjectDetection(
        transformers.DetrConfig(backbone_config=body, **heads, **encoder, **decoder)
    )
    for name, p in net.model.backbone.named_parameters():  # the library freezes a backbone that it builds
        p.requires_grad_("embedder" not in name and "stages.0" not in name)
    return net


def our_detr() -> nn.Module:
    body = nets.build("resnet", depth=18, stages=4, first="7x7", width=16, option="B")
    depths = {"encoder_depth": 2, "decoder_depth": 2, "hidden": 256}
    sizes = {"num_classes": 5, "queries": 20, "width": 64, "heads": 4}
    return nets.build("detr", backbone=body, frozen=True, dropout=0.0, **sizes, **depths)


def ours(name: str, **arguments: Any) -> Callable[[], nn.Module]:
    return lambda: nets.build(name, **arguments)


STREAM = {"width": 128, "depth": 4, "heads": 4, "dropout": 0.0}
GPT = {"n_embd": 128, "n_layer": 4, "n_head": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
BERT = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}
BERT |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "max_position_embeddings": 128}

TWINS = {
    "resnet 20, option B": Twin(
        "torchvision", ours("resnet", depth=20, option="B"), torchvision_resnet20, images(32, 3, 32, 32)
    ),
    "resnet 18": Twin(
        "torchvision",
        ours("resnet", depth=18, num_classes=1000, **SMALL),
        torchvision.models.resnet18,
        images(8, 3, 64, 64),
    ),
    "densenet 121": Twin(
        "torchvision",
        ours("densenet", depth=121, growth=32, bottleneck=True, compression=0.5, **IMAGENET),
        torchvision.models.densenet121,
        images(4, 3, 64, 64),
    ),
    "resnext 50, 32x4d": Twin(
        "torchvision",
        ours("resnext", depth=50, cardinality=32, bottleneck_width=4, stages=4, **IMAGENET),
        torchvision.models.resnext50_32x4d,
        images(4, 3, 64, 64),
    ),
    "fpn on resnet 18": Twin(
        "torchvision",
        lambda: nets.build("fpn", backbone=nets.build("resnet", depth=18, **SMALL), extra="pool", channels=64),
        torchvision_fpn,
        images(4, 3, 64, 64),
    ),
    "unet": Twin(
        "torch.nn",
        ours("unet", width=16, levels=3, padding="same"),
        lambda: PlainUNet(16, 3),
        images(4, 1, 64, 64),
    ),
    "vit": Twin(
        "torchvision",
        ours("vit", patch=4, hidden=512, **STREAM),
        lambda: torchvision.models.VisionTransformer(32, 4, 4, 4, 128, 512, num_classes=10),
        images(16, 3, 32, 32),
    ),
    "gpt": Twin(
        "transformers",
        ours("gpt", vocab_size=512, context=128, **STREAM),
        lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=512, n_positions=128, use_cache=False, **GPT)
        ),
        tokens(8, 128),
    ),
    "bert": Twin(
        "transformers",
        ours("bert", vocab_size=512, context=128, **STREAM),
        lambda: transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=512, **BERT)),
        tokens(8, 128),
    ),
    "transformer": Twin(
        "torch.nn",
        ours("transformer", vocab_size=None, final_norm=True, hidden=512, **STREAM),
        lambda: Seq2Seq(128, 4, 4, 4, 512, 0.0, batch_first=True),
        lambda: (torch.randn(8, 64, 128), torch.randn(8, 64, 128)),
    ),
    "detr": Twin(
        "transformers",
        our_detr,
        transformers_detr,
        images(4, 3, 128, 128),
    ),
}


def stepper(net: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[[], float]:
    """A function that does one training step of the net and returns its processor time in seconds."""
    trained = [p for p in net.train().parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, 0.01, 0.9, weight_decay=1e-4)

    def step() -> float:
        start = time.process_time()
        optimizer.zero_grad()
        torch.stack([x.square().mean() for x in scored(net(*inputs))]).sum().backward()
        optimizer.step()
        return time.process_time() - start

    return step


def scored(out: Any) -> list[Tensor]:
    """The outputs that both nets have."""
    if isinstance(out, Mapping):
        names = [name for name in ("logits", "boxes", "pred_boxes") if name in out] or list(out)
        return [out[name] for name in names]
    return [out]


def not_in_place(net: nn.Module) -> nn.Module:
    """The net with activations that do not work in place."""
    for module in net.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    return net


def main(*parts: str) -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    for name, twin in TWINS.items():
        if parts and not any(part in name for part in parts):
            continue
        torch.manual_seed(0)
        inputs, theirs = twin.inputs(), twin.theirs()
        writes = any(getattr(module, "inplace", False) for module in theirs.modules())
        others = [theirs, not_in_place(twin.theirs())] if writes else [theirs]
        sides = [stepper(net, inputs) for net in (twin.ours(), *others)]
        for side in sides:  # warm-up
            side()
        times = [[min(side() for _ in range(3)) for side in sides] for _ in range(ROUNDS)]
        mine, *rest = (1e3 * statistics.median(side) for side in zip(*times, strict=True))
        line = (
            f"{name:20} ours {mine:6.1f} ms per step, {twin.library:12} {rest[0]:6.1f} ms, ratio {mine / rest[0]:.3f}"
        )
        print(line, *(f"; not in place {other:6.1f} ms, ratio {mine / other:.3f}" for other in rest[1:]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
