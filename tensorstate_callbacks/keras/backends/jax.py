"""JAX: a test step that has probed activations as outputs beside its own, counted on the host."""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import jax
import keras
import numpy.typing as npt
from jax.experimental import io_callback
from jax.experimental.sparse import JAXSparse
from keras.src.backend.common.stateless_scope import get_stateless_scope

from tensorstate_callbacks.keras.backends import jax_host_tap, make_uncompiled
from tensorstate_callbacks.recording.machine import available_processors
from tensorstate_callbacks.recording.overrides import Overrides

try:
    from jax.extend.core import get_opaque_trace_state
except ImportError:  # an older JAX, the latest for Python 3.10
    from jax.core import get_opaque_trace_state

Observe: TypeAlias = Callable[[npt.ArrayLike], None]
State: TypeAlias = tuple[Any, ...]


def tap(tensor: jax.Array, observe: Observe) -> None:
    """Give a tensor's values to `observe`, once each time the step runs, when it has run."""
    if isinstance(tensor, JAXSparse):
        tensor = tensor.todense()
    taps = _taps.get()
    if taps is None:
        # A test function of the model's own making, which doesn't call its test step.
        io_callback(observe, None, jax.lax.stop_gradient(tensor))
    else:
        taps.add(tensor, observe)


def tap_layer(tensor: jax.Array, observe: Observe) -> jax.Array:
    """Return the tensor as it is, and have `observe` see its values, compiled or not."""
    scope = get_stateless_scope()
    if scope is not None and not scope.state_mapping and not jax_host_tap.is_traced(tensor):
        # `predict` builds a model by running it on its first batch, with no state given.
        return tensor
    return jax_host_tap.tap(tensor, observe)


def helping_threads() -> int:
    """Return how many threads may work on a batch: as many as the backend computes with."""
    return available_processors()


def build_test_function(model: keras.Model) -> Callable[..., Any]:
    """Build a test function of the model's own test step, leaving the model's as it was.

    It is compiled if the model's is; the train function isn't touched.
    """
    step = _ProbedStep(model.test_step, compiled=model.jit_compile and not model.run_eagerly)
    # Keras is to loop over the batches only: `step` compiles itself.
    function = make_uncompiled(model, test_step=step)

    def run(*args: Any) -> Any:
        # Keras 3.3 looks the step up each time it runs.
        overrides = Overrides()
        try:
            with overrides, overrides:
                overrides.set(model, "test_step", step)
                return function(*args)
        finally:
            # Whatever the step gives to the host has arrived when it is over.
            jax.effects_barrier()  # type: ignore[no-untyped-call]

    return run


_current_trace: Callable[[], Any] = partial(get_opaque_trace_state, convention="keras")


class _ProbedStep:
    """A model's test step with its taps observed after each run.

    Args:
        step: `(state, batch)` to its outputs and the new state.
        compiled: Whether to compile it.
    """

    def __init__(self, step: Callable[[State, Any], tuple[Any, State]], *, compiled: bool) -> None:
        self._step = step
        self._run: Callable[..., Any] | None = None if compiled else self._run_tapped
        self._kept: dict[Observe, list[jax.Array]] | None = None

    def __call__(self, state: State, batch: Any) -> tuple[Any, State]:
        if self._run is None:
            self._run = self._compile(state)
        kept: dict[Observe, list[jax.Array]] = {}
        self._kept = kept
        try:
            outputs, state, observers, tensors = self._run(state, batch)
            if None in tensors:
                jax.effects_barrier()  # type: ignore[no-untyped-call]
        finally:
            self._kept = None
        for observe, tensor in zip(observers.in_order, tensors, strict=True):
            for array in kept.pop(observe, ()) if tensor is None else (tensor,):
                observe(array)
        return outputs, state

    def _run_tapped(self, state: State, batch: Any) -> tuple[Any, ...]:
        taps = _Taps(self._keep)
        token = _taps.set(taps)
        try:
            outputs, state = self._step(state, batch)
        finally:
            _taps.reset(token)
        return outputs, state, _Observers(tuple(taps.observers)), taps.tensors

    def _compile(self, state: State) -> Callable[..., Any]:
        # Unlike Keras's own the step doesn't consume the state it is given: if counting is broken
        # off, that state is the only one there is.
        if keras.distribution.distribution() is None:
            return jax.jit(self._run_tapped)
        shardings = jax.tree.map(lambda value: value.sharding, state)
        return jax.jit(self._run_tapped, out_shardings=(None, shardings, None, None))

    def _keep(self, observe: Observe, tensor: jax.Array) -> None:
        if self._kept is not None:
            self._kept.setdefault(observe, []).append(tensor)


class _Taps:
    """The taps in one trace of a step, in forward order.

    A tensor of the step itself becomes an output of it. One within a trace inside of the step (a
    scan over time, rematerialization) can't: a callback keeps it until the step is over. Reading
    it there could wait forever for the thread that the callback runs on.

    Args:
        keep: Keeps a tensor for an observer.

    Attributes:
        observers: Who observes each tap.
        tensors: The tensors that are outputs, None for those that are kept.
    """

    def __init__(self, keep: Callable[[Observe, jax.Array], None]) -> None:
        self._keep = keep
        self._trace = _current_trace()
        self.observers: list[Observe] = []
        self.tensors: list[jax.Array | None] = []

    def add(self, tensor: jax.Array, observe: Observe) -> None:
        """Add the next tap."""
        is_output = self._trace == _current_trace()
        if not is_output:
            # A test step may take derivatives, which callbacks don't have.
            io_callback(partial(self._keep, observe), None, jax.lax.stop_gradient(tensor))
        self.observers.append(observe)
        self.tensors.append(tensor if is_output else None)


_taps: ContextVar[_Taps | None] = ContextVar("taps", default=None)


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Observers:
    """Who observes the taps: no output of a compiled step, but a fact of its trace."""

    in_order: tuple[Observe, ...]
