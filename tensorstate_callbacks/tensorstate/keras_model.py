"""Rebuild a Keras model with state capturing layers around some of its own."""

import os
import warnings
from typing import Any

import keras

from tensorstate_callbacks.errors import TensorStateWarning
from tensorstate_callbacks.keras.axis_flow import LayerAxes, axes_of_layers
from tensorstate_callbacks.keras.axis_rules import Axes
from tensorstate_callbacks.keras.layers import default_names, named_layers, with_paths
from tensorstate_callbacks.keras.picking import given_by_path
from tensorstate_callbacks.recording.channel_axis import (
    Axis,
    ChannelAxis,
    check_channel_axis,
    check_keys,
    given_axis,
)
from tensorstate_callbacks.recording.selection import select_layers
from tensorstate_callbacks.recording.settings import Settings
from tensorstate_callbacks.tensorstate.keras_layer import StateCapture
from tensorstate_callbacks.tensorstate.keras_rebuild import (
    Around,
    Rebuild,
    can_rebuild,
    layers_within_reach,
)

_CALLBACK = "tensorstate_callbacks.keras.EfficiencyCallback"


@keras.saving.register_keras_serializable("tensorstate_callbacks")
class PlacedCapture(StateCapture):
    """A `StateCapture` that `build` put into a model, and `remove` takes out of it."""


def build(
    model: keras.Model,
    settings: Settings,
    channel_axis: ChannelAxis,
    *,
    keep_raw: bool,
    storage_path: str | os.PathLike[str] | None,
    resume: bool,
) -> keras.Model:
    """Rebuild a model with captures around some of its layers; see `build_efficiency_model`."""
    _check_kind(model)
    options: dict[str, Any] = {"threshold": settings.threshold, "keep_raw": keep_raw}
    there = {layer.name for layer in _placed(model)}
    for layer in _placed(model):
        made_with = {"threshold": layer.threshold, "keep_raw": layer.keep_raw}
        if made_with != options:
            raise ValueError(
                f"the model has state layers made with {made_with}, which can't be joined by some "
                f"with {options}: call remove_state_layers(model) first"
            )
    around = {}
    picked = _pick(model, settings)
    axes = _find_axes(model, picked, check_channel_axis(channel_axis))
    for name, layer in picked.items():
        stem = name.replace("/", ".")
        before, after = (
            None
            if probe is None or f"{stem}_{side}_states" in there
            else PlacedCapture(
                f"{stem}_{side}_states",
                channel_axis=axis,
                storage_path=storage_path,
                resume=resume,
                **options,
            )
            for probe, side, axis in zip(
                settings.probe_names(name), ("pre", "post"), axes[name], strict=True
            )
        )
        if before or after:
            around[id(layer)] = Around(before, after)
    return _rebuilt(model, Rebuild(around, drop=lambda layer: False))


def efficiency_layers(model: keras.Model) -> list[StateCapture]:
    """Return the captures that `build` put into the model, in the order of the forward pass.

    Raises:
        ValueError: There are none.
    """
    layers = _placed(model)
    if not layers:
        raise ValueError(
            f"the model {model.name!r} has no state layers: build_efficiency_model(model, "
            "attach_to=...) returns one that has"
        )
    return layers


def reset(model: keras.Model) -> None:
    """Forget the states that the model's captures hold.

    Raises:
        ValueError: The model has none that `build` put there.
    """
    for layer in efficiency_layers(model):
        layer.reset_states()


def remove(model: keras.Model) -> keras.Model:
    """Return a model without what `build` put there; a `StateCapture` of one's own stays."""
    if not _placed(model):
        return model
    return _rebuilt(model, Rebuild({}, drop=lambda layer: isinstance(layer, PlacedCapture)))


def _rebuilt(model: keras.Model, rebuild: Rebuild) -> keras.Model:
    new = rebuild(model)
    placed = _placed(new)
    if placed:
        # Past Keras, which would take the list for more of the model's layers.
        vars(new)["efficiency_layers"] = placed
    if new is not model and model.compiled:
        _compile_alike(new, model)
    return new


