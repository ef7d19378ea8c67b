"""JAX: a test step that has probed activations as outputs beside its own, counted on the host."""

from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import keras
import numpy as np
import numpy.typing as npt
from jax.experimental import io_callback
from jax.experimental.sparse import JAXSparse
from keras.src.backend.common.stateless_scope import get_stateless_scope

from tensorstate_callbacks.keras.backends import (
    TapRefusedError,
    WeakObserver,
    jax_host_tap,
    make_uncompiled,
    wants_device,
)
from tensorstate_callbacks.keras.backends.jax_ranks import find_ranks
from tensorstate_callbacks.keras.backends.jax_shards import EachPart, own_counts
from tensorstate_callbacks.keras.device_states import Firing
from tensorstate_callbacks.recording.budget import Sampling
from tensorstate_callbacks.recording.machine import available_processors
from tensorstate_callbacks.recording.overrides import Overrides
from tensorstate_callbacks.recording.recorder import Recorder

try:
    from jax.extend.core import get_opaque_trace_state
except ImportError:  # an older JAX, the latest for Python 3.10
    from jax.core import get_opaque_trace_state

__all__ = ["INDEX_DTYPE", "RECOMPUTES_UNSEEN", "TAPS_END_XLA", "Tally", "find_ranks"]

Observe: TypeAlias = Callable[..., None]
Tapped: TypeAlias = tuple[jax.Array, ...]
State: TypeAlias = tuple[Any, ...]

TAPS_END_XLA = False
RECOMPUTES_UNSEEN = False
INDEX_DTYPE = "int32"


def makes_states() -> bool:
    """Tell whether the step runs on an accelerator."""
    return wants_device(jax.default_backend() != "cpu")


def is_dense(tensor: Any) -> bool:
    """Tell whether it is a plain array."""
    return isinstance(tensor, jax.Array)


def fires(tensor: jax.Array, firing: Firing) -> jax.Array:
    """Return which numbers fire, as a tensor of bool."""
    keys = jax.lax.stop_gradient(tensor)
    if jnp.issubdtype(keys.dtype, jnp.floating):
        keys = jax.lax.bitcast_convert_type(keys, f"int{8 * keys.dtype.itemsize}")
    elif keys.dtype == bool:
        keys = keys.astype("uint8")
    first, last = (np.asarray(bound, keys.dtype) for bound in firing[:2])
    fired = (keys >= first) & (keys <= last)
    if firing.below is None:
        return fired
    return fired | (keys < np.asarray(firing.below, keys.dtype))


def pack(bits: jax.Array) -> jax.Array:
    """Pack the last axis into bytes, whose bit 0 comes first; uint8."""
    return jnp.packbits(bits, axis=-1, bitorder="little")


def new_recorder(names: Iterable[str], threshold: float, sampling: Sampling) -> Recorder:
    """Return what records the arrays that taps give, on as many threads as compute them."""
    return Recorder(names, threshold=threshold, sampling=sampling, n_threads=available_processors())


class Tally:
    """Counts of numbers: those of each step are an output of it, added up on the device.

    Args:
        n_counts: Counts of the numbers from 0 on.
        like: A tensor on the device.
    """

    def __init__(self, n_counts: int, like: jax.Array) -> None:
        self._n_counts = n_counts
        self._held: Any = None
        self._most_held = 0
        self.reset()

    def add(self, codes: jax.Array) -> None:
        """Count the numbers in a tensor whenever the step runs."""
        zeros = jnp.zeros(self._n_counts, "int32")
        counts = zeros.at[codes.reshape(-1)].add(1)
        _tap_whole((counts,), WeakObserver(self._hold, codes.shape[0]))

    def _hold(self, most: int, counts: Any) -> None:
        """Add the counts of a step, none of which is above `most`."""
        if self._most_held + most > MOST_HELD:
            self._read, self._held, self._most_held = self.read(), None, 0
        # Not waited for: the device may still be at work on it.
        self._held = counts if self._held is None else self._held + counts
        self._most_held += most

    def read(self) -> npt.NDArray[np.int64]:
        """Return the counts."""
        return self._read if self._held is None else self._read + own_counts(self._held)

    def reset(self) -> None:
        """Begin at zero again."""
        self._read = np.zeros(self._n_counts, np.int64)
        self._held, self._most_held = None, 0


