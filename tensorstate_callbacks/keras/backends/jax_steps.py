"""Run JAX's steps with probed activations as outputs beside their own, counted on the host."""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import jax
import keras
import numpy as np
from jax.experimental import io_callback

from tensorstate_callbacks.keras.backends import TapRefusedError

try:
    from jax.extend.core import get_opaque_trace_state
except ImportError:  # an older JAX, the latest for Python 3.10
    from jax.core import get_opaque_trace_state

Observe: TypeAlias = Callable[..., None]
Tapped: TypeAlias = tuple[jax.Array, ...]
State: TypeAlias = tuple[Any, ...]

_current_trace: Callable[[], Any] = partial(get_opaque_trace_state, convention="keras")


def tap_outputs(tapped: Tapped, observe: Observe) -> None:
    """Give tensors themselves to `observe`, wherever their values lie."""
    taps = _taps.get()
    if taps is None:
        # A function of the model's own making, which doesn't call its step.
        if outputs_only.get():
            raise TapRefusedError
        _check_callback()
        given = map(jax.lax.stop_gradient, tapped)
        io_callback(lambda *arrays: observe(*map(np.asarray, arrays)), None, *given)
    else:
        taps.add(tapped, observe)


def keep_variables(model: keras.Model, state: State) -> None:
    """Let a model have the state that a train step gave."""
    kinds = ("trainable", "non_trainable", "optimizer", "metrics")
    # Where fit keeps the state between two steps, and takes it from as it ends.
    model._jax_state = {
        f"{kind}_variables": values for kind, values in zip(kinds, state, strict=True)
    }
    model._jax_state_synced = False


class ProbedStep:
    """A model's step with its taps observed after each run.

    Args:
        step: `(state, batch)` to its outputs and the new state.
        compiled: Whether to compile it.
    """

    # Unlike Keras's own the step doesn't consume the state it is given: if counting is broken
    # off, that state is the only one there is.
    _CONSUMED: tuple[int, ...] = ()

    def __init__(self, step: Callable[[State, Any], tuple[Any, State]], *, compiled: bool) -> None:
        self._step = step
        self._run: Callable[..., Any] | None = None if compiled else self._run_tapped
        self._kept: dict[Observe, list[Tapped]] | None = None

    def __call__(self, state: State, batch: Any) -> tuple[Any, State]:
        """Run the step, and have its taps observed."""
        if self._run is None:
            self._run = self._compile(state)
        kept: dict[Observe, list[Tapped]] = {}
        self._kept = kept
        try:
            outputs, state, observers, taps = self._run(state, batch)
            if None in taps:
                jax.effects_barrier()  # type: ignore[no-untyped-call]
        finally:
            self._kept = None
        self._observe(state, observers, taps, kept)
        return outputs, state

    def _observe(
        self,
        state: State,
        observers: "_Observers",
        taps: list[Any],
        kept: dict[Observe, list[Tapped]],
    ) -> None:
        for observe, tapped in zip(observers.in_order, taps, strict=True):
            for arrays in kept.pop(observe, ()) if tapped is None else (tapped,):
                observe(*(arrays if tapped is not None else map(np.asarray, arrays)))

    def _new_taps(self, state: State, batch: Any) -> "_Taps":
        return _Taps(self._keep)

    def _run_tapped(self, state: State, batch: Any) -> tuple[Any, ...]:
        taps = self._new_taps(state, batch)
        token = _taps.set(taps)
        try:
            outputs, state = self._step(state, batch)
        finally:
            _taps.reset(token)
        return outputs, state, _Observers(tuple(taps.observers)), taps.tapped

    def _compile(self, state: State) -> Callable[..., Any]:
        if keras.distribution.distribution() is None:
            return jax.jit(self._run_tapped, donate_argnums=self._CONSUMED)
        shardings = jax.tree.map(lambda value: value.sharding, state)
        return jax.jit(
            self._run_tapped,
            donate_argnums=self._CONSUMED,
            out_shardings=(None, shardings, None, None),
        )

    def _keep(self, observe: Observe, *tapped: jax.Array) -> None:
        if self._kept is not None:
            self._kept.setdefault(observe, []).append(tapped)


class TrainStep(ProbedStep):
    """A model's train step with its taps observed after each run.

    Args:
        model: The model.
        compiled: Whether to compile it.
    """

    _CONSUMED = (0,)

    def __init__(self, model: keras.Model, *, compiled: bool) -> None:
        super().__init__(model.train_step, compiled=compiled)
        self._model = model

    def _observe(self, state: State, *args: Any) -> None:
        try:
            super()._observe(state, *args)
        except BaseException:
            # The state that was given is gone.
            keep_variables(self._model, state)
            raise

    def _new_taps(self, state: State, batch: Any) -> "_Taps":
        return _OutputTaps(self._keep, jax.tree.leaves((state, batch)))


def _check_callback() -> None:
    """Raise `ValueError` where a callback of the compiled code wouldn't see every batch."""
    if jax.process_count() > 1:
        # XLA calls the first process only, and not before the step is over.
        raise ValueError(
            "it runs in a trace of its own (a scan, rematerialization, a test function of the "
            f"model's own making), out of which nothing comes in {jax.process_count()} processes"
        )


class _Taps:
    """The taps in one trace of a step, in forward order.

    A tensor of the step itself becomes an output of it. One within a trace inside of the step (a
    scan over time, rematerialization) can't: a callback keeps it until the step is over. Reading
    it there could wait forever for the thread that the callback runs on.

    Args:
        keep: Keeps what is tapped for an observer.

    Attributes:
        observers: Who observes each tap.
        tapped: The tensors that are outputs, None for those that are kept.
    """

    def __init__(self, keep: Callable[..., None]) -> None:
        self._keep = keep
        self._trace = _current_trace()
        self.observers: list[Observe] = []
        self.tapped: list[Tapped | None] = []

    def add(self, tapped: Tapped, observe: Observe) -> None:
        """Add the next tap."""
        is_output = self._trace == _current_trace()
        if not is_output:
            _check_callback()
            # A test step may take derivatives, which callbacks don't have.
            io_callback(partial(self._keep, observe), None, *map(jax.lax.stop_gradient, tapped))
        self.observers.append(observe)
        self.tapped.append(tapped if is_output else None)


class _OutputTaps(_Taps):
    """The taps in one trace of a train step, all of which are outputs of it.

    The layers run in the trace of a gradient, where they show the values of the step's own trace
    beside their derivatives.

    Args:
        keep: See `_Taps`.
        arguments: What the step is called with.
    """

    def __init__(self, keep: Callable[..., None], arguments: list[Any]) -> None:
        super().__init__(keep)
        self._traces = {_trace_of(each) for each in arguments} | {None}

    def add(self, tapped: Tapped, observe: Observe) -> None:
        """Add the next tap.

        Raises:
            TapRefusedError: A tensor is one of a trace within the step (a scan over time,
                rematerialization), in which nothing may happen beside the computation.
        """
        values = tuple(map(jax.lax.stop_gradient, tapped))
        if any(_trace_of(each) not in self._traces for each in values):
            raise TapRefusedError
        self.observers.append(observe)
        self.tapped.append(values)


def _trace_of(value: Any) -> Any:
    return getattr(value, "_trace", None) if isinstance(value, jax.core.Tracer) else None


_taps: ContextVar[_Taps | None] = ContextVar("taps", default=None)
outputs_only: ContextVar[bool] = ContextVar("outputs_only", default=False)


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Observers:
    """Who observes the taps: no output of a compiled step, but a fact of its trace."""

    in_order: tuple[Observe, ...]
