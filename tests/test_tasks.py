"""Tasks under an ordinary Lightning Trainer: any loaders, checkpoints, loggers and early stopping."""

import csv
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import skipform
from skipform import nets
from skipform.data.translation import BEGIN, END, PAD
from skipform.errors import SkipformError
from skipform.tasks import Optimizer
from skipform.tasks.classify import Classify
from skipform.tasks.task import Task

SILENT = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}


def squares(n: int, seed: int) -> TensorDataset:
    """n images (1, 8, 8) of noise; class 1 has a bright corner."""
    generator = torch.Generator().manual_seed(seed)
    images, labels = torch.rand(n, 1, 8, 8, generator=generator), torch.arange(n) % 2
    images[labels == 1, :, :3, :3] += 1
    return TensorDataset(images, labels)


def mlp(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return skipform.build("mlp", depth=1, width=8, in_channels=1, image_size=8, num_classes=2)


def classes(net: nn.Module, **optimizer) -> Task:
    return skipform.task("classify", net, {"lr": 0.05, "schedule": "constant"} | optimizer)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A task after three epochs of a stock Trainer on loaders of its user, what it logged, its checkpoint."""
    folder = tmp_path_factory.mktemp("stock")
    best = ModelCheckpoint(monitor="val/error", dirpath=folder, filename="best")
    logger = CSVLogger(folder)
    task = classes(mlp())
    trainer = Trainer(max_epochs=3, logger=logger, callbacks=[best], log_every_n_steps=1, **SILENT)
    train, held = DataLoader(squares(40, 1), 16, shuffle=True), DataLoader(squares(20, 2), 8)
    trainer.fit(task, train, held)
    metrics = dict(trainer.callback_metrics)  # `test` would replace those of the trainer
    return SimpleNamespace(task=task, trainer=trainer, metrics=metrics, best=best, logger=logger, held=held)


def truth(task: Task, loader: DataLoader) -> tuple[float, float]:
    """Loss and error in percent over all of a loader's images at once."""
    images, labels = loader.dataset.tensors
    task.eval()
    with torch.no_grad():
        scores = task(images)
    wrong = (scores.argmax(1) != labels).double().mean()
    return functional.cross_entropy(scores, labels).item(), 100 * wrong.item()


def test_what_is_logged_of_a_users_loaders_is_the_loss_and_error_over_all_their_images(trained):
    metrics = trained.metrics
    assert set(metrics) == {"train/loss", "train/error", "val/loss", "val/error"}
    loss, error = truth(trained.task, trained.held)
    assert metrics["val/error"] == error
    assert metrics["val/loss"].item() == pytest.approx(loss, rel=1e-6)  # float32 sums of three batches, of 8, 8 and 4


def test_a_logger_has_one_row_of_each_per_epoch(trained):
    trained.logger.save()
    with Path(trained.logger.log_dir, "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for key in ("train/loss", "train/error", "val/loss", "val/error"):
        assert [int(row["epoch"]) for row in rows if row[key]] == [0, 1, 2]


def test_a_checkpoint_is_loaded_from_its_path_alone_and_holds_plain_data(trained):
    path = trained.best.best_model_path
    assert torch.load(path, weights_only=True)["hyper_parameters"]["optimizer"]["lr"] == 0.05
    loaded = Classify.load_from_checkpoint(path)
    stored = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(value, stored[name]) for name, value in loaded.state_dict().items())
    assert loaded.optimizer == trained.task.optimizer
    assert truth(loaded, trained.held)[1] == trained.best.best_model_score


def test_test_and_predict_are_those_of_any_lightning_module(trained):
    (tested,) = trained.trainer.test(trained.task, trained.held, verbose=False)
    assert set(tested) == {"test/loss", "test/error"}
    assert tested["test/error"] == truth(trained.task, trained.held)[1]
    images, labels = trained.held.dataset.tensors
    for loader in (trained.held, DataLoader(TensorDataset(images), 8), DataLoader(images, 8)):  # targets or none
        predicted = torch.cat(trained.trainer.predict(trained.task, loader))
        assert 100 * (predicted != labels).double().mean() == tested["test/error"]


def test_forward_is_the_nets_output(trained):
    images = trained.held.dataset.tensors[0]
    assert torch.equal(trained.task(images), trained.task.net(images))


def test_early_stopping_sees_the_epochs_error(tmp_path):
    stop = EarlyStopping("val/error", patience=1, min_delta=200.0)  # no epoch improves so much after the first
    trainer = Trainer(max_epochs=9, callbacks=[stop], logger=False, default_root_dir=tmp_path, **SILENT)
    loader = DataLoader(squares(16, 1), 8)
    trainer.fit(classes(mlp()), loader, loader)
    assert trainer.current_epoch == 2
    assert stop.stopped_epoch == 1


def test_several_validation_loaders_are_numbered_in_their_order(tmp_path):
    trainer = Trainer(max_epochs=1, logger=False, enable_checkpointing=False, default_root_dir=tmp_path, **SILENT)
    loaders = [DataLoader(squares(n, n), 8) for n in (8, 20)]
    task = classes(mlp())
    trainer.fit(task, loaders[0], loaders)
    assert trainer.callback_metrics["val/error"] == truth(task, loaders[0])[1]
    assert trainer.callback_metrics["val_1/error"] == truth(task, loaders[1])[1]


def test_a_data_module_names_its_splits(tmp_path):
    trainer = Trainer(max_epochs=1, logger=False, enable_checkpointing=False, default_root_dir=tmp_path, **SILENT)
    net = skipform.build("mlp", depth=1, width=8, in_channels=1, image_size=8)
    trainer.fit(classes(net), datamodule=skipform.data("digits", limit=40, validation=20))
    expected = {f"{split}/{key}" for split in ("train", "val", "test") for key in ("loss", "error")}
    assert set(trainer.callback_metrics) == expected


def test_training_without_an_end_takes_a_schedule_that_needs_none(tmp_path):
    class Enough(EarlyStopping):
        def on_train_start(self, trainer, pl_module):
            trainer.should_stop = True

    loader = DataLoader(squares(8, 1), 8)
    settings = {"max_epochs": -1, "logger": False, "enable_checkpointing": False, "default_root_dir": tmp_path}
    Trainer(callbacks=[Enough("val/error")], **settings, **SILENT).fit(classes(mlp()), loader, loader)
    with pytest.raises(SkipformError, match=r"^schedule 'cosine' needs to know when training ends"):
        Trainer(**settings, **SILENT).fit(classes(mlp(), schedule="cosine"), loader)


def test_a_net_of_ones_own_is_given_again_when_its_checkpoint_is_loaded(tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    trainer = Trainer(max_epochs=1, logger=False, default_root_dir=tmp_path, **SILENT)
    trainer.fit(classes(net), DataLoader(squares(16, 1), 8))
    path = trainer.checkpoint_callback.best_model_path
    with pytest.raises(SkipformError, match=r"^net: the checkpoint does not say how the net was built[^\n]*net=\.\.\."):
        Classify.load_from_checkpoint(path)
    loaded = Classify.load_from_checkpoint(path, net=nn.Sequential(nn.Flatten(), nn.Linear(64, 2)))
    assert torch.equal(loaded.net[1].weight, net[1].weight)


def test_a_checkpoint_remembers_the_arguments_of_task_and_net_with_nets_inside(tmp_path):
    backbone = {"name": "resnet", "depth": 8, "width": 4, "in_channels": 1}
    net = skipform.build("unet", in_channels=1, num_classes=3, width=2)
    task = skipform.task("segment", net, Optimizer(lr=0.5), num_classes=3, class_weights=(1.0, 2.0, 3.0))
    trainer = Trainer(max_epochs=1, logger=False, default_root_dir=tmp_path, **SILENT)
    trainer.strategy.connect(task)
    trainer.save_checkpoint(tmp_path / "untrained.ckpt")
    loaded = type(task).load_from_checkpoint(tmp_path / "untrained.ckpt")
    assert (loaded.num_classes, loaded.weights.tolist(), loaded.optimizer.lr) == (3, [1.0, 2.0, 3.0], 0.5)
    for nested in (backbone, skipform.build("resnet", depth=8, width=4, in_channels=1)):
        block = nets.description(skipform.build("fpn", backbone=nested, num_classes=2))
        assert block["name"] == "fpn"
        assert block["backbone"] == backbone
    assert nets.description(nn.Linear(1, 1)) is None


def test_a_translation_is_scored_without_a_data_module(tmp_path):
    torch.manual_seed(0)
    net = skipform.build("transformer", vocab_size=9, depth=1, width=8, heads=2, hidden=16, pad=PAD)
    task = skipform.task("translate", net, pad=PAD, begin=BEGIN, end=END, beams=1, extra=2)
    source = torch.tensor([[BEGIN, 4, 5, END], [BEGIN, 6, END, PAD]])
    loader = DataLoader(TensorDataset(source, source), 2)
    trainer = Trainer(max_epochs=1, logger=False, enable_checkpointing=False, default_root_dir=tmp_path, **SILENT)
    trainer.fit(task, loader, loader)
    assert {"val/loss", "val/error", "val/bleu", "val/exact_match"} <= set(trainer.callback_metrics)
    assert task._numbers(source) == ["4 5", "6"]
    assert trainer.predict(task, loader)[0].shape[0] == 2


def test_detections_need_no_targets_when_no_image_is_padded(tmp_path):
    torch.manual_seed(0)
    backbone = {"name": "resnet", "depth": 8, "width": 4, "in_channels": 1}
    net = skipform.build("detr", backbone=backbone, num_classes=2, width=8, heads=2, encoder_depth=1, decoder_depth=1)
    task = skipform.task("detect", net.eval())
    images = torch.rand(2, 1, 32, 32)
    targets = [{"size": (32, 32)}] * 2
    with torch.no_grad():
        for one, other in zip(task.predict(images), task.predict(images, targets), strict=True):
            assert all(torch.equal(one[key], other[key]) for key in ("boxes", "scores", "labels"))


@pytest.mark.parametrize("columns", [1, 3])
def test_the_error_of_the_deepest_column_is_that_of_its_plain_net(columns):
    torch.manual_seed(0)
    net = skipform.build("fractalnet", blocks=1, columns=columns, width=4, in_channels=1, num_classes=2, drop_path=0.5)
    task, data = classes(net), squares(30, 3)
    images, labels = data.tensors
    trainer = Trainer(max_epochs=1, logger=False, enable_checkpointing=False, **SILENT)
    trainer.fit(task, DataLoader(squares(20, 1), 10), DataLoader(data, 8))
    net.eval()
    wrong = (net.column(columns - 1)(images).argmax(1) != labels).double().mean().item()
    measured = {key: value.item() for key, value in trainer.callback_metrics.items() if key.endswith("deepest_error")}
    assert measured == ({"val/deepest_error": pytest.approx(100 * wrong)} if columns > 1 else {})
    expected = ["deepest_error"] if columns > 1 else []
    assert list(task.FURTHER_SCORES) == expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: skipform.task("clasify", mlp()), r"^unknown task 'clasify'; accepted: classify, detect"),
        (lambda: skipform.task("classify", mlp(), classes=3), r"^task: unknown key 'classes'"),
        (lambda: skipform.task("segment", mlp()), r"^task\.num_classes: missing; accepted: int"),
        (lambda: skipform.task("classify", mlp(), {"rate": 1}), r"^optimizer: unknown key 'rate'; accepted: name"),
    ],
)
def test_a_wrong_task_is_refused_in_one_line_that_names_what_is_accepted(call, message):
    with pytest.raises(SkipformError, match=message):
        call()
