"""What the studies share: the command line, the digits of a seed, trainings kept in a file."""

import argparse
import dataclasses
import importlib
import json
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from digits import Images, Labels, small_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

from tensorstate_callbacks.errors import TensorStateWarning

LENET5 = (20, 50, 100)
N_CLASSES = 10

# The frameworks, as tables and plots call them.
NAMES = {"keras": "Keras", "torch": "PyTorch"}

# The modules that hold a framework's `train`; a framework is imported only if it is asked for.
_MODULES = {"keras": "keras_study", "torch": "lightning_study"}


class Parts(NamedTuple):
    """Images of shape `(N, 28, 28)`, float32 from 0 to 1, and labels of shape `(N,)`, 0 to 9."""

    x_train: Images
    y_train: Labels
    x_val: Images
    y_val: Labels
    x_test: Images
    y_test: Labels


@dataclasses.dataclass(frozen=True)
class Training:
    """All that a training depends on.

    Attributes:
        framework: `"keras"` or `"torch"`.
        seed: For the split of the digits, the random labels, the weights and the batches.
        epochs: Epochs.
        batch_size: Digits of a batch.
        n_digits: Digits to train on, to validate on, to test on.
        neurons: Neurons of the three convolutions.
        batch_norm: Whether batch normalization follows each of them.
        dropout: Share of activations dropped after each of them, 0 to 1.
        noise: Share of the labels to train and to validate on that are random, 0 to 1.
        group_size: Neurons of a group, whose efficiency is measured beside that of whole layers.
    """

    framework: str
    seed: int
    epochs: int
    batch_size: int
    n_digits: tuple[int, int, int]
    neurons: tuple[int, int, int] = LENET5
    batch_norm: bool = True
    dropout: float = 0.0
    noise: float = 0.0
    group_size: int = 8

    def as_json(self) -> dict[str, Any]:
        """Return the attributes as JSON gives them back."""
        fields: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return fields


def study_parser(description: str, output_dir: str, *, epochs: int) -> argparse.ArgumentParser:
    """Return the command line that the studies share; its defaults are those of a taste.

    Args:
        description: What the study does.
        output_dir: Where it writes, unless told otherwise.
        epochs: How long it trains, unless told otherwise.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=2, help="number of seeds")
    parser.add_argument("--epochs", type=int, default=epochs, help="epochs of each training")
    parser.add_argument("--framework", choices=("keras", "torch", "both"), default="torch")
    parser.add_argument("--batch-size", type=int, default=32, help="Keras's default is 32")
    parser.add_argument(
        "--digits",
        type=int,
        nargs=3,
        default=(3000, 1000, 1000),
        metavar=("TRAIN", "VALIDATION", "TEST"),
        help="how many of the 5,000 digits to train, validate and test on",
    )
    parser.add_argument("--output-dir", type=Path, default=Path(output_dir))
    return parser


def plan(arguments: argparse.Namespace, variants: Iterable[dict[str, Any]]) -> list[Training]:
    """Return the trainings that the command line asks for, seed by seed.

    Args:
        arguments: The command line.
        variants: Settings of `Training` beyond it; each is trained with each seed and framework.
    """
    variants = list(variants)
    return [
        Training(
            framework, seed, arguments.epochs, arguments.batch_size, tuple(arguments.digits), **more
        )
        for seed in range(arguments.seeds)
        for more in variants
        for framework in frameworks_of(arguments)
    ]


def frameworks_of(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Return the frameworks that the command line asks for."""
    return tuple(NAMES) if arguments.framework == "both" else (arguments.framework,)


def split_digits(seed: int, sizes: tuple[int, int, int], noise: float) -> Parts:
    """Return the digits of a seed, as many of each class in each part as can be.

    Args:
        seed: For the split and for the random labels.
        sizes: Digits to train on, to validate on, to test on.
        noise: Share of the labels to train and to validate on that are random, 0 to 1. The labels
            to test on are the true ones.
    """
    images, labels = small_digits()
    images, labels = _stratified(images, labels, sum(sizes), seed)[:2]
    x_train, y_train, x_rest, y_rest = _stratified(images, labels, sizes[0], seed)
    x_val, y_val, x_test, y_test = _stratified(x_rest, y_rest, sizes[1], seed)
    rng = np.random.default_rng(seed)
    return Parts(
        x_train,
        randomize(y_train, noise, rng),
        x_val,
        randomize(y_val, noise, rng),
        x_test,
        y_test,
    )


