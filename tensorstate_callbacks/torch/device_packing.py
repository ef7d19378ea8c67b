"""Activations on an accelerator in; their states, packed there, and on their way to the host, out.

Only the bits travel, 1/32 of what float32 activations would.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

_WIDER = {torch.uint16: torch.int64, torch.uint32: torch.int64}


def pack(tensor: torch.Tensor, channel_axis: int, threshold: float) -> torch.Tensor:
    """Return the states of a tensor, made on its own device.

    Args:
        tensor: Real numbers of any shape, with strided memory.
        channel_axis: The axis of the neurons; may be negative.
        threshold: A neuron fires where its activation is above it; finite. The comparison is exact.

    Returns:
        Shape `(positions, ceil(neurons / 8))`, uint8, as `StateCounter.update_packed` takes it:
        neuron 0 is bit 0 of byte 0.

    Raises:
        TypeError: This kind of number can't be compared on devices.
    """
    fired = _fired(tensor, threshold).view(torch.uint8).movedim(channel_axis, -1)
    n_bytes = -(-fired.shape[-1] // 8)
    rows = torch.zeros((*fired.shape[:-1], n_bytes), dtype=torch.uint8, device=tensor.device)
    # Every eighth neuron has the same place in its byte, so there is nothing to pad.
    for bit in range(min(8, fired.shape[-1])):
        column = fired[..., bit::8]
        rows[..., : column.shape[-1]].add_(column, alpha=1 << bit)
    return rows.reshape(-1, n_bytes)


class HostCopy:
    """States on their way from a device to the host.

    Args:
        rows: Packed states on the device. They are held until the copy is done.
    """

    def __init__(self, rows: torch.Tensor) -> None:
        self._rows: torch.Tensor | None = rows
        self._host = _host_memory(rows)
        self._host.copy_(rows, non_blocking=True)
        # After the copy on the same stream: it is done when this is.
        self._event = _record_event(rows.device)

    def arrived(self) -> bool:
        """Tell, without waiting, whether the copy is done."""
        return self._event is None or bool(self._event.query())

    def wait(self) -> npt.NDArray[np.uint8]:
        """Return the states once they are here.

        Raises:
            RuntimeError: Something that the device was given to do has failed.
        """
        if self._event is not None:
            self._event.synchronize()
        self._rows = None
        return self._host.numpy()


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


def _rounded_down(threshold: float, dtype: torch.dtype) -> float:
    """The greatest number of the dtype up to the threshold: what is above one is above the other.

    Left to itself, torch would round to the nearest: float32's 0.1 is greater than 0.1.
    """
    if dtype == torch.float64:
        return threshold
    with np.errstate(over="ignore"):
        near = (np.float16 if dtype == torch.float16 else np.float32)(threshold)
    # As Python floats: NumPy would round the threshold to compare.
    if float(near) > threshold:
        near = np.nextafter(near, near.dtype.type(-np.inf))
    if dtype == torch.bfloat16:
        bits = int(near.view(np.uint32))
        cut = bits & 0xFFFF0000
        # Cutting bits off goes towards zero, which is up for negative numbers.
        bits = cut + 0x10000 if near < 0 and cut != bits else cut
        near = np.uint32(bits).view(np.float32)
    return float(near)


def _host_memory(rows: torch.Tensor) -> torch.Tensor:
    try:
        # Only from pinned memory can a device copy while the host does something else.
        return torch.empty(rows.shape, dtype=rows.dtype, device="cpu", pin_memory=True)
    except RuntimeError:
        return torch.empty(rows.shape, dtype=rows.dtype, device="cpu")


def _record_event(device: torch.device) -> Any:
    """An event behind all that the device was given to do, or None after waiting for it."""
    backend = getattr(torch, device.type, None)
    make_event = getattr(backend, "Event", None)
    if make_event is None:
        getattr(backend, "synchronize", lambda: None)()
        return None
    event = make_event()
    # mps has one stream only.
    current_stream = getattr(backend, "current_stream", None)
    if current_stream is None:
        event.record()
    else:
        event.record(current_stream(device))
    return event
