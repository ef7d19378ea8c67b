"""Train LeNet-5 on handwritten digits with Lightning, and stop when its aIQ no longer rises.

The network and its training are those of TensorState's tutorials: three convolutions of 20, 50 and
100 neurons with ELU and batch normalization, SGD with Nesterov momentum. Run it with
`make demo-lightning`, or `python examples/lightning_mnist.py --help`.
"""

import logging
import os
import warnings
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorBoard's writer may load TensorFlow

import numpy as np
import torch
from digits import (
    Digits,
    EpochProgress,
    load_digits,
    parse_arguments,
    print_commands,
    print_result,
    run_name,
)
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.loggers import MLFlowLogger, TensorBoardLogger
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import tensorstate_callbacks


class LeNet5(LightningModule):
    """LeNet-5 with 20, 50 and 100 neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_1, self.norm_1 = nn.Conv2d(1, 20, 5), nn.BatchNorm2d(20)
        self.conv_2, self.norm_2 = nn.Conv2d(20, 50, 5), nn.BatchNorm2d(50)
        self.conv_3, self.norm_3 = nn.Conv2d(50, 100, 4), nn.BatchNorm2d(100)
        self.pred = nn.Linear(100, 10)
        for layer in (self.conv_1, self.conv_2, self.conv_3, self.pred):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Turn images of shape `(N, 1, 28, 28)` into logits of shape `(N, 10)`."""
        x = functional.max_pool2d(self.norm_1(functional.elu(self.conv_1(images))), 2)
        x = functional.max_pool2d(self.norm_2(functional.elu(self.conv_2(x))), 2)
        x = self.norm_3(functional.elu(self.conv_3(x)))
        logits: Tensor = self.pred(x.flatten(1))
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Return the loss of a batch."""
        images, labels = batch
        loss = functional.cross_entropy(self(images), labels)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Log loss and accuracy."""
        images, labels = batch
        logits = self(images)
        self.log("val_loss", functional.cross_entropy(logits, labels))
        self.log("val_accuracy", (logits.argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD with Nesterov momentum and L2 regularization."""
        return torch.optim.SGD(
            self.parameters(), lr=0.001, momentum=0.9, nesterov=True, weight_decay=0.0005
        )


class EpochLines(Callback):
    """A progress bar while an epoch runs, and a line when it is over."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the bar."""
        self._progress = EpochProgress(trainer.current_epoch, trainer.num_training_batches)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Move the bar on."""
        self._progress.update()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the bar by the figures of the validation pass."""
        self._progress.close(trainer.callback_metrics)


def load_full() -> Digits:
    """Download MNIST with torchvision."""
    try:
        from torchvision.datasets import MNIST
    except ModuleNotFoundError as error:
        raise SystemExit("--data full needs torchvision: pip install torchvision") from error
    parts: list[Any] = []
    for train in (True, False):
        digits = MNIST(os.path.join(torch.hub.get_dir(), "mnist"), train=train, download=True)
        parts += [(digits.data.numpy() / 255).astype(np.float32), digits.targets.numpy()]
    return Digits(*parts)


def loader(images: Any, labels: Any, batch_size: int, *, shuffle: bool) -> DataLoader[Any]:
    """Serve the digits in batches."""
    dataset = TensorDataset(torch.from_numpy(images)[:, None], torch.from_numpy(labels))
    return DataLoader(dataset, batch_size, shuffle=shuffle)


def main() -> None:
    """Train, watch, stop, draw."""
    arguments = parse_arguments(__doc__ or "", "runs/lightning_mnist")
    output = arguments.output_dir
    output.mkdir(parents=True, exist_ok=True)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    # The digits are in memory: more processes would only slow this down.
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    seed_everything(arguments.seed)
    digits = load_digits(arguments, load_full)

    efficiency = tensorstate_callbacks.lightning.EfficiencyCallback(beta=2)
    stop = EarlyStopping("val_aiq", mode="max", patience=arguments.patience)
    run = run_name()
    mlflow_logger = MLFlowLogger(
        "lightning_mnist", run_name=run, tracking_uri=f"sqlite:///{output / 'mlflow.db'}"
    )
    mlflow_logger.log_hyperparams(
        {"beta": 2, "batch_size": arguments.batch_size, "seed": arguments.seed}
    )
    trainer = Trainer(
        max_epochs=arguments.epochs,
        devices=1,
        callbacks=[efficiency, stop, EpochLines()],
        logger=[TensorBoardLogger(output, name="tensorboard", version=run), mlflow_logger],
        default_root_dir=output,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        log_every_n_steps=10,
    )
    trainer.fit(
        LeNet5(),
        loader(digits.x_train, digits.y_train, arguments.batch_size, shuffle=True),
        loader(digits.x_val, digits.y_val, arguments.batch_size, shuffle=False),
    )
    stopped = trainer.current_epoch if stop.stopped_epoch else None
    print_result(efficiency.history, stopped, output)
    print_commands(output)


if __name__ == "__main__":
    main()
