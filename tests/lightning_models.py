"""A small classifier for Lightning, its data, and a Trainer that says and writes nothing.

Lightning's other name is tested with TENSORSTATE_TEST_LIGHTNING=lightning.pytorch.
"""

import os
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

# By name: a process that has imported both has classes that don't mix.
NAMESPACE = os.environ.get("TENSORSTATE_TEST_LIGHTNING", "pytorch_lightning")
pl: Any = import_module(NAMESPACE)
import_module(f"{NAMESPACE}.loggers")
LightningModule, Trainer = pl.LightningModule, pl.Trainer

N_TRAIN, N_VAL = 64, 50

# Lightning's advice on tiny loaders, and what it says of its own and torch's older parts.
QUIET = [
    "ignore:The '.*dataloader' does not have many workers",
    "ignore:`isinstance.treespec, LeafSpec.` is deprecated",
    "ignore:The number of training batches",
    # What Ctrl-C was before Lightning 2.5.
    "ignore:Detected KeyboardInterrupt",
]


def data(n: int, seed: int) -> TensorDataset:
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long())


TRAIN, VAL = data(N_TRAIN, 1), data(N_VAL, 2)


def loader(dataset: TensorDataset, batch_size: int = 16) -> DataLoader[Any]:
    return DataLoader(dataset, batch_size)


class Classifier(LightningModule):
    """6 inputs, layers of 8 and 5 neurons, 3 classes.

    Args:
        log: Where the accuracy is logged: `"step"`, `"metric"` (a torchmetrics object, in the
            step), `"epoch_end"`, `"metric_epoch_end"` or `"never"`.
        key: Its name without the stage.
        scripted: Accuracies to log at the end of each epoch instead of the true ones.
    """

    def __init__(
        self, log: str = "step", key: str = "acc", scripted: list[float | None] | None = None
    ) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(
            nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3)
        )
        self.metric = MulticlassAccuracy(3, average="micro")
        self.where, self.key, self.scripted = "never" if scripted else log, key, scripted
        self.n_forward, self.n_right, self.n_seen = 0, 0, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.n_forward += 1
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def evaluation_step(self, stage: str, batch: Any) -> None:
        x, y = batch
        right = self(x).argmax(1) == y
        if self.where == "step":
            self.log(f"{stage}_{self.key}", right.float().mean(), batch_size=len(y))
        elif self.where == "metric":
            self.metric.update(right.long(), torch.ones_like(y))
            self.log(f"{stage}_{self.key}", self.metric)
        else:
            self.n_right, self.n_seen = self.n_right + int(right.sum()), self.n_seen + len(y)
            self.metric.update(right.long(), torch.ones_like(y))

    def end(self, stage: str) -> None:
        if self.scripted is not None:
            value = self.scripted[self.current_epoch]
            if value is not None and not self.trainer.sanity_checking:
                self.log(f"{stage}_{self.key}", value)
        elif self.where == "epoch_end":
            self.log(f"{stage}_{self.key}", self.n_right / self.n_seen)
        elif self.where == "metric_epoch_end":
            self.log(f"{stage}_{self.key}", self.metric)
        self.n_right = self.n_seen = 0

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.evaluation_step("val", batch)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.evaluation_step("test", batch)

    def on_validation_epoch_end(self) -> None:
        self.end("val")

    def on_test_epoch_end(self) -> None:
        self.end("test")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.5 if self.scripted is None else 0.0)


def trainer(*callbacks: pl.Callback, **options: Any) -> Trainer:
    quiet = {
        "accelerator": "cpu",
        "max_epochs": 3,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(callbacks=list(callbacks), **{**quiet, **options})


def fit(model: Classifier, *callbacks: pl.Callback, **options: Any) -> Trainer:
    fitted = trainer(*callbacks, **options)
    fitted.fit(model, loader(TRAIN), loader(VAL))
    return fitted


class Curves(pl.Callback):
    """Keeps what callbacks see after each evaluation, and the weights it was made with."""

    def __init__(self) -> None:
        self.metrics: list[dict[str, float]] = []
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.metrics.append({k: v.item() for k, v in trainer.callback_metrics.items()})
            self.weights.append({k: v.clone() for k, v in pl_module.state_dict().items()})

    def of(self, key: str) -> list[float]:
        return [metrics[key] for metrics in self.metrics]
