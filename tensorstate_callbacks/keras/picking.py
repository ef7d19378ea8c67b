"""Pick the layers of a model to probe, as a callback was told."""

from collections.abc import Mapping
from typing import Any

import keras

from tensorstate_callbacks.errors import WarnOnce
from tensorstate_callbacks.keras.checks import check_one_process, check_specs
from tensorstate_callbacks.keras.layers import (
    check_outside_loops,
    default_layers,
    named_layers,
    path_of,
    with_paths,
    within_loops,
)
from tensorstate_callbacks.keras.watch import Watch
from tensorstate_callbacks.recording.channel_axis import ChannelAxis, check_keys
from tensorstate_callbacks.recording.selection import matches, select_layers
from tensorstate_callbacks.recording.settings import Settings


def pick_probes(
    model: keras.Model, settings: Settings, channel_axis: ChannelAxis, warn: WarnOnce
) -> Watch:
    """Return the probes on a model's layers.

    Args:
        model: The model.
        settings: What the callback was given.
        channel_axis: The axis of the neurons, as the callback was given it.
        warn: Takes the warnings of what the probes see.

    Raises:
        NoLayerMatchedError: No layer is left, or a name is that of several.
        ProbeError: The model's graph shows that a layer can't be counted.
        TypeError: A pattern is of the wrong kind.
        ValueError: A layer is in the loop of a recurrent one, a key of `channel_axis` matches no
            probed layer, or processes share the model.
    """
    check_one_process(model)
    layers = named_layers(model)
    default, by_default = default_layers(model, layers), settings.attach_to is None
    attach_to = None
    if settings.attach_to is not None:
        attach_to = with_paths("attach_to", settings.attach_to, layers)
    exclude = with_paths("exclude", settings.exclude, layers)
    picked = select_layers(layers, attach_to, exclude, default=default.names)
    check_outside_loops(picked, layers)
    check_specs(picked, settings.method)
    given = given_by_path(channel_axis, layers)
    check_keys(given, picked)
    left_out = [
        name
        for name, layer in layers.items()
        if name in default.makers or any(matches(pattern, name, layer) for pattern in exclude)
    ]
    return Watch(
        layers,
        picked,
        settings,
        given,
        warn,
        others=_operations(model, layers),
        contenders=default.contenders if by_default else (),
        left_out=left_out if by_default else None,
    )


def given_by_path(
    channel_axis: ChannelAxis, layers: Mapping[str, keras.layers.Layer]
) -> ChannelAxis:
    """Return `channel_axis` with the paths of layers as keys in place of their own names."""
    if not isinstance(channel_axis, Mapping):
        return channel_axis
    return {path_of("channel_axis", key, layers): axis for key, axis in channel_axis.items()}


def ids_of_layers(model: keras.Model) -> list[int]:
    """Return what tells whether a model still has the layers that it had."""
    return [id(layer) for layer in model._flatten_layers()]


def _operations(model: keras.Model, layers: Mapping[str, keras.layers.Layer]) -> list[Any]:
    """Return the layers of a model, and the operations of functional models, once each.

    Without what runs in the loops of recurrent layers, whose tensors stay inside.
    """
    loops = within_loops(layers)
    found: dict[int, Any] = {}
    for layer in [layer for name, layer in layers.items() if name not in loops]:
        found[id(layer)] = layer
    for owner in [model, *layers.values()]:
        functional = getattr(owner, "_functional", None) or owner
        if isinstance(owner, keras.Model):
            for operation in getattr(functional, "_operations", ()):
                if not isinstance(operation, keras.layers.InputLayer):
                    found.setdefault(id(operation), operation)
    return list(found.values())
