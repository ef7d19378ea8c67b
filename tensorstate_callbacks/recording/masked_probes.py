"""Take masked positions out of what probes see, and tell of those where that can't be done."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from tensorstate_callbacks.errors import list_some
from tensorstate_callbacks.recording.channel_axis import Axis, normal_axes
from tensorstate_callbacks.recording.masks import Indices, MaskedSamples, MaskPlace, Take


def _take(array: Any, indices: Indices) -> Any:
    return np.take(array, indices, axis=0)


class MaskedPart(NamedTuple):
    """What is to be counted of what a probe saw.

    Attributes:
        activations: An array or tensor.
        channel_axis: The axis of the neurons, or several.
        sample_axis: The axis of the samples; None where there is one sample.
        samples: Which of the batch's samples it holds, in order; None: all.
    """

    activations: Any
    channel_axis: Axis
    sample_axis: int | None
    samples: Indices | None = None


class MaskedProbes:
    """Takes masked positions out of what probes see, and notes where that can't be done.

    Args:
        take: Takes entries along axis 0 of an array or a tensor.
    """

    def __init__(self, take: Take = _take) -> None:
        self._take = take
        self._axes: dict[str, set[tuple[int, ...]]] = {}
        self._unfit: dict[str, str] = {}
        self._ambiguous: dict[str, str] = {}

    def parts(
        self,
        probe: str,
        activations: Any,
        channel_axis: Axis,
        sample_axis: int | None,
        masked: MaskedSamples,
    ) -> Iterator[MaskedPart]:
        """Yield what is to be counted.

        Args:
            probe: The probe.
            activations: What it saw in one call.
            channel_axis: The axis of the neurons, or several.
            sample_axis: What is taken for the axis of the samples, if any is.
            masked: Which positions count.
        """
        shape = tuple(activations.shape)
        places = masked.places_in(shape, channel_axis, sample_axis)
        if not places:
            # Several rows of each sample, one after the other: tokens, or heads.
            divided = _divided(shape, channel_axis, masked.n_samples)
            places = masked.places_in(*divided, 0) if divided else []
            if divided and places:
                (shape, channel_axis), sample_axis = divided, 0
                activations = activations.reshape(shape)
        place = self._choose(probe, places) if places else None
        if masked.keeps_all or place is None:
            if not masked.keeps_all and masked.concerns(shape, channel_axis, sample_axis):
                self._unfit.setdefault(probe, f"{probe} {shape}")
            # What a whole mask tells is which axis the samples lie along.
            along = sample_axis if place is None else place.sample_axis
            yield MaskedPart(activations, channel_axis, along)
            return
        if len(places) > 1 and self._known(probe, places) != [place]:
            axes = " or ".join(str(each.axes[0]) for each in places)
            self._ambiguous.setdefault(probe, f"{probe} {shape}, axis {axes}")
        for part, axis, samples in place.parts(activations, channel_axis, masked, self._take):
            yield MaskedPart(part, axis, 0, samples)

    def _choose(self, probe: str, places: list[MaskPlace]) -> MaskPlace:
        """Return the place that earlier batches showed, where several are possible."""
        if len(places) == 1:
            self._axes.setdefault(probe, set()).add(places[0].axes)
        return (self._known(probe, places) or places)[0]

    def _known(self, probe: str, places: list[MaskPlace]) -> list[MaskPlace]:
        return [place for place in places if place.axes in self._axes.get(probe, ())]

    def warnings(self, without: Iterable[str] = ()) -> dict[str, str]:
        """Return what is to be warned of: kinds to texts.

        Args:
            without: Probes that don't count any more.
        """
        texts = {}
        unfit = [text for probe, text in self._unfit.items() if probe not in without]
        if unfit:
            texts["mask"] = (
                f"the mask of padding doesn't fit the positions of {list_some(unfit)}, so all of "
                "them were counted, and efficiency depends on how batches are padded. Give "
                "mask=(name, batch) -> mask, a mask of these layers' own positions, or exclude them"
            )
        ambiguous = [text for probe, text in self._ambiguous.items() if probe not in without]
        if ambiguous:
            texts["mask axis"] = (
                f"the mask of padding fits several axes of {list_some(ambiguous)}; the first was "
                "taken. Give mask=(name, batch) -> mask with all axes of positions there"
            )
        return texts


def _divided(
    shape: tuple[int, ...], channel_axis: Axis, n_samples: int | None
) -> tuple[tuple[int, ...], Axis] | None:
    """Return the shape in which the rows of a sample have an axis of their own."""
    axes = normal_axes(channel_axis, shape)
    if n_samples is None or 0 in axes or shape[0] % n_samples:
        return None
    further = tuple(axis + 1 for axis in axes)
    axis = further[0] if isinstance(channel_axis, int) else further
    return (n_samples, shape[0] // n_samples, *shape[1:]), axis
