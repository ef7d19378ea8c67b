"""Runs as one of several processes of JAX, or alone: what the callback reports, as JSON.

`python jax_rank_runs.py RANK PORT FILE` is one of two; `runs` alone gives the figures of one.
"""

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import keras
import numpy as np
from keras import layers

from tensorstate_callbacks.errors import TensorStateWarning
from tensorstate_callbacks.keras import EfficiencyCallback
from tensorstate_callbacks.keras.backends import jax_processes

N, BATCH = 104, 40
# Whole numbers everywhere, so that sums are exact however the batches are cut.
X = np.random.default_rng(0).integers(-2, 3, size=(N, 6, 6, 2)).astype("float32")
Y = np.arange(N) % 2


def bright(name: str, batch: Any) -> Any:
    """Return which positions of the convolution count."""
    return batch[0][:, 1:-1, 1:-1, 0] > 0 if name == "wide" else None


def tone(batch: Any) -> Any:
    """Return a label for each sample that doesn't tell which process has it."""
    return keras.ops.cast(keras.ops.sum(batch[0], axis=(1, 2, 3)), "int32") % 3


# Full, thinned to fewer positions, in groups; on the host and in the step.
SAMPLINGS: dict[str, dict[str, Any]] = {
    "whole": {},
    "groups": {"group_size": 3},
    "positions": {"positions": 5, "method": "both"},
    "thinned": {"max_memory": 20_000},
    "neurons": {"neurons": True},
    "neurons of groups": {"neurons": True, "group_size": 8},
    "masked": {"mask": bright, "positions": 3, "classes": True},
    "classes": {"classes": tone, "group_size": 3},
}


class Rematerialized(layers.Layer):
    """Runs a layer in a trace of its own."""

    def __init__(self) -> None:
        super().__init__(name="outer")
        self.inner = layers.Dense(5, name="inner")

    def build(self, shape: Any) -> None:
        self.inner.build(shape)

    def call(self, x: Any) -> Any:
        return jax.checkpoint(self.inner)(x)


