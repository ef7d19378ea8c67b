"""Threshold, pack and count states on the device that they lie on."""

import math
from collections.abc import Callable, Hashable, Iterable
from functools import lru_cache
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from tensorstate_callbacks.torch import fused

# What the plain operations take besides, at a time.
MOST_BYTES = 64 << 20
# Where sizes vary without end, all places on a device are forgotten now and then.
_MOST_KEPT = 4096
_WIDER = {torch.uint16: torch.int64, torch.uint32: torch.int64}

# A device and what the numbers depend on.
_Key: TypeAlias = tuple[torch.device, Hashable, Hashable, Hashable]


class DeviceStates:
    """Packs or counts the states of activations where they lie, at all positions or some.

    What isn't read isn't touched, nothing is copied to the host, and nobody waits. Where Triton
    drives the device one kernel does all of it, else torch's own operations do the same.

    Args:
        threshold: A neuron fires where its activation is above it; finite. The comparison is exact.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._kept: dict[_Key, list[torch.Tensor]] = {}

    def pack(
        self, values: torch.Tensor, places: npt.NDArray[np.intp] | None, rows: torch.Tensor
    ) -> None:
        """Write the states of a batch.

        Args:
            values: Real numbers of shape `(samples, *grid, neurons)`, any strides.
            places: Indices into the grid's positions, in C order; None packs all.
            rows: Shape `(samples * places, ceil(neurons / 8))`, uint8, contiguous; what
                `StateCounter.update_packed` takes.

        Raises:
            TypeError: This kind of number can't be compared on devices.
        """
        if fused.takes(values):
            span = fused.firing_span(self._threshold, values.dtype)
            if fused.pack(values, self._layout(values, places), span, rows):
                return
        pack(self._chosen(values, places), self._threshold, rows)

    def count(
        self,
        values: torch.Tensor,
        places: npt.NDArray[np.intp] | None,
        unit_size: int,
        counts: torch.Tensor,
    ) -> None:
        """Add how often each unit of a batch was in each state, as one step on the device.

        Args:
            values: As for `pack`.
            places: As for `pack`.
            unit_size: Neurons of a unit, at most those of the layer.
            counts: int64, as `GroupCounter.tables` orders them.

        Raises:
            TypeError: This kind of number can't be compared on devices.
        """
        if fused.takes(values):
            span = fused.firing_span(self._threshold, values.dtype)
            if fused.count(values, self._layout(values, places), span, unit_size, counts):
                return
        count(self._chosen(values, places), self._threshold, unit_size, counts)

    def _chosen(self, values: torch.Tensor, places: npt.NDArray[np.intp] | None) -> torch.Tensor:
        if places is None:
            return values
        grid = tuple(values.shape[1:-1])
        indices = self._on_device(
            (values.device, grid, None, len(places)), lambda: np.unravel_index(places, grid)
        )
        at: tuple[slice | torch.Tensor, ...] = (slice(None), *indices)
        return values[at]

    def _layout(self, values: torch.Tensor, places: npt.NDArray[np.intp] | None) -> fused.Positions:
        grid, strides = tuple(values.shape[1:-1]), values.stride()[1:-1]
        if places is None:
            stride = _one_stride(grid, strides)
            if stride is not None:
                return fused.Positions(math.prod(grid), stride)
            places = np.arange(math.prod(grid))

        def offsets() -> list[npt.NDArray[np.int64]]:
            axes = zip(np.unravel_index(places, grid), strides, strict=True)
            return [np.sum([along * stride for along, stride in axes], axis=0)]

        key = values.device, grid, strides, len(places)
        return fused.Positions(len(places), offsets=self._on_device(key, offsets)[0])

    def _on_device(
        self,
        key: _Key,
        make: Callable[[], Iterable[npt.NDArray[np.int64]]],
    ) -> list[torch.Tensor]:
        """Return numbers on the device, which are moved there once: that waits for it."""
        found = self._kept.get(key)
        if found is None:
            if len(self._kept) >= _MOST_KEPT:
                # Other streams may not have read them yet.
                getattr(getattr(torch, key[0].type), "synchronize", lambda: None)()
                self._kept.clear()
            found = self._kept[key] = [_made(each, key[0]) for each in make()]
        return found


def pack(values: torch.Tensor, threshold: float, rows: torch.Tensor) -> None:
    """Write the states of activations by torch's own operations.

    Args:
        values: Real numbers of any shape, with strided memory; the neurons are the last axis.
        threshold: A neuron fires where its activation is above it; finite. The comparison is exact.
        rows: Shape `(positions, ceil(neurons / 8))`, uint8, contiguous: neuron 0 is bit 0 of byte
            0.

    Raises:
        TypeError: This kind of number can't be compared on devices.
    """
    by_position = rows.view(*values.shape[:-1], rows.shape[-1]).zero_()
    _add_bits(_fired(values, threshold), 8, by_position)


def count(values: torch.Tensor, threshold: float, unit_size: int, counts: torch.Tensor) -> None:
    """Add how often each unit was in each state, by torch's own operations.

    Args:
        values: As for `pack`.
        threshold: As for `pack`.
        unit_size: Neurons of a unit, at most those of the layer.
        counts: int64, as `GroupCounter.tables` orders them.

    Raises:
        TypeError: This kind of number can't be compared on devices.
    """
    n_neurons = values.shape[-1]
    n_units = -(-n_neurons // unit_size)
    parts = _parts(values, max(1, MOST_BYTES // (n_neurons + 8 * n_units)))
    # An interrupt between two parts must not leave a batch half counted.
    found = counts if len(parts) == 1 else torch.zeros_like(counts)
    first = torch.arange(n_units, device=counts.device) << unit_size
    one = torch.ones((), dtype=torch.int64, device=counts.device)
    for part in parts:
        codes = first.repeat(*part.shape[:-1], 1)
        _add_bits(_fired(part, threshold), unit_size, codes)
        # Not bincount: it waits for the device, to see how many counts there are to be.
        found.scatter_add_(0, codes.flatten(), one.expand(codes.numel()))
    if found is not counts:
        counts.add_(found)


def _add_bits(fired: torch.Tensor, unit_size: int, codes: torch.Tensor) -> None:
    fired = fired.view(torch.uint8)
    # Neurons with the same place in their unit lie evenly, so there is nothing to pad.
    for bit in range(min(unit_size, fired.shape[-1])):
        column = fired[..., bit::unit_size]
        codes[..., : column.shape[-1]].add_(column, alpha=1 << bit)


def _parts(values: torch.Tensor, most_rows: int) -> list[torch.Tensor]:
    sizes = values.shape[:-1]
    n_rows = math.prod(sizes)
    if n_rows <= most_rows:
        return [values]
    longest = sizes.index(max(sizes))
    parts = values.tensor_split(min(sizes[longest], -(-n_rows // most_rows)), longest)
    return [smaller for part in parts for smaller in _parts(part, most_rows)]


@torch.inference_mode(False)
def _made(values: npt.NDArray[np.int64], device: torch.device) -> torch.Tensor:
    """Return a tensor that is of use inside inference mode and outside."""
    return torch.tensor(values, dtype=torch.int64, device=device)


def _one_stride(grid: tuple[int, ...], strides: tuple[int, ...]) -> int | None:
    """Return how far apart positions lie in memory if that is the same for all; else None."""
    axes = [(size, stride) for size, stride in zip(grid, strides, strict=True) if size != 1]
    for (_, outer), (size, inner) in pairwise(axes):
        if outer != size * inner:
            return None
    return axes[-1][1] if axes else 0


def _fired(tensor: torch.Tensor, threshold: float) -> torch.Tensor:
    dtype = _WIDER.get(tensor.dtype, tensor.dtype)
    if dtype == torch.uint64:
        raise TypeError("its activations are uint64, which devices can't compare: use output_fn")
    if dtype == torch.bool:
        dtype = torch.uint8
    if dtype.is_floating_point:
        if dtype.itemsize == 1:
            dtype = torch.float32
        return tensor.to(dtype) > _rounded_down(threshold, dtype)
    limits, whole = torch.iinfo(dtype), math.floor(threshold)
    if not limits.min <= whole < limits.max:
        return torch.full_like(tensor, whole < limits.min, dtype=torch.bool)
    return tensor.to(dtype) > whole


@lru_cache(maxsize=64)
def _rounded_down(threshold: float, dtype: torch.dtype) -> float:
    """The greatest number of the dtype up to the threshold: what is above one is above the other.

    Left to itself, torch would round to the nearest: float32's 0.1 is greater than 0.1.
    """
    key, _ = fused.firing_span(threshold, dtype)
    bits = -key - 1 if key < 0 else key
    # bfloat16 is the upper half of float32.
    n_bytes, bits = (4, bits << 16) if dtype == torch.bfloat16 else (dtype.itemsize, bits)
    size = float(np.array(bits, f"u{n_bytes}").view(f"f{n_bytes}"))
    return -size if key < 0 else size
