"""Pairs of texts that say the same: dates as several languages write them and in digits, and Multi30k.

Letters: n pairs of a batch, N pairs of a split, s and t tokens of source and target.

Every text is BEGIN, its tokens, END, and PAD up to the width of its batch.
"""

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.request import urlopen

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from skipform.errors import SkipformError

PAD, BEGIN, END = 0, 1, 2
SPECIAL = ["<pad>", "<s>", "</s>"]

LOCALES = ("en", "de", "fr", "es", "it", "nl")
FORMATS = ("full", "long", "medium")  # "short" leaves open which number is the month, and which century it is
FIRST, LAST = date(1950, 1, 1), date(2049, 12, 31)
CHARACTERS = " ,-.0123456789ADFJMNOSTWabcdefghijklmnopqrstuvwxyzáäéìû"
TRAIN_DATES, TEST_DATES = 7_200, 540

Language = Literal["cs", "de", "en", "fr"]
PARTS = {"train": "train", "validation": "val", "test": "test_2016_flickr"}
HOME = "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw"
MULTI30K = {  # sha256 sums of the texts, unpacked
    "train.cs": "2be68b38c8d586ff4f54eb13cc6e1baaaa053695b3f070d3038303a47f2268da",
    "train.de": "2c2b73fd2b548fbcde3a875e0a78d6ee94d498bfdee6bd3eae3945779e9ddf72",
    "train.en": "460a15fbd157e34a7a9957ee388c1ca247fe47af3ef25fb50442af6c274e0fc6",
    "train.fr": "5925a3c18f1587b6b54b87743106e6e8ab93618edb6f65d19eac0621f853a10d",
    "val.cs": "d53827e469b0a1ca8d57e9e26b2b64c4bc4b33f5479c7b03ae87ae5c882c3e33",
    "val.de": "660e09eb7e1da2f856ea13ee5ad3cf6d36b3d5b0b733c857e94c5747a3dfc660",
    "val.en": "1f2a23d992769b5b3d209b0a10dd0b77c08cceb1f20dfb97ed0aafa49d107227",
    "val.fr": "5304e444d842e962b2dda4d816b70b22a1765b15401642b7ca37a67477e708dc",
    "test_2016_flickr.cs": "45adb85f688de8407fddcbe1b36dca15d12aab868149b337e2576f2d6d2ff8d8",
    "test_2016_flickr.de": "4be6b5b3236b79c25475c6bb829800a7ce559e9ba7a1f6c2394fe4d40be46d16",
    "test_2016_flickr.en": "399a4382932c1aadd3ceb9bef1008d388a64c76d4ae4e9d4728c6f4301cac182",
    "test_2016_flickr.fr": "cb3160d69b002bb638e66cc7612fcd56cb0af82eadc9c142dedc438afb885ef6",
}

# set -> the widths (s, t) that its batches may have: few, for a compiled step is compiled once for each
SETS = {
    "dates": ((24, 12), (40, 12)),
    "multi30k": ((16, 16), (24, 24), (32, 32), (48, 48), (96, 96)),
}
Texts = dict[str, tuple[list[str], list[str]]]  # split -> sources, targets


