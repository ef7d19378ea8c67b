"""One evaluation of a model: opened as it begins, closed when it ends, however it ends."""

import functools
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import keras

from tensorstate_callbacks.keras.backends import current_backend
from tensorstate_callbacks.keras.hook_errors import HookErrors
from tensorstate_callbacks.keras.probes import Probe, in_place
from tensorstate_callbacks.keras.watch import Watch
from tensorstate_callbacks.recording.callback import InstanceOverride

_open_windows: "weakref.WeakKeyDictionary[keras.Model, Window]" = weakref.WeakKeyDictionary()
_guards: "weakref.WeakKeyDictionary[keras.Model, EvaluateGuard]" = weakref.WeakKeyDictionary()


class Watcher(Protocol):
    """What watches an evaluation: a callback.

    Attributes:
        watch: Its probes.
        built: The test function it keeps for its next window; see `Window`.
    """

    watch: Watch
    built: "BuiltFunction | None"

    def finish(self, logs: Mapping[str, Any]) -> dict[str, float]:
        """Take the results of the evaluation, return what is to join them."""


class BuiltFunction:
    """A test function with probes in it, and what it was built for.

    Keras keeps the model's own test function as long as it is valid; ours is valid as long.
    """

    def __init__(self, model: keras.Model, instead_of: Any, probes: list[Probe]) -> None:
        self._instead_of, self._probes = instead_of, probes
        self.run = current_backend().build_test_function(model)

    def fits(self, instead_of: Any, probes: list[Probe]) -> bool:
        """Tell whether it can stand in for this test function, with these probes."""
        return self._instead_of is instead_of and self._probes == probes


