"""Lightning's logger for Weights & Biases, with epochs in place of steps."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import WandbLogger

from skipform.training.journal import SPLITS, label_of

if TYPE_CHECKING:
    from wandb import Run


class EpochLogger(WandbLogger):
    """Logs what a task has logged in an epoch as step k of a W&B run, k = 1, 2, ...; drawn over `epoch`, which is k.

    Lightning's own logger writes the number of the epoch as the metrics `epoch` and `trainer/global_step`, and W&B
    draws a chart of each of them. W&B ignores a step that a resumed run has already.
    """

    def __init__(self, run: "Run"):
        super().__init__(experiment=run)
        run.define_metric("epoch", hidden=True)
        for split in SPLITS:
            run.define_metric(f"{split}/*", step_metric="epoch")

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = {key: value for key, value in metrics.items() if key != "epoch"}
        self.experiment.log(values | {"epoch": step}, step=step)

    def finalize(self, status: str) -> None:
        if status != "success":  # after an exception or Ctrl-C; a run that succeeds is ended by `close`
            self.experiment.finish(exit_code=1)

    def close(self, metrics: dict[str, Any], seconds: float) -> None:
        """End the run, with its score, its size and its time as its summary. metrics: see `Journal.metrics`."""
        name, unit = metrics["shown"]
        self.experiment.summary.update(
            {
                "score": metrics[f"test_{name}"],
                "score_name": f"test {label_of(name)} in {unit}",
                **{key: metrics[key] for key in ("parameters", "trained_parameters", "epochs", "steps")},
                "seconds": round(seconds, 3),
            }
        )
        self.experiment.finish()
