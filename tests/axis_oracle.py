"""Check what `record` counts against plain hooks and NumPy, the axis of neurons being known."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from state_oracle import counted_states
from torch import nn

from tensorstate_callbacks.torch import record

Axes = int | tuple[int, ...]


def unit_states(batches: Iterable[torch.Tensor], axes: Axes) -> dict[bytes, int]:
    """Packed state to how often it was seen, the neurons lying on one axis or on several.

    On no axis lies one neuron.
    """
    along = (axes,) if isinstance(axes, int) else axes
    rows = []
    for batch in batches:
        fired = (batch.detach().double() > 0).numpy()
        moved = np.moveaxis(fired, along, range(-len(along), 0))
        width = math.prod(moved.shape[moved.ndim - len(along) :])
        rows.append(np.packbits(moved.reshape(-1, width), axis=1, bitorder="little"))
    states, counts = np.unique(np.concatenate(rows), axis=0, return_counts=True)
    return {s.tobytes(): int(n) for s, n in zip(states, counts, strict=True)}


def collect_calls(model: nn.Module, names: Iterable[str]) -> dict[str, list[torch.Tensor]]:
    """Clones of what each call of these modules gives, kept by hooks that stay on the model."""
    seen: dict[str, list[torch.Tensor]] = {}
    for name in names:
        kept = seen[name] = []

        def keep(_: nn.Module, args: Any, output: Any, kept: list[torch.Tensor] = kept) -> None:
            kept.append(output.detach().clone())

        model.get_submodule(name).register_forward_hook(keep)
    return seen


def check_axes(
    model: nn.Module, axes: Mapping[str, Axes], *batches: Any, **options: Any
) -> dict[str, int]:
    """Record these layers and compare their states with NumPy's, and the outputs bit by bit.

    Args:
        model: The model; its random numbers don't matter, dropout should be off.
        axes: Names of the probed layers to the axis, or axes, that hold their neurons.
        batches: Inputs, each a tensor or a tuple of what the model takes.
        options: What `record` takes besides.

    Returns:
        Number of neurons of each probe.
    """
    inputs = [batch if isinstance(batch, tuple) else (batch,) for batch in batches]
    # What a user sees without recording; the inputs are cloned, as a model may write on them.
    plain = [model(*(part.clone() for part in batch)) for batch in inputs]
    seen = collect_calls(model, axes)
    with record(model, list(axes), **options) as recording:
        watched = [model(*(part.clone() for part in batch)) for batch in inputs]
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
    found = {name: counted_states(counter) for name, counter in recording.counters.items()}
    neurons = {name: counter.n_neurons for name, counter in recording.counters.items()}
    assert neurons == {name: _width(seen[name][0], along) for name, along in axes.items()}
    assert found == {name: unit_states(seen[name], along) for name, along in axes.items()}
    return neurons


def _width(tensor: torch.Tensor, axes: Axes) -> int:
    return math.prod(tensor.shape[axis] for axis in ((axes,) if isinstance(axes, int) else axes))
