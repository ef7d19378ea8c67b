"""Make the states of a layer where its activations lie: choose positions, threshold, pack."""

import math
from typing import Any, NamedTuple, Protocol

import keras
import numpy as np
import numpy.typing as npt

from tensorstate_callbacks.recording.channel_axis import normal_axes
from tensorstate_callbacks.states.counter import firing_range
from tensorstate_callbacks.states.group_counter import table_size
from tensorstate_callbacks.states.positions import spread_positions

# Tables of more counts would take more of an accelerator's memory than a layer is worth.
MOST_COUNTS = 1 << 24


class Firing(NamedTuple):
    """Which numbers of a type fire: those whose key is within two bounds, or below a third.

    The key of an integer is the integer itself, that of a floating-point number its bits as a
    signed integer of the same width. To compare the floats themselves would not be exact:
    frameworks may take the smallest for zero.

    Attributes:
        first: The least of the keys that fire.
        last: The greatest; less than `first` where none fires.
        below: Keys below this one fire too; None where there are no such.
    """

    first: int
    last: int
    below: int | None


class Plan(NamedTuple):
    """How the states are made of one kind of tensor.

    Attributes:
        axes: The axes of the neurons, counted from the front; axis 0 is that of the samples.
        n_neurons: Bits of a state.
        grid: How many positions of a sample lie along each axis; None where a batch tells.
        places: Indices of the positions that are read, in C order; None where all are.
        firing: Which numbers fire.
        unit: Neurons of a unit; None where the layer is one unit.
    """

    axes: tuple[int, ...]
    n_neurons: int
    grid: tuple[int | None, ...]
    places: npt.NDArray[np.intp] | None
    firing: Firing
    unit: int | None

    @property
    def n_counts(self) -> int | None:
        """Length of what `GroupCounter.tables` gives; None where states are to be handed over."""
        if self.unit is None:
            return None
        n_counts = table_size(self.n_neurons, self.unit)
        return n_counts if n_counts <= MOST_COUNTS else None

    @property
    def n_read(self) -> int:
        """How many positions of a sample are read; 1 where only a batch tells."""
        if self.places is not None:
            return len(self.places)
        return math.prod(size or 1 for size in self.grid)

    @property
    def known_grid(self) -> tuple[int, ...]:
        """The grid, where all sizes are known."""
        return tuple(size for size in self.grid if size is not None)


class Operations(Protocol):
    """What a framework can do with tensors in the graph."""

    INDEX_DTYPE: str

    def fires(self, tensor: Any, firing: Firing) -> Any:
        """Return which numbers fire, as a tensor of bool."""

    def pack(self, bits: Any) -> Any:
        """Pack the last axis into bytes, whose bit 0 comes first; uint8."""


def plan_states(
    shape: tuple[int | None, ...],
    dtype: str,
    axes: tuple[int, ...],
    threshold: float,
    *,
    group_size: int | None,
    positions: int | None,
) -> Plan | None:
    """Return how a tensor's states are made in the graph; None where that can't be.

    Args:
        shape: Of the activations; None where only a batch tells a size.
        dtype: Name of their type.
        axes: The axes of the neurons.
        threshold: A neuron fires where its activation is greater; finite.
        group_size: Neurons of a unit; None makes the layer one unit.
        positions: At most that many positions of each sample are read; None reads all.
    """
    firing = firing_of(dtype, threshold)
    if firing is None:
        return None
    neurons = normal_axes(axes, tuple(size or 0 for size in shape))
    sizes = [shape[axis] for axis in neurons]
    grid = tuple(size for axis, size in enumerate(shape) if axis and axis not in neurons)
    if 0 in neurons or not all(sizes) or 0 in grid:
        return None
    places = None
    if positions is not None and grid:
        known = tuple(size for size in grid if size is not None)
        if len(known) < len(grid):
            return None
        if positions < math.prod(known):
            places = spread_positions(known, positions)
    n_neurons = math.prod(size or 0 for size in sizes)
    unit = None if group_size is None else min(group_size, n_neurons)
    return Plan(neurons, n_neurons, grid, places, firing, unit)


