"""Translation of texts, token by token.

Letters: n texts, s tokens of a source, t of a target, d width, k hypotheses of a beam, v the size of the vocabulary.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.text import SacreBLEUScore

from skipform.arguments import Natural, NotNegative, Range, Share
from skipform.tasks.optimizer import Optimizer
from skipform.tasks.task import Task


class Translate(Task):
    """Cross-entropy of each target token given the source and the target tokens before it, with label smoothing e: the
    target distribution is 1 - e on the right token plus e / v on every token (Vaswani et al. 2017, Section 5.4).
    Padding is ignored. The error is the share of tokens where another token has the largest score.

    Held-out texts are translated by `translated` and compared as texts: SacreBLEU, and the share of exact matches. The
    data module's text(tokens (n, t)) returns n strings; without it, the numbers of the tokens serve as words.

    net: `encode(source (n, s)) -> memory, mask`, `decode(target (n, t), memory, mask) -> scores (n, t, v)` of the
    next token at each place; forward(source, target) does both. A batch is (source (n, s), target (n, t)), each text
    from `begin` to `end`, then padding. With several processes, each takes the mean over the tokens of its share.

    Args:
        pad, begin, end: the special tokens.
        smoothing: e.
        beams: k; 1 is greedy decoding.
        penalty: alpha of `translated`.
        extra: a translation is at most this number of tokens longer than its source.
        decoded: this number of texts of each split (and process) are translated after an epoch; after the last one,
            and in a test, all are.
        shown: the score that tables show.
    """

    TARGETS = "pairs"
    MAIN_SCORE = ("bleu", "%")

    def __init__(
        self,
        net: nn.Module | Mapping[str, Any],
        optimizer: Optimizer | Mapping[str, Any],
        *,
        pad: Natural,
        begin: Natural,
        end: Natural,
        smoothing: Share = 0.1,
        beams: Annotated[int, Range(1, 1024)] = 4,
        penalty: NotNegative = 0.6,
        extra: Natural = 50,
        decoded: Natural = 256,
        shown: Literal["bleu", "exact_match"] = "bleu",
    ) -> None:
        super().__init__(net, optimizer)
        self.MAIN_SCORE = (shown, "%")  # type: ignore[misc]
        self.pad, self.smoothing, self.decoded = pad, smoothing, decoded
        self.search: dict[str, Any] = {"begin": begin, "end": end, "pad": pad}
        self.search |= {"beams": beams, "penalty": penalty, "extra": extra}

    def step(self, source: Tensor, target: Tensor) -> dict[str, Any]:
        scores, wanted = self(source, target[:, :-1]), target[:, 1:]  # (n, t-1, v), (n, t-1)
        asked = wanted != self.pad
        loss = functional.cross_entropy(
            scores.flatten(0, 1), wanted.flatten(), ignore_index=self.pad, label_smoothing=self.smoothing
        )
        wrong = (scores.detach().argmax(2) != wanted) & asked
        return {"loss": loss, "size": asked.sum(), "error": wrong.sum()}

    def evaluate(self, split: str, source: Tensor, target: Tensor) -> dict[str, Any]:
        trainer = self.trainer
        done = int(self.metric(split)["exact_match"].weight) if split in self._metrics else 0  # type: ignore[arg-type]
        last = trainer.testing or trainer.current_epoch + 1 == trainer.max_epochs
        count = len(source) if last else min(len(source), self.decoded - done)
        if count > 0:
            text: Callable[[Tensor], list[str]] = getattr(trainer.datamodule, "text", self._numbers)  # type: ignore[attr-defined]
            hypotheses, references = text(self.predict(source[:count])), text(target[:count])
            exact = torch.tensor([float(one == other) for one, other in zip(hypotheses, references, strict=True)])
            wanted = [[reference] for reference in references]
            self.metric(split).update(preds=hypotheses, target=wanted, value=exact.to(self.device))
        return self.step(source, target)  # not the compiled step, which every last batch would compile anew

    def metrics(self) -> MetricCollection:
        return MetricCollection({"bleu": SacreBLEUScore(), "exact_match": MeanMetric()})

    def predict(self, source: Tensor, target: Tensor | None = None) -> Tensor:
        """The translations, tokens (n, t) without `begin`, padded; see `translated`."""
        return translated(self.net, source, **self.search)

    def examples(self, source: Tensor, target: Tensor) -> dict[str, Tensor | list[str]]:
        """Tokens, which `Translation.text` turns into texts."""
        return {"source": source, "reference": target, "hypothesis": self.predict(source)}

    def _numbers(self, tokens: Tensor) -> list[str]:
        """Tokens (n, t) as n texts whose words are their numbers, without `begin`, `end` and padding."""
        special = [self.search[key] for key in ("begin", "end", "pad")]
        return [" ".join(str(token) for token in row if token not in special) for row in tokens.tolist()]


@torch.no_grad()
def translated(
    net: nn.Module, source: Tensor, *, begin: int, end: int, pad: int, beams: int, penalty: float, extra: int
) -> Tensor:
    """The best text y that beam search finds for each source (n, s), tokens (n, t); `end` is last unless y was cut off.

    The best text has the greatest log P(y | source) / lp(|y|), lp(l) = ((5 + l) / 6)^penalty (Wu et al. 2016, eq. 14,
    without coverage), with |y| <= `extra` + tokens of the source (Vaswani et al. 2017, Section 6.1, extra = 50), `end`
    included. At each length the k best hypotheses are continued, finished ones included. The search for a text ends
    when no unfinished hypothesis could score higher. With k = 1 this is greedy decoding; with k the number of all texts
    it is exact.
    """

    def lp(length: Tensor) -> Tensor:
        return ((5 + length) / 6) ** penalty

    memory, mask = net.encode(source)  # type: ignore[operator]
    n, device = len(source), source.device
    limit = mask.sum(1) + extra  # (n,)
    result = torch.full((n, int(limit.max())), pad, device=device)
    which = torch.arange(n, device=device)  # the sources not yet translated: the rows of the tensors below
    memory, mask = (x[:, None].expand(n, beams, *x.shape[1:]) for x in (memory, mask))  # n k s d, n k s
    texts = torch.full((n, beams, 1), begin, device=device)
    logp = torch.full((n, beams), -torch.inf, device=device)
    logp[:, 0] = 0  # at first all hypotheses are the same
    length = torch.zeros(n, beams, device=device)
    ended = torch.zeros(n, beams, dtype=torch.bool, device=device)
    for t in range(1, result.shape[1] + 1):
        scores = net.decode(*(x.flatten(0, 1) for x in (texts, memory, mask)))[:, -1].float()  # type: ignore[operator]
        scores[:, [pad, begin]] = -torch.inf
        next_logp = scores.log_softmax(1).unflatten(0, texts.shape[:2])  # n k v
        next_logp[ended] = -torch.inf
        next_logp[..., pad] = torch.where(ended, 0, -torch.inf)
        logp, length = logp[..., None] + next_logp, length + ~ended  # n k v, n k
        best = (logp / lp(length)[..., None]).flatten(1).topk(beams).indices  # n k
        parent, token = best // scores.shape[1], best % scores.shape[1]
        logp, length, ended = logp.flatten(1).gather(1, best), length.gather(1, parent), ended.gather(1, parent)
        texts = torch.cat((texts.take_along_dim(parent[..., None], 1), token[..., None]), 2)  # n k t+1
        ended = ended | (token == end) | (t >= limit[:, None])
        value = (logp / lp(length)).masked_fill(~ended, -torch.inf)
        possible = (logp / lp(limit[:, None])).masked_fill(ended, -torch.inf)
        done = value.amax(1) >= possible.amax(1)  # n
        result[which[done], :t] = texts[done, value[done].argmax(1), 1:]
        which, memory, mask, texts, logp, length, ended, limit = (
            x[~done] for x in (which, memory, mask, texts, logp, length, ended, limit)
        )
        if not len(which):
            break
    return result[:, : int((result != pad).sum(1).max())]
