"""Tell which rows of a PackedSequence are which sample's."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch.nn.utils.rnn import PackedSequence

from tensorstate_callbacks.recording.masks import Indices, MaskedSamples


class PackedRows(NamedTuple):
    """The rows of the sequences that are packed together.

    Attributes:
        masked: Which of the positions, up to those of the longest sequence, each of them has.
        rows: Shape `(samples, positions)`: where these lie in the packed data; -1 where none does.
    """

    masked: MaskedSamples
    rows: Indices

    def kept(self, n_samples: int | None) -> list[tuple[Indices, Indices]]:
        """Return the rows of the first sequences, or of all, and which these are, by length."""
        first = self.rows[:n_samples]
        return [
            (first.reshape(-1)[kept.rows], kept.samples(first.shape[1]))
            for kept in self.masked.first(len(first)).kept
        ]


def find_packed(value: Any) -> PackedSequence | None:
    """Return the PackedSequence among what a module takes or gives; None where there is none."""
    if isinstance(value, PackedSequence):
        return value
    parts = value if isinstance(value, (tuple, list)) else ()
    return next((part for part in parts if isinstance(part, PackedSequence)), None)


def packed_rows(packed: PackedSequence) -> PackedRows:
    """Return the rows of a PackedSequence, which lie one time step after the other.

    Examples:
        >>> import torch
        >>> from torch.nn.utils.rnn import pack_sequence
        >>> packed = pack_sequence([torch.ones(1), torch.ones(3)], enforce_sorted=False)
        >>> packed_rows(packed).rows.tolist()
        [[1, -1, -1], [0, 2, 3]]
    """
    sizes = packed.batch_sizes.numpy(force=True)
    starts = np.cumsum(sizes) - sizes
    order: npt.NDArray[Any] = np.arange(sizes[0])
    if packed.unsorted_indices is not None:
        order = packed.unsorted_indices.numpy(force=True)
    keep = order[:, None] < sizes[None, :]
    rows = np.where(keep, starts[None, :] + order[:, None], -1)
    return PackedRows(MaskedSamples(keep), rows)