def firing_of(dtype: str, threshold: float) -> Firing | None:
    """Return which numbers of a type are greater than a threshold, exactly; None of others.

    Args:
        dtype: Name of the type.
        threshold: Finite.

    Examples:
        >>> firing_of("int8", 2.5), firing_of("float16", 0.0)
        (Firing(first=3, last=127, below=None), Firing(first=1, last=31744, below=None))
    """
    is_bfloat16 = dtype == "bfloat16"
    try:
        kind = np.dtype("uint16" if is_bfloat16 else dtype)
        is_folded, first, number = firing_range(kind, threshold, is_bfloat16)
    except TypeError:
        return None
    n_keys = 1 << 8 * kind.itemsize
    if not number:
        return Firing(1, 0, None)
    if is_folded:
        # A threshold below zero: negative numbers are the least keys, and grow with their size.
        return Firing(0, (first + number - 1) % n_keys, (1 - first) % n_keys - n_keys // 2)
    if kind.kind == "i" and first >= n_keys // 2:
        first -= n_keys
    return Firing(first, first + number - 1, None)


def states_of(operations: Operations, tensor: Any, plan: Plan) -> Any:
    """Return a tensor's states as bool: samples, then positions, the neurons last.

    Args:
        operations: The framework's.
        tensor: Activations.
        plan: Theirs.
    """
    ops, axes = keras.ops, list(plan.axes)
    rest = [axis for axis in range(1, len(tensor.shape)) if axis not in axes]
    if plan.places is not None:
        first, last = rest[0], rest[-1]
        if last - first >= len(rest):
            # Neurons lie in between.
            tensor = ops.transpose(tensor, (0, *rest, *axes))
            first, last = 1, len(rest)
            axes = list(range(last + 1, len(tensor.shape)))
        sizes = ops.shape(tensor)
        n_positions = math.prod(plan.known_grid)
        tensor = ops.reshape(tensor, (*sizes[:first], n_positions, *sizes[last + 1 :]))
        # Before all else: the rest isn't looked at.
        tensor = ops.take(tensor, plan.places, axis=first)
        axes = [axis if axis < first else axis - (last - first) for axis in axes]
        rest = [first]
    bits = operations.fires(tensor, plan.firing)
    order = (0, *rest, *axes)
    if order != tuple(range(len(order))):
        bits = ops.transpose(bits, order)
    if len(axes) > 1:
        bits = ops.reshape(bits, (*ops.shape(bits)[: 1 + len(rest)], plan.n_neurons))
    return bits


def codes_of(operations: Operations, bits: Any, plan: Plan) -> Any:
    """Return of each state of each unit where it is counted in `GroupCounter.tables`.

    Args:
        operations: The framework's.
        bits: The states of the layer, the neurons last.
        plan: Theirs; its `unit` is given.

    Returns:
        Integers, shape `(states, units)`.
    """
    ops, size = keras.ops, plan.unit or plan.n_neurons
    n_units = -(-plan.n_neurons // size)
    bits = ops.reshape(bits, (-1, plan.n_neurons))
    offsets = ops.cast(np.arange(n_units) << size, operations.INDEX_DTYPE)
    if size == 1:
        return ops.cast(bits, operations.INDEX_DTYPE) + offsets
    missing = n_units * size - plan.n_neurons
    if missing:
        bits = ops.pad(bits, ((0, 0), (0, missing)))
    packed = operations.pack(ops.reshape(bits, (-1, n_units, size)))
    parts = ops.cast(packed, operations.INDEX_DTYPE)
    codes = parts[..., 0] + offsets
    for at in range(1, -(-size // 8)):
        codes = codes + parts[..., at] * (1 << 8 * at)
    return codes
