"""Leave masked positions, such as padding, out of what is counted.

What is left of a sample is counted as if it had come without the rest: where only some positions
are read, they are chosen among those that are left. So a masked batch gives the counts of the
samples by themselves, to the bit.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from tensorstate_callbacks.recording.channel_axis import Axis, normal_axes

# An array may be anything that NumPy takes, so a type says little. Sequences come first, as
# LightningCLI saves a value by the first type that takes it.
Mask: TypeAlias = str | Sequence[Any] | Callable[[str, Any], Any] | Any | None

# In place of a key of the batch: the masks that layers are called with.
AUTO = "auto"

Indices: TypeAlias = npt.NDArray[np.intp]
Take: TypeAlias = Callable[[Any, Indices], Any]


class Kept(NamedTuple):
    """Samples that keep equally many positions, in the same form.

    Attributes:
        rows: Shape `(samples, positions)`: which positions they keep, as indices into those of all
            samples, sample after sample.
        sizes: How many they keep along each axis of the mask; of a mask whose gaps leave no box,
            one axis of all.
    """

    rows: Indices
    sizes: tuple[int, ...]

    def samples(self, n_positions: int) -> Indices:
        """Return which samples they are, given how many positions each has."""
        return self.rows[:, 0] // n_positions


class MaskedSamples:
    """Which positions of a batch's samples count.

    Args:
        mask: Shape `(N, T)`, or with further axes of positions: True, or not 0, where a position
            counts. `(1, T)` and `(T,)` hold for each sample of a batch.

    Raises:
        TypeError: It holds no numbers.
        ValueError: It has no axis, or numbers below 0.

    Attributes:
        keep: bool, of the mask's shape.
        keeps_all: Whether all positions count.

    Examples:
        >>> masked = MaskedSamples([[1, 1, 0], [1, 0, 0], [0, 1, 1]])
        >>> [(kept.rows.tolist(), kept.sizes) for kept in masked.kept]
        [([[3]], (1,)), ([[0, 1], [7, 8]], (2,))]
    """

    def __init__(self, mask: npt.ArrayLike) -> None:
        keep = _as_bool(np.asarray(mask))
        if keep.ndim > 2:
            # Masks of scores have axes for heads and queries.
            sizes = [size for size in keep.shape[1:] if size != 1] or [1]
            keep = keep.reshape(len(keep), *sizes)
        self.keep = keep[None] if keep.ndim == 1 else keep
        self.keeps_all = bool(keep.all())
        self._kept: dict[int, list[Kept]] = {}

    @property
    def n_samples(self) -> int | None:
        """How many samples it is of; None where it holds for any number."""
        return None if len(self.keep) == 1 else len(self.keep)

    @property
    def n_kept(self) -> int:
        """How many positions count."""
        return int(self.keep.sum())

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many positions it has along each axis."""
        return self.keep.shape[1:]

    @property
    def kept(self) -> list[Kept]:
        """What the samples keep, for each form that there is; nothing of those that keep none."""
        return self.kept_of(len(self.keep))

    def first(self, n_samples: int) -> "MaskedSamples":
        """Return the mask of the first samples alone."""
        return self if len(self.keep) == 1 else MaskedSamples(self.keep[:n_samples])

    def kept_of(self, n_samples: int) -> list[Kept]:
        """Return `kept` of a batch of so many samples, where the mask holds for any number."""
        found = self._kept.get(n_samples)
        if found is None:
            keep = np.broadcast_to(self.keep, (n_samples, *self.sizes))
            found = self._kept[n_samples] = list(_kept(keep))
        return found

    def places_in(
        self, shape: Sequence[int], channel_axis: Axis, sample_axis: int | None
    ) -> list["MaskPlace"]:
        """Return where the mask may lie in activations, the likeliest first; empty: it doesn't fit.

        Args:
            shape: Of the activations.
            channel_axis: The axis of the neurons, or several.
            sample_axis: What is taken for the axis of the samples, if any is.
        """
        taken, n_samples = normal_axes(channel_axis, shape), self.n_samples
        others = [axis for axis in range(len(shape)) if axis not in taken]
        # What is taken for the samples' axis may be that of time.
        candidates: list[int | None] = [sample_axis, *others]
        if n_samples is None:
            candidates.insert(1, None)
        else:
            candidates = [a for a in candidates if a is not None and shape[a] == n_samples]
        found = (self._along(shape, axis, [a for a in others if a != axis]) for axis in candidates)
        return next(filter(None, found), [])

    def concerns(self, shape: Sequence[int], channel_axis: Axis, sample_axis: int | None) -> bool:
        """Tell whether activations have positions that it may mask.

        One state for each sample, as behind a pooling layer, is of no position.
        """
        taken = {*normal_axes(channel_axis, shape), sample_axis}
        rest = [size for axis, size in enumerate(shape) if axis not in taken]
        if rest or self.n_samples is None or sample_axis is None:
            return math.prod(rest) != 1
        # Rows without padding, of all samples together, have none.
        return shape[sample_axis] not in (self.n_samples, self.n_kept)

    def _along(
        self, shape: Sequence[int], sample_axis: int | None, axes: list[int]
    ) -> list["MaskPlace"]:
        width = len(self.sizes)
        runs = [tuple(axes[at : at + width]) for at in range(len(axes) - width + 1)]
        fitting = [run for run in runs if tuple(shape[axis] for axis in run) == self.sizes]
        return [MaskPlace(sample_axis, run) for run in fitting]


