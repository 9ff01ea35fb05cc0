"""Text, character by character: the texts of Python's help(), tiny Shakespeare.

Letters: n windows of a batch, t characters of a window (the context), N characters of a split.

A character is its token, in a vocabulary that is the same for every text: 0 the newline, 1 .. 95 printable ASCII (32 ..
126), 96 any other character, 97 the mask.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from skipform.arguments import Count, Range, Seed
from skipform.data.epochs import Epochs, Loader
from skipform.data.module import DataModule
from skipform.data.source import Source, sums
from skipform.errors import SkipformError

ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
OTHER, MASK = len(ALPHABET), len(ALPHABET) + 1
UNASKED = -100  # the target where nothing is to be predicted; torch's cross-entropy ignores it

SETS = ("python_topics", "tiny_shakespeare")
TOPICS = Path(__file__).with_name("python_topics.txt")
SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/"


def encoded(text: str) -> Tensor:
    """The tokens of a text, (N,)."""
    place = {character: token for token, character in enumerate(ALPHABET)}
    return torch.tensor([place.get(character, OTHER) for character in text], dtype=torch.int64)


class Text(DataModule):
    """One text, stored as tokens on the device that trains. The last tenth of it is for testing.

    python_topics       the texts about the language in the help() of Python 3.11.7, 464,970 characters, in the file
                        python_topics.txt of this folder, since every version of Python has other texts.
    tiny_shakespeare    1,115,394 characters of plays (A. Karpathy), in ROOT/tinyshakespeare/input.txt, checked against
                        its sha256 sum. Split as nanoGPT splits it.

    A batch is (tokens (n, t), targets (n, t)): the input of a net, and the token that it should predict at each place,
    or -100 where nothing is to be predicted.

    causal    the target is the next character.
    masked    round(0.15 t) random places of each window are to be predicted. There the input is the mask in 80 % of the
              cases, a random character in 10 %, and the right one in 10 % (Devlin et al. 2019, Section 3.1 and A.1).

    An epoch of training is `steps` batches of windows anywhere in the text. A test goes once through all held-out
    characters in adjoining windows. The last window overlaps the one before it, and only its new characters are to be
    predicted. The masks of a test are the same for every seed.

    Args:
        name: the set.
        root: the folder that holds the files; Python's topics come with the package.
        download: fetch a file that is missing or altered; without it that is an error.
        objective: what is predicted.
        context: t.
        batch_size: windows of a training batch.
        steps: batches of an epoch.
        limit: use only the characters of the first `limit` windows of each split.
        seed: with the epoch's number it determines the windows and masks of that epoch.
    """

    TARGETS = "text"

    def __init__(
        self,
        name: Literal["python_topics", "tiny_shakespeare"],
        *,
        root: str = "data",
        download: bool = False,
        objective: Literal["causal", "masked"] = "causal",
        context: Annotated[int, Range(4)] = 64,
        batch_size: Count = 64,
        steps: Count = 100,
        limit: Count | None = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__(name, SETS, root=root, download=download, seed=seed)
        self.masked = objective == "masked"
        self.context, self.batch_size, self.steps, self.limit = context, batch_size, steps, limit
        self.splits: dict[str, Tensor] = {}  # tokens (N,)

    @staticmethod
    def states(name: str, *, objective: str = "causal", context: int = 64, **rest: Any) -> dict[str, Any]:
        """vocab_size, context, objective."""
        return {"vocab_size": MASK + 1, "context": context, "objective": objective}

    def sources(self) -> Iterator[Source]:
        if self.name == "tiny_shakespeare":
            yield _shakespeare(self.folder)

    def setup(self, stage: str | None = None) -> None:
        """Fill `splits`: "train" and "test", tokens (N,)."""
        whole = _read(self.name, self.root)
        most = None if self.limit is None else self.limit * self.context + 1
        cut = int(0.9 * len(whole))
        self.splits = {"train": whole[:cut][:most], "test": whole[cut:][:most]}
        for split, characters in self.splits.items():
            if len(characters) <= self.context:
                raise SkipformError(f"data.context: {self.context}; accepted: below {len(characters)}, all of {split}")

    def text(self, tokens: Tensor) -> list[str]:
        """The texts of tokens (n, t). The token 96 becomes the replacement character U+FFFD, the mask a full block."""
        characters = ALPHABET + "\ufffd\u2588"
        return ["".join(characters[token] for token in row) for row in tokens.tolist()]

    def loader(self, split: str, *, training: bool = False) -> "Windows":
        text = self.splits[split].to(self.device)
        if training:
            starts = len(text) - self.context + self.masked
            return Windows(
                text,
                self.context,
                WindowEpochs(starts, self.steps, self.batch_size, seed=self.seed, share=self.share),
                masked=self.masked,
            )
        windows = adjoining(len(text), self.context, masked=self.masked)
        return Windows(text, self.context, Epochs(windows, 128, share=self.share), masked=self.masked)


def adjoining(characters: int, context: int, *, masked: bool) -> int:
    """The number of windows that predict every character once; the first one cannot be predicted causally."""
    return -(-(characters - (not masked)) // context)


class WindowEpochs(Epochs):
    """Epochs of `steps` batches of windows that begin anywhere: indices below `starts`, drawn independently."""

    def __init__(self, starts: int, steps: int, batch_size: int, *, seed: int, share: tuple[int, int] = (0, 1)) -> None:
        super().__init__(steps * batch_size, batch_size, seed=seed, share=share)
        self.starts = starts

    def order(self, generator: torch.Generator) -> Tensor:
        return torch.randint(self.starts, (self.count,), generator=generator).view(-1, self.batch_size)


class Windows(Loader):
    """Batches of windows of one text, made on its device.

    In training, `batch_sampler` draws where the windows begin. In evaluation they adjoin and contain every place once;
    `batch_sampler` has their number.

    Everything random in an epoch is drawn on the CPU and copied to the device at its start, so that the host never
    waits for the device within an epoch.
    """

    def __init__(self, text: Tensor, context: int, batch_sampler: Epochs, *, masked: bool) -> None:
        super().__init__(batch_sampler)
        self.text, self.context, self.masked = text, context, masked  # text (N,)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epochs = self.batch_sampler
        batches: Iterable[Sequence[Tensor]]
        if epochs.seed is None:
            generator = torch.Generator().manual_seed(0)
            first = torch.arange(epochs.count) * self.context
            starts = first.clamp(max=len(self.text) - self.context - (not self.masked))
            drawn = self._drawn(starts, first - starts, generator)
            moved = [part.to(self.text.device) for part in drawn]
            batches = ([part[own] for part in moved] for own in epochs.slices())
        else:
            generator = epochs.generator()
            starts = epochs.order(generator).flatten()
            drawn = self._drawn(starts, torch.zeros_like(starts), generator)
            shares = (epochs.own(part.unflatten(0, (-1, epochs.batch_size))).to(self.text.device) for part in drawn)
            batches = zip(*shares, strict=True)
        places = torch.arange(self.context, device=self.text.device)
        for start, asked, shown in batches:
            where = start[:, None] + places  # (n, t)
            seen = self.text[where]
            target = seen if self.masked else self.text[where + 1]
            yield torch.where(shown < 0, seen, shown), torch.where(asked, target, UNASKED)

    def _drawn(self, starts: Tensor, fresh: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """For windows that begin at `starts` and predict from their place `fresh` on: the starts; whether a place is to
        be predicted, (windows, t); and the token that replaces the text's token in the input, or -1, (windows, t)."""
        asked = torch.arange(self.context) >= fresh[:, None]
        shown = torch.full_like(asked, -1, dtype=torch.int64)
        if self.masked:
            asked &= _places(len(starts), self.context, generator)
            choice = torch.rand(asked.shape, generator=generator)
            other = torch.randint(MASK, asked.shape, generator=generator)
            shown = torch.where(asked & (choice < 0.9), torch.where(choice < 0.8, MASK, other), shown)
        return starts, asked, shown


def _places(windows: int, t: int, generator: torch.Generator) -> Tensor:
    """A mask (windows, t) that is True at round(0.15 t) random places of each window."""
    order = torch.rand(windows, t, generator=generator).argsort(1)
    return order.argsort(1) < round(0.15 * t)


@lru_cache(maxsize=1)  # the seeds and variants of one experiment read the same text
def _read(name: str, root: str) -> Tensor:
    if name == "python_topics":
        return encoded(TOPICS.read_text(encoding="utf-8"))
    return encoded(_shakespeare(Path(root)).read("input.txt").decode())


def _shakespeare(root: Path) -> Source:
    return Source(root / "tinyshakespeare", sums("tiny_shakespeare"), SHAKESPEARE)
