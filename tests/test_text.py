"""Text: the tokens, windows and masks of the data, and the task LanguageModel, against counts and naive versions."""

import math
from collections import Counter
from hashlib import sha256

import pytest
import small_sets
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_sets import VERSE
from torch import nn

import skipform
from skipform.data.epochs import Epochs
from skipform.data.text import ALPHABET, MASK, OTHER, TOPICS, Text, WindowEpochs, Windows, adjoining, encoded
from skipform.errors import SkipformError
from skipform.tasks.language_model import LanguageModel, generate
from skipform.tasks.optimizer import Optimizer


@pytest.fixture
def verse(tmp_path, monkeypatch):
    """A root that holds VERSE as tiny Shakespeare, under its own sum."""
    return small_sets.tiny_shakespeare(monkeypatch).lay(tmp_path)


def shakespeare(root, **arguments):
    data = Text("tiny_shakespeare", root=str(root), **arguments)
    data.prepare_data()
    data.setup()
    return data


# the vocabulary


@given(st.text(max_size=50))
def test_a_text_is_its_tokens_but_for_characters_outside_the_alphabet(text):
    tokens = encoded(text)
    read = Text("python_topics").text(tokens[None])[0]
    assert read == "".join(c if c == "\n" or " " <= c <= "~" else "\ufffd" for c in text)
    assert all((token == OTHER) == (c not in ALPHABET) for token, c in zip(tokens.tolist(), text, strict=True))


def test_what_is_stated_needs_no_file_and_bounds_every_token(verse):
    stated = Text.states("tiny_shakespeare", context=16, objective="masked")
    assert stated == {"vocab_size": 98, "context": 16, "objective": "masked"}
    data = shakespeare(verse, context=16, objective="masked", steps=50)
    seen = torch.cat([tokens for tokens, _ in data.train_dataloader()])
    assert seen.max() == MASK == stated["vocab_size"] - 1
    assert seen.shape[1] == stated["context"]


# the texts


def test_pythons_topics_are_those_of_one_version_and_the_last_tenth_is_held_out():
    from pydoc_data.topics import topics

    whole = TOPICS.read_text(encoding="utf-8")
    assert sha256(whole.encode()).hexdigest() == "37d06970fc926e60c16dff401e441b84752446a36b6b64516c229fdec77e992c"
    lines = set(whole.splitlines())
    known = [line in lines for text in topics.values() for line in text.splitlines()]  # of the Python that runs
    assert sum(known) > 0.5 * len(known)  # 89 % in 3.13.0, 95 % in 3.12.1
    data = Text("python_topics")
    data.prepare_data()
    data.setup()
    train, test = (data.text(data.splits[split][None])[0] for split in ("train", "test"))
    assert len(train) == len(whole) * 9 // 10
    # quotation marks and dashes are outside ASCII, 575 of the 465,000 characters
    assert sum(a != b for a, b in zip(train + test, whole, strict=True)) < 1e-2 * len(whole)


def test_tiny_shakespeare_is_split_as_nanogpt_splits_it(verse):
    data = shakespeare(verse, context=8)
    train, test = (data.text(data.splits[split][None])[0] for split in ("train", "test"))
    assert train == VERSE[: int(len(VERSE) * 0.9)]
    assert train + test == VERSE


def test_a_limit_is_the_number_of_windows_of_each_split(verse):
    data = shakespeare(verse, context=8, limit=3)
    assert VERSE.startswith(data.text(data.splits["train"][None])[0])
    ((tokens, _),) = data.val_dataloader()[0]
    assert tokens.shape == (3, 8)


# windows


def trained(text, t, size, *, masked, steps, seed=0, share=(0, 1)):
    """Windows that begin anywhere in the text."""
    epochs = WindowEpochs(len(text) - t + masked, steps, size, seed=seed, share=share)
    return Windows(text, t, epochs, masked=masked)


