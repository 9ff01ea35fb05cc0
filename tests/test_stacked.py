"""Seeds stacked in one process: the separate runs, but for rounding."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from skipform.errors import SkipformError
from skipform.stages import fit, run, stacked
from skipform.tasks import Optimizer
from skipform.tasks.classify import Classify

RESNET = {"name": "resnet", "depth": 8, "width": 8}
MLP = {"name": "mlp", "depth": 2, "width": 16}
STEPS, SEEDS = 6, ["--seeds", "0", "1", "4"]  # 2 epochs of 3 batches
# Double precision. Sums of a few thousand terms in another order differ by their square root, about 2^6 roundings, in
# each of some 20 layers; batch norms of small deviation and the steps after the first multiply that: 2^15 in all.
BOUND = 2.0**15 * torch.finfo(torch.float64).eps


def written(folder, **over) -> list[str]:
    """The arguments of `skipform fit` for a small experiment, changed by `over`, written below `folder`."""
    experiment = {
        "variants": {"net": RESNET},
        "data": {"name": "digits", "limit": 96, "batch_size": 32, "crop": 1, "flip": True, "validation": 40},
        "optimizer": {"name": "nesterov", "lr": 0.05, "schedule": "cosine", "warmup": 2},
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "precision": "64-true"},
        "threads": 1,
        "wandb": "disabled",
    }
    (folder / "survey").mkdir(parents=True, exist_ok=True)
    (folder / "scale").mkdir(exist_ok=True)
    (folder / "scale" / "embedded.yaml").write_text("")
    (folder / "survey" / "some.yaml").write_text(yaml.safe_dump(experiment | over))
    config, out = str(folder / "survey" / "some.yaml"), str(folder / "out")
    return ["--config", config, "--scale", "embedded", "--out", out, "--workers", "1"]


def contents(out) -> dict[str, bytes]:
    """Every file of a finished experiment but the provenance, by its path."""
    files = [path for path in out.rglob("*") if path.is_file() and path.name != "provenance.json"]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("net", "optimizer", "clip"),
    [
        (RESNET, {"name": "nesterov", "lr": 0.05, "schedule": "cosine", "warmup": 2}, None),
        (MLP, {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1, "decayed": "matrices"}, None),
        (MLP, {"name": "sgd", "lr": 0.5, "weight_decay": 0.1, "factors": {"3": 0.1}}, 0.1),
        ({"name": "pooled", "pool": "relu", "width": 2}, {"name": "sgd", "lr": 0.05}, None),
    ],
    ids=["batch norm", "matrices decay", "clipped", "frozen"],
)
def test_stacked_runs_are_the_separate_ones_but_for_rounding(net, optimizer, clip, tmp_path):
    over = {"variants": {"net": net}, "optimizer": optimizer}
    trainer = {"max_epochs": 2, "accelerator": "cpu", "precision": "64-true", "gradient_clip_val": clip}
    fit.main([*written(tmp_path / "apart", **over, trainer=trainer), *SEEDS])
    fit.main([*written(tmp_path / "stacked", **over, trainer=trainer | {"stacked": True}), *SEEDS])
    apart, together = (tmp_path / side / "out" / "net" for side in ("apart", "stacked"))
    assert contents(tmp_path / "apart" / "out").keys() == contents(tmp_path / "stacked" / "out").keys()
    for seed in (0, 1, 4):
        expected, found = apart / f"seed{seed}", together / f"seed{seed}"
        assert (expected / "initial.safetensors").read_bytes() == (found / "initial.safetensors").read_bytes()
        numbers, ours = (json.loads((folder / "metrics.json").read_text()) for folder in (expected, found))
        assert all(numbers.pop(key) == ours.pop(key) for key in ("variant", "shown", "higher"))
        assert numbers["steps"] == STEPS
        assert ours == pytest.approx(numbers, rel=BOUND)  # losses, and the errors, which are whole numbers of images
        before, after = (load_file(expected / f"{moment}.safetensors") for moment in ("initial", "final"))
        assert any(not torch.equal(before[name].double(), after[name]) for name in after)
        for name, value in load_file(found / "final.safetensors").items():
            size = max(1.0, float(after[name].abs().max()))
            assert (value - after[name]).abs().max() <= BOUND * size, name
        provenance = json.loads((found / "provenance.json").read_text())
        assert (provenance["seed"], provenance["stacked"]) == (seed, [0, 1, 4])


@pytest.mark.parametrize("moment", ["after the first epoch", "between the folders"])
def test_a_killed_stack_goes_on_to_the_same_bytes(moment, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    trainer = {"max_epochs": 2, "accelerator": "cpu", "stacked": True}
    whole, broken = (written(tmp_path / side, variants={"net": MLP}, trainer=trainer) for side in ("whole", "broken"))
    fit.main([*whole, *SEEDS])
    owner, name = (run, "keep") if moment == "after the first epoch" else (run, "leave")
    done, calls = getattr(owner, name), []

    def dying(*arguments, **named):
        done(*arguments, **named)
        calls.append(name)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dying)
        with pytest.raises(Killed):
            fit.main([*broken, *SEEDS])
    epochs, close = [], run.Journal.close
    monkeypatch.setattr(run.Journal, "close", lambda *now: (epochs.append(now[1].current_epoch), close(*now)))
    fit.main([*broken, *SEEDS])
    assert epochs == [1, 1, 1] * (moment == "after the first epoch")  # the second one of each of the three
    assert contents(tmp_path / "broken" / "out") == contents(tmp_path / "whole" / "out")


def test_the_compiled_step_of_stacked_nets_is_the_plain_one_but_for_rounding():
    def net(seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10)).double()

    images, labels = torch.rand(2, 8, 1, 8, 8, dtype=torch.float64), torch.randint(10, (2, 8))
    left = []
    for fast in (False, True):
        task = stacked.Stacked([Classify(net(seed), Optimizer()) for seed in (0, 1)])
        if fast:
            task.quicken(channels_last=False, backend="aot_eager")
        found = task.training_step(tuple(zip(images, labels, strict=True)))
        found["loss"].backward()
        left.append([*found.values(), *(p.grad for p in task.parameters()), *task.buffers()])
    bound = 2.0**10 * torch.finfo(torch.float64).eps  # 5 layers forth and back, sums of at most 64 terms
    assert all(torch.allclose(a, b, rtol=0, atol=bound) for a, b in zip(*left, strict=True))


def test_what_cannot_be_stacked_is_refused_in_one_line_before_any_work(tmp_path):
    dropping = {"fine": MLP, "drops": {"name": "densenet", "depth": 7, "growth": 4, "dropout": 0.2}}
    command = [*written(tmp_path, variants=dropping), "--trainer.stacked", "true"]
    with pytest.raises(
        SkipformError, match=r"^[^\n]*trainer\.stacked: variants\.drops [^\n]* draws random numbers[^\n]*$"
    ):
        fit.main(command)
    with pytest.raises(SkipformError, match=r"trainer\.stacked: true; accepted with it: devices: 1, num_nodes: 1$"):
        fit.main([*command, "--trainer.devices", "2"])
    assert not (tmp_path / "out.partial").exists()
    unlike = ((torch.zeros(2, 3),), (torch.zeros(2, 4),))
    with pytest.raises(SkipformError, match=r"^trainer\.stacked: batches that are not alike: .*$"):
        stacked.stacked(unlike)
    with pytest.raises(SkipformError, match=r"^trainer\.stacked: batches that are not alike: .*$"):
        stacked.stacked((([{"boxes": torch.zeros(1, 4)}],), ([{"boxes": torch.zeros(1, 4)}],)))
