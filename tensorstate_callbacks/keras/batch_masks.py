"""Ask a callback's argument `mask` for the masks of a batch: a key of it, or a callable."""

import threading
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np

from tensorstate_callbacks.errors import ProbeError, list_some
from tensorstate_callbacks.recording.masks import AUTO, Mask, MaskedSamples, is_array


class _Batch(threading.local):
    """What the test step is called with: each replica of a model on a thread of its own."""

    value: Any = None


class BatchMasks:
    """The masks that `mask` gives, and the batch that it is asked with.

    Args:
        mask: The callback's argument of that name.

    Attributes:
        is_given: Whether it says which positions count, so that Keras's own masks don't.
        is_asked: Whether it is asked anew with each batch.
    """

    def __init__(self, mask: Mask) -> None:
        self._mask, self._batch = mask, _Batch()
        is_auto = mask is None or (isinstance(mask, str) and mask == AUTO)
        self.is_given = not is_auto
        self.is_asked = self.is_given and not is_array(mask)

    @property
    def basis(self) -> Any:
        """What a step that was traced can't take anew; of an array, whether it asks for rows."""
        if is_array(self._mask):
            return MaskedSamples(np.asarray(self._mask)).n_samples is not None
        return self._mask

    def begin(self, batch: Any) -> None:
        """Take what the test step is called with; None when it is over."""
        self._batch.value = batch

    def of(self, layer: str) -> Any:
        """Return the mask of a layer, as a tensor; None where all its positions count.

        Raises:
            ProbeError: There is none; says what there is.
        """
        if not self.is_asked:
            return None
        batch = self._batch.value
        if batch is None:
            raise ProbeError(
                "mask: the batch isn't known, since the model's test function doesn't call its "
                "test_step. Let it call test_step, or leave mask out: Keras's own masks apply by "
                "themselves"
            )
        if callable(self._mask):
            mask = self._mask(layer, batch)
        else:
            parts = batch if isinstance(batch, (tuple, list)) else ()
            mask = entry_of(
                (batch, *parts), self._mask, "mask", "or give mask=(name, batch) -> mask"
            )
        return None if mask is None else keras.ops.convert_to_tensor(mask)


def entry_of(parts: Iterable[Any], key: Any, argument: str, otherwise: str) -> Any:
    """Return what the first dict has under a key that has it.

    Args:
        parts: Of a batch, dicts and others.
        key: The key.
        argument: The callback's argument that it is.
        otherwise: What else the user can do.

    Raises:
        ProbeError: None has it; names the keys there are.
    """
    mappings = [part for part in parts if isinstance(part, Mapping)]
    for mapping in mappings:
        if key in mapping:
            return mapping[key]
    keys = [str(key) for mapping in mappings for key in mapping]
    raise ProbeError(
        f"{argument}={key!r}: the batch has no such key "
        f"({list_some(keys) if keys else 'it has no dict'}). Give the evaluation a dict that has "
        f"it, as x or as y, {otherwise}"
    )
