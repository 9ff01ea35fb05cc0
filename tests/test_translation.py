"""Pairs of texts, their task and its decoding, against hand-written parsing, enumeration and naive versions."""

import gzip
import itertools
import re
import unicodedata
from datetime import date, timedelta
from types import SimpleNamespace

import pytest
import small_sets
import torch
from babel import Locale
from babel.dates import format_date
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from skipform import data, nets, tasks
from skipform.data import translation
from skipform.data.translation import (
    BEGIN,
    CHARACTERS,
    END,
    FIRST,
    FORMATS,
    LAST,
    LOCALES,
    PAD,
    PairBatches,
    PairEpochs,
    Translation,
)
from skipform.errors import SkipformError
from skipform.tasks.translate import translated

SPECIAL = {"pad": PAD, "begin": BEGIN, "end": END}


# the dates


@pytest.fixture(scope="module")
def dates():
    data = Translation("dates")
    data.prepare_data()
    data.setup()
    return data


def texts(data: Translation, split: str) -> list[tuple[str, str]]:
    return list(zip(*map(data.text, data.splits[split]), strict=True))


MONTHS = {  # typed by hand, accents taken off: how a month begins, and no other one
    "en": "jan feb mar apr may jun jul aug sep oct nov dec",
    "de": "jan feb mar apr mai jun jul aug sep okt nov dez",
    "fr": "jan fe mars av mai juin juil ao sep oct nov de",
    "es": "en fe mar ab may jun jul ag sep oct nov di",
    "it": "gen feb mar ap mag giu lug ago set ott nov dic",
    "nl": "jan feb m(aa|r) ap mei jun jul aug sep okt nov dec",
}


def parsed(text: str) -> set[date]:
    """What a date may mean: every reading in any of the languages, by regular expressions alone."""
    plain = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if not unicodedata.combining(c))
    if numeric := re.fullmatch(r"(\d\d)\.(\d\d)\.(\d{4})", plain):
        return {date(int(numeric[3]), int(numeric[2]), int(numeric[1]))}
    day, year = map(int, re.findall(r"\d+", plain))
    words = re.findall(r"[a-z]{3,}", plain)
    word = words[-1]  # the weekday stands before it
    months = {
        month for language in MONTHS.values() for month, head in enumerate(language.split(), 1) if re.match(head, word)
    }
    return {date(year, month, day) for month in months}


def test_dates_mean_their_iso_form(dates):
    for text, iso in texts(dates, "test") + texts(dates, "train")[:1000]:
        assert {data.isoformat() for data in parsed(text)} == {iso}, text


def test_no_day_is_in_two_splits_or_twice(dates):
    days = [iso for split in ("train", "test") for _, iso in texts(dates, split)]
    assert len(days) == len(set(days)) == 7_200 + 540
    assert all(FIRST <= date.fromisoformat(day) <= LAST for day in days)


def test_the_vocabulary_of_dates_is_known_before_any_is_written(dates):
    data = {c for split in ("train", "test") for pair in texts(dates, split) for c in "".join(pair)}
    named = {  # of every month and weekday of the locale data, whether drawn or not
        c
        for locale in LOCALES
        for day in (date(2024, 1, 1) + timedelta(i) for i in range(366))
        for style in FORMATS
        for c in format_date(day, style, locale)
    }
    assert data | named <= set(CHARACTERS)
    assert Translation.states("dates")["vocab_size"] == 3 + len(CHARACTERS) == dates.vocabulary.get_vocab_size()
    assert all(int(side.max()) < 3 + len(CHARACTERS) for sides in dates.splits.values() for side in sides)


def test_no_text_stands_for_two_days():
    """In none of the languages and formats, nor between them."""
    meaning = {}
    for day in (date(2023, 1, 1) + timedelta(i) for i in range(730)):
        for locale, style in itertools.product(LOCALES, FORMATS):
            assert meaning.setdefault(format_date(day, style, locale), day) == day
    assert {Locale.parse(locale).language for locale in LOCALES} == set(MONTHS)


def test_every_language_and_format_occurs_equally_often(dates):
    styles = list(itertools.product(LOCALES, FORMATS))
    for i, (text, iso) in enumerate(texts(dates, "train")):
        locale, style = styles[i % len(styles)]
        assert format_date(date.fromisoformat(iso), style, locale) == text


