"""Run one training of a study in Lightning."""

from collections.abc import Callable
from typing import Any

import torch
from epoch_metrics import collect_metrics
from lightning_mnist import DigitReader, keep_lightning_quiet
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from study import Parts, Training
from tensorstate_tutorial_pytorch import evaluate
from torch import Tensor, nn
from torch_lenet5 import LeNet5, loader

import tensorstate_callbacks


class AdamReader(LightningModule):
    """A network that reads digits, trained by Adam as PyTorch sets it.

    Args:
        network: Turns images of shape `(N, 1, 28, 28)` into logits of shape `(N, 10)`.
    """

    training_step = DigitReader.training_step
    validation_step = DigitReader.validation_step

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images."""
        logits: Tensor = self.network(images)
        return logits

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam with PyTorch's defaults."""
        return torch.optim.Adam(self.parameters())


class Curves(Callback):
    """Losses, and the accuracy on the test digits, epoch by epoch.

    Args:
        test: Serves the test digits.
        on_epoch: Called after each epoch.
    """

    def __init__(self, test: Any, on_epoch: Callable[[], None]) -> None:
        self._test, self._on_epoch = test, on_epoch
        self.losses: list[float] = []
        self.val_losses: list[float] = []
        self.test_accuracies: list[float] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Test while Lightning keeps the network in evaluation mode."""
        self.test_accuracies.append(evaluate(pl_module, self._test))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the losses."""
        self.losses.append(float(trainer.callback_metrics["train_loss"]))
        self.val_losses.append(float(trainer.callback_metrics["val_loss"]))
        self._on_epoch()


def train(training: Training, parts: Parts, on_epoch: Callable[[], None]) -> list[dict[str, Any]]:
    """Train LeNet-5 with PyTorch's defaults, and return the metrics of each epoch.

    Args:
        training: The settings.
        parts: The digits.
        on_epoch: Called after each epoch.
    """
    keep_lightning_quiet()
    seed_everything(training.seed, verbose=False)
    efficiency = tensorstate_callbacks.lightning.EfficiencyCallback()
    grouped = tensorstate_callbacks.lightning.EfficiencyCallback(
        group_size=training.group_size, prefix="grouped_"
    )
    curves = Curves(loader(parts.x_test, parts.y_test, 500, shuffle=False), on_epoch)
    trainer = Trainer(
        max_epochs=training.epochs,
        accelerator="cpu",
        devices=1,
        callbacks=[efficiency, grouped, curves],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
    )
    network = LeNet5(
        training.neurons,
        batch_norm=training.batch_norm,
        dropout=training.dropout,
        defaults=True,
    )
    trainer.fit(
        AdamReader(network),
        loader(parts.x_train, parts.y_train, training.batch_size, shuffle=True),
        loader(parts.x_val, parts.y_val, 500, shuffle=False),
    )
    return collect_metrics(
        efficiency.history,
        grouped.history,
        curves.losses,
        curves.val_losses,
        curves.test_accuracies,
    )
