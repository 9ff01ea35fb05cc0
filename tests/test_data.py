"""The folder data/: laws that every kind of data obeys, tested for all kinds, and the special features of images."""

import copy
import gzip
import pickle
import socket

import lightning
import numpy as np
import pytest
import small_sets
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.datasets import CIFAR10, FashionMNIST

import skipform
from skipform import data, tasks
from skipform.data.boxes import Augmentation, BoxBatches, BoxEpochs, Example
from skipform.data.epochs import Epochs
from skipform.data.images import SETS, ImageBatches, Images, in_class_order
from skipform.data.masks import Tiles
from skipform.data.source import sums
from skipform.data.text import WindowEpochs, Windows
from skipform.data.translation import PAD, PairBatches, PairEpochs
from skipform.errors import SkipformError

# ---------------------------------------------------------------- loaders of small made-up examples, one a kind


def image_batches(total, size, **how):
    images = torch.rand(total, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    return ImageBatches(images, torch.arange(total), Epochs(total, size, **how), crop=1, flip=True)


def mask_batches(total, size, **how):
    pixels = torch.arange(total, dtype=torch.uint8)[:, None, None]
    images, masks = pixels[:, None].repeat(1, 1, 4, 4), pixels.repeat(1, 4, 4)
    return Tiles(images, masks, Epochs(total, size, **how), crop=3, symmetries=8, elastic=1.0)


def box_batches(total, size, **how):
    nothing = (torch.zeros(0, 4), *(torch.zeros(0, dtype=torch.int64),) * 2)
    examples = [Example(torch.full((1, 2, 2), i, dtype=torch.uint8), *nothing) for i in range(total)]
    return BoxBatches(examples, BoxEpochs(total, size, **how), Augmentation(flip=True), (0.0,), (1 / 255,))


def window_batches(total, size, seed=None, **how):
    if seed is None:  # windows side by side of 4 characters, each the one after the first
        return Windows(torch.arange(4 * total + 1), 4, Epochs(total, size, **how), masked=False)
    epochs = WindowEpochs(total, max(1, total // size), min(size, total), seed=seed, **how)
    return Windows(torch.arange(total + 4), 4, epochs, masked=False)


def pair_batches(total, size, **how):
    draw = torch.Generator().manual_seed(0)
    source, target = (torch.full((total, width), PAD) for width in (8, 7))
    for i, lengths in enumerate(torch.randint(1, 8, (total, 2), generator=draw).tolist()):
        source[i, : lengths[0]] = target[i, : lengths[1]] = 10 + i
    return PairBatches(source, target, PairEpochs(source, target, size, ((4, 3), (6, 6)), **how))


LOADERS = {  # kind: (its batches, the numbers of a batch's examples)
    "images": (image_batches, lambda batch: batch[1].tolist()),
    "masks": (mask_batches, lambda batch: batch[1][:, 0, 0].tolist()),
    "boxes": (box_batches, lambda batch: batch[0][:, 0, 0, 0].round().int().tolist()),
    "text": (window_batches, lambda batch: batch[0][:, 0].tolist()),
    "translation": (pair_batches, lambda batch: (batch[0][:, 0] - 10).tolist()),
}
every_kind = pytest.mark.parametrize("kind", LOADERS)


def equal(one, other):
    """Whether two batches, or lists of them, are the same bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


@every_kind
@settings(max_examples=25)
@given(
    total=st.integers(1, 30),
    size=st.integers(1, 12),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 5),
    past=st.integers(0, 2),
)
def test_an_epoch_is_a_sample_without_repeats_that_seed_and_epoch_alone_decide(kind, total, size, seed, epoch, past):
    make, numbers = LOADERS[kind]
    batches = make(total, size, seed=seed)
    for batches.epoch in range(past):  # what came before must not count
        list(batches)
    batches.epoch = epoch
    first = list(batches)
    assert len(first) == len(batches) == max(1, total // size)
    assert {len(numbers(batch)) for batch in first} == {min(size, total)}  # what does not fill a batch is left out
    drawn = [number for batch in first for number in numbers(batch)]
    assert set(drawn) <= set(range(total))
    assert len(set(drawn)) == len(drawn) or kind == "text"  # its windows begin anywhere, drawn independently
    torch.rand(3)  # nor what others draw
    fresh = make(total, size, seed=seed)
    fresh.batch_sampler.sampler.set_epoch(epoch)
    assert equal(list(fresh), first)
    assert len(drawn) == len(fresh.batch_sampler) * min(size, total)


@every_kind
def test_every_epoch_and_seed_has_another_order(kind):
    make, numbers = LOADERS[kind]

    def order(seed, epoch):
        batches = make(64, 64, seed=seed)
        batches.epoch = epoch
        return tuple(numbers(next(iter(batches))))

    assert len({order(seed, epoch) for seed in range(5) for epoch in range(5)}) == 25


@every_kind
@settings(max_examples=25)
@given(total=st.integers(1, 30), size=st.integers(1, 6), world=st.integers(1, 4), seed=st.integers(0, 3))
def test_the_shares_of_the_processes_are_the_batch(kind, total, size, world, seed):
    make, numbers = LOADERS[kind]
    size *= world
    if min(size, total) % world:
        with pytest.raises(
            SkipformError, match=rf"^data\.batch_size: \d+; accepted: a multiple of {world}, the number of processes$"
        ):
            make(total, size, seed=seed, share=(0, world))
        return
    shares = [make(total, size, seed=seed, share=(rank, world)) for rank in range(world)]
    assert {len(share) for share in shares} == {max(1, total // size)}
    for whole, *parts in zip(make(total, size, seed=seed), *shares, strict=True):
        assert {len(numbers(part)) for part in parts} == {len(numbers(whole)) // world}
        assert torch.equal(torch.cat([part[0] for part in parts]), whole[0])
        if isinstance(whole[1], torch.Tensor):
            assert torch.equal(torch.cat([part[1] for part in parts]), whole[1])


@every_kind
@settings(max_examples=25)
@given(total=st.integers(1, 30), size=st.integers(1, 6), world=st.integers(1, 4))
def test_evaluation_sees_every_example_once_in_order(kind, total, size, world):
    make, numbers = LOADERS[kind]
    step = 4 if kind == "text" else 1  # its windows stand side by side
    for rank in range(world):
        batches = list(loader := make(total, size, share=(rank, world)))
        assert len(batches) == len(loader)
        assert all(len(numbers(batch)) == size for batch in batches[:-1])
        assert [n for batch in batches for n in numbers(batch)] == list(range(step * rank, step * total, step * world))


# ---------------------------------------------------------------- the sets that come with an installed package

EMBEDDED = {
    "images": {"name": "digits", "crop": 1, "flip": True},
    "masks": {"name": "digit_masks", "scenes": 40, "canvas": 32, "size": (8, 12), "crop": 24, "symmetries": 8},
    "boxes": {"name": "digit_boxes", "scenes": 40, "canvas": 32, "size": (8, 12), "flip": True, "sides": (24, 32)},
    "text": {"name": "python_topics", "context": 32, "steps": 3, "objective": "masked"},
    "translation": {"name": "dates"},
}


def prepared(kind, seed=0, **arguments):
    module = data.build(seed, **EMBEDDED[kind] | arguments)
    module.prepare_data()
    module.setup()
    return module


@pytest.fixture(scope="module")
def modules():
    return {kind: prepared(kind) for kind in EMBEDDED}


def examples(module, split):
    """Every example of a split, as bytes or text."""
    examples = module.splits[split]
    if module.TARGETS == "pairs":
        return module.text(examples[0])
    if isinstance(examples, torch.Tensor):
        return [examples.numpy().tobytes()]
    if isinstance(examples, tuple):
        return [part.numpy().tobytes() for part in examples[0]]
    return [example.image().numpy().tobytes() for example in examples]


@every_kind
def test_the_splits_share_no_example(kind, modules):
    splits = [set(examples(modules[kind], split)) for split in modules[kind].splits]
    assert len(set.union(*splits)) == sum(map(len, splits))


@every_kind
def test_a_limit_bounds_every_split_and_takes_what_is_there_without_it(kind, modules):
    limited = prepared(kind, limit=7)
    assert limited.splits.keys() == modules[kind].splits.keys()
    for split in limited.splits:
        few, all_ = examples(limited, split), examples(modules[kind], split)
        if kind == "text":
            assert len(limited.splits[split]) == 7 * 32 + (split in ("train", "test"))
            assert all_[0].startswith(few[0])
        else:
            assert len(few) == min(7, len(all_))
            assert set(few) <= set(all_)
        if kind not in ("text", "images"):  # of images it takes the first per class
            assert few == all_[: len(few)]


@every_kind
def test_the_held_out_splits_are_loaded_in_their_order_the_test_split_last(kind, modules):
    module = modules[kind]
    assert set(module.splits) == {"train", *module.held_out}
    assert module.held_out[-1] == "test"
    loaders = module.val_dataloader()
    assert len(loaders) == len(module.held_out)
    first = next(iter(loaders[-1]))
    assert equal(next(iter(module.test_dataloader())), first)
    assert equal(next(iter(module.predict_dataloader())), first)


@every_kind
def test_what_a_set_states_holds_for_its_batches(kind, modules):
    states = type(modules[kind]).states(**EMBEDDED[kind])
    inputs, targets = next(iter(modules[kind].train_dataloader()))
    if "in_channels" in states:
        assert inputs.shape[1] == states["in_channels"]
        classes = torch.cat([target["labels"] for target in targets]) if kind == "boxes" else targets
        assert set(classes.unique().tolist()) <= {*range(states["num_classes"]), states.get("ignore_index")}
        assert {states["image_size"]} == set(inputs.shape[2:]) if kind == "images" else True
    else:
        assert 0 <= inputs.min() <= inputs.max() < states["vocab_size"]
        assert inputs.shape[1] == states.get("context", inputs.shape[1])


@every_kind
def test_a_kind_keeps_the_contract(kind, modules):
    module, reader = modules[kind], data.kind(EMBEDDED[kind]["name"])
    assert type(module) is reader
    promised = {name for name in [*vars(data.Data), *data.Data.__annotations__] if not name.startswith("_")}
    assert promised >= {"TARGETS", "states", "splits", "held_out", "train_dataloader", "val_dataloader", "name"}
    assert not [name for name in promised if not hasattr(module, name)]
    assert any(tasks.kind(task).TARGETS == reader.TARGETS for task in tasks.names())
    assert hasattr(module, "text") == (reader.TARGETS in ("text", "pairs"))


def test_a_set_is_read_by_one_kind_and_found_by_its_name():
    names = [name for reader in data.kinds() for name in data.sets() if data.kind(name) is reader]
    assert sorted(names) == sorted(data.sets())
    with pytest.raises(
        SkipformError, match=r"^unknown data set 'mnist'; accepted: .*\bdigits, cifar10, fashion_mnist\b"
    ):
        data.kind("mnist")


@pytest.mark.parametrize(
    ("kind", "accepted"),
    [
        ("images", "digits, cifar10, fashion_mnist"),
        ("masks", "digit_masks, isbi2012, voc2012"),
        ("boxes", "digit_boxes, bccd, coco2017"),
        ("text", "python_topics, tiny_shakespeare"),
        ("translation", "dates, multi30k"),
    ],
)
def test_an_unknown_set_names_the_known_ones(kind, accepted):
    with pytest.raises(SkipformError, match=f"^unknown data set 'mnist'; accepted: {accepted}$"):
        data.kind(EMBEDDED[kind]["name"])("mnist")


@every_kind
@pytest.mark.parametrize(("key", "value"), [("batch_size", 0), ("limit", 0)])
def test_a_size_below_one_is_refused(kind, key, value):
    with pytest.raises(SkipformError, match=rf"^data\.{key}: {value}; accepted: 1 or more$"):
        data.build(0, **EMBEDDED[kind] | {key: value})


# ---------------------------------------------------------------- the public function, and any Trainer


def test_the_package_is_the_public_function():
    digits = skipform.data("digits", limit=20, seed=3)
    assert isinstance(digits, lightning.LightningDataModule)
    assert (digits.name, digits.limit, digits.seed) == ("digits", 20, 3)
    assert skipform.data is data
    with pytest.raises(SkipformError, match=r"^data: unknown key 'crops' \(did you mean crop\?\); accepted: name, "):
        skipform.data("digits", crops=1)


class Recorder(lightning.LightningModule):
    """A plain module that learns nothing and remembers its batches."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained, self.evaluated = {}, {}  # epoch -> batches; stage and number of the loader -> batches

    def training_step(self, batch, batch_idx):
        self.trained.setdefault(self.current_epoch, []).append(copy.deepcopy(batch))
        return 0 * self.weight

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.evaluated.setdefault(("validate", dataloader_idx), []).append(copy.deepcopy(batch))

    def test_step(self, batch, batch_idx):
        self.evaluated.setdefault("test", []).append(copy.deepcopy(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "limit_train_batches": 3,
    "num_sanity_val_steps": 0,
}


@every_kind
def test_a_stock_trainer_changes_order_and_crops_every_epoch_and_repeats_them_for_equal_seeds(kind):
    def trained(seed, **how):
        recorder, module = Recorder(), skipform.data(seed=seed, **EMBEDDED[kind] | {"batch_size": 8})
        lightning.Trainer(max_epochs=2, limit_val_batches=1, **QUIET).fit(recorder, datamodule=module)
        return recorder, module

    (first, module), (again, _), (other, _) = trained(3), trained(3), trained(4)
    assert equal(first.trained[0], again.trained[0])
    assert equal(first.trained[1], again.trained[1])
    assert not equal(first.trained[0], first.trained[1])
    assert not equal(first.trained[0], other.trained[0])
    module.trainer = None
    loader = module.train_dataloader()
    for loader.epoch in range(2):  # a loop without a Trainer sees the same
        assert equal([batch for _, batch in zip(range(3), loader, strict=False)], first.trained[loader.epoch])
    expected = [next(iter(batches)) for batches in module.val_dataloader()]
    assert equal([first.evaluated["validate", i][0] for i in range(len(expected))], expected)


def test_a_stock_trainer_crops_the_same_image_another_way_in_another_epoch():
    recorder = Recorder()
    module = skipform.data("digits", limit=8, batch_size=8, crop=2, flip=True)
    lightning.Trainer(max_epochs=2, limit_val_batches=0, **QUIET).fit(recorder, datamodule=module)
    one, other = (set(map(tuple, recorder.trained[epoch][0][0].flatten(1).tolist())) for epoch in (0, 1))
    assert len(one) == len(other) == 8
    assert len(one & other) < 4  # of 50 crops and mirrors of an image two are the same with probability 1/50 or so


def test_a_stock_trainer_that_goes_on_from_a_checkpoint_sees_the_epochs_to_come(tmp_path):
    def fit(epochs, **how):
        recorder, trainer = Recorder(), lightning.Trainer(max_epochs=epochs, limit_val_batches=0, **QUIET)
        trainer.fit(recorder, datamodule=skipform.data("digits", batch_size=8, crop=1), **how)
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return recorder.trained

    whole, _, resumed = fit(3), fit(1), fit(3, ckpt_path=tmp_path / "1.ckpt", weights_only=True)
    assert sorted(resumed) == [1, 2]
    assert all(equal(resumed[epoch], whole[epoch]) for epoch in resumed)


def test_a_stock_trainer_tests_on_the_test_split():
    recorder = Recorder()
    lightning.Trainer(**QUIET).test(recorder, datamodule=skipform.data("digits"), verbose=False)
    assert sum(len(labels) for _, labels in recorder.evaluated["test"]) == 450


# ---------------------------------------------------------------- the sets that are files


@pytest.fixture(params=small_sets.SETS, ids=lambda make: make.__name__)
def small(request, monkeypatch):
    return request.param(monkeypatch)


def module_of(small, root, **how):
    return data.build(0, name=small.name, root=str(root), **small.arguments, **how)


@pytest.mark.parametrize("download", [False, True])
def test_files_that_are_there_are_read_as_they_are_and_no_network_is_touched(download, small, tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "socket", lambda *_: pytest.fail("the network was touched"))
    module = module_of(small, small.lay(tmp_path), download=download)
    module.prepare_data()
    module.setup()
    assert {"train", "test"} <= set(module.splits)
    assert {
        path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()
    } == (small.files)


SPOILT = {  # how: (what becomes of the content, what the error calls it)
    "missing": (lambda content: None, "missing"),
    "empty": (lambda content: b"", "altered or cut short"),
    "shorter": (lambda content: content[:-1], "altered or cut short"),
    "altered": (lambda content: content[:-1] + b"?", "altered or cut short"),
    "other": (lambda content: b"half", "altered or cut short"),
}


def spoil(path, how):
    content = SPOILT[how][0](path.read_bytes())
    path.unlink()
    if content is not None:
        path.write_bytes(content)


@pytest.mark.parametrize("how", SPOILT)
def test_a_missing_or_altered_file_is_named_with_the_command_that_mends_it(how, small, tmp_path, home, monkeypatch):
    small.lay(tmp_path)
    spoil(tmp_path / small.example, how)
    if how in ("shorter", "altered", "other") and not small.checked:
        module_of(small, tmp_path).prepare_data()  # without a checksum only what is missing or empty is noticed
        return
    with pytest.raises(SkipformError) as caught:
        module_of(small, tmp_path).prepare_data()
    line = str(caught.value)
    start = f"{tmp_path / small.example}: {SPOILT[how][1]}; mend it with --data.download true, or with: python -c "
    assert line.startswith(start)
    assert "\n" not in line
    small.serve(*home, monkeypatch)
    exec(line.partition("python -c ")[2].strip('"'))
    assert (tmp_path / small.example).read_bytes() == small.files[small.example]


def test_downloading_mends_what_is_broken_and_leaves_the_rest(small, tmp_path, home, monkeypatch):
    small.lay(tmp_path)
    small.serve(*home, monkeypatch)
    (tmp_path / small.example).write_bytes(b"")
    module_of(small, tmp_path, download=True).prepare_data()
    after = {path.relative_to(tmp_path).as_posix(): path for path in tmp_path.rglob("*") if path.is_file()}
    assert {name: after[name].read_bytes() for name in small.files} == small.files
    assert {name for name in after if name not in small.files} <= {"VOCtrainval_11-May-2012.tar"}  # which is read too


def test_downloading_fetches_everything_into_an_empty_folder(small, tmp_path, home, monkeypatch):
    small.serve(*home, monkeypatch)
    module = module_of(small, tmp_path / "new", download=True)
    module.prepare_data()
    module.setup()
    assert all((tmp_path / "new" / name).read_bytes() == content for name, content in small.files.items())


def test_a_failed_download_is_one_line_that_names_the_file(small, tmp_path, home, monkeypatch):
    small.lay(tmp_path)
    small.serve(*home, monkeypatch)
    for path in sorted(home[0].rglob("*")):
        if path.is_file():
            path.unlink()
    (tmp_path / small.example).unlink()
    with pytest.raises(SkipformError, match=rf"{small.example}: could not be fetched from {home[1]}\S*: [^\n]*$"):
        module_of(small, tmp_path, download=True).prepare_data()
    assert not (tmp_path / small.example).exists()


def test_what_arrives_altered_is_not_used(small, tmp_path, home, monkeypatch):
    small.lay(tmp_path)
    small.serve(*home, monkeypatch)
    for path in sorted(home[0].rglob("*")):
        if path.is_file():
            path.write_bytes(gzip.compress(b"something else"))
    (tmp_path / small.example).unlink()
    with pytest.raises(SkipformError, match=rf"{small.example}: could not be fetched from {home[1]}\S*: [^\n]*$"):
        module_of(small, tmp_path, download=True).prepare_data()
    assert not (tmp_path / small.example).exists()
    assert not list(tmp_path.rglob("*.part"))


def test_the_sums_of_images_are_those_of_torchvision():
    listed = [*CIFAR10.train_list, *CIFAR10.test_list, [CIFAR10.meta["filename"], CIFAR10.meta["md5"]]]
    assert sums("cifar10") == dict(listed)
    assert sums("fashion_mnist") == dict(FashionMNIST.resources)


# ---------------------------------------------------------------- images


def test_the_digits_split_is_all_1797_stratified_and_in_file_order():
    from sklearn.datasets import load_digits

    data = Images("digits")
    data.setup()
    (train, train_labels), (test, test_labels) = data.splits["train"], data.splits["test"]
    assert train.shape == (1347, 1, 8, 8)
    assert test.shape == (450, 1, 8, 8)
    pixels, labels = load_digits(return_X_y=True)
    for digit in range(10):  # per class: the first three quarters in the file's order, to within one image
        ours = torch.cat([train[train_labels == digit], test[test_labels == digit]]).flatten(1).numpy()
        theirs = (pixels[labels == digit] / 16 - 0.305) / 0.376
        np.testing.assert_allclose(ours, theirs, atol=1e-6)  # float32 of values up to 2
        assert abs(int((test_labels == digit).sum()) - (labels == digit).sum() * 450 / 1797) <= 1


def test_training_digits_have_mean_0_and_deviation_1():
    data = Images("digits")
    data.setup()
    images = data.splits["train"][0]
    # the constants are rounded to 1e-3, a relative 1e-3 / 0.376 of a deviation
    assert abs(images.mean().item()) < 3e-3
    assert abs(images.std().item() - 1) < 3e-3


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.data())
def test_every_head_of_the_class_order_is_stratified(labels, data):
    labels = np.array(labels)
    order = in_class_order(labels)
    assert sorted(order) == list(range(len(labels)))
    head = order[: data.draw(st.integers(0, len(labels)))]
    for label in np.unique(labels):
        share = (labels == label).mean()
        # ranks are even to half an image per class, four classes at most: the head's share strays by at most two images
        assert abs((labels[head] == label).sum() - share * len(head)) <= 2
        members = [index for index in head if labels[index] == label]
        assert members == sorted(members)


def test_validation_images_are_taken_from_training_images_only():
    whole, parted = Images("digits"), Images("digits", validation=147)
    whole.setup()
    parted.setup()
    assert parted.held_out == ["validation", "test"]
    assert torch.equal(parted.splits["test"][0], whole.splits["test"][0])
    joined = torch.cat([parted.splits["train"][0], parted.splits["validation"][0]]).flatten(1)
    assert len(parted.splits["validation"][0]) == 147
    assert sorted(map(tuple, joined.tolist())) == sorted(map(tuple, whole.splits["train"][0].flatten(1).tolist()))


@settings(max_examples=40)
@given(st.integers(0, 2), st.booleans(), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))
def test_a_varied_image_is_a_crop_of_the_padded_one_or_its_mirror(crop, flip, c, h, w, seed):
    images = torch.rand(3, c, h, w, generator=torch.Generator().manual_seed(seed))
    batches = ImageBatches(images, torch.arange(3), Epochs(3, 3, seed=seed), crop=crop, flip=flip)
    ((varied, labels),) = batches
    for image, label in zip(varied, labels, strict=True):
        padded = torch.zeros(c, h + 2 * crop, w + 2 * crop)
        padded[:, crop : crop + h, crop : crop + w] = images[label]
        windows = [padded[:, i : i + h, j : j + w] for i in range(2 * crop + 1) for j in range(2 * crop + 1)]
        windows += [window.flip(2) for window in windows] if flip else []
        assert any(torch.equal(image, window) for window in windows)


def test_every_crop_and_both_mirrors_occur():
    images = torch.arange(4.0).view(1, 1, 2, 2).repeat(500, 1, 1, 1) + 1
    ((varied, _),) = ImageBatches(images, torch.zeros(500), Epochs(500, 500, seed=0), crop=1, flip=True)
    # 9 windows times 2 mirrors, each missed with probability (17/18)^500 < 4e-13; no two are alike here
    assert len({tuple(image.flatten().tolist()) for image in varied}) == 18


@pytest.mark.parametrize("make", [small_sets.cifar10, small_sets.fashion_mnist])
def test_images_are_those_of_the_files_standardised(make, tmp_path, monkeypatch):
    small = make(monkeypatch)
    module = Images(small.name, root=str(small.lay(tmp_path)))
    module.prepare_data()
    module.setup()
    stated = SETS[small.name]
    images, labels = module.splits["train"]
    assert images.shape == (20, stated.in_channels, stated.image_size, stated.image_size)
    assert len(module.splits["test"][0]) == 10
    if small.name == "cifar10":
        parts = [pickle.loads(small.files[f"cifar-10-batches-py/data_batch_{i}"]) for i in range(1, 6)]
        raw = np.concatenate([part["data"] for part in parts]).reshape(-1, 3, 32, 32)
        classes = [label for part in parts for label in part["labels"]]
    else:
        body = gzip.decompress(small.files["FashionMNIST/raw/train-images-idx3-ubyte.gz"])
        raw, classes = np.frombuffer(body, np.uint8)[16:].reshape(-1, 1, 28, 28), list(np.arange(20) % 10)
    expected = (raw / 255 - np.reshape(stated.mean, (-1, 1, 1))) / np.reshape(stated.deviation, (-1, 1, 1))
    np.testing.assert_allclose(images.numpy(), expected, atol=1e-6)  # float32 of values up to 3
    assert labels.tolist() == classes
