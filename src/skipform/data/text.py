"""Text, character by character: the help texts that come with Python, tiny Shakespeare.

Letters: n windows of a batch, t characters of a window (the context), N characters of a split.

A character is its token, in a vocabulary that is the same for every text: 0 the newline, 1 .. 95 printable ASCII (32 ..
126), 96 any other character, 97 the mask.
"""

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from urllib.request import urlopen

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from skipform.errors import SkipformError

ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
OTHER, MASK = len(ALPHABET), len(ALPHABET) + 1
UNASKED = -100  # the target where nothing is to be predicted: the one that torch's cross-entropy passes over

# a module of Python, a file below the root
SETS = {"python_topics": "pydoc_data.topics", "tiny_shakespeare": "tinyshakespeare/input.txt"}
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
HOME = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"


def encoded(text: str) -> Tensor:
    """The text's tokens, (N,)."""
    place = {character: token for token, character in enumerate(ALPHABET)}
    return torch.tensor([place.get(character, OTHER) for character in text], dtype=torch.int64)


class Text(LightningDataModule):
    """One text, in memory as its tokens, on the device that trains. The last tenth of it is for testing.

    python_topics       what Python's help() says of the language, 79 texts of 465,000 characters in Python 3.11, in
                        alphabetical order; other versions of Python say it in other words.
    tiny_shakespeare    1,115,394 characters of plays (A. Karpathy), in ROOT/tinyshakespeare/input.txt, checked against
                        its sha256 sum; one that is missing or altered is an error that names it, unless `download` is
                        true. Split as nanoGPT splits it.

    A batch is (tokens (n, t), targets (n, t)): what a net sees, and what it should say at each place, or -100 where it
    is asked nothing.

    causal    the target is the next character.
    masked    of each window round(0.15 t) places are drawn and asked for. What the net sees there is the mask in 80 %
              of the cases, any character in 10 %, the right one in 10 % (Devlin et al. 2019, Section 3.1 and A.1).

    An epoch of training is `steps` batches of windows anywhere in the text. Testing goes once through all of the held
    out characters in windows side by side, the last of which overlaps and asks only for what is new; masks are the same
    for every seed.

    Args:
        name: the set.
        root: the folder that holds the files; Python's topics need none.
        download: fetch what is missing or altered. Nothing is fetched when all is there.
        objective: what is predicted.
        context: t.
        batch_size: windows of a training batch.
        steps: of an epoch.
        limit: keep only the first `limit` windows' characters of each split.
        seed: with the epoch's number it fixes the windows and masks of that epoch, whatever came before.
    """

    TARGETS = "text"

    def __init__(
        self,
        name: Literal["python_topics", "tiny_shakespeare"],
        *,
        root: str = "data",
        download: bool = False,
        objective: Literal["causal", "masked"] = "causal",
        context: int = 64,
        batch_size: int = 64,
        steps: int = 100,
        limit: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if name not in SETS:
            raise SkipformError(f"unknown data set {name!r}; accepted: {', '.join(SETS)}")
        if objective not in ("causal", "masked"):
            raise SkipformError(f"unknown data.objective {objective!r}; accepted: causal, masked")
        sizes = (("context", context, 4), ("batch_size", batch_size, 1), ("steps", steps, 1), ("limit", limit, 1))
        for key, value, least in sizes:
            if value is not None and value < least:
                raise SkipformError(f"data.{key}: {value}; accepted: {least} or more")
        self.name: str = name
        self.root, self.download = root, download
        self.masked = objective == "masked"
        self.context, self.batch_size, self.steps, self.limit, self.seed = context, batch_size, steps, limit, seed
        self.splits: dict[str, Tensor] = {}  # tokens (N,)

    @staticmethod
    def states(name: str, *, objective: str = "causal", context: int = 64, **rest: Any) -> dict[str, Any]:
        return {"vocab_size": MASK + 1, "context": context, "objective": objective}

    @property
    def held_out(self) -> list[str]:
        return ["test"]

    def prepare_data(self) -> None:
        """Check the file, or fetch it: SkipformError names it if it is missing or altered."""
        if self.name == "python_topics":
            return
        path = Path(self.root) / SETS[self.name]
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == SHA256:
            return
        if not self.download:
            state = "altered or cut short" if path.is_file() else "missing"
            raise SkipformError(
                f"{path}: {state}; mend it with --data.download true, or with: python -c "
                f'"from skipform.data.text import Text; Text({self.name!r}, root={self.root!r}, download=True)'
                '.prepare_data()"'
            )
        try:
            with urlopen(HOME, timeout=60) as answer:
                content = answer.read()
            if hashlib.sha256(content).hexdigest() != SHA256:
                raise OSError("it has another sha256 sum there")
        except OSError as error:  # no network, a page that says something else
            raise SkipformError(f"{path}: could not be fetched from {HOME}: {error}") from error
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"{path.name}.part")
        beside.write_bytes(content)
        beside.rename(path)

    def setup(self, stage: str | None = None) -> None:
        """Fill `splits`: "train" and "test", tokens (N,)."""
        whole = _read(self.name, self.root)
        kept = None if self.limit is None else self.limit * self.context + 1
        cut = int(0.9 * len(whole))
        self.splits = {"train": whole[:cut][:kept], "test": whole[cut:][:kept]}
        for split, characters in self.splits.items():
            if len(characters) <= self.context:
                raise SkipformError(f"data.context: {self.context}; accepted: below {len(characters)}, all of {split}")

    def text(self, tokens: Tensor) -> list[str]:
        """The texts of tokens (n, t); any other character as the replacement character, the mask as a block."""
        characters = ALPHABET + "\ufffd\u2588"
        return ["".join(characters[token] for token in row) for row in tokens.tolist()]

    def train_dataloader(self) -> "Windows":
        """Of several processes each one takes its share of every batch."""
        share = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return Windows(
            self._near("train"),
            self.context,
            self.batch_size,
            masked=self.masked,
            steps=self.steps,
            seed=self.seed,
            share=share,
        )

    def val_dataloader(self) -> "list[Windows]":
        """The test split; of several processes each one takes its share."""
        share = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return [Windows(self._near("test"), self.context, 128, masked=self.masked, share=share)]

    def _near(self, split: str) -> Tensor:
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        return self.splits[split].to(device)


