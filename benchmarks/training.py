"""Training in Keras: the duration of its steps, and its traces, with the callback and without."""

import statistics
import time
from typing import Any

import keras
import numpy as np

from benchmarks.networks_keras import Setting, lenet5
from benchmarks.rows import Options, Row, Target, relative
from tensorstate_callbacks.keras import EfficiencyCallback

PART = "training"
STEPS = 8


class StepClock(keras.callbacks.Callback):
    """Adds up the processor's time from the first training step of an epoch to the end of its last.

    Attributes:
        seconds: One number for each epoch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self._began = 0.0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Begin with the first step."""
        if batch == 0:
            self._began = time.process_time()
            self.seconds.append(0.0)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Note the time so far."""
        self.seconds[-1] = time.process_time() - self._began


def run(options: Options) -> list[Row]:
    """Train two models of the same weights on the same data, one of them watched, in turn."""
    clocks = {"plain": StepClock(), "watched": StepClock()}
    settings = {name: lenet5(options.quick) for name in clocks}
    traces = {name: _count_traces(setting.model) for name, setting in settings.items()}
    callback = EfficiencyCallback()
    # The first fit traces.
    for _ in range(1 + options.runs(9)):
        for name, setting in settings.items():
            _fit(setting, [clocks[name], *([callback] if name == "watched" else [])])
    _check(settings, callback)
    ms = {name: statistics.median(clock.seconds[1:]) * 1e3 for name, clock in clocks.items()}
    n_traces = {name: len(calls) for name, calls in traces.items()}
    return [
        relative(PART, case, "without it", taken["watched"], taken["plain"], unit, target)
        for case, taken, unit, target in (
            ("LeNet-5 in Keras, training steps", ms, "ms", Target(1.01, False)),
            ("LeNet-5 in Keras, traces of the training step", n_traces, "traces", Target(1, False)),
        )
    ]


def _count_traces(model: keras.Model) -> list[None]:
    """Return a list that grows each time the training step's Python runs: when it is traced."""
    calls: list[None] = []
    step = model.train_step

    def counting(data: Any) -> Any:
        calls.append(None)
        return step(data)

    model.train_step = counting
    return calls


def _fit(setting: Setting, callbacks: list[keras.callbacks.Callback]) -> None:
    setting.model.fit(
        setting.validation.take(STEPS),
        validation_data=setting.train,
        shuffle=False,
        verbose=0,
        callbacks=callbacks,
    )


def _check(settings: dict[str, Setting], callback: EfficiencyCallback) -> None:
    plain, watched = (settings[name].model.get_weights() for name in ("plain", "watched"))
    if not all(map(np.array_equal, plain, watched)):
        raise RuntimeError("the watched model learned otherwise than the plain one")
    if not callback.history:
        raise RuntimeError("no validation pass was watched")
