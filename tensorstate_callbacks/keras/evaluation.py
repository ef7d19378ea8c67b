"""One evaluation of a model: opened as it begins, closed when it ends, inert if it is broken off.

Keras doesn't tell callbacks that an evaluation ended in an error. In a fit, `FitBracket` closes it.
An evaluation outside of fit that another callback breaks off leaves its entries on the model. They
do nothing: what would run into them runs without them, until the next evaluation clears them away.

Ctrl-C may arrive at any line here. What puts entries on the model does nothing before all are
there, and nothing more as soon as the first is to go; what takes them off is done twice.
"""

import weakref
from collections.abc import Callable, Mapping
from functools import partial
from types import GeneratorType
from typing import Any, Protocol

import keras

from tensorstate_callbacks.keras.backends import TapRefusedError, current_backend
from tensorstate_callbacks.keras.probes import Probe, ShownStep, wrap_calls
from tensorstate_callbacks.keras.watch import Watch, new_flows
from tensorstate_callbacks.recording.overrides import Overrides

# By the model's id: what they hold is kept alive by the model's own entries, and dies with it.
_open: "weakref.WeakValueDictionary[int, Evaluation]" = weakref.WeakValueDictionary()

# What is not public of Keras, and called by name.
JOINS_RESULTS = "_get_metrics_result_or_logs"
LISTS_RESULTS = "_flatten_metrics_in_order"


class Watcher(Protocol):
    """What watches an evaluation: a callback.

    Attributes:
        watch: Its probes.
        built: The test function it keeps for its next evaluation; see `Evaluation`.
        evaluation: The evaluation that it joined last, which it closes before it joins another.
    """

    watch: Watch
    built: "BuiltFunction | None"
    evaluation: "Evaluation | None"

    def finish(self, logs: Mapping[str, Any]) -> dict[str, float]:
        """Take the results of the evaluation, return what is to join them."""

    def fail(self, failure: BaseException) -> None:
        """Take note that an error ends the evaluation."""


class BuiltFunction:
    """A test function with probes in it, and what it was built for.

    Keras keeps the model's own test function as long as it is valid; ours is valid as long.
    """

    def __init__(
        self, model: keras.Model, instead_of: Any, probes: list[Probe], *, has_taps: bool
    ) -> None:
        self._instead_of, self._probes = instead_of, probes
        self.has_taps = has_taps
        self._step = ShownStep(model, "test", probes)
        build = partial(current_backend().build_test_function, model, has_taps=has_taps)
        self._run: Callable[..., Any] = self._step.call(build)

    def run(self, *args: Any) -> Any:
        """Run a step."""
        return self._step.call(self._run, *args)

    @property
    def is_bound(self) -> bool:
        """Whether it stands in for a function of the model's, and ends with that."""
        return self._instead_of is not None

    def fits(self, instead_of: Any, probes: list[Probe], *, has_taps: bool) -> bool:
        """Tell whether it can stand in for this test function, with these probes."""
        is_the_same = self._instead_of is instead_of and self._probes == probes
        return is_the_same and self.has_taps == has_taps


