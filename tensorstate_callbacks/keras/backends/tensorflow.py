"""TensorFlow: how activations leave the test step, and how a test step is built that lets them."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tensorstate_callbacks.keras.backends import make_uncompiled
from tensorstate_callbacks.recording.machine import available_processors


def tap(tensor: Any, observe: Callable[[npt.ArrayLike], None]) -> Any:
    """Give a tensor's values to `observe`, once each time the step runs.

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
    if tf.executing_eagerly():
        observe(tensor.numpy())
        return given

    def run(array: npt.NDArray[Any]) -> np.bool_:
        observe(array)
        return np.True_

    # Stateful: a stateless function whose result nobody uses is pruned from the graph.
    observed = tf.numpy_function(run, [tensor], tf.bool, stateful=True)
    # Keras hangs masks and logits on tensors, which another tensor would lack.
    if given is not tensor or any(key.startswith("_keras") for key in vars(tensor)):
        return given
    with tf.control_dependencies([observed]):
        return tf.identity(tensor)


def tap_layer(tensor: Any, observe: Callable[[npt.ArrayLike], None]) -> Any:
    """Return the tensor as it is, and have `observe` see its values, compiled or not."""
    tap(tensor, lambda values: observe(np.asarray(values)))
    return tensor


def helping_threads() -> int:
    """Return how many threads may work on a batch: as many as the backend computes with."""
    return tf.config.threading.get_intra_op_parallelism_threads() or available_processors()


def build_test_function(model: keras.Model) -> Callable[..., Any]:
    """Build a test function of the model's own test step, leaving the model's as it was.

    It is built without XLA, which can't run the tap; the train function isn't touched.
    """
    return make_uncompiled(model)
