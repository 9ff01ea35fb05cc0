"""Language models: predict a token from those before it, or a masked token from those around it.

Letters: n windows, t tokens of a window, v the size of the vocabulary.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MeanMetric, MetricCollection

from skipform.arguments import Size
from skipform.tasks.optimizer import Optimizer
from skipform.tasks.task import Task


class LanguageModel(Task):
    """Cross-entropy in nats per token to be predicted; perplexity, its exponential; accuracy, the share of these tokens
    that have the largest score.

    net: tokens (n, t) -> scores (n, t, v). A batch is (tokens (n, t), targets (n, t)), where a target of -100 is not to
    be predicted. The loss is the same for next tokens and for masked ones.

    Args:
        context: the largest number of tokens that the net takes.
        objective: causal or masked; `examples` shows continuations or filled gaps.
    """

    TARGETS = "text"
    MAIN_SCORE = ("loss", "nats")
    HIGHER_IS_BETTER = False

    def __init__(
        self,
        net: nn.Module | Mapping[str, Any],
        optimizer: Optimizer | Mapping[str, Any],
        *,
        context: Size,
        objective: Literal["causal", "masked"],
    ) -> None:
        super().__init__(net, optimizer)
        self.context, self.objective = context, objective

    def step(self, tokens: Tensor, targets: Tensor) -> dict[str, Any]:
        scores = self(tokens)  # n t v
        size = (targets >= 0).sum()
        loss = functional.cross_entropy(scores.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")
        right = (scores.detach().argmax(2) == targets).sum()
        return {"loss": loss / size.clamp(min=1), "size": size, "accuracy": right}

    def evaluate(self, split: str, tokens: Tensor, targets: Tensor) -> dict[str, Any]:
        numbers = self.run_step(tokens, targets)
        self.metric(split).update(numbers["loss"], numbers["size"])
        return numbers

    def metrics(self) -> MetricCollection:
        return MetricCollection({"perplexity": MeanMetric()})  # the mean loss, of which `scores` takes the exponential

    def scores(self, split: str) -> dict[str, float]:
        return {name: torch.tensor(percent / 100).exp().item() for name, percent in super().scores(split).items()}

    def predict(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """The token of the largest score at every position, (n, t); `generate` continues a text."""
        return self(tokens).argmax(2)

    @torch.no_grad()
    def examples(self, tokens: Tensor, targets: Tensor) -> dict[str, Tensor | list[str]]:
        """Tokens, which `Text.text` turns into texts. Causal: the first half of a window, its second half, and t tokens
        that the net draws instead, at temperature 0.8. Masked: the input, the true text, and the net's text."""
        if self.objective == "masked":
            asked = targets >= 0
            filled = torch.where(asked, self.predict(tokens), tokens)
            return {"seen": tokens, "reference": torch.where(asked, targets, tokens), "filled": filled}
        half, t = tokens.shape[1] // 2, tokens.shape[1]
        prompt, generator = tokens[:, :half], torch.Generator(tokens.device).manual_seed(0)
        continued = generate(self.net, prompt, t, context=self.context, temperature=0.8, generator=generator)
        return {"prompt": prompt, "reference": tokens[:, half:], "continuation": continued[:, half:]}


@torch.no_grad()
def generate(
    net: nn.Module,
    prompt: Tensor,  # n t
    count: int,
    *,
    context: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The prompt and `count` more tokens, (n, t + count). Every token is drawn from softmax(scores / temperature),
    given the last `context` tokens; at temperature 0 it is the likeliest. The net should be in evaluation mode."""
    tokens = prompt
    for _ in range(count):
        scores = net(tokens[:, -context:])[:, -1]  # n v
        if temperature == 0:
            following = scores.argmax(1, keepdim=True)
        else:
            following = torch.multinomial((scores / temperature).softmax(1), 1, generator=generator)
        tokens = torch.cat([tokens, following], 1)
    return tokens
