"""TensorFlow: how activations leave the test step, and how a test step is built that lets them."""

import threading
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any, TypeAlias

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tensorstate_callbacks.keras.backends import (
    TapRefusedError,
    make_function,
    make_uncompiled,
    wants_device,
)
from tensorstate_callbacks.keras.device_states import Firing
from tensorstate_callbacks.recording.budget import Sampling
from tensorstate_callbacks.recording.machine import available_processors
from tensorstate_callbacks.recording.overrides import Overrides
from tensorstate_callbacks.recording.recorder import Recorder

__all__ = ["INDEX_DTYPE", "RECOMPUTES_UNSEEN", "TAPS_END_XLA", "Tally"]

Observe: TypeAlias = Callable[[npt.ArrayLike], None]

TAPS_END_XLA = True
RECOMPUTES_UNSEEN = True
# TensorFlow keeps int32 in the host's memory where it can.
INDEX_DTYPE = "int64"

# Brings bit 0 of each of 8 bytes into one: that of byte i to bit 56 + i.
_GATHER = 0x0102040810204080


def makes_states() -> bool:
    """Tell whether there is an accelerator, where TensorFlow runs the step then."""
    kinds = ("GPU", "TPU")
    return wants_device(any(tf.config.list_logical_devices(kind) for kind in kinds))


def is_dense(tensor: Any) -> bool:
    """Tell whether it is a plain tensor."""
    return isinstance(tensor, tf.Tensor)


def fires(tensor: Any, firing: Firing) -> Any:
    """Return which numbers fire, as a tensor of bool."""
    if tensor.dtype.is_floating:
        tensor = tf.bitcast(tensor, tf.as_dtype(f"int{8 * tensor.dtype.size}"))
    elif tensor.dtype.is_bool:
        tensor = tf.cast(tensor, tf.uint8)
    if tensor.dtype in (tf.uint16, tf.int32, tf.uint32):
        tensor = tf.cast(tensor, tf.int64)

    def number(value: int) -> Any:
        return tf.constant(value, tensor.dtype)

    fired = (tensor >= number(firing.first)) & (tensor <= number(firing.last))
    return fired if firing.below is None else fired | (tensor < number(firing.below))