class Translation(LightningDataModule):
    """One set of pairs, in memory as its tokens, on the device that trains.

    dates       days of 1950 to 2049 as six languages write them out, in the full, long and medium formats of Babel's
                locale data, and their ISO form: "Tuesday, March 5, 2019" and "5 mrt 2019" -> "2019-03-05". 7,200 days
                for training and 540 others for testing, each once, in one language and format, the same for every
                seed. A character is a token.
    multi30k    29,000 + 1,014 + 1,000 captions of photographs and their translations (Elliott et al. 2016), task 1
                raw: train, val and test_2016_flickr in ROOT/multi30k, packed (train.de.gz) or not (train.de). Tokens
                are pairs of bytes merged, on the training part of both languages together, until there are
                `vocab_size` (byte pair encoding: Sennrich et al. 2016), so that every text can be said.

    The files of multi30k are checked against sha256 sums before use; one that is missing or altered is an error that
    names it, unless `download` is true, which fetches just those files.

    A batch is (source (n, s), target (n, t)).

    Args:
        name: the set.
        root: the folder that holds the files; dates need none.
        download: fetch what is missing or altered. Nothing is fetched when all is there.
        source, target: the languages of multi30k.
        vocab_size: tokens of multi30k's two languages together.
        batch_size: pairs of a training batch; an epoch has only full ones (fewer pairs than that make one batch).
        limit: keep only the first `limit` pairs of each split; the vocabulary remains that of all.
        seed: with the epoch's number it fixes the order of that epoch, whatever came before.
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
        vocab_size: int = 8000,
        batch_size: int = 64,
        limit: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if name not in SETS:
            raise SkipformError(f"unknown data set {name!r}; accepted: {', '.join(SETS)}")
        for key, language in (("source", source), ("target", target)):
            if language not in get_args(Language):
                raise SkipformError(f"unknown data.{key} {language!r}; accepted: {', '.join(get_args(Language))}")
        least = len(SPECIAL) + 256  # any byte is a token
        for key, value, lowest in (
            ("vocab_size", vocab_size, least),
            ("batch_size", batch_size, 1),
            ("limit", limit, 1),
        ):
            if value is not None and value < lowest:
                raise SkipformError(f"data.{key}: {value}; accepted: {lowest} or more")
        self.name: str = name
        self.root, self.download = root, download
        self.languages, self.vocab_size = (source, target), vocab_size
        self.batch_size, self.limit, self.seed = batch_size, limit, seed
        self.splits: dict[str, tuple[Tensor, Tensor]] = {}  # tokens (N, s), (N, t)

    @staticmethod
    def states(name: str, *, vocab_size: int = 8000, **rest: Any) -> dict[str, int]:
        size = len(SPECIAL) + len(CHARACTERS) if name == "dates" else vocab_size
        return {"vocab_size": size, "pad": PAD, "begin": BEGIN, "end": END}

    @property
    def held_out(self) -> list[str]:
        return ["test"] if self.name == "dates" else ["validation", "test"]

    def prepare_data(self) -> None:
        """Check every file, or fetch it: SkipformError names the first that is missing or altered."""
        if self.name == "dates":
            return
        files = [f"{part}.{language}" for part in PARTS.values() for language in dict.fromkeys(self.languages)]
        folder = Path(self.root) / "multi30k"
        for file in files:
            if (found := _sum(folder, file)) == MULTI30K[file]:
                continue
            if not self.download:
                raise SkipformError(
                    f"{folder / file}.gz: {'altered or cut short' if found else 'missing'}; mend it with"
                    f' --data.download true, or with: python -c "from skipform.data.translation import Translation;'
                    f" Translation('multi30k', root={self.root!r}, source={self.languages[0]!r},"
                    f' target={self.languages[1]!r}, download=True).prepare_data()"'
                )
            _fetch(folder, file)

    def setup(self, stage: str | None = None) -> None:
        """Fill `splits` and the vocabulary."""
        texts, self.vocabulary = _read(self.name, self.root, *self.languages, self.vocab_size)
        kept = {split: [side[: self.limit] for side in sides] for split, sides in texts.items()}
        self.splits = {split: (self._tokens(one), self._tokens(other)) for split, (one, other) in kept.items()}

    def _tokens(self, texts: list[str]) -> Tensor:
        # one by one: encode_batch starts threads, which a process that is to be forked must not have
        rows = [torch.tensor([BEGIN, *self.vocabulary.encode(text).ids, END]) for text in texts]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)

    def text(self, tokens: Tensor) -> list[str]:
        """The texts of tokens (n, t); what none of them is, BEGIN, END, PAD, is passed over."""
        return [self.vocabulary.decode(row) for row in tokens.tolist()]

    def train_dataloader(self) -> "Batches":
        """Of several processes each one takes its share of every batch."""
        share = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return self._batches("train", self.batch_size, shuffle_seed=self.seed, share=share)

    def val_dataloader(self) -> "list[Batches]":
        """The splits not trained on, in the order of `held_out`; of several processes each one takes its share."""
        share = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return [self._batches(split, 128, share=share) for split in self.held_out]

    def _batches(self, split: str, batch_size: int, **rest: Any) -> "Batches":
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        source, target = (side.to(device) for side in self.splits[split])
        return Batches(source, target, batch_size, SETS[self.name], **rest)


class Batches:
    """The batches of one epoch, cut from two tensors; lies where they lie, and needs no worker.

    Training (`shuffle_seed` given): full batches drawn from (shuffle_seed, epoch); what does not fill a batch sits this
    epoch out. Pairs of a width come together, that little of a batch is padding; which ones, and when, is random.
    Whoever trains sets `epoch` before each one. With share=(r, R), the r-th of R equal parts of each of these batches.
    Otherwise: all pairs (of them every R-th), in order.

    widths: (s, t), ascending; a batch has the first that holds all its pairs, or that of all the pairs if none does.
    """

    def __init__(
        self,
        source: Tensor,  # (N, s)
        target: Tensor,  # (N, t)
        batch_size: int,
        widths: tuple[tuple[int, int], ...],
        *,
        shuffle_seed: int | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.batch_size, self.shuffle_seed, self.share = min(batch_size, len(source)), shuffle_seed, share
        if shuffle_seed is not None and self.batch_size % share[1]:
            raise SkipformError(
                f"data.batch_size: {self.batch_size}; accepted: a multiple of {share[1]}, the processes"
            )
        self.widths = (*widths, (max(source.shape[1], widths[-1][0]), max(target.shape[1], widths[-1][1])))
        sizes = torch.stack([(side != PAD).sum(1) for side in (source, target)], 1).cpu()  # (N, 2)
        holds = (sizes[:, None] <= torch.tensor(self.widths)).all(2)  # (N, widths)
        self.width = holds.int().argmax(1)  # (N,) of each pair the first that holds it
        room = [extent - side.shape[1] for extent, side in zip(self.widths[-1], (source, target), strict=True)]
        self.source, self.target = (
            torch.nn.functional.pad(side, (0, more), value=PAD)
            for side, more in zip((source, target), room, strict=True)
        )
        self.epoch = 0

    def __len__(self) -> int:
        return sum(1 for _ in self._chosen())

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for chosen in self._chosen():
            s, t = self.widths[int(self.width[chosen].max())]
            rank, world = self.share
            own = chosen[rank::world].to(self.source.device)
            yield self.source[own, :s], self.target[own, :t]

    def _chosen(self) -> Iterator[Tensor]:
        """The pairs of each batch, all processes' (n,)."""
        count = len(self.source)
        if self.shuffle_seed is None:
            return iter(torch.arange(count).split(self.batch_size * self.share[1]))
        mixed = np.random.SeedSequence([self.shuffle_seed, self.epoch]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(mixed[0] >> np.uint64(1)))
        order = torch.randperm(count, generator=generator)[: count - count % self.batch_size]
        batches = order[self.width[order].argsort(stable=True)].view(-1, self.batch_size)
        return iter(batches[torch.randperm(len(batches), generator=generator)])


