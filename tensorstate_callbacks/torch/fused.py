"""Threshold, pack and count in one kernel, where Triton drives the device.

Activations are compared as integers, whose order is that of the numbers they stand for, so that no
rounding and no flushing of the smallest numbers to zero can change a bit.
"""

# Triton reads the text of annotations.
from __future__ import annotations

import math
import os
import sys
import warnings
from functools import lru_cache
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import torch

from tensorstate_callbacks.errors import TensorStateWarning
from tensorstate_callbacks.states.counter import firing_range

# Triton's language, from the first kernel on: to import it takes a third of a second.
tl: Any = None
_has_failed = False

_KINDS = {torch.float64: "f8", torch.float32: "f4", torch.float16: "f2", torch.bfloat16: "u2"}
_INTEGERS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
# Up to here a unit's counts are first made by each program for itself.
_MOST_BINS = 1024
# Programs that share the rows of all units: enough for every processor of a device.
_PROGRAMS = 2048
# Rows that a program takes at a time.
_ROWS = 512


class Positions(NamedTuple):
    """Where the positions of a sample that are read lie in memory, in entries from its first.

    Attributes:
        number: How many there are.
        stride: From one to the next, where that is always the same.
        offsets: Of each, int64, on the device; None where there is a stride.
    """

    number: int
    stride: int = 0
    offsets: torch.Tensor | None = None


def takes(values: torch.Tensor) -> bool:
    """Tell whether there is a kernel for activations of shape `(samples, *grid, neurons)`."""
    return (
        _is_driven(values.device)
        and not _has_failed
        and values.dtype in _INTEGERS
        and math.prod(values.shape[:-1]) < 2**31
        and not values.is_neg()
        and _kernel() is not None
    )


@lru_cache(maxsize=64)
def firing_span(threshold: float, dtype: torch.dtype) -> tuple[int, int]:
    """Return the keys between which a neuron fires: above the first, up to the second.

    Args:
        threshold: Finite.
        dtype: bfloat16, float16, float32 or float64.
    """
    kind = np.dtype(_KINDS[dtype])
    is_negative, first, number = firing_range(kind, threshold, dtype == torch.bfloat16)
    infinity = (first + number - 1) % (1 << 8 * kind.itemsize)
    # Keys of negative numbers are less by one here: -0.0 has one of its own.
    return infinity - number - is_negative, infinity


def pack(
    values: torch.Tensor, positions: Positions, span: tuple[int, int], rows: torch.Tensor
) -> bool:
    """Write packed states; False where that failed.

    Args:
        values: Activations that `takes` is true of.
        positions: Which are read.
        span: See `firing_span`.
        rows: See `DeviceStates.pack`.
    """
    return _run(values, positions, span, 8, rows, is_packing=True)


def count(
    values: torch.Tensor,
    positions: Positions,
    span: tuple[int, int],
    unit_size: int,
    counts: torch.Tensor,
) -> bool:
    """Add how often each unit was in each state; False where that failed, and nothing was added.

    Args:
        values: Activations that `takes` is true of.
        positions: Which are read.
        span: See `firing_span`.
        unit_size: Neurons of a unit.
        counts: See `DeviceStates.count`.
    """
    return _run(values, positions, span, unit_size, counts, is_packing=False)


