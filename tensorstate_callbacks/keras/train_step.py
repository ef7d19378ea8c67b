"""Record training steps of a fit: every n-th one, in a function of its own beside the model's.

The train function that Keras keeps on the model is never touched: for a step that is to be recorded
another one stands there, from the moment that callbacks are told of the batch until it has run. It
is made of the model's own train step, and kept for the next such step.

Ctrl-C and errors may arrive at any line here; see `evaluation`.
"""

import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

import keras

from tensorstate_callbacks.keras.backends import current_backend
from tensorstate_callbacks.keras.evaluation import JOINS_RESULTS
from tensorstate_callbacks.keras.fit_bracket import FitBracket
from tensorstate_callbacks.keras.probes import Probe, ShownStep, wrap_calls
from tensorstate_callbacks.keras.watch import Watch, new_flows
from tensorstate_callbacks.recording.overrides import Overrides

# By the model's id: what they hold is kept alive by the model's own entries, and dies with it.
_waiting: "weakref.WeakValueDictionary[int, TrainStep]" = weakref.WeakValueDictionary()


class BuiltStep(NamedTuple):
    """A train function with probes in it.

    Attributes:
        instead_of: The model's own, and as long as it is valid.
        probes: The probes in it.
        run: The function.
    """

    instead_of: Any
    probes: list[Probe]
    run: Callable[..., Any]


class StepWatcher(Protocol):
    """What watches training steps.

    Attributes:
        watch: Its probes.
        built: The train functions that it keeps: one for each set of callbacks that a step had.
    """

    watch: Watch
    built: list[BuiltStep]

    def finish_step(self) -> dict[str, float]:
        """Take what the step has shown, return what is to join the logs of its batch."""


class TrainStep:
    """One training step, watched by one or several callbacks as soon as Keras runs it.

    Args:
        model: The model in training.
    """

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        # Weak: what is left of a step that never came ends with its callbacks.
        self._watchers: list[weakref.ref[StepWatcher]] = []
        self._entries = Overrides()

    @classmethod
    def join(cls, model: keras.Model, watcher: StepWatcher) -> None:
        """Let the watcher into the step that comes next on the model."""
        step = _waiting.get(id(model))
        if step is None or not step._entries.active or watcher in step._watching():
            # None waits, or one that never came.
            withdraw(model)
            step = cls(model)
            step._put_on()
        step._watchers.append(weakref.ref(watcher))

    def withdraw(self) -> None:
        """Leave the model as it was; may be called again."""
        self._entries.take_off()
        if _waiting.get(id(self._model)) is self:
            del _waiting[id(self._model)]

    def _put_on(self) -> None:
        _waiting[id(self._model)] = self
        # Another callback may train the model before its step comes, or the fit may be over.
        for name in ("fit", "train_on_batch"):
            self._entries.wrap(self._model, name, partial(partial, self._run_aside))
        self._entries.wrap(self._model, "train_function", partial(partial, self._run))
        self._entries.activate()

    def _run_aside(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._entries.take_off()
        result = method(*args, **kwargs)
        # Not after an error, which ends the fit as well.
        if _waiting.get(id(self._model)) is self and self._watching():
            self._put_on()
        return result

    def _watching(self) -> list[StepWatcher]:
        watchers = (watcher() for watcher in self._watchers)
        return [watcher for watcher in watchers if watcher is not None]

    def _run(self, own_function: Callable[..., Any], *args: Any) -> Any:
        try:
            # First: the model's own function is to be there again whatever happens.
            self.withdraw()
        finally:
            self.withdraw()
        watching = self._watching()
        if not watching:
            return own_function(*args)
        outputs = self._run_probed(own_function, watching, args)
        try:
            added: dict[str, float] = {}
            for watcher in watching:
                added |= watcher.finish_step()
        except BaseException:
            current_backend().keep_state(self._model, outputs)
            raise
        return _with_logs(outputs, added)

    def _run_probed(
        self, own_function: Any, watching: list[StepWatcher], args: tuple[Any, ...]
    ) -> Any:
        watches = [watcher.watch for watcher in watching]
        probes = [probe for watch in watches for probe in watch.probes]
        flows, others = new_flows(watches)
        keeper, step = watching[0], Overrides()
        with step, step:
            wrap_calls(step, self._model, probes, others, flows)
            function = _take_built(keeper.built, own_function, probes)
            if function is None:
                shown = ShownStep(self._model, "train", probes)
                run = shown.call(current_backend().build_train_function, self._model)
                function = BuiltStep(own_function, probes, partial(shown.call, run))
            for watch in watches:
                watch.start_recording()
                watch.counting.step = step
            step.activate()
            outputs = function.run(*args)
        try:
            for watch in watches:
                watch.end_step(flows)
        except BaseException:
            current_backend().keep_state(self._model, outputs)
            raise
        # Kept only now: one that was broken off may have been traced without what is found out by
        # tracing it having been noted.
        keeper.built.append(function)
        return outputs


def withdraw(model: keras.Model) -> None:
    """Leave the model as it was, if it waits for a step."""
    step = _waiting.get(id(model))
    if step is not None:
        step.withdraw()


def _take_built(built: list[BuiltStep], own_function: Any, probes: list[Probe]) -> BuiltStep | None:
    """Take a function out of those that are kept, and drop those that are for another model's."""
    built[:] = [each for each in built if each.instead_of is own_function]
    found = next((each for each in built if each.probes == probes), None)
    if found is not None:
        built.remove(found)
    return found


def _with_logs(outputs: Any, added: Mapping[str, float]) -> Any:
    """Return what a train function gives, with more in the logs of its batch."""
    # On JAX the new state comes with them.
    logs, *state = outputs if isinstance(outputs, tuple) else (outputs,)
    if isinstance(logs, Mapping):
        logs = {**logs, **added}
    return (logs, *state) if isinstance(outputs, tuple) else logs


class EpochLogs:
    """Adds metrics to the logs of each epoch of a fit, before any callback sees them.

    It stays on the model of a fit that ends in an error, without effect, until the next fit.

    Args:
        model: The model in training.
        metrics: Returns what is to join the logs of an epoch; a method, held weakly.
    """

    def __init__(self, model: keras.Model, metrics: Callable[[], dict[str, float]]) -> None:
        self._model, self._metrics = model, weakref.WeakMethod(metrics)
        self._entries = Overrides()

    def put_on(self) -> None:
        """Begin, or go on after a fit within the fit."""
        if not self._entries.active:
            self._entries.take_off()
            self._entries.wrap(self._model, "fit", partial(partial, self._run_aside))
            self._entries.wrap(self._model, JOINS_RESULTS, partial(partial, self._join))
            self._entries.activate()

    def take_off(self) -> None:
        """Leave the model as it was; may be called again."""
        self._entries.take_off()

    def _run_aside(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.take_off()
        return method(*args, **kwargs)

    def _join(self, original: Callable[[Any], Any], logs: Any) -> Any:
        metrics = self._metrics()
        # Those of an evaluation join elsewhere.
        if metrics is None or FitBracket.running(self._model) is not None:
            return original(logs)
        added = metrics()
        if isinstance(logs, Mapping):
            # Keras looks whether all keys are those of the model's own metrics.
            logs = {key: value for key, value in logs.items() if key not in added}
        results = original(logs)
        return {**results, **added} if isinstance(results, Mapping) else results
