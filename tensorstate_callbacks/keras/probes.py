"""Pass-through wrappers around layers' calls, for the time that a test step runs or is traced."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple, Protocol

import keras

from tensorstate_callbacks.keras.axis_flow import AxisFlow
from tensorstate_callbacks.keras.backends import current_backend, in_symbolic_scope
from tensorstate_callbacks.keras.layers import first_tensor
from tensorstate_callbacks.keras.mask_flow import MaskFlow
from tensorstate_callbacks.recording.overrides import Overrides


class Flows(NamedTuple):
    """What is known of the tensors of a pass, as far as it has come.

    Attributes:
        axes: Of their axes; None once all axes are settled.
        masks: Of their masks; None where masks don't matter.
    """

    axes: AxisFlow | None = None
    masks: MaskFlow | None = None

    def begin(self, model: keras.Model, arguments: Any) -> None:
        """Begin a pass through the model."""
        if self.axes is not None:
            self.axes.begin(arguments)
        if self.masks is not None:
            self.masks.begin(model, arguments)

    def note_alike(self, tensor: Any, other: Any) -> None:
        """Note of another tensor what is known of a tensor."""
        axes = None if self.axes is None else self.axes.of(tensor)
        if self.axes is not None and axes is not None:
            self.axes.note(other, axes)
        if self.masks is not None:
            self.masks.note(other, self.masks.of(tensor))


class Observer(Protocol):
    """Who takes the tensors of probed layers.

    Attributes:
        needs_batches: Whether the batches of the evaluation have to be shown to it.
    """

    @property
    def needs_batches(self) -> bool:
        """Whether `begin_batch` is to be called."""

    def begin_batch(self, batch: Any) -> None:
        """Take what a test step is called with; None when it is over."""

    def begin_pass(self) -> None:
        """Take note that the model is called."""

    def take(self, probe: "Probe", name: str, tensor: Any, flows: Flows) -> Any:
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


_NO_FLOWS = Flows()

# Set while a metric or a loss runs: what it calls is no part of the forward pass.
_aside: ContextVar[bool] = ContextVar("aside", default=False)


def wrap_calls(
    overrides: Overrides,
    model: keras.Model,
    probes: Sequence[Probe],
    others: Iterable[Any] = (),
    flows: Flows = _NO_FLOWS,
) -> None:
    """Put the wrappers on the layers; they act as long as the overrides are active.

    Args:
        overrides: Takes them off again.
        model: The model that is evaluated.
        probes: The probes of its layers.
        others: Layers and operations whose tensors are followed only.
        flows: What is known of their tensors.
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
                make = partial(_watched, quantized, name, layer, by_layer.get(id(layer), []), flows)
                overrides.wrap(layer, name, make)
    observers = {id(probe.observer): probe.observer for probe in probes}
    overrides.wrap(
        model, "call", partial(_beginning, model, observers=list(observers.values()), flows=flows)
    )
    for owner, name in _asides(model):
        overrides.wrap(owner, name, partial(partial, _step_aside))


def _watched(
    quantized: ContextVar[bool],
    name: str,
    layer: Any,
    probes: Sequence[Probe],
    flows: Flows,
    call: Callable[..., Any],
) -> Callable[..., Any]:
    return partial(_outermost, quantized, name, _pass_through(call, layer, probes, flows), call)


def _asides(model: keras.Model) -> Iterator[tuple[Any, str]]:
    yield model, "compute_metrics"
    # A `compute_loss` of the model's own may make part of the forward pass.
    if type(model).compute_loss is keras.Model.compute_loss:
        yield model, "compute_loss"
    for metric in model.metrics:
        yield metric, "update_state"
        yield metric, "result"


class ShownStep:
    """A model's own step, which shows the observers of probes its batch first.

    Seen by the step itself: what runs it may get several batches at once.

    Args:
        model: The model.
        kind: `"test"` or `"train"`.
        probes: The probes; those that need no batches are left alone.
    """

    def __init__(self, model: keras.Model, kind: str, probes: Iterable[Probe]) -> None:
        self._model, self._name = model, f"{kind}_step"
        self._step = getattr(model, self._name)
        observers = {id(probe.observer): probe.observer for probe in probes}
        self._observers = [each for each in observers.values() if each.needs_batches]

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function while it is the model's step."""
        if not self._observers:
            return function(*args)
        step = Overrides()
        with step, step:
            step.set(self._model, self._name, self._run)
            return function(*args)

    def _run(self, *args: Any) -> Any:
        try:
            for observer in self._observers:
                # The last: on JAX the state comes first.
                observer.begin_batch(args[-1])
            return self._step(*args)
        finally:
            for observer in self._observers:
                observer.begin_batch(None)


def _step_aside(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    token = _aside.set(True)
    try:
        return call(*args, **kwargs)
    finally:
        _aside.reset(token)


def _beginning(
    model: keras.Model, call: Callable[..., Any], observers: Sequence[Observer], flows: Flows
) -> Callable[..., Any]:
    def beginning(*args: Any, **kwargs: Any) -> Any:
        if not (_aside.get() or in_symbolic_scope()):
            for observer in observers:
                observer.begin_pass()
            flows.begin(model, (args, kwargs))
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
    call: Callable[..., Any], layer: Any, probes: Sequence[Probe], flows: Flows
) -> Callable[..., Any]:
    is_recomputing = current_backend().is_recomputing

    def passing(*args: Any, **kwargs: Any) -> Any:
        # Metrics run aside; and Keras works out shapes by calling layers.
        if _aside.get() or in_symbolic_scope() or is_recomputing():
            return call(*args, **kwargs)
        axes, masks = flows
        outputs = None
        if masks is not None:
            masks.enter(layer, (args, kwargs))
        try:
            for probe in probes:
                if probe.before is not None:
                    probe.observer.take(probe, probe.before, first_tensor((args, kwargs)), flows)
            outputs = call(*args, **kwargs)
        finally:
            if masks is not None:
                masks.leave(layer, (args, kwargs), outputs)
        if axes is not None:
            axes.follow(layer, (args, kwargs), outputs)
        for probe in probes:
            if probe.after is not None:
                tensor = first_tensor(outputs)
                passed = probe.observer.take(probe, probe.after, tensor, flows)
                if passed is not None and outputs is tensor:
                    flows.note_alike(tensor, passed)
                    outputs = passed
        return outputs

    return passing