# Multi30k, in small files of the same form


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The folder that holds 20 + 10 + 10 sentences of two languages, under their own sums."""
    return small_sets.multi30k(monkeypatch).lay(tmp_path)


def multi30k(root, **arguments) -> Translation:
    data = Translation("multi30k", root=str(root), vocab_size=300, **arguments)
    data.prepare_data()
    data.setup()
    return data


def test_texts_survive_their_tokens(root):
    data = multi30k(root)
    for split, part in translation.PARTS.items():
        for side, language in zip(data.splits[split], ("en", "de"), strict=True):
            lines = gzip.decompress((root / "multi30k" / f"{part}.{language}.gz").read_bytes()).decode().splitlines()
            assert data.text(side) == lines


@settings(max_examples=50)
@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20).filter(lambda t: "<" not in t))
def test_any_text_survives_the_merged_bytes(text):
    tokenizer = translation._merged_bytes(["abab cd", "ab cdé"], 270)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.get_vocab_size() <= 270


def test_a_text_is_begin_its_tokens_end_and_padding(root, dates):
    for module in (multi30k(root), dates):
        for row in module.splits["test"][0].tolist():
            end = row.index(END)
            assert row[0] == BEGIN
            assert not {PAD, BEGIN, END} & set(row[1:end])
            assert set(row[end + 1 :]) <= {PAD}


def test_sources_and_targets_stay_together_and_languages_swap(root):
    one, other = multi30k(root), multi30k(root, source="de", target="en")
    assert texts(one, "train") == [(b, a) for a, b in texts(other, "train")]


def test_packed_and_plain_files_are_the_same(root):
    packed = multi30k(root)
    for file in list((root / "multi30k").glob("*.gz")):
        file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
        file.unlink()
    translation._read.cache_clear()
    plain = multi30k(root)
    assert all(
        torch.equal(a, b)
        for split in packed.splits
        for a, b in zip(packed.splits[split], plain.splits[split], strict=True)
    )


def test_a_plain_file_is_checked_too(root):
    path = root / "multi30k" / "val.de"
    path.write_bytes(b"etwas anderes\n")
    Translation("multi30k", root=str(root)).prepare_data()  # the packed one is read
    path.with_name("val.de.gz").unlink()
    with pytest.raises(SkipformError, match=r"val\.de\.gz: altered or cut short; mend it with --data\.download true"):
        Translation("multi30k", root=str(root)).prepare_data()


def test_the_mending_command_fetches_the_languages_in_use(root):
    (root / "multi30k" / "val.en.gz").unlink()
    with pytest.raises(SkipformError, match=r"'multi30k', root='[^']*', source='de', target='en', download=True\)"):
        Translation("multi30k", root=str(root), source="de", target="en").prepare_data()


def test_download_fetches_only_what_is_not_right(root, home, monkeypatch):
    small = small_sets.multi30k(monkeypatch)
    small.serve(*home, monkeypatch)
    (home[0] / "train.en.gz").unlink()
    for path in (root / "multi30k").iterdir():
        if path.name != "train.en.gz":
            path.unlink()
    assert len(multi30k(root, download=True).splits["train"][0]) == 20
    (home[0] / "val.de.gz").write_bytes(gzip.compress(b"etwas anderes\n"))
    (root / "multi30k" / "val.de.gz").unlink()
    with pytest.raises(
        SkipformError, match=r"val\.de\.gz: could not be fetched from .*: it has another checksum there$"
    ):
        multi30k(root, download=True)
    assert not list((root / "multi30k").glob("val.de*"))


def test_what_is_not_accepted_is_refused_by_name():
    for arguments, message in (
        ({"name": "multi30k", "source": "nl"}, r"data\.source: 'nl' is not accepted; accepted: 'cs' \| 'de' \| 'en'"),
        ({"name": "multi30k", "vocab_size": 100}, r"data\.vocab_size: 100; accepted: 259 or more"),
    ):
        with pytest.raises(SkipformError, match=message):
            data.build(0, **arguments)


def test_the_sets_are_found_by_name():
    assert data.kind("dates") is data.kind("multi30k") is Translation
    assert tasks.kind("translate").TARGETS == Translation.TARGETS


# batches


def pairs(lengths: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Pair i consists of tokens 10 + i, in the given numbers."""
    sides = []
    for side in zip(*lengths, strict=True):
        rows = [torch.full((length,), 10 + i) for i, length in enumerate(side)]
        sides.append(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD))
    return sides[0], sides[1]


