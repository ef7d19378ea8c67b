"""Build models whose layers capture their states, and read them, as in TensorState 0.1 to 0.4."""

import os
import sys
from importlib import import_module
from typing import Any

from tensorstate_callbacks.metrics import efficiency as metrics
from tensorstate_callbacks.recording.channel_axis import ChannelAxis
from tensorstate_callbacks.recording.selection import Patterns
from tensorstate_callbacks.recording.settings import Method, Settings


def build_efficiency_model(
    model: Any,
    attach_to: Patterns | None = None,
    exclude: Patterns = (),
    method: Method = "after",
    storage_path: str | os.PathLike[str] | None = None,
    *,
    keep_raw: bool = False,
    threshold: float = 0.0,
    resume: bool = False,
    channel_axis: ChannelAxis = None,
) -> Any:
    """Have some of a model's layers capture their states whenever it runs.

    What they captured is in the returned model's `efficiency_layers`, a list in the order of the
    forward pass. Its elements are named `<layer>_post_states` (the layer's output) and
    `<layer>_pre_states` (its input), and are read by the methods of `StateReadings`. A second call
    on the same model adds nothing twice.

    **PyTorch.** The module gets a `StateCaptureHook` on each layer, and is returned itself. Without
    `attach_to` the layer that makes the output is left out: the one that the first run calls last,
    or with a `storage_path` the one that is defined last. Before the first run `efficiency_layers`
    is in the order of the model's layers.

    **Keras.** The model is rebuilt with `StateCapture` layers around its own, which keep their
    weights: training one model trains the other. If the model is compiled, so is the new one, with
    the same optimizer, loss and metrics. Layers of parallel branches may come in another order, so
    don't carry `get_weights` over. In the names, the path of a layer inside another model has dots.
    If everything you ask for is captured already, the model itself is returned.

    Args:
        model: A PyTorch module, LightningModules included, which gets hooks and is returned; or a
            functional or sequential Keras model, with such models in it too.
        attach_to: A class name (`"Conv2d"`), a layer name or glob (`"block_*.conv"`), a type, a
            predicate `(name, layer) -> bool`, or a sequence of these. None takes every convolution
            and dense or linear layer except the one that makes the output.
        exclude: Which of them to leave out, in the same forms.
        method: `"after"` captures outputs, `"before"` inputs, `"both"` both.
        storage_path: Folder to keep all states in, in the order observed, for `raw_states`.
        keep_raw: Whether to keep them in memory.
        threshold: A neuron fires where its activation is above it; finite.
        resume: Whether to go on with what `storage_path` holds of an earlier run, up to its last
            whole batch.
        channel_axis: Axis of the neurons in the layers' tensors, batch axis included, where the one
            that is found out by itself is wrong: an axis; a tuple of axes that are one unit
            together; a mapping of layer names, globs, class names or types to these; or a callable
            `(name, layer, tensor)` that returns one, or None. Keras's tensors are symbolic there.

    Raises:
        FileExistsError: `storage_path` holds states of an earlier run, and `resume` isn't set.
        NoLayerMatchedError: Nothing matched; the message lists what the model has.
        TypeError: The model or another argument is of the wrong kind, or the model is a subclassed
            Keras model.
        ValueError: An argument is out of its range, or not that of the captures that are there; or
            a layer can't be captured: TorchScript calls no hooks, and nothing can be put around
            Keras layers that are inside of other layers.

    Warns:
        TensorStateWarning: A PyTorch model is compiled, and may not call its hooks. Of Keras: some
            of the layers are inside of other layers; the model has a `compile` of its own and the
            new one isn't compiled; or, with JAX, the optimizer can't be shared.

    Examples:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
        >>> model = build_efficiency_model(model, attach_to=["Linear"])
        >>> _ = model(torch.ones(10, 4))
        >>> [(layer.name, layer.state_count) for layer in model.efficiency_layers]
        [('0_post_states', 10)]
    """
    interface = _interface_of(model)
    settings = Settings(attach_to=attach_to, exclude=exclude, method=method, threshold=threshold)
    return interface.build(
        model, settings, channel_axis, keep_raw=keep_raw, storage_path=storage_path, resume=resume
    )


def reset_efficiency_model(model: Any) -> None:
    """Forget all states that the layers of `build_efficiency_model` have captured.

    Args:
        model: The model that `build_efficiency_model` returned.

    Raises:
        TypeError: The model is neither a Keras model nor a PyTorch module.
        ValueError: It was not built by `build_efficiency_model`.
    """
    _interface_of(model).reset(model)


def remove_state_layers(model: Any) -> Any:
    """Return the model without what `build_efficiency_model` added; your own hooks stay.

    Args:
        model: The model that `build_efficiency_model` returned.

    Raises:
        TypeError: The model is neither a Keras model nor a PyTorch module.
    """
    return _interface_of(model).remove(model)


def efficiency_layers(model: Any) -> list[Any]:
    """Return what `build_efficiency_model` added, in the order of the forward pass.

    Args:
        model: The model that `build_efficiency_model` returned.

    Raises:
        TypeError: The model is neither a Keras model nor a PyTorch module.
        ValueError: It was not built by `build_efficiency_model`.
    """
    return list(_interface_of(model).efficiency_layers(model))


def network_efficiency(model: Any) -> float:
    """Return the network efficiency: the geometric mean of its layers' efficiencies.

    Args:
        model: A model that `build_efficiency_model` made, after it has seen data; or one share
            (0 to 1) per layer, in any iterable.

    Returns:
        A share between 0 and 1; 0 as soon as one layer's efficiency is 0.

    Raises:
        StatesNotAvailableError: A layer of the model has captured nothing.
        TypeError: It is a model without capture points, or no iterable of numbers.
        ValueError: There is no layer, or a value is not a share.
    """
    layers = getattr(model, "efficiency_layers", None)
    return metrics.network_efficiency(
        model if layers is None else [layer.efficiency() for layer in layers]
    )


def aIQ(network_efficiency: float, accuracy: float, weight: float = 2) -> float:
    """Return the artificial intelligence quotient of a network.

    It is `tensorstate_callbacks.aIQ`, whose `beta` is called `weight` here.

    Args:
        network_efficiency: Geometric mean of the layers' efficiencies, a share (0 to 1).
        accuracy: The network's accuracy on the same data, a share (0 to 1).
        weight: Weight of accuracy against efficiency, above 0.

    Raises:
        ValueError: `weight` is not above 0, or one of the others is not a share.

    Examples:
        >>> aIQ(0.125, 1.0, weight=2)
        0.5
    """
    return metrics.aIQ(network_efficiency, accuracy, weight)


def _interface_of(model: Any) -> Any:
    """Return the module that deals with this kind of model, whose framework is loaded already."""
    # Keras first: with its PyTorch backend, a Keras model is a PyTorch module too.
    for framework, base in (("keras", "Model"), ("torch", "nn.Module")):
        kind: Any = sys.modules.get(framework)
        for part in base.split("."):
            kind = getattr(kind, part, None)
        if isinstance(kind, type) and isinstance(model, kind):
            return import_module(f"tensorstate_callbacks.tensorstate.{framework}_model")
    raise TypeError(
        "the model must be a Keras 3 model (keras.Model) or a PyTorch module (torch.nn.Module, "
        f"LightningModules included); got {type(model).__module__}.{type(model).__qualname__}"
    )