class Evaluation:
    """An evaluation of one model, watched by one or several callbacks.

    While it is open, the model's test function is one of ours and the results of the evaluation
    pass through here; both are put back when it closes.

    Args:
        model: The model under evaluation.
        in_evaluate: Whether `model.evaluate` is known to run the steps. Else it may also be a loop
            of the user's own over `test_on_batch`, until the test function is run directly.
    """

    def __init__(self, model: keras.Model, *, in_evaluate: bool) -> None:
        self._model = model
        # Weak: what is left of an evaluation ends with its callbacks.
        self._watchers: list[weakref.ref[Watcher]] = []
        self._added: dict[str, float] = {}
        self._own_function: Any = None
        self._function: BuiltFunction | None = None
        # What is on the model while steps may come, what outlasts them, and what is on for a step.
        self._entries, self._listing, self._step = Overrides(), Overrides(), Overrides()
        self._in_evaluate, self._in_test_on_batch = in_evaluate, False
        self._has_begun = self._closed = False

    @classmethod
    def join(cls, model: keras.Model, watcher: Watcher, *, in_evaluate: bool) -> None:
        """Let the watcher into the evaluation that begins on the model, or into a new one."""
        evaluation = _open.get(id(model))
        if evaluation is None or not evaluation._awaits(watcher):
            close(model)
            evaluation = cls(model, in_evaluate=in_evaluate)
            evaluation._put_on()
        # First: what an interrupt leaves is the watcher's to close, or does nothing.
        watcher.evaluation = evaluation
        evaluation._watchers.append(weakref.ref(watcher))

    def _awaits(self, watcher: Watcher) -> bool:
        """Tell whether it is about to begin for others: else it was broken off."""
        watching = self._watching()
        is_ready = self._entries.active and not self._has_begun
        return is_ready and bool(watching) and watcher not in watching

    def close(self) -> None:
        """Put everything back for good; may be called again."""
        self._closed = True
        self._take_off()

    def conclude(self, logs: Mapping[str, Any]) -> dict[str, float]:
        """Let each watcher finish on the results of the evaluation, and return what they add."""
        watching, self._watchers = self._watching(), []
        for watcher in watching:
            self._added |= watcher.finish(logs)
        return self._added

    def _watching(self) -> list[Watcher]:
        watchers = (watcher() for watcher in self._watchers)
        return [watcher for watcher in watchers if watcher is not None]

    def _put_on(self) -> None:
        model = self._model
        _open[id(model)] = self
        self._listing.wrap(model, LISTS_RESULTS, partial(partial, self._leave_out_ours))
        self._listing.activate()
        wraps: dict[str, Callable[..., Any]] = {
            # A fit or an evaluation within ours, made by another callback: its data isn't to count.
            "fit": self._run_aside,
            "evaluate": self._run_aside,
            "test_on_batch": self._run_test_on_batch,
            JOINS_RESULTS: self._join_results,
        }
        for name, wrap in wraps.items():
            self._entries.wrap(model, name, partial(partial, wrap))
        own = partial(_run_own_function, model)
        self._entries.wrap(model, "test_function", self._stand_in_for, own)
        self._entries.activate()

    def _take_off(self) -> None:
        self._entries.active = False
        self._step.take_off()
        self._entries.take_off()
        self._listing.take_off()
        if _open.get(id(self._model)) is self:
            del _open[id(self._model)]

    def _stand_in_for(self, own_function: Any) -> Callable[..., Any]:
        self._own_function = own_function
        return self._run_step

    def _run_step(self, *args: Any) -> Any:
        watching = self._watching()
        if not watching:
            self.close()
            return _run_own_function(self._model, *args)
        self._has_begun = True
        if not (self._in_evaluate or self._in_test_on_batch):
            self._in_evaluate = True
            for watcher in watching:
                # What `test_on_batch` has counted so far was another callback's.
                watcher.watch.start_recording()
        watches = [watcher.watch for watcher in watching]
        probes = [probe for watch in watches for probe in watch.probes]
        flows, others = new_flows(watches)
        step = self._step = Overrides()
        with step, step:
            wrap_calls(step, self._model, probes, others, flows)
            function = self._function or self._find_function(watching[0], watches, probes, args)
            for watch in watches:
                watch.counting.step = step
            step.activate()
            try:
                outputs = function.run(*args)
            except TapRefusedError:
                # Raised as the step was traced, before any of it ran.
                function = self._find_function(watching[0], watches, probes, args)
                outputs = function.run(*args)
        for watch in watches:
            watch.end_step(flows)
        # Kept only now: the function of a step that was broken off may have been traced without
        # what is found out by tracing it having been noted.
        self._function = watching[0].built = function
        return outputs

    def _find_function(
        self, keeper: Watcher, watches: list[Watch], probes: list[Probe], args: tuple[Any, ...]
    ) -> BuiltFunction:
        has_taps = self._has_taps(watches, args)
        for watch in watches:
            watch.counting.may_tap = has_taps
        kept, keeper.built = keeper.built, None
        if kept is not None and kept.fits(self._own_function, probes, has_taps=has_taps):
            return kept
        return BuiltFunction(self._model, self._own_function, probes, has_taps=has_taps)

    def _has_taps(self, watches: list[Watch], args: tuple[Any, ...]) -> bool:
        """Tell whether to build a step that may have taps."""
        is_compiled = self._model.jit_compile and not self._model.run_eagerly
        # What turns out to need taps is traced again, on a batch that a generator gives once.
        gives_once = any(isinstance(arg, GeneratorType) for arg in args)
        return gives_once or not is_compiled or any(each.counting.needs_taps for each in watches)

    def _run_aside(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._take_off()
        try:
            return method(*args, **kwargs)
        finally:
            close(self._model)
            if not self._closed and self._watching():
                self._put_on()

    def _run_test_on_batch(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._in_evaluate:
            return self._run_aside(method, *args, **kwargs)
        self._in_test_on_batch = True
        try:
            return method(*args, **kwargs)
        finally:
            self._in_test_on_batch = False

    def _join_results(self, original: Callable[[Any], Any], logs: Any) -> Any:
        if not self._watching():
            self.close()
            return original(logs)
        results = original(logs)
        added = self.conclude(results if isinstance(results, Mapping) else {})
        self._closed = True
        # All but what may still make a list of the results.
        self._entries.take_off()
        return {**results, **added} if isinstance(results, Mapping) else results

    def _leave_out_ours(self, original: Callable[[Any], Any], logs: Mapping[str, Any]) -> Any:
        # `loss, accuracy = model.evaluate(...)` must go on working with a callback in the call.
        if not (self._closed and self._added.keys() <= logs.keys()):
            return original(logs)
        self._take_off()
        return original({key: value for key, value in logs.items() if key not in self._added})


def close(model: keras.Model) -> None:
    """Close the evaluation that is open on the model, if there is one."""
    evaluation = _open.get(id(model))
    if evaluation is not None:
        evaluation.close()


def fail(model: keras.Model, failure: BaseException) -> None:
    """Let those who watch the evaluation that is open on the model know that an error ends it."""
    evaluation = _open.get(id(model))
    for watcher in [] if evaluation is None else evaluation._watching():
        watcher.fail(failure)


def _run_own_function(model: keras.Model, *args: Any) -> Any:
    model.make_test_function()
    return model.test_function(*args)
