"""ImageNet weights for backbones: torchvision's own files, in place of random weights, before a training begins.

The file of a model is ROOT/weights/NAME-DIGITS.pth, where DIGITS are the first eight of its SHA-256 sum, which are
checked. It is fetched only if `download` is true. The weights are those that torchvision lists as IMAGENET1K_V1, the
ones that DETR starts from.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from skipform.data.catalogue import Entry
from skipform.data.source import Source
from skipform.errors import SkipformError
from skipform.nets.blocks import Staged

# The arguments of a backbone with which it is torchvision's model.
SAME: dict[str, dict[str, Any]] = {
    "resnet": {"in_channels": 3, "stages": 4, "first": "7x7", "width": 64, "option": "B", "skip": "add"},
    "vgg": {"in_channels": 3, "width": 64},
}
HIDDEN = 4096  # width of the two hidden linear layers of torchvision's VGG


def model_of(block: Mapping[str, Any]) -> str:
    """The name that torchvision gives to the backbone of a net: "resnet50", "vgg16_bn", ...

    Args:
        block: {"name": NET, "backbone": {"name": BACKBONE, argument: value, ...}, ...} with all arguments.

    Raises:
        SkipformError: the net has no backbone, or not one of torchvision's, or one with other layers on top.
    """
    where = f"backbone_weights: imagenet, but net {block['name']!r}"
    backbone = block.get("backbone")
    if backbone is None:
        raise SkipformError(f"{where} has no backbone; accepted: random")
    if backbone["name"] not in SAME:
        raise SkipformError(f"{where} has the backbone {backbone['name']!r}; accepted: {', '.join(SAME)}")
    for key, value in SAME[backbone["name"]].items():
        if backbone[key] != value:
            raise SkipformError(f"{where} has backbone.{key}={backbone[key]!r}; accepted: {value!r}")
    if block["name"] == "fcn" and block["hidden"] and (backbone["name"] != "vgg" or block["hidden"] != HIDDEN):
        raise SkipformError(f"{where} has hidden={block['hidden']!r}; accepted: 0, or {HIDDEN} on the backbone vgg")
    norm = "_bn" if backbone.get("batch_norm") else ""
    return f"{backbone['name']}{backbone['depth']}{norm}"


def prepare(model: str, *, root: str, download: bool) -> None:
    """Check the file of torchvision's `model`, or fetch it if it is missing or altered and `download` is true.

    Raises:
        SkipformError: names the file and how to get it.
    """
    command = f"from skipform.training import weights; weights.prepare({model!r}, root={root!r}, download=True)"
    source(model, root).prepare(download=download, command=command)


def models() -> list[str]:
    """The models of torchvision whose weights a backbone can start from."""
    return [model for model in torchvision.models.list_models() if model.startswith(tuple(SAME))]


def entry(model: str) -> Entry:
    """Size, licence and home of the file of torchvision's `model`."""
    megabytes = torchvision.models.get_model_weights(model)["IMAGENET1K_V1"].meta["_file_size"]
    return Entry(
        round(megabytes * 2**20),
        "BSD 3-clause, trained on ImageNet",
        "https://docs.pytorch.org/vision/stable/models.html",
    )


def load(net: nn.Module, block: Mapping[str, Any], *, root: str) -> None:
    """Copy the weights of the file into the backbone of the net, which was built from `block`, and into the first two
    layers on top of an FCN: the 7x7 and the 1x1 convolution that compute VGG's two hidden linear layers."""
    model = model_of(block)
    stored = source(model, root)
    (file,) = stored.checksums
    given: dict[str, Tensor] = torch.load(stored.folder / file, map_location="cpu", weights_only=True)
    with torch.device("meta"):
        theirs = _stored(torchvision.models.get_model(model))
    theirs = [name for name in theirs if not name.startswith(("fc.", "classifier."))]
    body = next(module for module in net.modules() if isinstance(module, Staged))
    # the modules of both are in the order of the computation
    taken = {ours: given[name] for ours, name in zip(_stored(body), theirs, strict=True)}
    body.load_state_dict(body.state_dict() | taken)
    if block["name"] == "fcn" and block["hidden"]:
        for ours, linear in (("top.0", "classifier.0"), ("top.3", "classifier.3")):
            layer = net.get_submodule(ours)
            shape = layer.state_dict()["weight"].shape  # 4096 512 7 7, then 4096 4096 1 1
            weight, bias = given[f"{linear}.weight"].view(shape), given[f"{linear}.bias"]
            layer.load_state_dict({"weight": weight, "bias": bias})


def _stored(net: nn.Module) -> list[str]:
    """The names of the tensors of a net that are stored, without the batch counters, which constant batch norms lack
    and which nothing reads."""
    return [name for name in net.state_dict() if not name.endswith("num_batches_tracked")]


def source(model: str, root: str) -> Source:
    """The file of torchvision's `model` below the folder of the data."""
    url = str(torchvision.models.get_model_weights(model)["IMAGENET1K_V1"].url)
    folder, _, file = url.rpartition("/")
    return Source(Path(root) / "weights", {file: Path(file).stem.rpartition("-")[2]}, f"{folder}/")