def _check_kind(model: keras.Model) -> None:
    if not can_rebuild(model):
        raise TypeError(
            f"the model {model.name!r} ({type(model).__name__}) is a subclassed one: what its call "
            f"does can't be rebuilt around captures. Watch it with {_CALLBACK}, or place "
            "tensorstate_callbacks.keras.StateCapture layers in its call"
        )


def _pick(model: keras.Model, settings: Settings) -> dict[str, keras.layers.Layer]:
    layers = {
        name: layer
        for name, layer in named_layers(model).items()
        if not isinstance(layer, PlacedCapture)
    }
    default, attach_to = default_names(model, layers), settings.attach_to
    picked = select_layers(
        layers,
        None if attach_to is None else with_paths("attach_to", attach_to, layers),
        with_paths("exclude", settings.exclude, layers),
        default=default,
    )
    reached = {id(layer) for layer in layers_within_reach(model)}
    inside = [name for name, layer in picked.items() if id(layer) not in reached]
    if inside:
        problem = (
            f"{', '.join(inside)}: no capture can be put around what is inside of a layer or of a "
            f"subclassed model. Attach to the layer around it, or watch it with {_CALLBACK}"
        )
        if len(inside) == len(picked):
            raise ValueError(problem)
        warnings.warn(f"left out {problem}", TensorStateWarning, stacklevel=4)
    return {name: layer for name, layer in picked.items() if name not in inside}


def _find_axes(
    model: keras.Model, picked: dict[str, keras.layers.Layer], given: ChannelAxis
) -> dict[str, tuple[Axis | None, Axis | None]]:
    """Return the axes of what each layer takes and gives; None leaves it to the capture."""
    layers = named_layers(model)
    given = given_by_path(given, layers)
    check_keys(given, picked)
    graph = axes_of_layers(model, layers.values())
    axes: dict[str, tuple[Axis | None, Axis | None]] = {}
    for name, layer in picked.items():
        nodes = getattr(layer, "_inbound_nodes", ())
        tensors = (nodes[0].input_tensors[0], nodes[0].output_tensors[0]) if nodes else (None, None)
        taken, made = (given_axis(given, name, layer, tensor) for tensor in tensors)
        known = graph.get(id(layer), LayerAxes(None, None))
        axes[name] = (
            _alone(known.before) if taken is None else taken,
            _alone(known.after) if made is None else made,
        )
    return axes


def _alone(axes: Axes | None) -> Axis | None:
    return axes[0] if axes is not None and len(axes) == 1 else axes


def _placed(model: Any) -> list[PlacedCapture]:
    """Return our captures in forward order, which is that of a functional model's layers."""
    found = (layer for layer in layers_within_reach(model) if isinstance(layer, PlacedCapture))
    return list({id(layer): layer for layer in found}.values())


def _compile_alike(new: keras.Model, model: keras.Model) -> None:
    """Compile the new model with what the other was compiled with."""
    if type(model).compile is not keras.Model.compile:
        warnings.warn(
            f"{type(model).__name__} has a compile of its own: compile the returned model anew",
            TensorStateWarning,
            stacklevel=5,
        )
        return
    options = dict(model._compile_config.config)
    options["optimizer"] = _optimizer_for(new, model)
    if keras.backend.backend() == "tensorflow":
        # XLA can't call back into Python there.
        options["jit_compile"] = False
    new.compile(**options)


def _optimizer_for(new: keras.Model, model: keras.Model) -> keras.optimizers.Optimizer:
    """Return the model's optimizer, or one like it where it would take one weight for another."""
    same = [id(v) for v in new.trainable_variables] == [id(v) for v in model.trainable_variables]
    # Keras finds what an optimizer knows of a weight by the weight, but with JAX by its place.
    if same or keras.backend.backend() != "jax" or not model.optimizer.built:
        return model.optimizer
    warnings.warn(
        f"the branches of {model.name!r} come in another order with state layers in them, and with "
        "JAX an optimizer goes by the order of weights: the new model has a fresh one",
        TensorStateWarning,
        stacklevel=6,
    )
    return type(model.optimizer).from_config(model.optimizer.get_config())
