"""Streams of any kind of device: which one work is given to, and how to wait for it."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch


class DeviceStream(NamedTuple):
    """A queue of work that a device does in order.

    Attributes:
        device: The device.
        stream: torch's own; None where the device has one only.
    """

    device: torch.device
    stream: Any

    @classmethod
    def current(cls, device: torch.device) -> "DeviceStream":
        """Return the stream that this thread gives a device its work on."""
        # mps has one stream only.
        current = getattr(getattr(torch, device.type, None), "current_stream", None)
        return cls(device, None if current is None else current(device))

    def block(self) -> AbstractContextManager[Any]:
        """Return a block inside which work is given to this stream."""
        if self.stream is None:
            return nullcontext()
        block: AbstractContextManager[Any] = getattr(torch, self.device.type).stream(self.stream)
        return block

    def record_event(self) -> Any:
        """Return an event behind all the work given so far, or None after waiting for it."""
        backend = getattr(torch, self.device.type, None)
        make_event = getattr(backend, "Event", None)
        if make_event is None:
            getattr(backend, "synchronize", lambda: None)()
            return None
        event = make_event()
        if self.stream is None:
            event.record()
        else:
            event.record(self.stream)
        return event
