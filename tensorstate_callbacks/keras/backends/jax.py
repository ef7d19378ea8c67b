"""JAX: how activations leave the steps, and how steps are built that let them."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import numpy.typing as npt
from jax.experimental.sparse import JAXSparse
from keras.src.backend.common.stateless_scope import get_stateless_scope

from tensorstate_callbacks.keras.backends import (
    WeakObserver,
    jax_host_tap,
    make_uncompiled,
    wants_device,
)
from tensorstate_callbacks.keras.backends.jax_ranks import find_ranks
from tensorstate_callbacks.keras.backends.jax_shards import EachPart, own_counts
from tensorstate_callbacks.keras.backends.jax_steps import (
    Observe,
    ProbedStep,
    TrainStep,
    keep_variables,
    outputs_only,
    tap_outputs,
)
from tensorstate_callbacks.keras.device_states import Firing
from tensorstate_callbacks.recording.budget import Sampling
from tensorstate_callbacks.recording.machine import available_processors
from tensorstate_callbacks.recording.overrides import Overrides
from tensorstate_callbacks.recording.recorder import Recorder

__all__ = ["INDEX_DTYPE", "RECOMPUTES_UNSEEN", "TAPS_END_XLA", "Tally", "find_ranks"]

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
        tap_outputs((counts,), WeakObserver(self._hold, codes.shape[0]))

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


def tap(tensor: jax.Array, observe: Observe, *others: jax.Array) -> None:
    """Give a tensor's values to `observe`, and those of others, each time when the step has run.

    Where processes share a tensor, each is given the samples that it holds, part by part.
    """
    if isinstance(tensor, JAXSparse):
        tensor = tensor.todense()
    tap_outputs((tensor, *others), EachPart(observe))


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
    step = ProbedStep(model.test_step, compiled=model.jit_compile and not model.run_eagerly)
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
    function = _looping(model, "train", TrainStep(model, compiled=is_compiled))

    def run(*args: Any) -> Any:
        token = outputs_only.set(True)
        try:
            return function(*args)
        finally:
            outputs_only.reset(token)

    return run


def is_recomputing() -> bool:
    """Tell that layers aren't called for gradients: what is recomputed is traced once."""
    return False


def run_aside(model: keras.Model, function: Callable[[], object]) -> None:
    """Call a function that runs the model outside of its steps, and have its taps observed."""
    ProbedStep(lambda state, batch: (function(), state), compiled=False)((), None)
    jax.effects_barrier()  # type: ignore[no-untyped-call]


def keep_values(model: keras.Model, variables: list[Any]) -> Callable[[], None]:
    """Return what puts back the values of variables, arrays that nobody can write to."""
    kept = [(variable, variable._value) for variable in variables]

    def put_back() -> None:
        for variable, value in kept:
            if variable._value is not value:
                variable.assign(value)

    return put_back


def keep_state(model: keras.Model, outputs: Any) -> None:
    """Let the model have what a train function gave, where its caller won't get that far."""
    keep_variables(model, outputs[1])


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
