"""A Keras model in; an error out if several processes share its evaluation."""

import sys
from typing import Any

import keras


def check_one_process(model: keras.Model) -> None:
    """Raise `ValueError` if an evaluation of the model is one of several processes' share.

    Replicas within a process (MirroredStrategy, the devices of a DataParallel) share its counters.
    Processes would each count what they see, and log figures of a part of the data.
    """
    strategy = getattr(model, "distribute_strategy", None)
    if strategy is not None and strategy.extended._in_multi_worker_mode():
        raise ValueError(
            "MultiWorkerMirroredStrategy spreads the evaluation over several workers, whose states "
            "tensorstate_callbacks can't bring together. Train without the callback, and evaluate "
            "in one process: model.evaluate(..., callbacks=[callback]) without the strategy"
        )
    jax: Any = sys.modules.get("jax")
    if keras.backend.backend() == "jax" and jax.process_count() > 1:
        raise ValueError(
            f"JAX runs in {jax.process_count()} processes, whose states tensorstate_callbacks "
            "can't bring together. Train without the callback, and evaluate in one process: "
            "model.evaluate(..., callbacks=[callback])"
        )
