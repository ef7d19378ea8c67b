"""A Keras model in; an error out if several processes share its evaluation."""

import json
import os
import sys
from typing import Any

import keras

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
