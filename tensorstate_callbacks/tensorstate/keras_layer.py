"""Pass tensors through as they are, and count their states in evaluation."""

import os
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from tensorstate_callbacks.errors import ProbeError, WarnOnce
from tensorstate_callbacks.keras.axis_flow import axes_of_tensor
from tensorstate_callbacks.keras.axis_rules import LAST
from tensorstate_callbacks.keras.backends import (
    WeakObserver,
    current_backend,
    in_symbolic_scope,
)
from tensorstate_callbacks.keras.layers import first_tensor
from tensorstate_callbacks.recording.channel_axis import Axis, folded, is_axis
from tensorstate_callbacks.tensorstate.captured_states import CapturedStates
from tensorstate_callbacks.tensorstate.state_readings import Captured, StateReadings


@keras.saving.register_keras_serializable("tensorstate_callbacks")
class StateCapture(StateReadings, keras.layers.Layer):
    """Captures the states of what passes through it, in any model and on all of Keras's backends.

    It has no weights, changes nothing, and lets masks through. It records in `evaluate`, `predict`
    and plain calls, not in training, and is read by the methods of `StateReadings`. Of several
    tensors (a list, a dict) it captures the first.

    When it is saved with a model, copied or cloned, it keeps its settings, but neither its states
    nor its `storage_path`: two layers mustn't write into the same files. On TensorFlow, XLA can't
    compile it: a model that contains it is compiled without XLA, and `model.export` fails. See
    `remove_state_layers`.

    Args:
        name: Name of the layer and of its files.
        channel_axis: The axis of the neurons, batch axis included, or several that are one unit
            together; may be negative. None finds it by the layers before, in a functional or
            sequential model, and else takes the last axis.
        threshold: A neuron fires where its activation is above it; finite.
        keep_raw: Whether to keep every state in memory, in the order observed, for `raw_states`.
        storage_path: Folder to keep them in on disk instead.
        resume: Whether to go on with the capture that the folder holds.
        record_training: Whether to record in training too. Where `keras.RematScope` computes
            activations a second time for the gradients, they are counted twice.
        **options: Options of any Keras layer.

    Attributes:
        capture_on: Nothing is recorded while it is False.

    Raises:
        FileExistsError: `storage_path` holds an earlier capture, and `resume` isn't set.
        ProbeError: Activations can't be counted; names the layer. From reading, until
            `reset_states`, and from the model's call, where TensorFlow makes an `UnknownError` of
            it in a graph, and JAX passes over it in compiled code.
        TypeError: An argument is of the wrong kind.
        ValueError: An argument is out of its range.

    Examples:
        ```python
        capture = tensorstate_callbacks.keras.StateCapture("conv_1_states")
        model = keras.Sequential([keras.layers.Conv2D(20, 5), capture, keras.layers.Flatten(), ...])
        model.predict(x)
        print(capture.efficiency())
        ```
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        channel_axis: Axis | None = None,
        threshold: float = 0.0,
        keep_raw: bool = False,
        storage_path: str | os.PathLike[str] | None = None,
        resume: bool = False,
        record_training: bool = False,
        **options: Any,
    ) -> None:
        # Not cast to the layer's own type: it takes any, and gives on the same.
        super().__init__(name=name, **{"autocast": False, **options})
        self.supports_masking = True
        if keras.backend.backend() == "tensorflow":
            # XLA can't call back into Python there.
            self.supports_jit = False
        if channel_axis is not None and not is_axis(channel_axis):
            raise TypeError(
                f"{self.name}: channel_axis takes an axis, a tuple of axes that are one unit "
                f"together, or None; got {channel_axis!r}"
            )
        # A saved layer's settings have a list for a tuple.
        self.channel_axis: Axis | None = (
            tuple(channel_axis) if isinstance(channel_axis, (tuple, list)) else channel_axis
        )
        self.record_training = record_training
        # What the graph tells where none is given.
        self._found_axes: tuple[int, ...] | None = None
        self.threshold, self.keep_raw = threshold, keep_raw
        self._warn = WarnOnce()
        self._tapped = _TappedStates(
            self.name,
            threshold=threshold,
            keep_raw=keep_raw,
            storage_path=storage_path,
            resume=resume,
        )

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Return the inputs, and record their states unless this is training."""
        seen = first_tensor(inputs)
        if seen is None or (training and not self.record_training):
            return inputs
        if self.channel_axis is None and self._found_axes is None and len(seen.shape) > 2:
            self._warn(
                "axis",
                f"nothing tells which axis holds the neurons of what passes {self.name!r} (shape "
                f"{tuple(seen.shape)}, axis -1 taken): give it channel_axis",
            )
        if in_symbolic_scope():
            return inputs
        tapped = current_backend().tap_layer(seen, WeakObserver(self._observe))
        return keras.tree.map_structure(lambda leaf: tapped if leaf is seen else leaf, inputs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of the input."""
        return input_shape

    def compute_output_spec(self, inputs: Any, training: bool | None = None) -> Any:
        """Return shape and type of the input, and note where its neurons are."""
        first = next(iter(keras.tree.flatten(inputs)), None)
        self._found_axes = axes_of_tensor(first) or self._found_axes
        return keras.tree.map_structure(
            lambda leaf: keras.KerasTensor(leaf.shape, leaf.dtype, sparse=leaf.sparse), inputs
        )

    def get_config(self) -> dict[str, Any]:
        """Return the settings that a saved or cloned layer keeps."""
        return {
            **super().get_config(),
            "channel_axis": self.channel_axis,
            "threshold": self.threshold,
            "keep_raw": self.keep_raw,
            "record_training": self.record_training,
        }

    @property
    def capture_on(self) -> bool:
        """Nothing is recorded while it is False."""
        return self._tapped.capture_on

    @capture_on.setter
    def capture_on(self, on: bool) -> None:
        self._tapped.capture_on = on

    def reset_states(self) -> None:
        """Forget everything captured, on disk too."""
        self._tapped.error = None
        self._tapped.reset_states()

    def _observe(self, activations: npt.ArrayLike) -> None:
        axis = self.channel_axis
        if axis is None:
            found = self._found_axes or LAST
            axis = found[0] if len(found) == 1 else found
        self._tapped.observe(activations, axis)

    def _read(self) -> Captured:
        if self._tapped.error is not None:
            raise self._tapped.error
        return self._tapped._read()


class _TappedStates(CapturedStates):
    """Captured states that keep an error which the backend may hide.

    Attributes:
        error: Why what was captured isn't all of it, or None.
    """

    error: ProbeError | None = None

    def observe(self, activations: npt.ArrayLike, channel_axis: Axis) -> None:
        try:
            try:
                moved, axis = folded(np.asarray(activations), channel_axis)
            except ValueError as error:
                raise ProbeError(f"layer {self.name!r} could not be counted: {error}") from error
            self.record(moved, axis)
        except ProbeError as error:
            self.error = self.error or error
            raise
