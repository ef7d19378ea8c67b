"""Ask a callback's argument `classes` for the labels of a batch: its y, a key, or a callable."""

import threading
from collections.abc import Mapping
from typing import Any

import keras

from tensorstate_callbacks.errors import ProbeError
from tensorstate_callbacks.keras.batch_masks import entry_of
from tensorstate_callbacks.recording.class_labels import LABEL_KEYS, Classes, is_array, is_on

_WAYS_OUT = (
    'give classes="key" of a dict in the batch, classes=batch -> labels, or an array with a label '
    "for each sample of the evaluation, in their order"
)


class _Batch(threading.local):
    """The labels of the batch that a test step runs on: each replica's on a thread of its own.

    Attributes:
        labels: A tensor of them.
        problem: Why there are none; None before any batch was shown.
    """

    labels: Any = None
    problem: str | None = None


class StepLabels:
    """The labels that `classes` gives for the batch of a test step, where it is no array.

    Args:
        classes: The callback's argument of that name.

    Attributes:
        is_asked: Whether it is asked anew with each batch.
    """

    def __init__(self, classes: Classes) -> None:
        self._classes, self._batch = classes, _Batch()
        self.is_asked = is_on(classes) and not is_array(classes)

    @property
    def basis(self) -> Any:
        """What a step that was traced can't take anew; of an array, that its rows are taken."""
        return self.is_asked, self._classes if self.is_asked else is_on(self._classes)

    @property
    def asks_anew(self) -> bool:
        """Whether it may give something else in another evaluation, as a callable does."""
        return callable(self._classes)

    def begin(self, batch: Any) -> None:
        """Take what the test step is called with; None when it is over."""
        state = self._batch
        state.labels = state.problem = None
        if self.is_asked and batch is not None:
            # Now, as a layer may be called where nothing that is made comes out again (a loop).
            try:
                state.labels = _as_tensor(self._find(batch))
            except ProbeError as error:
                state.problem = str(error)

    def of_batch(self) -> Any:
        """Return the labels of the batch, as a tensor; None where none are asked for.

        Raises:
            ProbeError: There are none; says what there is.
        """
        if self.is_asked and self._batch.labels is None:
            raise ProbeError(
                self._batch.problem
                or "classes: the batch isn't known, since the model's test function doesn't call "
                "its test_step. Let it call test_step, or leave classes out"
            )
        return self._batch.labels

    def _find(self, batch: Any) -> Any:
        if callable(self._classes):
            labels = self._classes(batch)
            if labels is None:
                raise ProbeError(
                    "classes gave None for a batch: it takes what test_step gets, (x, y), and "
                    "returns a label for each sample"
                )
            return labels
        x, y = _parts(batch)
        if self._classes is True:
            return _only_entry(_of_mapping(x) if y is None else y)
        # Sample weights may have the keys of y.
        otherwise = "or give classes=batch -> labels"
        return entry_of((y, x), self._classes, "classes", otherwise)


def _parts(batch: Any) -> tuple[Any, Any]:
    try:
        x, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
    except ValueError:
        raise ProbeError(
            f"classes: the batch is no (x, y), but has {len(batch)} parts: {_WAYS_OUT}"
        ) from None
    return x, y


def _of_mapping(batch: Any) -> Any:
    """Return the labels in a batch that is a mapping, as a test step of one's own may take it."""
    found = batch if isinstance(batch, Mapping) else {}
    return next((found[key] for key in LABEL_KEYS if key in found), None)


def _only_entry(y: Any) -> Any:
    """Return the one thing that y is, or has."""
    if y is None:
        raise ProbeError(f"classes=True: the batch has no y to take labels from: {_WAYS_OUT}")
    entries = keras.tree.flatten(y)
    if len(entries) != 1:
        names = f" ({', '.join(map(str, y))})" if isinstance(y, Mapping) else ""
        raise ProbeError(
            f"classes=True: y has {len(entries)} entries{names}, any of which may be the labels: "
            f"{_WAYS_OUT}"
        )
    return entries[0]


def _as_tensor(labels: Any) -> Any:
    try:
        tensor = keras.ops.convert_to_tensor(labels, sparse=False)
    except (TypeError, ValueError) as error:
        raise ProbeError(
            f"classes: what was given as the labels of a batch is no tensor ({error}): {_WAYS_OUT}"
        ) from error
    if "bfloat16" in str(tensor.dtype):
        # NumPy has no such numbers.
        tensor = keras.ops.cast(tensor, "float32")
    # Once for all layers: to read it there would wait for the device.
    return tensor.cpu() if keras.backend.backend() == "torch" else tensor
