"""Leave masked positions out of what the host is given to count."""

from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from tensorstate_callbacks.errors import ProbeError, list_some
from tensorstate_callbacks.recording.channel_axis import Axis
from tensorstate_callbacks.recording.masked_probes import MaskedPart, MaskedProbes
from tensorstate_callbacks.recording.masks import (
    Indices,
    Mask,
    MaskedSamples,
    is_array,
)
from tensorstate_callbacks.states.positions import spread_positions

# So many masks are kept: all layers of a step have a few.
_MOST_KEPT = 16


class HostMasks:
    """The masks of one evaluation.

    Args:
        mask: The callback's argument of that name. An array is held here, and its rows are taken in
            turn; other masks come with what they are of.

    Attributes:
        has_array: Whether it is an array.
        has_rows: Whether it is one with a row for each sample.
    """

    def __init__(self, mask: Mask) -> None:
        self._array = MaskedSamples(np.asarray(mask)) if is_array(mask) else None
        self._probes = MaskedProbes(_take)
        self._read: dict[tuple[Any, ...], MaskedSamples] = {}
        self._rows: MaskedSamples | None = None
        self._lost: dict[str, None] = {}
        self._n_seen = 0
        self.has_array = self._array is not None
        self.has_rows = self._array is not None and self._array.n_samples is not None

    def begin_batch(self, n_samples: int) -> None:
        """Take the rows of the samples that come."""
        start, self._n_seen = self._n_seen, self._n_seen + n_samples
        if self._array is not None:
            keep = self._array.keep[start : self._n_seen]
            self._rows = MaskedSamples(keep) if len(keep) == n_samples else None

    def note_lost(self, name: str) -> None:
        """Take note that a probe counts all, though a mask hides some that may be among it."""
        self._lost[name] = None

    def parts(
        self, name: str, activations: Any, channel_axis: Axis, mask: Any
    ) -> Iterator[MaskedPart]:
        """Yield what is to be counted.

        Args:
            name: The probe.
            activations: What it saw in one call, samples along axis 0.
            channel_axis: The axis of the neurons, or several.
            mask: Which positions count; None where no mask came.

        Raises:
            ProbeError: There is no such mask; says what there is.
        """
        masked = self._find(name, mask)
        if masked is None:
            yield MaskedPart(activations, channel_axis, 0)
            return
        if not hasattr(activations, "index_select"):
            activations = np.asarray(activations)
        yield from self._probes.parts(name, activations, channel_axis, 0, masked)

    @staticmethod
    def states(
        packed: npt.NDArray[np.uint8], sample_axis: int | None, positions: int | None
    ) -> tuple[npt.NDArray[np.uint8], tuple[int, ...]]:
        """Return the states of a part, and how many positions of a sample lie along each axis.

        Args:
            packed: The states, packed along the last axis.
            sample_axis: The axis of the samples; None where there is one.
            positions: At most that many positions of each sample are read; None reads all.
        """
        by_sample = packed[None] if sample_axis is None else np.moveaxis(packed, sample_axis, 0)
        n_samples, *grid, n_bytes = by_sample.shape
        rows = by_sample.reshape(n_samples, -1, n_bytes)
        if positions is not None and positions < rows.shape[1]:
            rows = rows.take(spread_positions(tuple(grid), positions), axis=1)
        return rows.reshape(-1, n_bytes), tuple(grid)

    def warnings(self, without: Iterable[str]) -> dict[str, str]:
        """Return what is to be warned of at the end of an evaluation: kinds to texts.

        Args:
            without: Probes that don't count any more.
        """
        gone = frozenset(without)
        texts = self._probes.warnings(gone)
        lost = [name for name in self._lost if name not in gone]
        if lost:
            texts["lost mask"] = (
                f"some of what passes {list_some(lost)} is padding, but nothing tells which "
                "positions, so all were counted, and efficiency depends on how batches are padded. "
                "Give mask=(name, batch) -> mask, or exclude these layers"
            )
        if self.has_rows and self._array is not None and self._n_seen < len(self._array.keep):
            texts["mask samples"] = (
                f"mask has {len(self._array.keep)} samples, and {self._n_seen} came: a mask has "
                "one row for each sample of the evaluation, in their order. Give "
                "mask=(name, batch) -> mask otherwise"
            )
        return texts

    def _find(self, name: str, mask: Any) -> MaskedSamples | None:
        if not self.has_rows:
            return self._array if mask is None else self._read_mask(name, mask)
        if self._rows is None and not self._n_seen:
            raise ProbeError(
                "mask is an array, and how many samples a batch has isn't known, since the "
                "model's test function doesn't call its test_step. Give mask=(name, batch) -> mask"
            )
        if self._rows is None:
            n_rows = 0 if self._array is None else len(self._array.keep)
            raise ProbeError(
                f"mask has {n_rows} samples, and {self._n_seen} came so far: a mask has one row "
                "for each sample of the evaluation, in their order. Give "
                "mask=(name, batch) -> mask otherwise"
            )
        return self._rows

    def _read_mask(self, name: str, mask: Any) -> MaskedSamples:
        array = np.asarray(mask)
        key = array.shape, array.dtype.str, array.tobytes()
        found = self._read.get(key)
        if found is None:
            try:
                found = MaskedSamples(array)
            except (TypeError, ValueError) as error:
                raise ProbeError(f"layer {name!r} could not be masked: {error}") from error
            if len(self._read) >= _MOST_KEPT:
                self._read.clear()
            self._read[key] = found
        return found


def _take(array: Any, indices: Indices) -> Any:
    # A tensor on an accelerator, or an array.
    select = getattr(array, "index_select", None)
    if select is None:
        return np.take(array, indices, axis=0)
    return select(0, keras.ops.convert_to_tensor(indices, "int64").to(array.device))
