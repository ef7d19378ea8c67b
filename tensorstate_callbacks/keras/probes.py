"""Pass-through wrappers around layers' calls, in place only while a test step runs or is traced."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple, Protocol

import keras

from tensorstate_callbacks.instance_override import InstanceOverride
from tensorstate_callbacks.keras.layers import first_tensor


class Tap(Protocol):
    """What a probe does with the tensor of one of its layers."""

    def __call__(self, name: str, tensor: Any) -> Any:
        """Take the tensor for the probe `name`; return the one to go on with, or None."""


class Probe(NamedTuple):
    """One layer to watch.

    Attributes:
        layer: The layer.
        before: Name of the probe at its input, or None.
        after: Name of the probe at its output, or None.
        tap: Takes the tensors.
    """

    layer: keras.layers.Layer
    before: str | None
    after: str | None
    tap: Tap


@contextmanager
def in_place(probes: Iterable[Probe]) -> Iterator[None]:
    """Keep the wrappers on the layers for the duration of the block, whatever is raised."""
    overrides: list[InstanceOverride] = []
    try:
        for probe in probes:
            # A quantized layer runs `quantized_call` in place of `call`, which may call `call`.
            quantized: ContextVar[bool] = ContextVar("quantized", default=False)
            for name in ("call", "quantized_call"):
                if hasattr(probe.layer, name):
                    passing = _pass_through(getattr(probe.layer, name), probe)
                    outermost = partial(
                        _outermost, quantized, name, passing, getattr(probe.layer, name)
                    )
                    overrides.append(InstanceOverride(probe.layer, name, outermost))
        yield
    finally:
        for override in reversed(overrides):
            override.restore()


def _outermost(
    quantized: ContextVar[bool],
    name: str,
    passing: Callable[..., Any],
    call: Callable[..., Any],
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Run `passing`, but only the plain call for a `call` from within the `quantized_call`."""
    if name == "call":
        return (call if quantized.get() else passing)(*args, **kwargs)
    token = quantized.set(True)
    try:
        return passing(*args, **kwargs)
    finally:
        quantized.reset(token)


def _pass_through(call: Callable[..., Any], probe: Probe) -> Callable[..., Any]:
    def passing(*args: Any, **kwargs: Any) -> Any:
        if probe.before is not None:
            probe.tap(probe.before, first_tensor((args, kwargs)))
        outputs = call(*args, **kwargs)
        if probe.after is not None:
            tensor = first_tensor(outputs)
            passed = probe.tap(probe.after, tensor)
            if passed is not None and outputs is tensor:
                return passed
        return outputs

    return passing
