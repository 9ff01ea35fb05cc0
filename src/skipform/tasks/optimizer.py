"""The optimiser, the schedule of the learning rate, and which parameters have weight decay."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from skipform.arguments import Factor, Natural, NotNegative, PartialShare, PositiveShare, Share, checked
from skipform.errors import SkipformError

Name = Literal["sgd", "nesterov", "adam", "adamw"]
Schedule = Literal["constant", "multistep", "cosine", "linear", "inverse_sqrt"]


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """An optimiser as plain data; `build` creates it for a net.

    Args:
        name: sgd, nesterov (both with `momentum`), adam (decay added to the gradient) or adamw (decoupled decay).
        lr: the learning rate before `schedule` scales it.
        momentum: of sgd and nesterov.
        betas, eps: of adam and adamw.
        weight_decay: on every trained parameter, biases and normalisations too, as in the papers on ResNets;
            with decayed = "matrices" only on those of two or more dimensions, as in those on Transformers.
        factors: {part of a parameter's dotted name: factor of its learning rate}, such as {backbone: 0.1} in DETR,
            or {bias: 2} in nets trained with Caffe.
        schedule, milestones, decay, warmup, floor: see `scale`.
    """

    name: Name = "sgd"
    lr: Factor = 0.1
    momentum: PartialShare = 0.9
    betas: tuple[PartialShare, PartialShare] = (0.9, 0.999)
    eps: PositiveShare = 1e-8
    weight_decay: NotNegative = 1e-4
    decayed: Literal["all", "matrices"] = "all"
    factors: dict[str, NotNegative] | None = None
    schedule: Schedule = "multistep"
    milestones: tuple[Share, ...] = (0.5, 0.75)
    decay: PositiveShare = 0.1
    warmup: Natural = 0
    floor: Share = 0.0

    def __post_init__(self) -> None:
        checked(Optimizer, vars(self), "optimizer")

    def build(self, net: nn.Module, steps: float, *, fused: bool = False) -> dict[str, Any]:
        """The result of `LightningModule.configure_optimizers` for a training of `steps` steps (infinity if the
        schedule does not depend on them).

        fused: the optimiser's step in one kernel.
        """
        groups, one = self._groups(net), {"fused": fused or None}
        if self.name in ("adam", "adamw"):
            adam = torch.optim.AdamW if self.name == "adamw" else torch.optim.Adam
            optimizer: torch.optim.Optimizer = adam(groups, self.lr, tuple(self.betas), self.eps, **one)  # type: ignore[arg-type]
        else:
            nesterov = self.name == "nesterov"
            optimizer = torch.optim.SGD(groups, self.lr, self.momentum, nesterov=nesterov, **one)  # type: ignore[arg-type]
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.scale(step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _groups(self, net: nn.Module) -> list[dict[str, Any]]:
        """The trained parameters, grouped by learning rate and decay."""
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        factors = self.factors or {}
        for part in factors:
            if not any(_within(name, part) for name, _ in net.named_parameters()):
                raise SkipformError(
                    f"optimizer.factors: no parameter has {part!r} in its name;"
                    f" accepted: {', '.join(dict.fromkeys(name.split('.')[0] for name, _ in net.named_parameters()))}"
                )
        for name, parameter in net.named_parameters():
            if not parameter.requires_grad:
                continue
            factor = math.prod(factor for part, factor in factors.items() if _within(name, part))
            decay = self.weight_decay if self.decayed == "all" or parameter.dim() > 1 else 0.0
            groups.setdefault((self.lr * factor, decay), []).append(parameter)
        return [{"params": group, "lr": lr, "weight_decay": decay} for (lr, decay), group in groups.items()]

    def scale(self, step: int, steps: float) -> float:
        """The factor of the learning rate at `step` of 0 .. steps - 1:

        f + (1 - f) s(step / steps), times min(1, (step + 1) / warmup), with f = `floor` and

        constant: s = 1.   multistep: s(t) = decay^(number of milestones <= t).   cosine: s(t) = (1 + cos(pi t)) / 2.
        linear: s(t) = 1 - t.   inverse_sqrt: s = min(1, sqrt(warmup / (step + 1))), so that a width d has the rate of
        Vaswani et al. (2017), Section 5.3, with lr = 1 / sqrt(d warmup).
        """
        done = step / steps
        rising = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        match self.schedule:
            case "constant":
                s = 1.0
            case "multistep":
                s = self.decay ** sum(milestone <= done for milestone in self.milestones)
            case "cosine":
                s = (1 + math.cos(math.pi * done)) / 2
            case "linear":
                s = 1 - done
            case "inverse_sqrt":
                s = min(1.0, math.sqrt(max(self.warmup, 1) / (step + 1)))
        return rising * (self.floor + (1 - self.floor) * s)


def _within(name: str, part: str) -> bool:
    """Whether the components of `part` follow each other in the dotted name."""
    return f".{part}." in f".{name}."
