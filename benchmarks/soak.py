"""Train for long, and compare the last epochs with early ones: time and memory must not grow.

    python -m benchmarks.soak [--epochs 500] [--fits 300] [--save] [framework ...]

Each framework has a process of its own, with TensorBoard and MLflow.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import table
from benchmarks.pinned import ONE_THREAD, ROOT
from benchmarks.results import save
from benchmarks.rows import Row, Target, relative

FRAMEWORKS = {
    "keras-tensorflow": "Keras on TensorFlow",
    "keras-jax": "Keras on JAX",
    "keras-torch": "Keras on PyTorch",
    "lightning": "Lightning",
}
TARGET = Target(1.02, False)


class Log:
    """Takes, at the end of each epoch or fit, the time it took and the memory that is held."""

    def __init__(self) -> None:
        self.ms: list[float] = []
        self.mb: list[float] = []
        self._began = time.process_time()

    def note(self) -> None:
        """Note one more."""
        now = time.process_time()
        self.ms.append((now - self._began) * 1e3)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.mb.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
        self._began = time.process_time()


Fit = Callable[[int, Any], None]
"""Trains for some epochs, with a callback beside ours."""


def keras_fit(log: Log, folder: Path) -> tuple[Fit, Any]:
    """Return what trains a tiny model in Keras, and the callback that notes its epochs."""
    import keras
    import mlflow
    import numpy as np

    from tensorstate_callbacks.keras import EfficiencyCallback

    x = np.random.default_rng(0).standard_normal((64, 6)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int32)
    layers = [keras.layers.Dense(8, activation="relu"), keras.layers.Dense(2)]
    model = keras.Sequential([keras.layers.Input((6,)), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=["accuracy"])
    runs = iter(range(10**6))

    def fit(epochs: int, notes: Any) -> None:
        board = keras.callbacks.TensorBoard(str(folder / f"board-{next(runs)}"))
        callbacks = [EfficiencyCallback(missing_accuracy="raise"), board, notes]
        with mlflow.start_run():
            options: dict[str, Any] = {"epochs": epochs, "verbose": 0, "validation_data": (x, y)}
            model.fit(x, y, callbacks=callbacks, **options)

    return fit, keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: log.note())


def lightning_fit(log: Log, folder: Path) -> tuple[Fit, Any]:
    """Return what trains a tiny model in Lightning, and the callback that notes its epochs."""
    import mlflow
    from lightning_models import TRAIN, VAL, Classifier, loader, pl, trainer

    from tensorstate_callbacks.lightning import EfficiencyCallback

    class Notes(pl.Callback):  # type: ignore[misc]
        def on_train_epoch_end(self, *_: Any) -> None:
            log.note()

    model = Classifier()

    def fit(epochs: int, notes: Any) -> None:
        loggers = [
            pl.loggers.TensorBoardLogger(str(folder)),
            pl.loggers.MLFlowLogger("soak", tracking_uri=mlflow.get_tracking_uri()),
        ]
        callbacks = [EfficiencyCallback(missing_accuracy="raise"), *([notes] if notes else [])]
        options = {"max_epochs": epochs, "num_sanity_val_steps": 0, "log_every_n_steps": 1}
        trainer(*callbacks, logger=loggers, **options).fit(model, loader(TRAIN), loader(VAL))

    return fit, Notes()


def measure(framework: str, epochs: int, fits: int) -> list[Row]:
    """Train in a process of its own: once for many epochs, then many times for one.

    Raises:
        RuntimeError: It failed; the message is what it wrote.
    """
    backend = framework.removeprefix("keras-") if framework.startswith("keras") else "tensorflow"
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, **ONE_THREAD, "KERAS_BACKEND": backend, "PYTHONPATH": path}
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "found.json")
        done = subprocess.run(
            [sys.executable, "-m", __spec__.name, framework, "--epochs", str(epochs),
             "--fits", str(fits), "--write", str(target)],
            env={**environment, "MLFLOW_DISABLE_TELEMETRY": "true"},
            cwd=folder, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{framework} failed:\n{done.stdout}{done.stderr}")
        found = json.loads(target.read_text())
    rows = []
    for what, several in (("epoch", "epochs"), ("fit", "fits")):
        n = len(found[what]["ms"])
        fifth = max(1, n // 5)
        for unit, measured in (("ms", "processor time"), ("MB", "memory of the process")):
            values = found[what][unit.lower()]
            early, late = values[fifth : 2 * fifth], values[-fifth:]
            rows.append(
                relative(
                    "soak",
                    f"{FRAMEWORKS[framework]}, {measured}, last {fifth} {several} of {n}",
                    f"{several} {fifth + 1} to {2 * fifth}",
                    statistics.median(late), statistics.median(early), unit, TARGET,
                )
            )  # fmt: skip
    return rows


def train(framework: str, epochs: int, fits: int) -> dict[str, Any]:
    """Train in this process, and return what each epoch and each fit took."""
    import mlflow

    folder = Path.cwd()
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    found = {}
    make = keras_fit if framework.startswith("keras") else lightning_fit
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log = Log()
        fit, notes = make(log, folder)
        fit(epochs, notes)
        found["epoch"] = {"ms": log.ms, "mb": log.mb}
        log = Log()
        for _ in range(fits):
            fit(1, _nothing(notes))
            log.note()
        found["fit"] = {"ms": log.ms, "mb": log.mb}
    return found


def _nothing(notes: Any) -> Any:
    """A callback of the same class that does nothing."""
    return type(notes).__mro__[1]()


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("frameworks", nargs="*", metavar="framework", help=", ".join(FRAMEWORKS))
    parser.add_argument("--epochs", type=int, default=500)
    parser.add_argument("--fits", type=int, default=300)
    parser.add_argument("--save", action="store_true", help="write RESULTS.md")
    parser.add_argument("--write", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.write:
        found = train(given.frameworks[0], given.epochs, given.fits)
        Path(given.write).write_text(json.dumps(found))
        return
    rows: list[Row] = []
    for framework in given.frameworks or FRAMEWORKS:
        print(f"{framework}...", file=sys.stderr, flush=True)
        rows += measure(framework, given.epochs, given.fits)
    print(table.table(table.lines(rows)))
    if given.save:
        save(rows)


if __name__ == "__main__":
    main()