WIDTHS = ((4, 3), (6, 6))
LENGTHS = st.lists(st.tuples(st.integers(1, 8), st.integers(1, 8)), min_size=1, max_size=30)


@given(LENGTHS, st.integers(1, 7), st.integers(0, 3), st.integers(1, 3))
def test_pairs_stay_together_and_whole_in_batches_of_few_widths(lengths, size, epoch, world):
    size *= world
    share = {} if min(size, len(lengths)) % world else {"share": (world - 1, world)}
    batches = PairBatches(*pairs(lengths), PairEpochs(*pairs(lengths), size, WIDTHS, seed=0, **share))
    batches.epoch = epoch
    widest = [max(6, *(length[side] for length in lengths)) for side in (0, 1)]
    for source, target in batches:
        assert len(source) == min(size, len(lengths)) // (world if share else 1)
        assert torch.equal(source[:, 0], target[:, 0])  # pairs stay together
        assert (source.shape[1], target.shape[1]) in (*WIDTHS, tuple(widest))
        for one, other in zip(source, target, strict=True):
            number = int(one[0]) - 10
            assert ((one == number + 10).sum(), (other == number + 10).sum()) == lengths[number]  # nothing is cut off


@given(LENGTHS, st.integers(1, 7), st.integers(2, 3))
def test_the_processes_batches_are_equally_wide(lengths, size, world):
    """Whose pairs are the widest does not matter, in training and in evaluation."""
    for seed in [None, 0] if min(size * world, len(lengths)) % world == 0 else [None]:
        per_batch = size if seed is None else size * world
        shares = [
            PairBatches(*pairs(lengths), PairEpochs(*pairs(lengths), per_batch, WIDTHS, seed=seed, share=(rank, world)))
            for rank in range(world)
        ]
        for parts in zip(*shares, strict=False):
            assert len({(source.shape[1], target.shape[1]) for source, target in parts}) == 1


def test_batches_have_few_shapes_and_little_padding(dates):
    """The compiled step is compiled once for each shape."""
    batches = dates.train_dataloader()
    shapes = {(source.shape, target.shape) for source, target in batches}
    assert shapes == {((64, s), (64, t)) for s, t in translation.SETS["dates"]}


# the loss


def net(vocab_size: int = 6, seed: int = 0, sharp: float = 1.0) -> torch.nn.Module:
    torch.manual_seed(seed)
    built = nets.build("transformer", vocab_size=vocab_size, depth=1, width=8, heads=2, hidden=16, dropout=0.0)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(sharp) if parameter.dim() > 1 else parameter.add_(torch.randn_like(parameter) / 4)
    return built.eval()


def task(built, **arguments):
    return tasks.build("translate", built, **SPECIAL, **arguments)


def sentences(draw: torch.Generator, n: int, width: int, vocab_size: int) -> Tensor:
    rows = torch.randint(3, vocab_size, (n, width), generator=draw)
    rows[:, 0] = BEGIN
    for row, length in zip(rows, torch.randint(2, width, (n,), generator=draw).tolist(), strict=True):
        row[length] = END
        row[length + 1 :] = PAD
    return rows


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 999), st.floats(0, 0.9))
def test_the_loss_is_the_smoothed_cross_entropy_of_each_token(seed, smoothing):
    draw = torch.Generator().manual_seed(seed)
    built = net(7, seed).double()
    source, target = sentences(draw, 3, 5, 7), sentences(draw, 3, 6, 7)
    actual = task(built, smoothing=smoothing).step(source, target)
    losses, wrong = [], 0
    for one, other in zip(source, target, strict=True):
        length = int((other != PAD).sum())
        scores = built(one[one != PAD][None], other[None, : length - 1])[0]  # alone, without any padding
        logp = scores.log_softmax(1)
        for row, token in zip(logp, other[1:length], strict=True):
            losses.append(-(1 - smoothing) * row[token] - smoothing * row.mean())
            wrong += int(row.argmax() != token)
    assert int(actual["size"]) == len(losses)
    assert int(actual["error"]) == wrong
    torch.testing.assert_close(
        actual["loss"], torch.stack(losses).mean(), rtol=1e-9, atol=1e-9
    )  # float64, other orders


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 999), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_padding_never_counts(seed, more, also, beams):
    draw = torch.Generator().manual_seed(seed)
    built = net(7, seed, 2.0).double()
    source, target = sentences(draw, 4, 5, 7), sentences(draw, 4, 6, 7)
    wider, longer = functional.pad(source, (0, more), value=PAD), functional.pad(target, (0, also), value=PAD)
    one, other = task(built).step(source, target), task(built).step(wider, longer)
    torch.testing.assert_close(one["loss"], other["loss"], rtol=1e-9, atol=1e-9)
    assert (int(one["size"]), int(one["error"])) == (int(other["size"]), int(other["error"]))
    how = {**SPECIAL, "beams": beams, "penalty": 0.6, "extra": 2}
    assert torch.equal(translated(built, source, **how), translated(built, wider, **how))