def evaluated(text, t, size, *, masked, share=(0, 1)):
    """All windows of the text, side by side."""
    return Windows(text, t, Epochs(adjoining(len(text), t, masked=masked), size, share=share), masked=masked)


@given(total=st.integers(5, 60), t=st.integers(4, 12), size=st.integers(1, 5), world=st.integers(1, 3))
def test_every_character_but_the_first_is_predicted_once_by_the_one_before_it(total, t, size, world):
    t = min(t, total - 1)
    text = torch.arange(total)  # a character is its place
    asked = []
    for rank in range(world):
        batches = evaluated(text, t, size, masked=False, share=(rank, world))
        actual = list(batches)
        assert len(actual) == len(batches)
        for tokens, targets in actual:
            assert torch.equal(tokens, tokens[:, :1] + torch.arange(t))
            assert torch.equal(targets[targets >= 0], tokens[targets >= 0] + 1)
            asked += targets[targets >= 0].tolist()
    assert sorted(asked) == list(range(1, total))


@given(total=st.integers(8, 60), t=st.integers(4, 12), size=st.integers(1, 5), seed=st.integers(0, 3))
def test_a_masked_window_asks_for_15_percent_and_shows_the_rest(total, t, size, seed):
    t = min(t, total)
    text = 1000 + torch.arange(total)  # no token is a place
    batches = trained(text, t, size, masked=True, steps=3, seed=seed)
    actual = list(batches)
    assert len(actual) == len(batches) == 3
    for tokens, targets in actual:
        asked = targets >= 0
        assert tokens.shape == (size, t)
        assert (asked.sum(1) == round(0.15 * t)).all()
        true = torch.where(asked, targets, tokens)
        assert torch.equal(true, true[:, :1] + torch.arange(t))
        assert (true[:, 0] >= 1000).all()
        assert (true[:, -1] < 1000 + total).all()


@given(total=st.integers(8, 60), t=st.integers(4, 12), size=st.integers(1, 5))
def test_masked_testing_asks_for_no_place_twice_and_draws_the_same_masks_every_time(total, t, size):
    t = min(t, total)
    text = 1000 + torch.arange(total)
    actual = [list(evaluated(text, t, size, masked=True)) for _ in range(2)]
    for (tokens, targets), (again, same) in zip(*actual, strict=True):
        assert torch.equal(tokens, again)
        assert torch.equal(targets, same)
    asked = torch.cat([targets[targets >= 0] for _, targets in actual[0]]).tolist()
    assert len(set(asked)) == len(asked)
    windows, rest = divmod(total, t)
    assert windows * round(0.15 * t) <= len(asked) <= (windows + bool(rest)) * round(0.15 * t)


def test_a_masked_place_is_hidden_replaced_or_kept_in_80_10_and_10_percent():
    text = torch.full((20_000,), 5)
    ((tokens, targets),) = trained(text, 20, 5000, masked=True, steps=1)
    asked = targets >= 0
    count = int(asked.sum())
    assert count == 15_000
    # any character is the right one once in 97; a share p of n strays by four deviations, 4 sqrt(p (1 - p) / n)
    for share, p in (((tokens == MASK)[asked], 0.8), ((tokens == 5)[asked], 0.1 + 0.1 / 97)):
        assert abs(share.double().mean() - p) < 4 * math.sqrt(p * (1 - p) / count)
    others = tokens[asked & (tokens != MASK) & (tokens != 5)]
    assert others.unique().tolist() == [token for token in range(MASK) if token != 5]
    drawn = asked.double().mean(0)  # every place of a window alike; 4.5 deviations, for there are twenty
    assert (drawn - 0.15).abs().max() < 4.5 * math.sqrt(0.15 * 0.85 / 5000)


