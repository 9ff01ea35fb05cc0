"""One label per input."""

from typing import Any

from torch import Tensor
from torch.nn import functional

from skipform.tasks.task import Task


class Classify(Task):
    """Cross-entropy of one label per input; the error is the share of inputs whose largest score is that of another
    class.

    net: inputs (n, ...) -> scores (n, classes). A batch is (inputs (n, ...), labels (n,)).
    """

    TARGETS = "labels"
    MAIN_SCORE = ("error", "%")
    HIGHER_IS_BETTER = False

    def step(self, inputs: Tensor, labels: Tensor) -> dict[str, Any]:
        scores = self(inputs)  # (n, classes)
        wrong = (scores.detach().argmax(1) != labels).sum()
        return {"loss": functional.cross_entropy(scores, labels), "size": len(labels), "error": wrong}

    def predict(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """The class of the largest score, (n,)."""
        return self.net(inputs).argmax(1)

    def examples(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor | list[str]]:
        return {"images": inputs, "labels": labels, "predicted": self.predict(inputs)}
