"""Pick the layers of a model to probe, and refuse models and processes that can't be watched."""

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

import keras

from tensorstate_callbacks.errors import ProbeError, WarnOnce
from tensorstate_callbacks.keras.backends import current_backend
from tensorstate_callbacks.keras.layers import (
    check_outside_loops,
    default_layers,
    named_layers,
    path_of,
    recomputed_layers,
    with_paths,
    within_loops,
)
from tensorstate_callbacks.keras.watch import Watch, hidden_message
from tensorstate_callbacks.recording.channel_axis import ChannelAxis, check_keys
from tensorstate_callbacks.recording.class_labels import is_array
from tensorstate_callbacks.recording.masks import has_rows
from tensorstate_callbacks.recording.selection import matches, select_layers
from tensorstate_callbacks.recording.settings import Method, Settings


def pick_probes(
    model: keras.Model,
    settings: Settings,
    channel_axis: ChannelAxis,
    warn: WarnOnce,
    *,
    in_training: bool = False,
) -> Watch:
    """Return the probes on a model's layers.

    Args:
        model: The model.
        settings: What the callback was given.
        channel_axis: The axis of the neurons, as the callback was given it.
        warn: Takes the warnings of what the probes see.
        in_training: Whether training steps are to be watched, not evaluations.

    Raises:
        NoLayerMatchedError: No layer is left, or a name is that of several.
        ProbeError: The model's graph shows that a layer can't be counted.
        TypeError: A pattern is of the wrong kind.
        ValueError: A layer is in the loop of a recurrent one, a key of `channel_axis` matches no
            probed layer, processes share the model, or `mask` or `classes` is an array and replicas
            do.
    """
    check_one_process(model)
    warn_of_torch_ranks(warn)
    check_rows(model, settings)
    layers = named_layers(model)
    default, by_default = default_layers(model, layers), settings.attach_to is None
    attach_to = None
    if settings.attach_to is not None:
        attach_to = with_paths("attach_to", settings.attach_to, layers)
    exclude = with_paths("exclude", settings.exclude, layers)
    picked = select_layers(layers, attach_to, exclude, default=default.names)
    check_outside_loops(picked, layers)
    if in_training and current_backend().RECOMPUTES_UNSEEN:
        picked = _without_recomputed(picked, layers, warn)
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
        in_training=in_training,
    )


def _without_recomputed(
    picked: Mapping[str, keras.layers.Layer],
    layers: Mapping[str, keras.layers.Layer],
    warn: WarnOnce,
) -> dict[str, keras.layers.Layer]:
    """Return the layers that training steps call once for each time that the model does."""
    recomputed = recomputed_layers(layers)
    hidden = [name for name in picked if name in recomputed]
    if hidden and len(hidden) == len(picked):
        raise ProbeError(hidden_message(hidden))
    if hidden:
        warn("hidden", hidden_message(hidden))
    return {name: layer for name, layer in picked.items() if name not in recomputed}


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


def check_not_keras_2(model: Any) -> None:
    """Raise `TypeError` for a model of `tf_keras`, as `tf.keras` is under TF_USE_LEGACY_KERAS."""
    if any(base.__module__.partition(".")[0] == "tf_keras" for base in type(model).__mro__):
        raise TypeError(
            f"the model ({type(model).__name__} of tf_keras) is one of Keras 2: "
            "tensorstate_callbacks.keras needs Keras 3.3 or later. Build it with `import keras`, "
            "or unset TF_USE_LEGACY_KERAS where it is built with tf.keras"
        )


_WORKERS = (
    "MultiWorkerMirroredStrategy spreads the evaluation over several workers, whose states "
    "tensorstate_callbacks can't bring together. Train without the callback, and evaluate in one "
    "process: model.evaluate(..., callbacks=[callback]) without the strategy"
)