@given(masked=st.booleans(), seed=st.integers(0, 5), epoch=st.integers(0, 5), past=st.integers(0, 2))
def test_seed_and_epoch_alone_decide_an_epoch(masked, seed, epoch, past):
    def drawn(batches, epoch):
        batches.epoch = epoch
        return [torch.stack(batch) for batch in batches]

    batches = trained(torch.arange(90), 8, 3, masked=masked, steps=2, seed=seed)
    for before in range(past):  # what came before must not count
        drawn(batches, before)
    first = drawn(batches, epoch)
    fresh = drawn(trained(torch.arange(90), 8, 3, masked=masked, steps=2, seed=seed), epoch)
    assert all(torch.equal(one, other) for one, other in zip(first, fresh, strict=True))
    assert not torch.equal(first[0], drawn(batches, epoch + 1)[0])


@given(masked=st.booleans(), world=st.integers(1, 4))
def test_the_shares_of_a_batch_are_the_batch(masked, world):
    def batches(share):
        return list(trained(torch.arange(90), 8, 12, masked=masked, steps=3, seed=1, share=share))

    shares = [batches((rank, world)) for rank in range(world)]
    for i, whole in enumerate(batches((0, 1))):
        for part in (0, 1):
            pieces = [share[i][part] for share in shares]
            assert len({len(piece) for piece in pieces}) == 1
            assert torch.equal(torch.cat(pieces), whole[part])


# wrong arguments -> message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objective": "both"}, r"data.objective: 'both' is not accepted; accepted: 'causal' \| 'masked'"),
        ({"context": 3}, "data.context: 3; accepted: 4 or more"),
        ({"steps": 0}, "data.steps: 0; accepted: 1 or more"),
    ],
)
def test_what_is_not_accepted_is_named(arguments, message):
    with pytest.raises(SkipformError, match=f"^{message}$"):
        skipform.data.build(0, **{"name": "python_topics"} | arguments)


def test_a_context_longer_than_the_text_is_refused(verse):
    with pytest.raises(SkipformError, match=r"^data.context: 109; accepted: below 107, all of test$"):
        shakespeare(verse, context=109)


# the task


class Table(nn.Module):
    """Scores of what follows a token, from a table (v, v): a Markov chain."""

    def __init__(self, scores):
        super().__init__()
        self.table = nn.Parameter(torch.as_tensor(scores))

    def forward(self, tokens):
        return self.table[tokens]


def task(net, objective="causal", context=8):
    return LanguageModel(net, Optimizer(name="adamw"), context=context, objective=objective).eval()


@given(st.integers(0, 999))
def test_the_loss_is_the_mean_surprise_of_the_tokens_asked_for(seed):
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(7, 7, generator=generator, dtype=torch.float64)
    tokens, targets = torch.randint(7, (2, 3, 5), generator=generator)
    targets[torch.rand(3, 5, generator=generator) < 0.5] = -100
    numbers = task(Table(table)).step(tokens, targets)
    surprise, right = [], 0
    for token, target in zip(tokens.flatten().tolist(), targets.flatten().tolist(), strict=True):
        if target >= 0:
            weights = [math.exp(score) for score in table[token].tolist()]
            surprise.append(-math.log(weights[target] / sum(weights)))
            right += weights[target] == max(weights)
    assert numbers["size"] == len(surprise)
    assert numbers["accuracy"] == right
    # float64 of at most 15 summands below 10; a batch that asks nothing loses nothing
    assert numbers["loss"].item() == pytest.approx(sum(surprise) / max(1, len(surprise)), abs=1e-12)


def test_the_character_frequencies_lose_their_entropy_over_the_held_out_text(verse):
    data = shakespeare(verse, context=8)
    predicted = data.text(data.splits["test"][None])[0][1:]
    counts = Counter(predicted)
    entropy = -sum(count / len(predicted) * math.log(count / len(predicted)) for count in counts.values())
    scores = torch.tensor([math.log(max(counts[c], 1e-9)) for c in ALPHABET] + [-20.0, -20.0], dtype=torch.float64)
    judge = task(Table(scores.expand(98, 98)))
    actual = [judge.evaluate("test", *batch) for batch in data.val_dataloader()[0]]
    size = sum(numbers["size"] for numbers in actual)
    assert size == len(predicted)
    loss = sum(numbers["loss"] * numbers["size"] for numbers in actual) / size
    # the characters that do not occur have a share of 1e-9 of the weight
    assert loss.item() == pytest.approx(entropy, abs=1e-6)
    assert 100 * sum(numbers["accuracy"] for numbers in actual) / size == 100 * max(counts.values()) / size
    # torchmetrics takes means in float32
    assert judge.scores("test") == {"perplexity": pytest.approx(math.exp(entropy), rel=1e-5)}
    assert judge.scores("test") == {}


