"""One label per input."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from skipform.tasks.optimizer import Optimizer
from skipform.tasks.task import Task


class Classify(Task):
    """Cross-entropy of one label per input; the error is the share of inputs whose largest score is that of another
    class.

    net: inputs (n, ...) -> scores (n, classes). A batch is (inputs (n, ...), labels (n,)). A net may have a method
    `subnets` that returns {name: net that shares its weights}; outside of training the error of every one of them is
    measured as well, as NAME_error.
    """

    TARGETS = "labels"
    MAIN_SCORE = ("error", "%")
    HIGHER_IS_BETTER = False

    def __init__(self, net: nn.Module | Mapping[str, Any], optimizer: Optimizer | Mapping[str, Any]) -> None:
        super().__init__(net, optimizer)
        self.FURTHER_SCORES = tuple(f"{name}_error" for name in self._subnets())  # type: ignore[misc]

    def _subnets(self) -> dict[str, nn.Module]:
        return self.net.subnets() if hasattr(self.net, "subnets") else {}  # type: ignore[operator]

    def evaluate(self, split: str, *batch: Any) -> dict[str, Any]:
        inputs, labels = batch
        errors = {
            f"{name}_error": (subnet(inputs).argmax(1) != labels).sum() for name, subnet in self._subnets().items()
        }
        return super().evaluate(split, *batch) | errors

    def step(self, inputs: Tensor, labels: Tensor) -> dict[str, Any]:
        scores = self(inputs)  # (n, classes)
        wrong = (scores.detach().argmax(1) != labels).sum()
        return {"loss": functional.cross_entropy(scores, labels), "size": len(labels), "error": wrong}

    def predict(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """The class of the largest score, (n,)."""
        return self.net(inputs).argmax(1)

    def examples(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor | list[str]]:
        return {"images": inputs, "labels": labels, "predicted": self.predict(inputs)}