@lru_cache(maxsize=1)  # the seeds and variants of one experiment read the same texts
def _read(name: str, root: str, source: str, target: str, vocab_size: int) -> tuple[Texts, Tokenizer]:
    """The pairs of every split, and the vocabulary."""
    if name == "dates":
        return _dates(), _characters()
    folder = Path(root) / "multi30k"
    texts: Texts = {}
    for split, part in PARTS.items():
        one, other = (
            [line.strip() for line in _content(folder, f"{part}.{language}").decode().split("\n")[:-1]]
            for language in (source, target)
        )
        texts[split] = one, other
    return texts, _merged_bytes([*texts["train"][0], *texts["train"][1]], vocab_size)


def _dates() -> Texts:
    """The i-th day of a fixed random order, in the i-th of all languages and formats, over and over."""
    from babel.dates import format_date

    days = (LAST - FIRST).days + 1
    order = torch.randperm(days, generator=torch.Generator().manual_seed(0))[: TRAIN_DATES + TEST_DATES]
    styles = [(locale, style) for locale in LOCALES for style in FORMATS]
    found = [date.fromordinal(FIRST.toordinal() + day) for day in order.tolist()]
    written = [
        format_date(day, style, locale)
        for day, (locale, style) in zip(found, (styles[i % len(styles)] for i in range(len(found))), strict=True)
    ]
    digits = [day.isoformat() for day in found]
    return {
        "train": (written[:TRAIN_DATES], digits[:TRAIN_DATES]),
        "test": (written[TRAIN_DATES:], digits[TRAIN_DATES:]),
    }


def _characters() -> Tokenizer:
    """A token for each of CHARACTERS."""
    words = {word: token for token, word in enumerate([*SPECIAL, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(words))  # any other character is an error
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(word) for word in SPECIAL])
    return tokenizer


def _merged_bytes(texts: list[str], vocab_size: int) -> Tokenizer:
    """Byte pair encoding trained on the texts; the merges are the same wherever and whenever that is done."""
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


def _content(folder: Path, file: str) -> bytes:
    """What a file says, packed or not."""
    packed = folder / f"{file}.gz"
    return gzip.decompress(packed.read_bytes()) if packed.is_file() else (folder / file).read_bytes()


def _sum(folder: Path, file: str) -> str | None:
    """The sha256 sum of what a file says; None if there is none, "unreadable" if it cannot be unpacked."""
    try:
        return hashlib.sha256(_content(folder, file)).hexdigest()
    except FileNotFoundError:
        return None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        return "unreadable"


def _fetch(folder: Path, file: str) -> None:
    """Put the packed file into the folder, if it is the right one."""
    url = f"{HOME}/{file}.gz"
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f"{file}.gz.part"
    try:
        with urlopen(url, timeout=60) as answer:
            beside.write_bytes(answer.read())
        if hashlib.sha256(gzip.decompress(beside.read_bytes())).hexdigest() != MULTI30K[file]:
            raise OSError("it has another sha256 sum there")
    except (OSError, EOFError, zlib.error) as error:  # no network, no space, a page that says something else
        beside.unlink(missing_ok=True)
        raise SkipformError(f"{folder / file}.gz: could not be fetched from {url}: {error}") from error
    beside.rename(folder / f"{file}.gz")