class Window:
    """An evaluation of one model, watched by one or several callbacks.

    While it is open, the model's test function is one of ours and the results of the evaluation
    pass through here; both are put back when it closes.

    Args:
        model: The model under evaluation.
        lifetime: The evaluation's callback list, or None: an error in one of its hooks closes the
            window; its death, when the evaluation is over, is the last resort.
        steps: The model's method that runs the evaluation's steps: `evaluate`, or `test_on_batch`
            in a loop of the user's own. Others, called by callbacks meanwhile, aren't watched.
    """

    def __init__(self, model: keras.Model, lifetime: object | None, steps: str) -> None:
        self._model = model
        self._others = {"evaluate"} if steps != "evaluate" else {"evaluate", "test_on_batch"}
        self._watchers: list[Watcher] = []
        self._added: set[str] = set()
        self._own_function = model.test_function
        self._function: BuiltFunction | None = None
        self._step = self._run_step
        self._overrides: list[InstanceOverride] = []
        self._last_resort = None if lifetime is None else weakref.finalize(lifetime, self.close)
        self._hook_errors = HookErrors(lifetime, self.close)
        self._put_on()

    @classmethod
    def join(
        cls, model: keras.Model, watcher: Watcher, lifetime: object | None, steps: str
    ) -> "Window":
        """Return the window that is open on the model, or a new one, with the watcher in it."""
        window = _open_windows.get(model)
        if window is None or watcher in window._watchers:
            # A watcher that begins twice: the earlier evaluation was broken off.
            close(model)
            window = cls(model, lifetime, steps)
        window._watchers.append(watcher)
        return window

    def close(self) -> None:
        """Put everything back; may be called again."""
        self._take_off()
        self._hook_errors.end()
        if self._last_resort is not None:
            self._last_resort.detach()

    def conclude(self, logs: Mapping[str, Any]) -> dict[str, float]:
        """Let each watcher finish on the results of the evaluation, and return what they add."""
        added: dict[str, float] = {}
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            added |= watcher.finish(logs)
        self._added = set(added)
        return added

    def _put_on(self) -> None:
        model = self._model
        _open_windows[model] = self
        model.test_function = self._step
        wraps: dict[str, Callable[..., Any]] = {
            **dict.fromkeys(sorted(self._others), self._run_aside),
            "_get_metrics_result_or_logs": self._join_results,
            "_flatten_metrics_in_order": self._leave_out_ours,
        }
        for name, wrap in wraps.items():
            original = getattr(model, name)
            self._overrides.append(InstanceOverride(model, name, functools.partial(wrap, original)))

    def _take_off(self) -> None:
        if self._model.test_function is self._step:
            self._model.test_function = self._own_function
        while self._overrides:
            self._overrides.pop().restore()
        if _open_windows.get(self._model) is self:
            del _open_windows[self._model]

    def _run_step(self, *args: Any) -> Any:
        try:
            return self._run_watched(*args)
        except BaseException:
            # The evaluation is broken off, though whoever handles this may keep its frames alive.
            self.close()
            raise

    def _run_watched(self, *args: Any) -> Any:
        watches = [watcher.watch for watcher in self._watchers]
        probes = [probe for watch in watches for probe in watch.probes]
        # Followed until all that is needed is known: from then on the probed layers are enough.
        flow = next(filter(None, (watch.new_flow() for watch in watches)), None)
        others = {id(each): each for watch in watches for each in watch.others}
        with in_place(self._model, probes, () if flow is None else others.values(), flow):
            if self._function is None:
                self._function = self._find_function(probes)
            for watch in watches:
                watch.active = True
            try:
                outputs = self._function.run(*args)
            finally:
                for watch in watches:
                    watch.active = False
        for watch in watches:
            watch.end_step(flow)
        return outputs

    def _find_function(self, probes: list[Probe]) -> BuiltFunction:
        keeper = self._watchers[0]
        if keeper.built is None or not keeper.built.fits(self._own_function, probes):
            keeper.built = BuiltFunction(self._model, self._own_function, probes)
        return keeper.built

    def _run_aside(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # An evaluation within ours, made by another callback: its data isn't to count.
        self._take_off()
        try:
            return method(*args, **kwargs)
        finally:
            self._put_on()

    def _join_results(self, original: Callable[[Any], Any], logs: Any) -> Any:
        results = original(logs)
        added = self.conclude(results if isinstance(results, Mapping) else {})
        return {**results, **added} if isinstance(results, Mapping) else results

    def _leave_out_ours(self, original: Callable[[Any], Any], logs: Mapping[str, Any]) -> Any:
        # `loss, accuracy = model.evaluate(...)` must go on working with a callback in the call.
        if not self._watchers:
            self.close()
        return original({key: value for key, value in logs.items() if key not in self._added})


class EvaluateGuard:
    """Closes the windows of a fit's validation passes as soon as `model.evaluate` is left.

    Args:
        model: The model in training.
        lifetime: The fit's callback list, or None: when the fit ends in an exception no callback is
            told, and the guard is removed as a hook raises it, or else as the list dies.
    """

    def __init__(self, model: keras.Model, lifetime: object | None) -> None:
        self._model = model
        self._lifetime = None if lifetime is None else weakref.ref(lifetime)
        self._last_resort = None if lifetime is None else weakref.finalize(lifetime, self.remove)
        self._hook_errors = HookErrors(lifetime, self.remove)
        self._override = InstanceOverride(model, "evaluate", self._guarded(model.evaluate))
        _guards[model] = self

    @classmethod
    def share(cls, model: keras.Model, lifetime: object | None) -> "EvaluateGuard":
        """Return the guard that this fit has on the model, or a new one."""
        guard = _guards.get(model)
        if guard is not None:
            if guard._lifetime is not None and guard._lifetime() is lifetime:
                return guard
            guard.remove()
        return cls(model, lifetime)

    def remove(self) -> None:
        """Take the guard off the model; may be called again."""
        close(self._model)
        self._override.restore()
        self._hook_errors.end()
        if self._last_resort is not None:
            self._last_resort.detach()
        if _guards.get(self._model) is self:
            del _guards[self._model]

    def _guarded(self, evaluate: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(evaluate)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            try:
                return evaluate(*args, **kwargs)
            except BaseException:
                # In an evaluation of the fit's own it ends the fit.
                if self._lifetime is not None and kwargs.get("callbacks") is self._lifetime():
                    self.remove()
                raise
            finally:
                close(self._model)

        return guarded


def close(model: keras.Model) -> None:
    """Close the window that is open on the model, if there is one."""
    window = _open_windows.get(model)
    if window is not None:
        window.close()