def _stratified(images: Images, labels: Labels, size: int, seed: int) -> tuple[Any, ...]:
    """Return images and labels of so many digits, then of the others."""
    if size == len(labels):
        return images, labels, images[:0], labels[:0]
    x, x_rest, y, y_rest = train_test_split(
        images, labels, train_size=size, stratify=labels, random_state=seed
    )
    return x, y, x_rest, y_rest


def randomize(labels: Labels, share: float, rng: np.random.Generator) -> Labels:
    """Return the labels, a share of them drawn anew from the ten classes.

    One in ten of those drawn comes out right by chance, so 0.75 leaves 0.325 of the labels right.
    """
    noisy = labels.copy()
    chosen = rng.permutation(len(labels))[: round(share * len(labels))]
    noisy[chosen] = rng.integers(0, N_CLASSES, len(chosen))
    return noisy


def run_all(trainings: Sequence[Training], path: Path) -> list[dict[str, Any]]:
    """Run the trainings that the file doesn't hold yet, and return what came out of each.

    Args:
        trainings: What to train.
        path: A file of one JSON object per line. A training is added as soon as it is over, so that
            a study that was stopped goes on where it was.

    Returns:
        One dict per training: `training`, its settings; `seconds`; `epochs`, a dict of metrics for
        each, as `train` of the frameworks' modules returns them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {json.dumps(run["training"]): run for run in known}
    missing = [x for x in trainings if json.dumps(x.as_json()) not in done]
    n_epochs = sum(training.epochs for training in missing)
    print(
        f"{len(trainings)} trainings, {len(trainings) - len(missing)} of them in {path} already; "
        f"{n_epochs:,} epochs to go.",
        flush=True,
    )
    with tqdm(total=n_epochs, unit="epoch", smoothing=0.02) as bar, path.open("a") as file:
        progress = _Estimate(bar)
        for training in missing:
            bar.set_description(f"{NAMES[training.framework]}, seed {training.seed}")
            run = _run(training, progress)
            done[json.dumps(run["training"])] = run
            print(json.dumps(run), file=file, flush=True)
    return [done[json.dumps(training.as_json())] for training in trainings]


class _Estimate:
    """Moves the bar on, and says once how long the rest will take."""

    def __init__(self, bar: "tqdm[Any]") -> None:
        self._bar, self._told = bar, False
        self._last = time.perf_counter()

    def __call__(self) -> None:
        """An epoch is over."""
        self._bar.update()
        seconds = time.perf_counter() - self._last
        self._last = time.perf_counter()
        # The first epoch holds what is done once: imports, compilation.
        if self._bar.n == 3 and not self._told:
            minutes = seconds * (self._bar.total - self._bar.n) / 60
            self._bar.write(f"About {minutes:.0f} minutes to go: an epoch takes {seconds:.2f} s.")
            self._told = True


def _run(training: Training, on_epoch: Callable[[], None]) -> dict[str, Any]:
    started = time.perf_counter()
    module = importlib.import_module(_MODULES[training.framework])
    parts = split_digits(training.seed, training.n_digits, training.noise)
    with warnings.catch_warnings():
        # It would be said of conv_3 in each of the fits; the tables hold the layers' ceilings, and
        # the documentation says once what they mean.
        warnings.filterwarnings("ignore", "Coverage is below", TensorStateWarning)
        epochs = module.train(training, parts, on_epoch)
    return {
        "training": training.as_json(),
        "seconds": round(time.perf_counter() - started, 1),
        "epochs": epochs,
    }


def select(runs: Iterable[dict[str, Any]], **settings: Any) -> list[dict[str, Any]]:
    """Return the runs of these settings, in the order of their seeds."""
    chosen = [run for run in runs if settings.items() <= run["training"].items()]
    return sorted(chosen, key=lambda run: run["training"]["seed"])
