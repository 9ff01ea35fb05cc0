"""Pairs of texts with the same meaning: dates in several languages and in ISO form, and Multi30k.

Letters: n pairs of a batch, N pairs of a split, s and t tokens of source and target.

Every text is BEGIN, its tokens, END, and PAD up to the width of its batch.
"""

import gzip
import zlib
from collections.abc import Iterator
from datetime import date
from functools import lru_cache
from itertools import cycle
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional

from skipform.arguments import Count, Range, Seed
from skipform.data.epochs import Epochs, Loader
from skipform.data.module import DataModule
from skipform.data.source import Source, sums

PAD, BEGIN, END = 0, 1, 2
SPECIAL = ["<pad>", "<s>", "</s>"]

LOCALES = ("en", "de", "fr", "es", "it", "nl")
FORMATS = ("full", "long", "medium")  # "short" is ambiguous: it does not tell the month from the day, nor the century
FIRST, LAST = date(1950, 1, 1), date(2049, 12, 31)
CHARACTERS = " ,-.0123456789ADFJMNOSTWabcdefghijklmnopqrstuvwxyzáäéìû"
TRAIN_DATES, TEST_DATES = 7_200, 540

Language = Literal["cs", "de", "en", "fr"]
PARTS = {"train": "train", "validation": "val", "test": "test_2016_flickr"}
HOME = "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw/"

# set -> the widths (s, t) that its batches may have: only a few, because a step is compiled for each width
SETS = {
    "dates": ((24, 12), (40, 12)),
    "multi30k": ((16, 16), (24, 24), (32, 32), (48, 48), (96, 96)),
}
Texts = dict[str, tuple[list[str], list[str]]]  # split -> sources, targets


class Translation(DataModule):
    """One set of pairs, stored as tokens on the device that trains.

    dates       days of 1950 to 2049 in six languages, in the full, long and medium formats of Babel's locale data, and
                their ISO form: "Tuesday, March 5, 2019" and "5 mrt 2019" -> "2019-03-05". 7,200 days
                for training and 540 others for testing, each day once, in one language and format, the same for every
                seed. A character is a token.
    multi30k    29,000 + 1,014 + 1,000 captions of photographs and their translations (Elliott et al. 2016), task 1
                raw: train, val and test_2016_flickr in ROOT/multi30k, compressed (train.de.gz) or not (train.de),
                checked against sha256 sums before use. Byte pair encoding (Sennrich et al. 2016), trained on the
                training parts of both languages together, makes `vocab_size` tokens, with which every text can be
                encoded.

    A batch is (source (n, s), target (n, t)).

    Args:
        name: the set.
        root: the folder that holds the files; dates need none.
        download: fetch files that are missing or altered; without it they are an error.
        source, target: the languages of multi30k.
        vocab_size: the number of tokens of multi30k, for both languages together.
        batch_size: pairs of a training batch; an epoch has only full ones (fewer pairs than that make one batch).
        limit: use only the first `limit` pairs of each split; the vocabulary is still that of all pairs.
        seed: with the epoch's number it determines the order of that epoch.
    """

    TARGETS = "pairs"

    def __init__(
        self,
        name: Literal["dates", "multi30k"],
        *,
        root: str = "data",
        download: bool = False,
        source: Language = "en",
        target: Language = "de",
        vocab_size: Annotated[int, Range(256 + len(SPECIAL))] = 8000,  # any byte is a token
        batch_size: Count = 64,
        limit: Count | None = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__(name, SETS, root=root, download=download, seed=seed)
        self.languages, self.vocab_size = (source, target), vocab_size
        self.batch_size, self.limit = batch_size, limit
        self.splits: dict[str, tuple[Tensor, Tensor]] = {}  # tokens (N, s), (N, t)

    @staticmethod
    def states(name: str, *, vocab_size: int = 8000, **rest: Any) -> dict[str, int]:
        """vocab_size and the tokens pad, begin, end."""
        size = len(SPECIAL) + len(CHARACTERS) if name == "dates" else vocab_size
        return {"vocab_size": size, "pad": PAD, "begin": BEGIN, "end": END}

    @property
    def held_out(self) -> list[str]:
        return ["test"] if self.name == "dates" else ["validation", "test"]

    def arguments(self) -> dict[str, Any]:
        return dict(zip(("source", "target"), self.languages, strict=True))

    def sources(self) -> Iterator[Source]:
        if self.name == "multi30k":
            yield _multi30k(self.folder, self.languages)

    def setup(self, stage: str | None = None) -> None:
        """Fill `splits` and the vocabulary."""
        texts, self.vocabulary = _read(self.name, self.root, *self.languages, self.vocab_size)
        self.splits = {
            split: (self._tokens(one[: self.limit]), self._tokens(other[: self.limit]))
            for split, (one, other) in texts.items()
        }

    def _tokens(self, texts: list[str]) -> Tensor:
        # one by one: encode_batch starts threads, which a process that is to be forked must not have
        rows = [torch.tensor([BEGIN, *self.vocabulary.encode(text).ids, END]) for text in texts]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)

    def text(self, tokens: Tensor) -> list[str]:
        """The n texts of tokens (n, t), without BEGIN, END and PAD."""
        return [self.vocabulary.decode(row) for row in tokens.tolist()]

    def loader(self, split: str, *, training: bool = False) -> "PairBatches":
        source, target = self.splits[split]
        batch_size, seed = (self.batch_size, self.seed) if training else (128, None)
        epochs = PairEpochs(source, target, batch_size, SETS[self.name], seed=seed, share=self.share)
        return PairBatches(source.to(self.device), target.to(self.device), epochs)


