"""ImageNet weights for backbones: the same outputs as torchvision's models, files that are checked, fetched on request.

No file of torchvision is fetched: models with random weights are stored in the same format.
"""

import hashlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision
import yaml
from torch import Tensor, nn

from skipform import SkipformError
from skipform.nets.blocks import Staged
from skipform.stages import cli, fit
from skipform.training import run, weights
from skipform.training.experiment import read

ROOT = Path(__file__).parents[1]
RESNET = {"name": "resnet", "stages": 4, "first": "7x7", "width": 64, "option": "B", "skip": "add", "in_channels": 3}
VGG = {"name": "vgg", "depth": 11, "width": 64, "in_channels": 3}
DETR = {"name": "detr", "num_classes": 3, "queries": 2, "encoder_depth": 1, "decoder_depth": 1, "width": 8, "heads": 2}


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """A function that stores a state as the ImageNet weights of a model of torchvision, at an address and, if asked, in
    the folder of the data; it returns that folder and the path of the file in it."""

    def store(model: str, state: dict[str, Tensor], *, present: bool = True) -> tuple[str, Path]:
        server, root = tmp_path / "server", tmp_path / "data"
        server.mkdir(exist_ok=True)
        torch.save(dict(reversed(state.items())), server / "new.pth")  # torchvision's files are in no certain order
        content = (server / "new.pth").read_bytes()
        name = f"{model}-{hashlib.sha256(content).hexdigest()[:8]}.pth"
        (server / "new.pth").rename(server / name)
        path = root / "weights" / name
        if present:
            path.parent.mkdir(parents=True)
            path.write_bytes(content)
        listed = {model: {"IMAGENET1K_V1": SimpleNamespace(url=(server / name).as_uri())}}
        monkeypatch.setattr(torchvision.models, "get_model_weights", listed.get)
        return str(root), path

    return store


def randomised(model: nn.Module) -> nn.Module:
    """Biases, normalisations and their statistics away from where they start; other weights start at random."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.dim() == 1:
                tensor.add_(0.1 * torch.rand(tensor.shape, generator=generator))
    return model.eval()


def initial(block: dict, root: str) -> nn.Module:
    """The net with which a training of this block begins, from ImageNet weights, in eval mode."""
    return run.initial({"seed": 0, "net": block, "backbone_weights": "imagenet"}, root).eval()


def agree(actual: Tensor, expected: Tensor) -> None:
    """The same sums of float32 in the same order, except that constant batch norms multiply in another one: some 50
    layers of 1e-7 each."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("depth", "arguments"),
    [
        (18, DETR),
        (50, DETR | {"frozen": True}),
        (
            18,
            {
                "name": "fpn",
                "head": "retinanet",
                "levels": 3,
                "extra": "convolutions-c5",
                "frozen": True,
                "channels": 8,
            },
        ),
        (18, {"name": "fpn", "channels": 8}),
        (18, {"name": "fcn", "hidden": 0}),
    ],
)
def test_a_resnet_with_imagenet_weights_computes_torchvisions_maps(depth, arguments, stored):
    theirs = randomised(torchvision.models.get_model(f"resnet{depth}"))
    root, _ = stored(f"resnet{depth}", theirs.state_dict())
    net = initial(arguments | {"backbone": RESNET | {"depth": depth}}, root)
    body = next(m for m in net.modules() if isinstance(m, Staged))
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        for actual, layer in zip(
            body.maps(x), (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4), strict=True
        ):
            agree(actual, y := layer(y))


@pytest.mark.parametrize("batch_norm", [False, True])
def test_an_fcn_with_imagenet_weights_computes_torchvisions_hidden_layers(batch_norm, stored, monkeypatch):
    """On an image of 224x224 the middle of the 7x7 convolution is VGG's first linear layer. Its 4096 features are 8
    here, so that the file is small."""
    theirs = torchvision.models.get_model("vgg11_bn" if batch_norm else "vgg11", num_classes=2)
    theirs.classifier = nn.Sequential(nn.Linear(512 * 7 * 7, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 8), nn.ReLU())
    randomised(theirs)
    monkeypatch.setattr(weights, "HIDDEN", 8)
    root, _ = stored("vgg11_bn" if batch_norm else "vgg11", theirs.state_dict())
    net = initial({"name": "fcn", "hidden": 8, "backbone": VGG | {"batch_norm": batch_norm}}, root)
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        last = net.backbone.maps(x)[-1]
        agree(last, theirs.features(x))
        agree(net.top[:5](last)[:, :, 3, 3], theirs(x))