def test_a_greedy_text_goes_round_a_cycle():
    cycle = torch.eye(5).roll(1, 1)  # i is followed by i + 1
    text = generate(Table(cycle), torch.tensor([[3], [0]]), 6, context=8, temperature=0)
    assert text.tolist() == [[3, 4, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 0, 1]]


def test_tokens_are_drawn_by_their_scores_over_the_temperature():
    scores = torch.tensor([0.0, 1.0, 2.0]).expand(3, 3)
    draw = torch.Generator().manual_seed(0)
    text = generate(
        Table(scores), torch.zeros(2000, 1, dtype=torch.int64), 5, context=4, temperature=0.5, generator=draw
    )
    weights = [math.exp(score / 0.5) for score in (0, 1, 2)]
    for token, weight in enumerate(weights):
        p = weight / sum(weights)
        assert abs((text[:, 1:] == token).double().mean() - p) < 4 * math.sqrt(p * (1 - p) / 10_000)  # 4 deviations


def gpt(context=8):
    torch.manual_seed(0)
    return skipform.build("gpt", vocab_size=98, context=context, depth=2, width=16, heads=2, dropout=0.0).eval()


def test_a_greedy_text_is_the_nets_prediction_at_every_place():
    net, prompt = gpt(), torch.tensor([[5, 7], [70, 90]])
    text = generate(net, prompt, 6, context=8, temperature=0)
    assert torch.equal(text[:, :2], prompt)
    assert torch.equal(net(text).argmax(2)[:, 1:-1], text[:, 2:])  # a causal net's scores do not see what follows
    longer = generate(net, prompt, 20, context=8, temperature=0)
    assert torch.equal(longer[:, -1], net(longer[:, -9:-1])[:, -1].argmax(1))  # beyond its context


@settings(max_examples=2, deadline=None)
@given(st.sampled_from(["causal", "masked"]))
def test_examples_are_texts_with_their_references(objective):
    data = Text("python_topics", objective=objective, context=8)
    data.setup()
    tokens, targets = (part[:3] for part in next(iter(data.val_dataloader()[0])))
    actual = task(gpt(), objective).examples(tokens, targets)
    start = data.text(data.splits["test"][None, :24])[0]
    if objective == "causal":
        assert [data.text(actual[key])[0] for key in ("prompt", "reference")] == [start[:4], start[4:8]]
        assert actual["continuation"].shape == (3, 8)
    else:
        assert "".join(data.text(actual["reference"])) == start
        changed = actual["filled"] != actual["seen"]
        assert (targets >= 0)[changed].all()
        assert torch.equal(actual["filled"][targets >= 0], gpt()(tokens).argmax(2)[targets >= 0])


@pytest.mark.parametrize(("net", "masked"), [("gpt", False), ("bert", True)])
def test_the_compiled_step_is_the_step(net, masked):
    torch.manual_seed(0)
    module = skipform.build(net, vocab_size=98, context=8, depth=1, width=16, heads=2, dropout=0.0)
    batch = next(iter(trained(torch.arange(90), 8, 3, masked=masked, steps=1)))
    plain, quick = task(module), task(module)
    quick.compile_step(channels_last=False, backend="aot_eager")
    ours, theirs = plain.step(*batch), quick.run_step(*batch)
    assert ours["size"] == theirs["size"]
    assert ours["accuracy"] == theirs["accuracy"]
    torch.testing.assert_close(ours["loss"], theirs["loss"])