# What int32 holds, as JAX has nothing larger by default.
MOST_HELD = 2**31 - 1


def tap(tensor: jax.Array, observe: Observe, mask: jax.Array | None = None) -> None:
    """Give a tensor's values to `observe`, and those of a mask, each time when the step has run.

    Where processes share a tensor, each is given the samples that it holds, part by part.
    """
    if isinstance(tensor, JAXSparse):
        tensor = tensor.todense()
    _tap_whole((tensor,) if mask is None else (tensor, mask), EachPart(observe))


def _tap_whole(tapped: Tapped, observe: Observe) -> None:
    """Give tensors themselves to `observe`, wherever their values lie."""
    taps = _taps.get()
    if taps is None:
        # A function of the model's own making, which doesn't call its step.
        if _outputs_only.get():
            raise TapRefusedError
        _check_callback()
        given = map(jax.lax.stop_gradient, tapped)
        io_callback(lambda *arrays: observe(*map(np.asarray, arrays)), None, *given)
    else:
        taps.add(tapped, observe)


def tap_layer(tensor: jax.Array, observe: Observe) -> jax.Array:
    """Return the tensor as it is, and have `observe` see its values, compiled or not."""
    scope = get_stateless_scope()
    if scope is not None and not scope.state_mapping and not jax_host_tap.is_traced(tensor):
        # `predict` builds a model by running it on its first batch, with no state given.
        return tensor
    return jax_host_tap.tap(tensor, observe)


def build_test_function(model: keras.Model, *, has_taps: bool) -> Callable[..., Any]:
    """Build a test function of the model's own test step, leaving the model's as it was.

    It is compiled if the model's is; the train function isn't touched.
    """
    step = _ProbedStep(model.test_step, compiled=model.jit_compile and not model.run_eagerly)
    function = _looping(model, "test", step)

    def run(*args: Any) -> Any:
        try:
            return function(*args)
        finally:
            # Whatever the step gives to the host has arrived when it is over.
            jax.effects_barrier()  # type: ignore[no-untyped-call]

    return run


def build_train_function(model: keras.Model) -> Callable[..., Any]:
    """Build a train function of the model's own train step, leaving the model's as it was.

    It is compiled if the model's is, and consumes the state it is given, as that does: a second
    one might not fit onto the device.
    """
    is_compiled = model.jit_compile and not model.run_eagerly
    function = _looping(model, "train", _TrainStep(model, compiled=is_compiled))

    def run(*args: Any) -> Any:
        token = _outputs_only.set(True)
        try:
            return function(*args)
        finally:
            _outputs_only.reset(token)

    return run


def is_recomputing() -> bool:
    """Tell that layers aren't called for gradients: what is recomputed is traced once."""
    return False


def keep_state(model: keras.Model, outputs: Any) -> None:
    """Let the model have what a train function gave, where its caller won't get that far."""
    _keep_variables(model, outputs[1])


def _keep_variables(model: keras.Model, state: State) -> None:
    kinds = ("trainable", "non_trainable", "optimizer", "metrics")
    # Where fit keeps the state between two steps, and takes it from as it ends.
    model._jax_state = {
        f"{kind}_variables": values for kind, values in zip(kinds, state, strict=True)
    }
    model._jax_state_synced = False


def _looping(model: keras.Model, kind: str, step: Callable[..., Any]) -> Callable[..., Any]:
    # Keras is to loop over the batches only: `step` compiles itself.
    function = make_uncompiled(model, kind, **{f"{kind}_step": step})

    def run(*args: Any) -> Any:
        # Keras 3.3 looks the step up each time it runs.
        overrides = Overrides()
        with overrides, overrides:
            overrides.set(model, f"{kind}_step", step)
            return function(*args)

    return run


_current_trace: Callable[[], Any] = partial(get_opaque_trace_state, convention="keras")


class _ProbedStep:
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


class _TrainStep(_ProbedStep):
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
            _keep_variables(self._model, state)
            raise

    def _new_taps(self, state: State, batch: Any) -> "_Taps":
        return _OutputTaps(self._keep, jax.tree.leaves((state, batch)))


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
_outputs_only: ContextVar[bool] = ContextVar("outputs_only", default=False)


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Observers:
    """Who observes the taps: no output of a compiled step, but a fact of its trace."""

    in_order: tuple[Observe, ...]