class Rows(layers.Layer):
    """Gives a layer two rows of each sample, one after the other."""

    def __init__(self) -> None:
        super().__init__(name="rows")
        self.inner = layers.Dense(5, name="inner")

    def build(self, shape: Any) -> None:
        self.inner.build((None, shape[-1] // 2))

    def call(self, x: Any) -> Any:
        rows = self.inner(keras.ops.reshape(x, (-1, x.shape[-1] // 2)))
        return keras.ops.reshape(rows, (-1, 10))


class LosesMask(keras.Model):
    """Drops the mask of its tokens by a raw operation."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = layers.Embedding(9, 4, mask_zero=True)
        self.behind, self.out = layers.Dense(5, name="behind"), layers.Dense(2, name="out")

    def call(self, tokens: Any) -> Any:
        return self.out(keras.ops.max(self.behind(self.embedding(tokens) + 1), axis=1))


class Breaks(keras.callbacks.Callback):
    """Fails in an evaluation, on one process."""

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == 2 and jax.process_index() == 1:
            raise ArithmeticError("this batch is bad")


def build(*more: layers.Layer, **options: Any) -> keras.Model:
    model = keras.Sequential(
        [
            keras.Input(X.shape[1:]),
            layers.Conv2D(20, 3, name="wide"),
            layers.Flatten(),
            layers.Dense(6, name="fc"),
            *more,
            layers.Dense(2, activation="softmax", name="out"),
        ]
    )
    rng = np.random.default_rng(1)
    model.set_weights([rng.integers(-2, 3, w.shape) for w in model.weights])
    loss = "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.SGD(0.0), loss, metrics=["accuracy"], **options)
    return model


def own_data(*, is_dealt: bool = True) -> dict[str, Any]:
    rank, n_ranks = jax.process_index(), jax.process_count()
    if not is_dealt:
        return {"x": X, "y": Y, "batch_size": BATCH, "verbose": 0}
    return {"x": X[rank::n_ranks], "y": Y[rank::n_ranks], "batch_size": BATCH // n_ranks} | {
        "verbose": 0
    }


def fit(callbacks: list[keras.callbacks.Callback], model: keras.Model | None = None) -> Any:
    data = own_data()
    validation = data["x"], data["y"]
    model = model or build()
    return model.fit(**data, epochs=2, validation_data=validation, callbacks=callbacks).history


def reported(callback: EfficiencyCallback) -> Any:
    return [report.to_dict() for report in callback.history]


@contextmanager
def noted(told: list[str]) -> Iterator[None]:
    """Take down the package's warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    told += [str(each.message) for each in caught if each.category is TensorStateWarning]


def runs(*, is_dealt: bool = True) -> dict[str, Any]:
    """Evaluate and fit in every way, on this process's share of the data."""
    found: dict[str, Any] = {}
    data, told = own_data(is_dealt=is_dealt), []
    model = build()
    for on_device in "01":
        os.environ["TENSORSTATE_KERAS_ON_DEVICE"] = on_device
        # Together, as a step is compiled once for all of them.
        callbacks = {
            f"{name} {on_device}": EfficiencyCallback(prefix=f"{name}_", **sampling)
            for name, sampling in SAMPLINGS.items()
        }
        with noted(told):
            logs = model.evaluate(**data, return_dict=True, callbacks=[*callbacks.values()])
        found |= {name: reported(callback) for name, callback in callbacks.items()}
        found[f"logs {on_device}"] = {k: logs[k] for k in sorted(logs) if k != "loss"}
    found["told"] = told
    return found


def more_runs() -> dict[str, Any]:
    """Fit, and evaluate in other ways than by a compiled step."""
    found: dict[str, Any] = {}
    os.environ["TENSORSTATE_KERAS_ON_DEVICE"] = "0"
    told: list[str] = []
    first, second = EfficiencyCallback(), EfficiencyCallback("fc", group_size=2, prefix="x_")
    with noted(told):
        logged = fit([first, second])
    found["fit"] = [reported(first), reported(second)]
    found["logged"] = {key: logged[key] for key in sorted(logged) if "loss" not in key}
    for options in ({"run_eagerly": True}, {"jit_compile": False}, {"steps_per_execution": 2}):
        callback = EfficiencyCallback("fc")
        build(**options).evaluate(**own_data(), callbacks=[callback])
        found[next(iter(options))] = reported(callback)
    callback = EfficiencyCallback("inner", classes=tone)
    build(Rows()).evaluate(**own_data(), callbacks=[callback])
    found["rows"] = reported(callback)
    return found


def lost() -> list[str]:
    """Evaluate padded texts, all of which are the second process's."""
    rank, told = jax.process_index(), []
    model = LosesMask()
    model.compile("sgd", "mse")
    texts = np.full((8, 5), 3) * (np.arange(5) < 5 - 2 * rank)
    with noted(told):
        model.evaluate(
            texts,
            np.zeros((8, 2)),
            batch_size=4,
            verbose=0,
            callbacks=[EfficiencyCallback("behind", missing_accuracy="ignore")],
        )
    return [text for text in told if "padding" in text]


def raised(run: Callable[[], Any]) -> str:
    try:
        return f"returned {run()}"
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {error}"


def failures() -> dict[str, str]:
    """Fail on one process, and go on."""
    rank = jax.process_index()

    def no_accuracy(logs: Any) -> float:
        return 1.0 / (1 - rank)

    found = {
        "settings": raised(lambda: fit([EfficiencyCallback(every_n_epochs=1 + rank)])),
        "layers": raised(lambda: fit([EfficiencyCallback("fc" if rank else "nothing")])),
        "accuracy": raised(lambda: fit([EfficiencyCallback(accuracy=no_accuracy)])),
        "another": raised(lambda: fit([EfficiencyCallback("fc"), Breaks()])),
    }
    found["training"] = raised(lambda: fit([EfficiencyCallback(on=("val", "train"))]))
    found["probe_data"] = raised(lambda: fit([EfficiencyCallback(probe_data=X[:4])]))
    found["rows"] = raised(lambda: fit([EfficiencyCallback(mask=np.ones((N, 4)))]))
    found["labels"] = raised(lambda: fit([EfficiencyCallback(classes=Y)]))
    found["key"] = raised(lambda: fit([EfficiencyCallback(classes="tone")]))
    odd = EfficiencyCallback(["fc", "inner"])
    evaluate = build(Rematerialized()).evaluate
    found["inner"] = raised(lambda: evaluate(**own_data(), callbacks=[odd]))
    callback, trackers = EfficiencyCallback("fc"), []
    look = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: trackers.append(len(callback._trackers._trackers))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TensorStateWarning)
        fit([callback, look])
    found["after"] = str([report.layers["fc"].n_states for report in callback.history])
    found["trackers"] = str(trackers)
    return found


def absence() -> list[str]:
    """Have the first process wait in vain for the second, which comes late."""
    store = jax_processes.ProcessStore()
    jax_processes.WAIT_SECONDS = 0.1
    client = jax_processes._find_client()
    if store.rank:
        client.blocking_key_value_get_bytes("given up", 60_000)
    told = [raised(lambda: store.gather(b"1"))]
    if not store.rank:
        client.key_value_set_bytes("given up", b"")
    jax_processes.WAIT_SECONDS = 60.0
    return [*told, raised(lambda: store.gather(b"2")), raised(lambda: store.swap([b"0", b"1"]))]


def among_several() -> dict[str, Any]:
    found: dict[str, Any] = {"apart": raised(lambda: fit([EfficiencyCallback()]))}
    devices = keras.distribution.list_devices()
    parallel = keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False)
    keras.distribution.set_distribution(parallel)
    found["data parallel"], found["more"] = runs(), more_runs()
    found["failures"], found["absence"] = failures(), absence()
    found["lost"] = lost()
    mesh = keras.distribution.DeviceMesh((1, len(devices)), ("batch", "model"), devices)
    layout = keras.distribution.LayoutMap(mesh)
    layout[".*fc/kernel"], layout[".*wide/kernel"] = (None, "model"), (None, None, None, "model")
    keras.distribution.set_distribution(
        keras.distribution.ModelParallel(
            layout_map=layout, batch_dim_name="batch", auto_shard_dataset=False
        )
    )
    # All processes run all samples, each with some of the neurons.
    found["model parallel"] = runs(is_dealt=False)
    return found


if __name__ == "__main__":
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{sys.argv[2]}", 2, int(sys.argv[1]))
    keras.utils.set_random_seed(0)
    result = json.dumps(among_several())
    Path(sys.argv[3]).write_text(result)
