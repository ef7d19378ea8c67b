"""Train LeNet-5 on handwritten digits with Lightning, and stop when its aIQ no longer rises.

Two callbacks watch: one takes each layer as one unit, as the paper does, the other groups of eight
neurons. Look at conv_3 in both tables at the end. As one unit it is at its ceiling, whatever the
network has learned: each of 1,000 digits gives a state of its own. In groups its efficiency moves
from epoch to epoch.

The network is that of TensorState's tutorials: three convolutions of 20, 50 and 100 neurons with
ELU and batch normalization, SGD with Nesterov momentum. Its learning rate is ten times theirs, and
its batches half as large, since there are fewer digits. Run it with `make demo-lightning`.
"""

import logging
import os
import warnings
from typing import Any

# TensorBoard's writer loads TensorFlow where it is installed.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # else it says four lines about them
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")

import torch
from digits import (
    EpochProgress,
    load_digits,
    parse_arguments,
    print_commands,
    print_heading,
    print_result,
    run_name,
)
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.loggers import MLFlowLogger, TensorBoardLogger
from torch import Tensor
from torch.nn import functional
from torch_lenet5 import LeNet5, load_full, loader, optimizer_of

import tensorstate_callbacks


class DigitReader(LightningModule, LeNet5):
    """LeNet-5 with its training."""

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
        return optimizer_of(self, learning_rate=0.01)


class EpochLines(Callback):
    """A progress bar while an epoch runs, and a line when it is over."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the bar."""
        self._progress = EpochProgress(trainer.current_epoch, trainer.num_training_batches)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Move the bar on."""
        self._progress.update()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the bar by the metrics of the validation pass."""
        self._progress.close(trainer.callback_metrics)


def keep_lightning_quiet() -> None:
    """Leave out what Lightning says that tells nothing of a training; errors stay."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    # The digits are in memory: more processes would only slow this down.
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")  # a call of its own


def main() -> None:
    """Train, watch, stop, draw."""
    arguments = parse_arguments(__doc__ or "", "runs/lightning_mnist", batch_size=100)
    output = arguments.output_dir
    output.mkdir(parents=True, exist_ok=True)
    keep_lightning_quiet()
    seed_everything(arguments.seed, verbose=False)
    digits = load_digits(arguments, load_full)

    efficiency = tensorstate_callbacks.lightning.EfficiencyCallback(beta=2)
    # Each layer as one unit, as the paper has it, stands at its ceiling; groups of neurons move.
    groups = tensorstate_callbacks.lightning.EfficiencyCallback(group_size=8, prefix="g8_")
    stop = EarlyStopping("val_aiq", mode="max", patience=arguments.patience)
    run = run_name()
    mlflow_logger = MLFlowLogger(
        "lightning_mnist",
        run_name=run,
        tracking_uri=f"sqlite:///{output / 'mlflow.db'}",
        artifact_location=(output / "artifacts").resolve().as_uri(),
    )
    mlflow_logger.log_hyperparams({"batch_size": arguments.batch_size, "seed": arguments.seed})
    trainer = Trainer(
        max_epochs=arguments.epochs,
        devices=1,
        callbacks=[efficiency, groups, stop, EpochLines()],
        logger=[TensorBoardLogger(output, name="tensorboard", version=run), mlflow_logger],
        default_root_dir=output,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        log_every_n_steps=10,
    )
    print_heading(arguments, digits)
    trainer.fit(
        DigitReader(),
        loader(digits.x_train, digits.y_train, arguments.batch_size, shuffle=True),
        loader(digits.x_val, digits.y_val, arguments.batch_size, shuffle=False),
    )
    stopped = trainer.current_epoch if stop.stopped_epoch else None
    print_result(efficiency.history, groups.history, stopped, output)
    print_commands(output)


if __name__ == "__main__":
    main()
