"""A whole validation pass in Keras: its duration while it is watched over that of a plain one.

By the time of the processor, for which the target is, and of the wall.
"""

import statistics
import time
from typing import Any

import keras_models
import numpy as np

from benchmarks.networks_keras import NETWORKS, Setting
from benchmarks.rows import Options, Row, Target, relative
from tensorstate_callbacks.keras import EfficiencyCallback
from tensorstate_callbacks.reports.report import EfficiencyReport

PART = "validation-keras"
TARGETS = {"LeNet-5": Target(1.03, False), "ResNet-18 at 64×64": Target(1.04, False)}
# The first pass of each kind builds its test function.
SETTLING = 4


def run(options: Options) -> list[Row]:
    """Measure both networks, by the time of the processor and by that of the wall."""
    # Building the ResNet takes longer than a quick run should.
    names = list(NETWORKS)[:1] if options.quick else list(NETWORKS)
    return [row for name in names for row in _compare(name, options)]


def _compare(name: str, options: Options) -> list[Row]:
    setting = NETWORKS[name](options.quick)
    # A fit whose every other validation pass is recorded: one model, the two kinds in turn.
    callback = EfficiencyCallback(every_n_epochs=2)
    passes = _timed_passes(setting, callback, SETTLING + 2 * options.runs(11))
    _check(setting, callback.history)
    rows = []
    for clock, title in enumerate(("processor time", "wall time")):
        milliseconds = [
            statistics.median(taken[clock] for taken in passes[SETTLING + kind :: 2]) * 1e3
            for kind in (0, 1)
        ]
        plain, watched = milliseconds if callback.history[0].epoch == 1 else milliseconds[::-1]
        target = TARGETS[name] if clock == 0 else None
        case = f"{name}, {title}"
        rows.append(relative(PART, case, "the plain pass", watched, plain, "ms", target))
    return rows


def _timed_passes(
    setting: Setting, callback: EfficiencyCallback, n_passes: int
) -> list[tuple[float, float]]:
    model, passes = setting.model, []
    evaluate = model.evaluate

    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.process_time(), time.perf_counter()
        try:
            return evaluate(*args, **kwargs)
        finally:
            passes.append((time.process_time() - began[0], time.perf_counter() - began[1]))

    model.evaluate = timed
    # Nothing is learned, so that all passes see the same states.
    model.optimizer.learning_rate = 0.0
    model.fit(
        setting.train,
        validation_data=setting.validation,
        epochs=n_passes,
        shuffle=False,
        verbose=0,
        callbacks=[callback],
    )
    del model.evaluate
    return passes


def _check(setting: Setting, history: list[EfficiencyReport]) -> None:
    """Count the states of the first layer by NumPy, in the model as it is after the fit."""
    report = history[-1]
    name = next(iter(report.layers))
    images = np.concatenate([batch for batch, _ in setting.validation.as_numpy_iterator()])
    outputs = keras_models.outputs_of(setting.model, [name], images)[name]
    counts = keras_models.count_states(outputs)
    layer = report.layers[name]
    # Eager and traced convolutions may round differently: a state in ten thousand may differ.
    if layer.n_states != counts.sum() or abs(layer.n_distinct - len(counts)) > 1e-3 * len(counts):
        raise RuntimeError(
            f"layer {name!r}: {layer.n_distinct} of {layer.n_states} states, by NumPy "
            f"{len(counts)} of {counts.sum()}"
        )