def _run(
    values: torch.Tensor,
    positions: Positions,
    span: tuple[int, int],
    unit_size: int,
    out: torch.Tensor,
    *,
    is_packing: bool,
) -> bool:
    n_neurons, n_rows = values.shape[-1], values.shape[0] * positions.number
    n_units = -(-n_neurons // unit_size)
    entries = values.view(_INTEGERS[values.dtype])
    words = _as_words(entries, unit_size)
    n_bins = 0 if is_packing or 1 << unit_size > _MOST_BINS else max(64, 1 << unit_size)
    n_programs = min(-(-n_rows // _ROWS), max(1, _PROGRAMS // n_units))
    try:
        with torch.cuda.device_of(values):  # type: ignore[no-untyped-call]
            _kernel()[n_units, n_programs](
                words,
                words if positions.offsets is None else positions.offsets,
                out,
                n_rows,
                positions.number,
                n_neurons,
                values.stride(0),
                positions.stride,
                values.stride(-1),
                *span,
                n_bits=8 * entries.itemsize,
                per_word=words.itemsize // entries.itemsize,
                is_listed=positions.offsets is not None,
                is_packing=is_packing,
                unit_size=unit_size,
                n_bins=n_bins,
                n_at_once=_ROWS,
                # There is none; Triton 3.9 warns where it isn't told.
                enable_fp_fusion=False,
            )
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 (whatever a compiler or a driver may raise)
        _give_up(error)
        return False
    return True


def _as_words(entries: torch.Tensor, unit_size: int) -> torch.Tensor:
    """Return neurons that lie next to each other as 64-bit words, of which no unit has a part."""
    per_word = 8 // entries.itemsize
    strides = entries.stride()
    if (
        strides[-1] == 1
        and unit_size % per_word == 0
        and entries.shape[-1] % per_word == 0
        and all(stride % per_word == 0 for stride in strides[:-1])
        and entries.data_ptr() % 8 == 0
    ):
        return entries.view(torch.int64)
    return entries


def _states_kernel(  # type: ignore[no-untyped-def]
    words, offsets, out,
    n_rows, n_positions, n_neurons, sample_stride, position_stride, neuron_stride, low, high,
    n_bits: tl.constexpr, per_word: tl.constexpr, is_listed: tl.constexpr,
    is_packing: tl.constexpr, unit_size: tl.constexpr, n_bins: tl.constexpr,
    n_at_once: tl.constexpr,
):  # fmt: skip
    unit = tl.program_id(0).to(tl.int64)
    first = unit * unit_size
    if n_bins > 0:
        seen = tl.zeros([n_bins], tl.int32)
        n_outside = 0
    for block in range(tl.program_id(1), tl.cdiv(n_rows, n_at_once), tl.num_programs(1)):
        row = block * n_at_once + tl.arange(0, n_at_once)
        inside = row < n_rows
        position = row % n_positions
        at = (row // n_positions).to(tl.int64) * sample_stride
        if is_listed:
            at += tl.load(offsets + position, mask=inside, other=0)
        else:
            at += position.to(tl.int64) * position_stride
        # Each thread reads the whole unit of a row: sums over threads would give each of them all
        # codes, and not every release of Triton then counts one once.
        codes = tl.zeros([n_at_once], tl.int32)
        for bit in tl.static_range(0, unit_size, per_word):
            # The last unit may have fewer neurons: then no row has one here.
            is_read = row < tl.where(first + bit < n_neurons, n_rows, 0)
            at_word = (at + (first + bit) * neuron_stride) // per_word
            word = tl.load(words + at_word, mask=is_read, other=0)
            for part in tl.static_range(per_word):
                key = word >> (part * n_bits)
                key = key.to(tl.int16).to(tl.int32) if n_bits == 16 else key.to(tl.int32)
                key = key ^ ((key >> 31) & ((1 << (n_bits - 1)) - 1))
                fires = is_read & (key > low) & (key <= high)
                codes |= fires.to(tl.int32) << (bit + part)
        if is_packing:
            at_row = row.to(tl.int64) * tl.num_programs(0)
            tl.store(out + at_row + unit, codes.to(tl.uint8), mask=inside)
        elif n_bins > 0:
            seen += tl.histogram(codes, n_bins)
            n_outside += n_at_once - tl.sum(inside.to(tl.int32))
        else:
            ones = tl.full([n_at_once], 1, tl.int64)
            tl.atomic_add(out + (unit << unit_size) + codes, ones, mask=inside, sem="relaxed")
    if n_bins > 0:
        state = tl.arange(0, n_bins)
        # Rows beyond the last were taken for states in which nothing fires.
        seen -= tl.where(state == 0, n_outside, 0)
        at_state = out + (unit << unit_size) + state
        tl.atomic_add(at_state, seen.to(tl.int64), mask=seen > 0, sem="relaxed")


def _is_driven(device: torch.device) -> bool:
    # On the host kernels are interpreted, to be tested.
    return device.type == "cuda" or (device.type == "cpu" and _is_interpreted())


@lru_cache(maxsize=1)
def _is_interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@lru_cache(maxsize=1)
def _kernel() -> Any:
    """Return the kernel; None without Triton."""
    global tl
    if "tensorflow" in sys.modules and "triton" not in sys.modules:
        # Each brings an LLVM, and the one that comes second ends the process.
        return None
    try:
        triton = import_module("triton")
        tl = import_module("triton.language")
        # Else there would be a kernel for each kind of size, compiled in half a second each.
        plain = ["n_rows", "n_positions", "n_neurons", "low", "high"]
        return triton.jit(_states_kernel, do_not_specialize=plain)
    except ImportError:
        return None


def _give_up(error: Exception) -> None:
    global _has_failed
    _has_failed = True
    warnings.warn(
        "the kernel that packs and counts states on the device can't be run, so that torch's own "
        f"operations do it, to the same result in more time: {type(error).__name__}: {error}",
        TensorStateWarning,
        stacklevel=2,
    )
