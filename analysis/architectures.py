# %% [markdown]
# # The architectures, drawn from their graphs
#
# The survey articles explain skip connections in pictures of blocks. Here the same pictures are drawn from the nets of
# this package: `skipform.compiler.diagram` reads the graph that torch captures of a net, one node per operation, and
# `layered.py` computes where each node lies. **Nothing is placed by hand**, and another net gives another picture.
#
# A box is an operation, or a part of the net drawn whole (pale blue, as convolutions are); a circle is a sum. The
# longest path is thin; what leaves it and comes back, the **skip, is thick**.

# %%
import layered
import style
import torch
from torch import nn

from skipform import nets
from skipform.compiler.diagram import Diagram, diagram

style.use()
ATTENTION = {"attention.f": "self-attention", "cross.f": "cross-attention", "feed_forward.f": "feed forward"}


def block(name: str, channels: int, part: str, **arguments: object) -> Diagram:
    """A part of a net of images, by its path, on maps of so many channels."""
    net = nets.build(name, **arguments).eval().get_submodule(part)
    return diagram(net, torch.zeros(1, channels, 16, 16), {"*branch": ""} if name == "densenet" else None)


def transformer_layer(part: str, inputs: int) -> Diagram:
    net = nets.build("transformer", vocab_size=None, depth=1, width=8, heads=2, hidden=16).eval()
    return diagram(net.get_submodule(part), (torch.zeros(1, 4, 8),) * inputs, ATTENTION)


def unet() -> Diagram:
    net = nets.build("unet", levels=3, width=4, padding="same").eval()
    return diagram(net, torch.zeros(1, 1, 32, 32), {"down.*": "", "up.*": ""})


def fpn() -> Diagram:
    backbone = nets.build("resnet", depth=8, width=4)
    net: nn.Module = nets.build("fpn", backbone=backbone, channels=4).eval()
    return diagram(net, torch.zeros(1, 3, 32, 32), {"backbone.stem": "stem", "backbone.stages.*": "stage"})


# %%
SCHEMATICS = {
    "without_skip": block("resnet", 16, "stages.0.0", depth=8, skip="none"),
    "with_skip": block("resnet", 16, "stages.0.0", depth=8),
    "projection_block": block("projection_blocks", 3, "stages.0"),
    "resnext_block": block("resnext", 256, "stages.0.1", depth=20, cardinality=32, bottleneck_width=4),
    "dense_block": block("densenet", 16, "stages.0", depth=16),
    "encoder": transformer_layer("encoder.0", 1),
    "decoder": transformer_layer("decoder.0", 2),
    "fpn": fpn(),
    "unet": unet(),
}
for name, found in SCHEMATICS.items():
    style.save(layered.draw(found), f"fig_{name}")