def test_gradients_do_not_see_the_padding():
    built = net(7)
    batch = sentences(torch.Generator().manual_seed(0), 4, 6, 7)
    task(built).step(batch, batch)["loss"].backward()
    first = {name: parameter.grad.clone() for name, parameter in built.named_parameters()}
    built.zero_grad()
    wider = functional.pad(batch, (0, 3), value=PAD)
    task(built).step(wider, wider)["loss"].backward()
    for name, parameter in built.named_parameters():
        torch.testing.assert_close(parameter.grad, first[name], rtol=1e-4, atol=1e-6)  # float32, other orders


def test_the_compiled_step_is_the_step():
    batch = sentences(torch.Generator().manual_seed(0), 4, 6, 7)
    plain, quick = task(net(7)), task(net(7))
    quick.compile_step(channels_last=False, backend="eager")
    actual, expected = quick.run_step(batch, batch), plain.step(batch, batch)
    torch.testing.assert_close(actual["loss"], expected["loss"])
    assert (int(actual["size"]), int(actual["error"])) == (int(expected["size"]), int(expected["error"]))


# decoding


def value(built, source: Tensor, text: tuple[int, ...], penalty: float) -> float:
    """log P(text | source) / lp, without padding or batches; pad and begin are never produced."""
    scores = built(source[source != PAD][None], torch.tensor([[BEGIN, *text[:-1]]]))[0]  # t v
    scores[:, [PAD, BEGIN]] = -torch.inf
    logp = scores.log_softmax(1)[range(len(text)), text].sum().item()
    return logp / ((5 + len(text)) / 6) ** penalty


def all_texts(symbols: int, longest: int) -> list[tuple[int, ...]]:
    """Those that end, of at most `longest` tokens, and those that are cut there."""
    open_ones = [text for length in range(longest + 1) for text in itertools.product(range(3, symbols), repeat=length)]
    return [(*text, END) for text in open_ones if len(text) < longest] + [t for t in open_ones if len(t) == longest]


def content(row: Tensor) -> tuple[int, ...]:
    return tuple(row[row != PAD].tolist())


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 999), st.sampled_from([0.0, 0.6, 2.0]), st.sampled_from([1.0, 3.0]))
def test_a_beam_as_wide_as_there_are_texts_finds_the_best_of_all(seed, penalty, sharp):
    built = net(5, seed, sharp).double()
    source = torch.tensor([[BEGIN, 3, END, PAD], [BEGIN, END, PAD, PAD]])
    actual = translated(built, source, **SPECIAL, beams=40, penalty=penalty, extra=0)
    for one, row, longest in zip(source, actual, (3, 2), strict=True):
        texts = all_texts(5, longest)
        best = max(value(built, one, text, penalty) for text in texts)
        assert content(row) in texts
        # a float32 sum of at most 3 logarithms below 100
        assert value(built, one, content(row), penalty) == pytest.approx(best, abs=1e-4)


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 999), st.sampled_from([0.0, 0.6, 2.0]), st.sampled_from([1.0, 3.0]), st.integers(0, 4))
def test_a_beam_of_one_is_greedy(seed, penalty, sharp, extra):
    built = net(8, seed, sharp)
    source = sentences(torch.Generator().manual_seed(seed), 5, 6, 8)
    actual = translated(built, source, **SPECIAL, beams=1, penalty=penalty, extra=extra)
    for one, row in zip(source, actual, strict=True):
        memory, mask = built.encode(one[one != PAD][None])
        text = [BEGIN]
        while text[-1] != END and len(text) <= int(mask.sum()) + extra:
            scores = built.decode(torch.tensor([text]), memory, mask)[0, -1]
            text.append(3 + int(scores[3:].argmax()) if scores[3:].max() > scores[END] else END)
        assert content(row) == tuple(text[1:])