def check_not_a_worker() -> None:
    """Raise `ValueError` if TF_CONFIG makes this process one of several TensorFlow workers.

    Said as a callback is made: Keras 3 fails on such workers before it tells callbacks anything.
    """
    if keras.backend.backend() != "tensorflow":
        return
    try:
        cluster = json.loads(os.environ.get("TF_CONFIG") or "{}").get("cluster", {})
        n_workers = sum(len(cluster.get(kind, ())) for kind in ("chief", "worker"))
    except (AttributeError, TypeError, ValueError):
        return  # Not for us to judge: TensorFlow reads it, if it is used.
    if n_workers > 1:
        raise ValueError(f"{_WORKERS} and without TF_CONFIG, which names {n_workers} workers")


def check_one_process(model: keras.Model) -> None:
    """Raise `ValueError` if an evaluation of the model is one of several processes' share.

    Replicas within a process (MirroredStrategy, the devices of a DataParallel) share its counters.
    TensorFlow's workers would each count what they see, and log figures of a part of the data.
    """
    strategy = getattr(model, "distribute_strategy", None)
    if strategy is not None and strategy.extended._in_multi_worker_mode():
        raise ValueError(_WORKERS)


def warn_of_torch_ranks(warn: WarnOnce) -> None:
    """Warn where torch connects processes that Keras doesn't know of, each of which evaluates.

    Args:
        warn: Takes the warning.
    """
    torch: Any = sys.modules.get("torch")
    if keras.backend.backend() != "torch" or not torch.distributed.is_available():
        return
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        warn(
            "processes",
            f"torch.distributed connects {torch.distributed.get_world_size()} processes, which "
            "Keras doesn't know of: each evaluates by itself what it is given, and its accuracy, "
            "efficiency and aIQ are of that data only. Give each process all of it, or watch a "
            "loop of your own with tensorstate_callbacks.torch.record, whose "
            "report(process_group=...) merges what processes counted",
        )


def check_rows(model: keras.Model, settings: Settings) -> None:
    """Raise `ValueError` if replicas of a model would each have to find their rows of an array."""
    strategy = getattr(model, "distribute_strategy", None)
    n_replicas = 1 if strategy is None else int(strategy.num_replicas_in_sync)
    jax: Any = sys.modules.get("jax")
    if keras.backend.backend() == "jax":
        n_replicas = max(n_replicas, jax.process_count())
    if n_replicas > 1 and has_rows(settings.mask):
        raise ValueError(
            f"mask is an array, and {n_replicas} replicas of the model share the batches, of which "
            "nothing tells which rows are theirs. Give the mask as a part of the data, and its key "
            'as mask: x={..., "mask": mask}, mask="mask"'
        )
    if n_replicas > 1 and is_array(settings.classes):
        raise ValueError(
            f"classes is an array, and {n_replicas} replicas of the model share the batches, of "
            "which nothing tells which labels are theirs. Give the labels as y, with classes=True, "
            'or as a part of the data, and their key: x={..., "label": labels}, classes="label"'
        )


def check_specs(picked: Mapping[str, keras.layers.Layer], method: Method) -> None:
    """Raise `ProbeError` if the graph of a model says that a probed layer's tensors are complex.

    A subclassed model has no graph: what its layers give is known in its first evaluation.

    Args:
        picked: The probed layers under their paths.
        method: Whether their outputs are counted, their inputs, or both.
    """
    for name, layer in picked.items():
        for node in getattr(layer, "_inbound_nodes", ()):
            if method != "before":
                _check_real(name, "gives", node.output_tensors)
            if method != "after":
                _check_real(name, "takes", node.input_tensors)


def _check_real(name: str, does: str, tensors: list[Any]) -> None:
    # The first is the one that is counted.
    for tensor in tensors[:1]:
        dtype = str(getattr(tensor, "dtype", ""))
        if "complex" in dtype:
            raise ProbeError(
                f"layer {name!r} could not be counted: what it {does} is complex ({dtype}), and "
                "neither fires nor doesn't. Exclude it, or attach to other layers"
            )
