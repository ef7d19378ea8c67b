"""Take masked positions out of what probes see: by an array, a batch, or the modules' calls."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import nn

from tensorstate_callbacks.errors import ProbeError, list_some
from tensorstate_callbacks.recording.channel_axis import Axis, normal_axes
from tensorstate_callbacks.recording.masked_probes import MaskedPart, MaskedProbes
from tensorstate_callbacks.recording.masks import (
    AUTO,
    Indices,
    Mask,
    MaskedSamples,
    is_array,
)
from tensorstate_callbacks.torch.activations import count_samples, strided
from tensorstate_callbacks.torch.call_masks import CallMasks, ReadMasks
from tensorstate_callbacks.torch.hooks import Hooks
from tensorstate_callbacks.torch.packed import find_packed, packed_rows
from tensorstate_callbacks.torch.padding import DATA_MASKS, PADDING_MASKS

NO_MASKS = "no masks"
"""The kind of the warning that there are no masks to be found."""

# Activations, the axis of the neurons and that of the samples.
View: TypeAlias = tuple[torch.Tensor, Axis, int | None]


class _Form(NamedTuple):
    """The form of a tensor, as it came and as it is counted without a mask.

    Attributes:
        shape: As it came.
        channel_axis: Of that.
        by_sample: Shape, axis of the neurons and axis of the samples as it is counted.
    """

    shape: tuple[int, ...]
    channel_axis: Axis
    by_sample: tuple[tuple[int, ...], Axis, int | None]

    def takes(self, masked: MaskedSamples, *, divided: bool = True) -> bool:
        """Tell whether a mask lies in it as it came, or also as it is divided by samples."""
        if masked.places_in(self.shape, self.channel_axis, 0):
            return True
        return divided and bool(masked.places_in(*self.by_sample))


class Seen(NamedTuple):
    """What a probe saw in one call.

    Attributes:
        probe: The probe.
        layer: Its layer.
        tensor: Activations.
        channel_axis: The axis of their neurons, or several.
        by_sample: How they are counted without a mask; see `BatchRows.by_sample`.
        n_own: So many of the batch's samples are left in it; None where all are.
        source: What the layer was given.
    """

    probe: str
    layer: str
    tensor: torch.Tensor
    channel_axis: Axis
    by_sample: View
    n_own: int | None
    source: torch.Tensor | None

    @property
    def form(self) -> _Form:
        """Its form, without the tensor."""
        view, axis, samples = self.by_sample
        counted = tuple(view.shape), axis, samples
        return _Form(tuple(self.tensor.shape), self.channel_axis, counted)


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
        # An array has no truth value to compare with.
        self._is_auto = isinstance(mask, str) and mask == AUTO
        self._asks = callable(mask) or (isinstance(mask, str) and not self._is_auto)
        self._read = ReadMasks()
        names: frozenset[str] = frozenset()
        if isinstance(mask, str):
            names = DATA_MASKS | PADDING_MASKS if self._is_auto else frozenset({mask})
        self._calls = CallMasks(model, names)
        self._probes = MaskedProbes(_take)
        # What was counted whole in this run, and what of it should not have been.
        self._whole: dict[str, _Form] = {}
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
        # Held for as long as it may be asked for only.
        self._batch = batch if self._asks else None
        self._n_before += self._n_now
        self._n_now = n_samples or 0
        for part in _mappings(batch):
            labels = part.get("labels")
            if isinstance(labels, torch.Tensor) and labels.ndim == 2:
                self._calls.labels = labels

    def end(self) -> None:
        """Take no further batch; nothing of the last one is held any more."""
        self.begin_batch(None, None)

    def begin_run(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Take the model's call for the batch that comes."""
        if not self.is_on:
            return
        self.begin_batch(called_batch(module, args, kwargs), count_samples(args, kwargs))

    def parts(self, seen: Seen) -> Iterable[MaskedPart]:
        """Return what is to be counted.

        Args:
            seen: What a probe saw.

        Raises:
            ProbeError: There is no such mask; says what there is.
        """
        masked = self._find(seen)
        if masked is None:
            self._whole[seen.probe] = seen.form
            return [MaskedPart(*seen.by_sample)]
        if seen.n_own is not None:
            masked = masked.first(seen.n_own)
        # As it came, samples may lie along another axis than 0.
        as_it_came = seen.form.takes(masked, divided=False)
        part = (seen.tensor, seen.channel_axis, 0) if as_it_came else seen.by_sample
        return self._probes.parts(seen.probe, *part, masked)

    def packed_parts(
        self, value: Any, tensor: torch.Tensor, channel_axis: Axis, n_own: int | None
    ) -> Iterator[MaskedPart] | None:
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
            MaskedPart(
                _take(data, rows.reshape(-1)).reshape(*rows.shape, *data.shape[1:]),
                axis,
                0,
                samples,
            )
            for rows, samples in packed_rows(packed).kept(n_own)
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
        if self._is_auto and not (self._calls.has_modules or self._calls.has_recurrent):
            texts[NO_MASKS] = (
                'mask="auto": no layer takes a mask under a usual name (attention_mask, '
                "key_padding_mask, padding_mask...), so all positions are counted. Give the name "
                "of the argument or a key of the batch, or (name, batch) -> mask"
            )
        n_all = None if self._array is None else self._array.n_samples
        n_came = self._n_before + self._n_now
        if n_all is not None and n_came < n_all:
            texts["mask samples"] = (
                f"mask has {n_all} samples, and {n_came} came: a mask has one row for each sample "
                "of the evaluation, in their order. Give mask=(name, batch) -> mask otherwise"
            )
        return texts

    def _find(self, seen: Seen) -> MaskedSamples | None:
        mask = self._mask
        if self._array is not None:
            return self._rows_of(self._array)
        if callable(mask):
            made = mask(seen.layer, self._batch)
            return None if made is None else self._read.given(made)
        if self._calls.has_seen or not isinstance(mask, str) or self._is_auto:
            return self._calls.of(seen.form.takes, seen.source)
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
        late = [probe for probe, form in self._whole.items() if form.takes(masked)]
        self._late |= dict.fromkeys(late)


def _take(tensor: torch.Tensor, indices: Indices) -> torch.Tensor:
    return tensor.index_select(0, torch.from_numpy(indices).to(tensor.device))


def _mappings(batch: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the mappings among what a batch is, or is made of."""
    for part in (batch, *(batch if isinstance(batch, (tuple, list)) else ())):
        if isinstance(part, Mapping):
            yield part


def called_batch(module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """Return what a model is called with as a batch: one argument, or all by their names."""
    return args[0] if len(args) == 1 and not kwargs else _arguments(module, args, kwargs)


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