class PairEpochs(Epochs):
    """Epochs whose training batches have pairs of similar width, so that little of a batch is padding. Which pairs are
    together, and the order of the batches, are random.

    Args:
        source, target: tokens (N, s), (N, t), padded.
        widths: (s, t), ascending. A batch has the first width that is enough for all its pairs; if none is, the width
            of all N pairs.
    """

    def __init__(
        self,
        source: Tensor,
        target: Tensor,
        batch_size: int,
        widths: tuple[tuple[int, int], ...],
        *,
        seed: int | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        super().__init__(len(source), batch_size, seed=seed, share=share)
        self.widths = (*widths, (max(source.shape[1], widths[-1][0]), max(target.shape[1], widths[-1][1])))
        sizes = torch.stack([(side != PAD).sum(1) for side in (source, target)], 1)  # (N, 2)
        holds = (sizes[:, None] <= torch.tensor(self.widths)).all(2)  # (N, widths)
        self.width = holds.int().argmax(1)  # (N,) the first of `widths` that holds the pair

    def order(self, generator: torch.Generator) -> Tensor:
        order = super().order(generator).flatten()
        batches = order[self.width[order].argsort(stable=True)].view(-1, self.batch_size)
        return batches[torch.randperm(len(batches), generator=generator)]

    def extents(self, batch: Tensor | slice) -> tuple[int, int]:
        """The width (s, t) of a batch."""
        return self.widths[int(self.width[batch].max())]


class PairBatches(Loader):
    """Batches of the tokens of both sides, made on their device."""

    batch_sampler: PairEpochs

    def __init__(self, source: Tensor, target: Tensor, batch_sampler: PairEpochs) -> None:
        super().__init__(batch_sampler)
        s, t = batch_sampler.widths[-1]
        self.source, self.target = (
            functional.pad(side, (0, extent - side.shape[1]), value=PAD) for side, extent in ((source, s), (target, t))
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # The width is chosen for the pairs of all processes, so that their batches have the same shape.
        epochs = self.batch_sampler
        batches: Iterator[tuple[Tensor | slice, Tensor | slice]]
        if epochs.seed is None:
            batches = ((slice(own.start - epochs.share[0], own.stop), own) for own in epochs.slices())
        else:
            order = epochs.order(epochs.generator())
            batches = zip(order, epochs.own(order).to(self.source.device), strict=True)
        for everywhere, own in batches:
            s, t = epochs.extents(everywhere)
            yield self.source[own, :s], self.target[own, :t]


@lru_cache(maxsize=1)  # the seeds and variants of one experiment read the same texts
def _read(name: str, root: str, source: str, target: str, vocab_size: int) -> tuple[Texts, Tokenizer]:
    """The pairs of every split, and the vocabulary."""
    if name == "dates":
        return _dates(), _characters()
    files = _multi30k(Path(root), (source, target))
    texts: Texts = {}
    for split, part in PARTS.items():
        one, other = (
            [line.strip() for line in files.read(f"{part}.{language}.gz").decode().split("\n")[:-1]]
            for language in (source, target)
        )
        texts[split] = one, other
    return texts, _merged_bytes([*texts["train"][0], *texts["train"][1]], vocab_size)


def _dates() -> Texts:
    """Days in a fixed random order, written in all languages and formats in turn."""
    from babel.dates import format_date

    days = (LAST - FIRST).days + 1
    order = torch.randperm(days, generator=torch.Generator().manual_seed(0))[: TRAIN_DATES + TEST_DATES]
    styles = cycle((locale, style) for locale in LOCALES for style in FORMATS)
    chosen = [date.fromordinal(FIRST.toordinal() + day) for day in order.tolist()]
    written = [format_date(day, style, locale) for day, (locale, style) in zip(chosen, styles, strict=False)]
    digits = [day.isoformat() for day in chosen]
    return {
        "train": (written[:TRAIN_DATES], digits[:TRAIN_DATES]),
        "test": (written[TRAIN_DATES:], digits[TRAIN_DATES:]),
    }


def _characters() -> Tokenizer:
    """A vocabulary with one token per character of CHARACTERS."""
    tokens = {word: token for token, word in enumerate([*SPECIAL, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(tokens))  # any other character is an error
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(word) for word in SPECIAL])
    return tokenizer


def _merged_bytes(texts: list[str], vocab_size: int) -> Tokenizer:
    """Byte pair encoding trained on the texts; the merges are the same on every machine."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


class CompressedSource(Source):
    """Files NAME.gz, or decompressed files NAME; their checksums are those of the decompressed content."""

    def exists(self, file: str) -> bool:
        return super().exists(file) or (self.folder / file).with_suffix("").is_file()

    def read(self, file: str) -> bytes:
        """The decompressed content; b"" if it cannot be decompressed."""
        if not super().exists(file):
            return (self.folder / file).with_suffix("").read_bytes()
        try:
            return self.unpacked(super().read(file))
        except (gzip.BadGzipFile, EOFError, zlib.error):
            return b""

    def unpacked(self, content: bytes) -> bytes:
        return gzip.decompress(content)


def _multi30k(root: Path, languages: tuple[str, str]) -> Source:
    """The files of both languages."""
    files = [f"{part}.{language}" for part in PARTS.values() for language in dict.fromkeys(languages)]
    of_texts = sums("multi30k")  # decompressed
    return CompressedSource(root / "multi30k", {f"{file}.gz": of_texts[file] for file in files}, HOME)