class MaskPlace(NamedTuple):
    """Where a mask lies in activations.

    Attributes:
        sample_axis: The axis of its samples; None where there is one sample.
        axes: The axes of its positions.
    """

    sample_axis: int | None
    axes: tuple[int, ...]

    def parts(
        self, activations: Any, channel_axis: Axis, masked: MaskedSamples, take: Take
    ) -> Iterator[tuple[Any, Axis, Indices | None]]:
        """Yield what is left of the activations, the axis of the neurons, and which samples it is.

        Samples lie along axis 0; which ones is None where there is one, that may be all of them.

        Args:
            activations: A NumPy array, or a tensor with `permute`.
            channel_axis: The axis of the neurons, or several.
            masked: The mask.
            take: Takes entries along axis 0.
        """
        shape = tuple(activations.shape)
        neurons = normal_axes(channel_axis, shape)
        samples = () if self.sample_axis is None else (self.sample_axis,)
        rest = [a for a in range(len(shape)) if a not in {*neurons, *samples, *self.axes}]
        moved = _permuted(activations, (*samples, *self.axes, *rest, *neurons))
        further = tuple(shape[axis] for axis in (*rest, *neurons))
        n_samples, n_positions = math.prod(shape[a] for a in samples), math.prod(masked.sizes)
        rows = moved.reshape(n_samples * n_positions, *further)
        # Positions keep the order of their axes: which of them are read depends on it.
        n_before = sum(axis < self.axes[0] for axis in rest)
        for kept in masked.kept_of(n_samples):
            some = take(rows, kept.rows.reshape(-1))
            some = some.reshape(len(kept.rows), *kept.sizes, *further)
            axes = list(range(some.ndim))
            n_own = len(kept.sizes)
            own, others = axes[1 : 1 + n_own], axes[1 + n_own :]
            some = _permuted(some, (0, *others[:n_before], *own, *others[n_before:]))
            last = tuple(range(-len(neurons), 0))
            which = kept.samples(n_positions) if samples else None
            yield some, last[0] if isinstance(channel_axis, int) else last, which


def check_mask(mask: Mask) -> Mask:
    """Return the argument `mask`, or say what is wrong with it.

    Raises:
        TypeError: It is no key, no callable and no array of numbers.
        ValueError: It is an array without axes, or with numbers below 0.
    """
    if not (mask is None or isinstance(mask, str) or callable(mask)):
        if isinstance(mask, Mapping):
            raise TypeError(_what_it_takes(mask))
        array = np.asarray(mask)
        if array.dtype.kind not in "biuf":
            raise TypeError(_what_it_takes(mask))
        _as_bool(array)
    elif mask == "":
        raise ValueError("mask is an empty key: name a key of the batch, or leave it out")
    return mask


def is_array(mask: Mask) -> bool:
    """Tell whether `mask` is one of all samples, in their order."""
    return not (mask is None or isinstance(mask, str) or callable(mask))


def has_rows(mask: Mask) -> bool:
    """Tell whether `mask` is an array with a row for each sample, which only their order tells."""
    return is_array(mask) and MaskedSamples(np.asarray(mask)).n_samples is not None


def _what_it_takes(mask: object) -> str:
    return (
        'mask takes a key of the batch ("attention_mask"), a callable (name, batch) -> mask, an '
        f"array of True and False, (samples, positions), or None; got {mask!r}"
    )


def _as_bool(array: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"a mask holds True or False, or 1 and 0, for each position; got {array.dtype}"
        )
    if not array.ndim:
        raise ValueError("a mask has an axis of positions; got a single number")
    if array.dtype.kind != "b" and bool((array < 0).any()):
        raise ValueError(
            "a mask is True, or 1, where a position counts; this one has numbers below 0, as masks "
            "that are added to scores: give mask == 0 in its place"
        )
    return np.asarray(array != 0)


def _kept(keep: npt.NDArray[np.bool_]) -> Iterator[Kept]:
    n_samples, *sizes = keep.shape
    n_positions = math.prod(sizes)
    flat = keep.reshape(n_samples, n_positions)
    # Along each axis, how many entries keep anything: their product is that of a box.
    axes = range(1, keep.ndim)
    along = [keep.any(axis=tuple(a for a in axes if a != axis)) for axis in axes]
    extents = np.stack([each.sum(axis=1) for each in along], axis=1)
    numbers = flat.sum(axis=1)
    is_box = extents.prod(axis=1) == numbers
    forms = np.column_stack([is_box, np.where(is_box[:, None], extents, 0), numbers])
    unique, which = np.unique(forms, axis=0, return_inverse=True)
    which = which.reshape(-1)
    for number, (box, *extent, n_kept) in enumerate(unique.tolist()):
        if n_kept:
            samples = np.flatnonzero(which == number)
            columns = np.nonzero(flat[samples])[1].reshape(len(samples), n_kept)
            rows = samples[:, None] * n_positions + columns
            yield Kept(rows, tuple(extent) if box else (n_kept,))


def _permuted(array: Any, axes: tuple[int, ...]) -> Any:
    return getattr(array, "permute", array.transpose)(*axes)
