"""Pass-through wrappers around layers' calls, for the time that a test step runs or is traced."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple, Protocol

import keras

from tensorstate_callbacks.keras.axis_flow import AxisFlow, shape_of
from tensorstate_callbacks.keras.backends import current_backend, in_symbolic_scope
from tensorstate_callbacks.keras.layers import first_tensor
from tensorstate_callbacks.recording.overrides import Overrides


class Call(NamedTuple):
    """A call of a probed layer, as far as it has come.

    Attributes:
        arguments: What the layer is called with, `(args, kwargs)`.
        flow: What is known of the axes of tensors; None once all axes are settled.
    """

    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    flow: AxisFlow | None


class Observer(Protocol):
    """Who takes the tensors of probed layers."""

    def begin_pass(self) -> None:
        """Take note that the model is called."""

    def take(self, probe: "Probe", name: str, tensor: Any, call: Call) -> Any:
        """Take the tensor for the probe `name`; return the one to go on with, or None."""


class Probe(NamedTuple):
    """One layer to watch.

    Attributes:
        name: Of the layer.
        layer: The layer.
        before: Name of the probe at its input, or None.
        after: Name of the probe at its output, or None.
        observer: Takes the tensors.
    """

    name: str
    layer: keras.layers.Layer
    before: str | None
    after: str | None
    observer: Observer


# Set while a metric or a loss runs: what it calls is no part of the forward pass.
_aside: ContextVar[bool] = ContextVar("aside", default=False)


def wrap_calls(
    overrides: Overrides,
    model: keras.Model,
    probes: Sequence[Probe],
    others: Iterable[Any] = (),
    flow: AxisFlow | None = None,
) -> None:
    """Put the wrappers on the layers; they act as long as the overrides are active.

    Args:
        overrides: Takes them off again.
        model: The model that is evaluated.
        probes: The probes of its layers.
        others: Layers and operations whose tensors are followed only.
        flow: What their axes are noted in, if they are.
    """
    # What an interrupt may have left of an earlier step.
    _aside.set(False)
    by_layer: dict[int, list[Probe]] = {}
    for probe in probes:
        by_layer.setdefault(id(probe.layer), []).append(probe)
    watched = {id(probe.layer): probe.layer for probe in probes}
    for layer in [*watched.values(), *(each for each in others if id(each) not in watched)]:
        # A quantized layer runs `quantized_call` in place of `call`, which may call `call`.
        quantized: ContextVar[bool] = ContextVar("quantized", default=False)
        for name in ("call", "quantized_call"):
            if getattr(layer, name, None) is not None:
                make = partial(_watched, quantized, name, layer, by_layer.get(id(layer), []), flow)
                overrides.wrap(layer, name, make)
    observers = {id(probe.observer): probe.observer for probe in probes}
    overrides.wrap(
        model, "call", partial(_beginning, observers=list(observers.values()), flow=flow)
    )
    for owner, name in _asides(model):
        overrides.wrap(owner, name, partial(partial, _step_aside))


def _watched(
    quantized: ContextVar[bool],
    name: str,
    layer: Any,
    probes: Sequence[Probe],
    flow: AxisFlow | None,
    call: Callable[..., Any],
) -> Callable[..., Any]:
    return partial(_outermost, quantized, name, _pass_through(call, layer, probes, flow), call)


def _asides(model: keras.Model) -> Iterator[tuple[Any, str]]:
    yield model, "compute_metrics"
    # A `compute_loss` of the model's own may make part of the forward pass.
    if type(model).compute_loss is keras.Model.compute_loss:
        yield model, "compute_loss"
    for metric in model.metrics:
        yield metric, "update_state"
        yield metric, "result"


def _step_aside(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    token = _aside.set(True)
    try:
        return call(*args, **kwargs)
    finally:
        _aside.reset(token)


def _beginning(
    call: Callable[..., Any], observers: Sequence[Observer], flow: AxisFlow | None
) -> Callable[..., Any]:
    def beginning(*args: Any, **kwargs: Any) -> Any:
        if not (_aside.get() or in_symbolic_scope()):
            for observer in observers:
                observer.begin_pass()
            if flow is not None:
                flow.begin((args, kwargs))
        return call(*args, **kwargs)

    return beginning


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


def _pass_through(
    call: Callable[..., Any], layer: Any, probes: Sequence[Probe], flow: AxisFlow | None
) -> Callable[..., Any]:
    is_recomputing = current_backend().is_recomputing

    def passing(*args: Any, **kwargs: Any) -> Any:
        # Metrics run aside; and Keras works out shapes by calling layers.
        if _aside.get() or in_symbolic_scope() or is_recomputing():
            return call(*args, **kwargs)
        made = Call((args, kwargs), flow)
        for probe in probes:
            if probe.before is not None:
                probe.observer.take(probe, probe.before, first_tensor((args, kwargs)), made)
        outputs = call(*args, **kwargs)
        if flow is not None:
            flow.follow(layer, (args, kwargs), outputs)
        for probe in probes:
            if probe.after is not None:
                tensor = first_tensor(outputs)
                passed = probe.observer.take(probe, probe.after, tensor, made)
                if passed is not None and outputs is tensor:
                    _note_alike(flow, tensor, passed)
                    outputs = passed
        return outputs

    return passing


def _note_alike(flow: AxisFlow | None, tensor: Any, other: Any) -> None:
    known = None if flow is None else flow.of(tensor)
    if flow is not None and known is not None:
        flow.note(other, known)


try:
    from keras.src.backend.common.masking import get_keras_mask
except ImportError:  # an earlier Keras

    def get_keras_mask(x: Any) -> Any:
        """Return the mask that goes with a tensor, or None."""
        return getattr(x, "_keras_mask", None)


_MASK_ARGUMENTS = ("mask", "padding_mask", "query_mask", "key_mask", "value_mask")


def is_padded(layer: Any, arguments: Any, tensor: Any) -> bool:
    """Tell whether a mask goes with a tensor that a layer takes or gives, and isn't used up.

    Args:
        layer: The layer.
        arguments: What it is called with, `(args, kwargs)`.
        tensor: What it takes or gives.
    """
    shape = shape_of(tensor)
    # Samples, steps, neurons: a tensor without steps has no padding any more.
    if shape is None or len(shape) < 3:
        return False
    if isinstance(layer, keras.layers.Masking) or getattr(layer, "mask_zero", False):
        return True
    args, kwargs = arguments
    if any(_is_tensor(kwargs.get(name)) for name in _MASK_ARGUMENTS):
        return True
    if _hides_keys(kwargs.get("attention_mask")):
        return True
    leaves = keras.tree.flatten((args, kwargs))
    return any(get_keras_mask(leaf) is not None for leaf in leaves if _is_tensor(leaf))


def _hides_keys(mask: Any) -> bool:
    """Tell a mask of padding from one of causality: it is alike for all queries of a sample."""
    shape = shape_of(mask) if _is_tensor(mask) else None
    if shape is None or len(shape) < 2 or shape[0] == 1:
        return False
    return len(shape) == 2 or all(size == 1 for size in shape[1:-1])


def _is_tensor(value: Any) -> bool:
    leaves = [] if value is None else keras.tree.flatten(value)
    return any(keras.ops.is_tensor(leaf) for leaf in leaves)
