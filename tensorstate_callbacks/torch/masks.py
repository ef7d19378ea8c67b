"""Take masked positions out of what probes see: by an array, a batch, or the modules' calls."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import nn

from tensorstate_callbacks.errors import ProbeError, list_some
from tensorstate_callbacks.recording.channel_axis import Axis, normal_axes
from tensorstate_callbacks.recording.masks import (
    AUTO,
    Indices,
    Mask,
    MaskedProbes,
    MaskedSamples,
    is_array,
)
from tensorstate_callbacks.torch.activations import count_samples, strided
from tensorstate_callbacks.torch.call_masks import CallMasks, ReadMasks
from tensorstate_callbacks.torch.hooks import Hooks
from tensorstate_callbacks.torch.packed import find_packed, packed_rows
from tensorstate_callbacks.torch.padding import DATA_MASKS, PADDING_MASKS

# Activations, the axis of the neurons and that of the samples.
Part: TypeAlias = tuple[torch.Tensor, Axis, int | None]


class Seen(NamedTuple):
    """What a probe saw in one call.

    Attributes:
        probe: The probe.
        layer: Its layer.
        channel_axis: The axis of the neurons, or several.
        sample_axis: What is taken for the axis of the samples, if any is.
        n_own: So many of the batch's samples are left in it; None where all are.
        source: What the layer was given.
    """

    probe: str
    layer: str
    channel_axis: Axis
    sample_axis: int | None
    n_own: int | None
    source: torch.Tensor | None


class Masks:
    """The masks of one recording.

    Args:
        mask: The argument of that name.
        model: The model.
    """

    def __init__(self, mask: Mask, model: nn.Module) -> None:
        self._mask = mask
        self._array = MaskedSamples(np.asarray(mask)) if is_array(mask) else None
        # Samples that came before this batch, and that it has.
        self._n_before = self._n_now = 0
        self._batch: Any = None
        self._read = ReadMasks()
        names: frozenset[str] = frozenset()
        if isinstance(mask, str):
            names = DATA_MASKS | PADDING_MASKS if mask == AUTO else frozenset({mask})
        self._calls = CallMasks(model, names)
        self._probes = MaskedProbes(_take)
        # What was counted whole in this run, and what of it should not have been.
        self._whole: dict[str, tuple[tuple[int, ...], Axis, int | None]] = {}
        self._late: dict[str, None] = {}

    @property
    def is_on(self) -> bool:
        """Whether there may be masks, so that each call is to be looked at."""
        return self._mask is not None or self._calls.has_recurrent

    def add_hooks(self, hooks: Hooks, active: Callable[[], bool]) -> None:
        """Watch the calls that tell of masks.

        Args:
            hooks: What the hooks are of; it removes them.
            active: Calls are looked at only while it gives True.
        """
        if self._mask is None or isinstance(self._mask, str):
            self._calls.add_hooks(hooks, active, self._note_late)

    def begin_batch(self, batch: Any, n_samples: int | None) -> None:
        """Take the batch that comes.

        Args:
            batch: What the mask is asked for with; None where it isn't known.
            n_samples: How many samples it has, where that is known.
        """
        self._calls.begin()
        self._whole.clear()
        self._batch = batch
        self._n_before += self._n_now
        self._n_now = n_samples or 0
        for part in _mappings(batch):
            labels = part.get("labels")
            if isinstance(labels, torch.Tensor) and labels.ndim == 2:
                self._calls.labels = labels

    def begin_run(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Take the model's call for the batch that comes."""
        batch = args[0] if len(args) == 1 and not kwargs else _arguments(module, args, kwargs)
        self.begin_batch(batch, count_samples(args, kwargs))

    def parts(self, tensor: torch.Tensor, seen: Seen) -> Iterable[Part]:
        """Return what is to be counted: activations, the axis of neurons and that of samples.

        Args:
            tensor: Activations.
            seen: Whose they are.

        Raises:
            ProbeError: There is no such mask; says what there is.
        """
        axes = seen.channel_axis, seen.sample_axis
        masked = self._find(seen, tuple(tensor.shape))
        if masked is None:
            self._whole[seen.probe] = tuple(tensor.shape), *axes
            return [(tensor, *axes)]
        if seen.n_own is not None:
            masked = masked.first(seen.n_own)
        return self._probes.parts(seen.probe, tensor, *axes, masked)

    def packed_parts(
        self, value: Any, tensor: torch.Tensor, channel_axis: Axis, n_own: int | None
    ) -> Iterator[Part] | None:
        """Return what `parts` does of the data of a PackedSequence; None of another tensor.

        Args:
            value: What the layer took or gave.
            tensor: Activations that were found in it.
            channel_axis: The axis of the neurons, or several.
            n_own: So many of the batch's samples count; None: all.
        """
        packed = find_packed(value) if self._calls.has_recurrent else None
        if packed is None or tensor is not packed.data:
            return None
        data, axes = strided(tensor), normal_axes(channel_axis, tensor.shape)
        further = tuple(axis + 1 for axis in axes)
        axis = further[0] if isinstance(channel_axis, int) else further
        # Sequences of one length at a time: their positions are their own.
        return (
            (_take(data, rows.reshape(-1)).reshape(*rows.shape, *data.shape[1:]), axis, 0)
            for rows in packed_rows(packed).kept(n_own)
        )

    def warnings(self, without: Iterable[str] = ()) -> dict[str, str]:
        """Return what is to be warned of at the end of a pass: kinds to texts.

        Args:
            without: Probes that don't count any more.
        """
        gone = frozenset(without)
        texts = self._probes.warnings(gone)
        late = [probe for probe in self._late if probe not in gone]
        if late:
            texts["late mask"] = (
                f"that some positions are padding was known only after {list_some(late)} had been "
                "counted with them, so efficiency depends on how batches are padded. Give mask=: a "
                "key of the batch, or (name, batch) -> mask"
            )
        n_all = None if self._array is None else self._array.n_samples
        n_came = self._n_before + self._n_now
        if n_all is not None and n_came < n_all:
            texts["mask samples"] = (
                f"mask has {n_all} samples, and {n_came} came: a mask has one row for each sample "
                "of the evaluation, in their order. Give mask=(name, batch) -> mask otherwise"
            )
        return texts

    def _find(self, seen: Seen, shape: tuple[int, ...]) -> MaskedSamples | None:
        mask = self._mask
        if self._array is not None:
            return self._rows_of(self._array)
        if callable(mask):
            made = mask(seen.layer, self._batch)
            return None if made is None else self._read.given(made)
        if self._calls.has_seen or not isinstance(mask, str) or mask == AUTO:
            return self._calls.of(shape, seen.channel_axis, seen.sample_axis, seen.source)
        found = [part[mask] for part in _mappings(self._batch) if mask in part]
        if not found and not self._calls.has_modules:
            keys = [str(key) for part in _mappings(self._batch) for key in part]
            raise ProbeError(
                f"mask={mask!r}: the batch has no such key "
                f"({list_some(keys) if keys else 'it is no mapping'}), and no layer takes an "
                "argument of that name. Take batches from recording.batches(loader) if they have "
                "it, or give mask=(name, batch) -> mask"
            )
        return self._read.given(found[0]) if found and found[0] is not None else None

    def _rows_of(self, array: MaskedSamples) -> MaskedSamples:
        if array.n_samples is None:
            return array
        end = self._n_before + self._n_now
        if not self._n_now:
            raise ProbeError(
                "mask is an array, and how many samples a batch has isn't known: call the model "
                "that is recorded, or take batches from recording.batches(loader)"
            )
        if end > array.n_samples:
            raise ProbeError(
                f"mask has {array.n_samples} samples, and {end} came so far: a mask has one row "
                "for each sample of the evaluation, in their order. Give mask=(name, batch) -> "
                "mask otherwise"
            )
        return MaskedSamples(array.keep[self._n_before : end])

    def _note_late(self, masked: MaskedSamples) -> None:
        for probe, (shape, channel_axis, sample_axis) in self._whole.items():
            if masked.places_in(shape, channel_axis, sample_axis):
                self._late[probe] = None


def _take(tensor: torch.Tensor, indices: Indices) -> torch.Tensor:
    return tensor.index_select(0, torch.from_numpy(indices).to(tensor.device))


def _mappings(batch: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the mappings among what a batch is, or is made of."""
    for part in (batch, *(batch if isinstance(batch, (tuple, list)) else ())):
        if isinstance(part, Mapping):
            yield part


def _arguments(module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a call's arguments by the names of the parameters."""
    try:
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return dict(kwargs)
    named = dict(bound.arguments)
    for parameter in bound.signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            named |= named.pop(parameter.name, {})
    return named