def test_without_weights_the_backbone_is_random_and_all_else_is_the_same(stored):
    theirs = randomised(torchvision.models.get_model("resnet18"))
    root, _ = stored("resnet18", theirs.state_dict())
    config = {"seed": 0, "net": DETR | {"backbone": RESNET | {"depth": 18}}}
    loaded, random = (run.initial(config | {"backbone_weights": w}, root).state_dict() for w in ("imagenet", "random"))
    changed = {key for key in loaded if not torch.equal(loaded[key], random[key])}
    counters = {key for key in loaded if key.endswith("num_batches_tracked")}
    assert changed == {key for key in loaded if key.startswith("backbone.")} - counters


def test_weights_are_fetched_only_on_request_and_only_with_the_right_checksum(stored):
    state = {"fc.weight": torch.ones(3)}
    root, path = stored("resnet50", state, present=False)
    with pytest.raises(SkipformError, match=f"^{path}: missing; .*--data.download true.*weights.prepare"):
        weights.prepare("resnet50", root=root, download=False)
    assert not path.parent.exists()
    weights.prepare("resnet50", root=root, download=True)
    weights.prepare("resnet50", root=root, download=False)
    assert torch.equal(torch.load(path, weights_only=True)["fc.weight"], state["fc.weight"])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SkipformError, match=f"^{path}: altered or cut short; "):
        weights.prepare("resnet50", root=root, download=False)
    server = Path(root).parent / "server" / path.name
    server.write_bytes(b"something else")
    with pytest.raises(SkipformError, match="it has another checksum there"):
        weights.prepare("resnet50", root=root, download=True)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"name": "mlp"}, "net 'mlp' has no backbone; accepted: random"),
        (DETR | {"backbone": {"name": "densenet"}}, "net 'detr' has the backbone 'densenet'; accepted: resnet, vgg"),
        (DETR | {"backbone": RESNET | {"option": "A"}}, "net 'detr' has backbone.option='A'; accepted: 'B'"),
        (DETR | {"backbone": RESNET | {"in_channels": 1}}, "net 'detr' has backbone.in_channels=1; accepted: 3"),
        (
            {"name": "fcn", "hidden": 7, "backbone": VGG},
            "net 'fcn' has hidden=7; accepted: 0, or 4096 on the backbone vgg",
        ),
    ],
)
def test_a_net_that_no_weights_fit_is_refused_in_one_line(block, message):
    with pytest.raises(SkipformError, match=f"^backbone_weights: imagenet, but {message}$"):
        weights.model_of(block)


@pytest.mark.parametrize(("name", "model"), [("fcn", "vgg16"), ("fpn", "resnet50"), ("detr", "resnet50")])
def test_at_scale_paper_backbones_start_from_the_weights_that_the_papers_name(name, model):
    experiment = read(ROOT / "experiments" / "survey" / f"{name}.yaml", "paper")
    assert experiment.backbone_weights == "imagenet"
    assert {weights.model_of(block) for block in experiment.variants.values()} == {model}
    assert all(block.get("frozen", name == "fcn") for block in experiment.variants.values())
    embedded = read(ROOT / "experiments" / "survey" / f"{name}.yaml", "embedded")
    assert embedded.backbone_weights == "random"


def test_a_step_of_detr_is_the_papers_64_images():
    experiment = read(ROOT / "experiments" / "survey" / "detr.yaml", "paper")
    assert experiment.data["batch_size"] * experiment.trainer["accumulate_grad_batches"] == 64


def test_the_line_of_a_score_says_with_which_weights_the_backbone_began(tmp_path, capsys):
    (tmp_path / "survey").mkdir()
    (tmp_path / "scale").mkdir()
    (tmp_path / "scale" / "embedded.yaml").write_text("trainer: {max_epochs: 1, accelerator: cpu}\nwandb: disabled\n")
    file = tmp_path / "survey" / "some.yaml"
    body = {"name": "vgg", "depth": 11, "width": 2}
    data = {"name": "digit_masks", "scenes": 8, "digits": [1, 1], "size": [12, 14], "batch_size": 4}
    variants = {"one": {"name": "fcn", "hidden": 0, "backbone": body}}
    file.write_text(yaml.safe_dump({"variants": variants, "data": data, "task": {"name": "segment"}, "threads": 1}))
    command = ["--config", str(file), "--scale", "embedded", "--out", str(tmp_path / "out"), "--workers", "1"]
    fit.main([*command, "--seeds", "0"])
    assert "1 seed, random backbone weights)" in capsys.readouterr().out
    config = yaml.safe_load((tmp_path / "out" / "one" / "seed0" / "config.yaml").read_text())
    assert config["backbone_weights"] == "random"
    assert cli.main(["fit", *command, "--backbone_weights", "imagenet"]) == 2
    assert "net 'fcn' has backbone.in_channels=1; accepted: 3" in capsys.readouterr().err
