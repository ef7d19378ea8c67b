"""Refuse models and processes that can't be watched, before a training begins."""

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

import keras

from tensorstate_callbacks.errors import ProbeError
from tensorstate_callbacks.recording.settings import Method


def check_not_keras_2(model: Any) -> None:
    """Raise `TypeError` for a model of `tf_keras`, as `tf.keras` is under TF_USE_LEGACY_KERAS."""
    if any(base.__module__.partition(".")[0] == "tf_keras" for base in type(model).__mro__):
        raise TypeError(
            f"the model ({type(model).__name__} of tf_keras) is one of Keras 2: "
            "tensorstate_callbacks.keras needs Keras 3.3 or later. Build it with `import keras`, "
            "or unset TF_USE_LEGACY_KERAS where it is built with tf.keras"
        )


_WORKERS = (
    "MultiWorkerMirroredStrategy spreads the evaluation over several workers, whose states "
    "tensorstate_callbacks can't bring together. Train without the callback, and evaluate in one "
    "process: model.evaluate(..., callbacks=[callback]) without the strategy"
)


def check_not_a_worker() -> None:
    """Raise `ValueError` if TF_CONFIG makes this process one of several TensorFlow workers.

    Said as a callback is made: Keras 3 fails on such workers before it tells callbacks anything.
    """
    if keras.backend.backend() != "tensorflow":
        return
    try:
        cluster = json.loads(os.environ.get("TF_CONFIG") or "{}").get("cluster", {})
        n_workers = sum(len(cluster.get(kind, ())) for kind in ("chief", "worker"))
    except (AttributeError, TypeError, ValueError):
        return  # Not for us to judge: TensorFlow reads it, if it is used.
    if n_workers > 1:
        raise ValueError(f"{_WORKERS} and without TF_CONFIG, which names {n_workers} workers")


def check_one_process(model: keras.Model) -> None:
    """Raise `ValueError` if an evaluation of the model is one of several processes' share.

    Replicas within a process (MirroredStrategy, the devices of a DataParallel) share its counters.
    Processes would each count what they see, and log figures of a part of the data.
    """
    strategy = getattr(model, "distribute_strategy", None)
    if strategy is not None and strategy.extended._in_multi_worker_mode():
        raise ValueError(_WORKERS)
    jax: Any = sys.modules.get("jax")
    if keras.backend.backend() == "jax" and jax.process_count() > 1:
        raise ValueError(
            f"JAX runs in {jax.process_count()} processes, whose states tensorstate_callbacks "
            "can't bring together. Train without the callback, and evaluate in one process: "
            "model.evaluate(..., callbacks=[callback])"
        )


def check_specs(picked: Mapping[str, keras.layers.Layer], method: Method) -> None:
    """Raise `ProbeError` if the graph of a model says that a probed layer's tensors are complex.

    A subclassed model has no graph: what its layers give is known in its first evaluation.

    Args:
        picked: The probed layers under their paths.
        method: Whether their outputs are counted, their inputs, or both.
    """
    for name, layer in picked.items():
        for node in getattr(layer, "_inbound_nodes", ()):
            if method != "before":
                _check_real(name, "gives", node.output_tensors)
            if method != "after":
                _check_real(name, "takes", node.input_tensors)


def _check_real(name: str, does: str, tensors: list[Any]) -> None:
    # The first is the one that is counted.
    for tensor in tensors[:1]:
        dtype = str(getattr(tensor, "dtype", ""))
        if "complex" in dtype:
            raise ProbeError(
                f"layer {name!r} could not be counted: what it {does} is complex ({dtype}), and "
                "neither fires nor doesn't. Exclude it, or attach to other layers"
            )