@settings(max_examples=3, deadline=None)
@given(st.integers(0, 999), st.integers(2, 5))
def test_every_text_is_translated_as_if_alone(seed, beams):
    built = net(8, seed, 3.0).double()
    source = sentences(torch.Generator().manual_seed(seed), 4, 5, 8)
    how = {**SPECIAL, "beams": beams, "penalty": 0.6, "extra": 1}
    together = [content(row) for row in translated(built, source, **how)]
    assert together == [content(translated(built, one[None], **how)[0]) for one in source]


def test_the_penalty_decides_between_short_and_long():
    """A net that says 3 or ends, with probability 1/2 each: log P = -l log 2, and l / ((5 + l) / 6)^alpha is least
    the least l for alpha = 1, and falls from l = 2 on, below its value at 1, for alpha = 4."""

    class Coin(torch.nn.Module):
        def encode(self, source):
            return torch.zeros(*source.shape, 1), source != PAD

        def decode(self, target, memory, mask):
            return torch.zeros(*target.shape, 4)

    source = torch.tensor([[BEGIN, END]])
    short, long = (
        translated(Coin(), source, **SPECIAL, beams=20, penalty=penalty, extra=6)[0].tolist() for penalty in (1, 4)
    )
    assert short == [END]
    assert long[:7] == [3] * 7
    assert len(long) == 8


# scores


@pytest.mark.parametrize("shown", ["bleu", "exact_match"])
def test_the_score_shown_first_is_one_there_is(dates, shown):
    source = dates.splits["test"][0][:5]
    assert task(net(), shown=shown).MAIN_SCORE[0] in scored(dates, source, source)


class Copies(torch.nn.Module):
    """A net that says its source again."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.weight = torch.nn.Parameter(torch.ones(()))

    def encode(self, source):
        return functional.one_hot(source, self.vocab_size).float(), source != PAD

    def decode(self, target, memory, mask):
        return 99 * self.weight * functional.pad(memory, (0, 0, 0, target.shape[1]))[:, 1 : 1 + target.shape[1]]

    def forward(self, source, target):
        return self.decode(target, *self.encode(source))


def scored(actual: Translation, source: Tensor, target: Tensor, epoch: int = 0, **arguments) -> dict[str, float]:
    """The scores of the last of one epochs, or of an earlier one."""
    judged = task(Copies(Translation.states("dates")["vocab_size"]), **arguments)
    judged.trainer = SimpleNamespace(datamodule=actual, current_epoch=epoch, max_epochs=1, testing=False)
    for one, other in zip(source.split(32), target.split(32), strict=True):
        judged.evaluate("test", one, other)
    first = judged.scores("test")
    assert judged.scores("test") == {}  # they forget
    return first


def test_texts_that_are_their_references_score_100(dates):
    source = dates.splits["test"][0][:80]
    assert scored(dates, source, source) == pytest.approx({"bleu": 100, "exact_match": 100})


def test_exact_match_is_the_share_of_equal_texts(dates):
    source, other = dates.splits["test"][0][:100], dates.splits["test"][0].clone()[:100]
    other[:30] = other[:30].roll(1, 0)
    actual = scored(dates, source, other)
    assert actual["exact_match"] == pytest.approx(70)
    assert 0 < actual["bleu"] < 100


def test_before_the_last_epoch_only_a_given_number_is_translated(dates):
    source, other = dates.splits["test"][0][:80], dates.splits["test"][0].clone()[:80]
    other[40:] = other[40:].roll(1, 0)
    assert scored(dates, source, other, epoch=-1, decoded=40)["exact_match"] == pytest.approx(100)
    assert scored(dates, source, other, epoch=-1, decoded=64)["exact_match"] == pytest.approx(62.5)
    assert scored(dates, source, other, epoch=-1, decoded=0) == {}
    assert scored(dates, source, other, decoded=40)["exact_match"] == pytest.approx(50)  # the last one: all


def test_examples_are_source_reference_and_hypothesis_as_text(dates):
    source, target = dates.splits["test"][0][:5], dates.splits["test"][1][:5]
    shown = task(Copies(Translation.states("dates")["vocab_size"])).examples(source, target)
    written = {name: dates.text(tokens) for name, tokens in shown.items()}
    assert written["hypothesis"] == written["source"] == dates.text(source)
    assert written["reference"] == dates.text(target)