class Windows:
    """The batches of one epoch, cut from one text (N,); lies where it lies, and needs no worker.

    Training (`steps` given): so many batches of windows that begin anywhere, drawn, masks too, from (seed, epoch) on
    the CPU and moved at the epoch's start. Whoever trains sets `epoch` before each one. With share=(r, R), the r-th of
    R equal parts of each of these batches.
    Otherwise: every place once (the first cannot be predicted causally), in windows side by side.
    """

    def __init__(
        self,
        text: Tensor,  # (N,)
        context: int,
        batch_size: int,
        *,
        masked: bool,
        steps: int | None = None,
        seed: int = 0,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        if steps and batch_size % share[1]:
            raise SkipformError(f"data.batch_size: {batch_size}; accepted: a multiple of {share[1]}, the processes")
        self.text, self.context, self.batch_size, self.masked = text, context, batch_size, masked
        self.steps, self.seed, self.share = steps, seed, share
        self.epoch = 0

    def __len__(self) -> int:
        rank, world = self.share
        return self.steps or -(-len(range(rank, self._windows, world)) // self.batch_size)

    @property
    def _places(self) -> int:
        """So many characters can be predicted."""
        return len(self.text) - (not self.masked)

    @property
    def _windows(self) -> int:
        return -(-self._places // self.context)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        rank, world = self.share
        if self.steps:
            mixed = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1, np.uint64)
            generator = torch.Generator().manual_seed(int(mixed[0] >> np.uint64(1)))
            starts = torch.randint(
                self._places - self.context + 1, (self.steps * self.batch_size,), generator=generator
            )
            fresh = torch.zeros_like(starts)
            size = self.batch_size // world
        else:
            generator = torch.Generator().manual_seed(0)
            side = torch.arange(self._windows) * self.context
            starts = side.clamp(max=self._places - self.context)
            fresh = side - starts  # of the last window the first ones have been asked for
            size = self.batch_size
        places = torch.arange(self.context)
        asked = places >= fresh[:, None]  # (windows, t)
        shown = torch.full_like(asked, -1, dtype=torch.int64)  # instead of what stands there, where not negative
        if self.masked:
            asked &= _drawn(len(starts), self.context, generator)
            means = torch.rand(asked.shape, generator=generator)
            other = torch.randint(MASK, asked.shape, generator=generator)
            shown = torch.where(asked & (means < 0.9), torch.where(means < 0.8, MASK, other), shown)
        starts, asked, shown = (part[rank::world].to(self.text.device) for part in (starts, asked, shown))
        places = places.to(self.text.device)
        for first in range(0, len(starts), size):
            start, ask, show = (part[first : first + size] for part in (starts, asked, shown))
            where = start[:, None] + places  # (n, t)
            seen = self.text[where]
            target = seen if self.masked else self.text[where + 1]
            yield torch.where(show < 0, seen, show), torch.where(ask, target, UNASKED)


def _drawn(windows: int, t: int, generator: torch.Generator) -> Tensor:
    """round(0.15 t) different places of each window, as True in (windows, t)."""
    order = torch.rand(windows, t, generator=generator).argsort(1)
    return order.argsort(1) < round(0.15 * t)


@lru_cache(maxsize=1)  # the seeds and variants of one experiment read the same text
def _read(name: str, root: str) -> Tensor:
    if name == "python_topics":
        from pydoc_data.topics import topics

        return encoded("".join(topics.values()))
    return encoded((Path(root) / SETS[name]).read_text(encoding="utf-8"))