def pack(bits: Any) -> Any:
    """Pack the last axis into bytes, whose bit 0 comes first; uint8."""
    n_bytes = -(-bits.shape[-1] // 8)
    bits = tf.cast(bits, tf.uint8)
    missing = 8 * n_bytes - bits.shape[-1]
    if missing:
        bits = tf.pad(bits, [*([(0, 0)] * (bits.shape.rank - 1)), (0, missing)])
    bits = tf.reshape(bits, tf.concat([tf.shape(bits)[:-1], [n_bytes, 8]], 0))
    words = tf.bitcast(bits, tf.int64) * tf.constant(_GATHER, tf.int64)
    # The shift is one of signed numbers.
    high = tf.bitwise.right_shift(words, tf.constant(56, tf.int64))
    return tf.cast(tf.bitwise.bitwise_and(high, tf.constant(255, tf.int64)), tf.uint8)


def new_recorder(names: Iterable[str], threshold: float, sampling: Sampling) -> Recorder:
    """Return what records the arrays that taps give, on as many threads as compute them."""
    n_threads = tf.config.threading.get_intra_op_parallelism_threads() or available_processors()
    return Recorder(names, threshold=threshold, sampling=sampling, n_threads=n_threads)


class Tally:
    """Counts of numbers, in a variable that no model has.

    Args:
        n_counts: Counts of the numbers from 0 on.
        like: A tensor on the device.
    """

    def __init__(self, n_counts: int, like: Any) -> None:
        self._n_counts = n_counts
        made: list[Any] = []

        def make() -> None:
            with tf.device(like.device):
                made.append(tf.Variable(tf.zeros(n_counts, tf.int64), trainable=False))

        # A thread of its own has neither the graph nor the strategy that are being traced for.
        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        (self._counts,) = made

    def add(self, codes: Any) -> None:
        """Count the numbers in a tensor whenever the step runs."""
        codes = tf.reshape(codes, [-1])
        # No `bincount`, which a GPU refuses where operations are to be deterministic.
        ones = tf.ones_like(codes, tf.int32)
        added = tf.math.unsorted_segment_sum(ones, codes, self._n_counts)
        self._counts.assign_add(tf.cast(added, tf.int64))

    def read(self) -> npt.NDArray[np.int64]:
        """Return the counts."""
        counts: npt.NDArray[np.int64] = self._counts.numpy()
        return counts

    def reset(self) -> None:
        """Begin at zero again."""
        self._counts.assign(tf.zeros(self._n_counts, tf.int64))


def find_ranks() -> None:
    """Return the processes that share the model's evaluations: there are none."""


def tap(tensor: Any, observe: Callable[..., None], *others: Any) -> Any:
    """Give a tensor's values to `observe`, and those of others, once each time the step runs.

    The array is TensorFlow's own memory: `observe` reads it and keeps nothing of it. In a graph it
    runs on a thread of TensorFlow's, where an exception would surface as an unknown error; taps
    run in the order in which they were traced.

    Returns:
        The tensor to go on with: the same numbers, but whatever takes them waits until they were
        observed. They still lie in the cache then, and may be overwritten in place afterwards.
    """
    given = tensor
    if isinstance(tensor, tf.SparseTensor):
        tensor = tf.sparse.to_dense(tensor)
    elif isinstance(tensor, tf.IndexedSlices):
        tensor = tf.convert_to_tensor(tensor)
    tapped = [tensor, *others]
    if tf.executing_eagerly():
        observe(*(each.numpy() for each in tapped))
        return given
    taps = _taps.get()
    if taps is not None:
        taps.add(tuple(tapped), observe)
        return None

    def run(*arrays: npt.NDArray[Any]) -> np.bool_:
        observe(*arrays)
        return np.True_

    # Stateful: a stateless function whose result nobody uses is pruned from the graph.
    observed = tf.numpy_function(run, tapped, tf.bool, stateful=True)
    # Keras hangs masks and logits on tensors, which another tensor would lack.
    if given is not tensor or any(key.startswith("_keras") for key in vars(tensor)):
        return given
    with tf.control_dependencies([observed]):
        return tf.identity(tensor)


def tap_layer(tensor: Any, observe: Observe) -> Any:
    """Return the tensor as it is, and have `observe` see its values, compiled or not."""
    tap(tensor, lambda values: observe(np.asarray(values)))
    return tensor


def build_test_function(model: keras.Model, *, has_taps: bool) -> Callable[..., Any]:
    """Build a test function of the model's own test step, leaving the model's as it was.

    With taps it is built without XLA, which can't run them; the train function isn't touched.

    Args:
        model: The model.
        has_taps: Whether there may be taps in it.
    """
    return make_uncompiled(model, "test") if has_taps else make_function(model, "test")


def build_train_function(model: keras.Model) -> Callable[..., Any]:
    """Build a train function of the model's own train step, leaving the model's as it was.

    What it gives to the host are outputs of the step: XLA compiles it where it compiles the model's
    own, and nothing in between keeps TensorFlow's optimizer from what it does to that. From several
    replicas nothing comes but a mean: there the host is called in between, without XLA.
    """
    if model.run_eagerly or model.distribute_strategy.num_replicas_in_sync > 1:
        return make_uncompiled(model, "train")
    return _TrainFunction(model)


def is_recomputing() -> bool:
    """Tell that layers aren't called for gradients, as far as is known: see `RECOMPUTES_UNSEEN`."""
    return False


def run_aside(model: keras.Model, function: Callable[[], object]) -> None:
    """Call a function that runs the model outside of its steps, and have its taps observed."""
    function()


def keep_values(model: keras.Model, variables: list[Any]) -> Callable[[], None]:
    """Return what puts back the values of variables."""
    kept = [(variable, tf.identity(variable.value)) for variable in variables]

    def put_back() -> None:
        for variable, value in kept:
            if not tf.reduce_all(tf.equal(variable.value, value)):
                variable.assign(value)

    return put_back


def keep_state(model: keras.Model, outputs: Any) -> None:
    """Do nothing: a step changes the model's variables in place."""


class _TrainFunction:
    """A train function whose taps are outputs of each step beside its own.

    Args:
        model: The model.
    """

    def __init__(self, model: keras.Model) -> None:
        self._model, self._step = model, model.train_step
        self._n_batches = model.steps_per_execution
        # By number of the trace.
        self._observers: dict[int, tuple[Observe, ...]] = {}
        # What Keras asks for as its function is traced. Of several steps in one execution the
        # last one's outputs would be all that is left.
        self._attributes = {"train_step": self._run_tapped, "steps_per_execution": 1}
        self._function = make_function(model, "train", **self._attributes)

    def __call__(self, iterator: Any) -> Any:
        overrides = Overrides()
        with overrides, overrides:
            for name, value in self._attributes.items():
                overrides.set(self._model, name, value)
            if self._n_batches == 1:
                return self._run_step(iterator)
            outputs = None
            for _ in range(self._n_batches):
                # A step that finds no data fails, but its optimizer has counted it by then.
                batch = iterator.get_next_as_optional()
                if not batch.has_value():
                    break
                outputs = self._run_step([batch.get_value()])
        if outputs is None:
            raise StopIteration
        return outputs

    def _run_step(self, data: Any) -> Any:
        outputs, number, taps = self._function(data)
        for observe, tapped in zip(self._observers[int(number)], taps, strict=True):
            observe(*(tensor.numpy() for tensor in tapped))
        return outputs

    def _run_tapped(self, data: Any) -> tuple[Any, Any, tuple[Any, ...]]:
        taps = _Taps()
        token = _taps.set(taps)
        try:
            outputs = self._step(data)
        finally:
            _taps.reset(token)
        number = len(self._observers)
        self._observers[number] = tuple(taps.observers)
        return outputs, tf.constant(number), tuple(taps.tapped)


class _Taps:
    """The taps in one trace of a step, in forward order."""

    def __init__(self) -> None:
        self.observers: list[Observe] = []
        self.tapped: list[tuple[Any, ...]] = []
        self._graph = tf.compat.v1.get_default_graph()

    def add(self, tapped: tuple[Any, ...], observe: Observe) -> None:
        """Add the next tap.

        Raises:
            TapRefusedError: A tensor is one of a loop or a branch within the step.
        """
        if any(tensor.graph is not self._graph for tensor in tapped):
            raise TapRefusedError
        self.observers.append(observe)
        self.tapped.append(tapped)


_taps: ContextVar[_Taps | None] = ContextVar("taps", default=None)
