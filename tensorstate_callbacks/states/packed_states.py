"""Pack the firing states of neurons into bits, unpack them, and find equal ones."""

import operator
from typing import Any

import numpy as np
import numpy.typing as npt


def compress_states(states: Any) -> npt.NDArray[np.uint8]:
    """Pack firing states: one bit per neuron, set where the output is above 0.

    Args:
        states: Neuron outputs, shape `(states, neurons)`: an array of floats, integers or bool, or
            a tensor of PyTorch, TensorFlow or JAX, on any device.

    Returns:
        The packed states, shape `(states, ceil(neurons / 8))`, uint8; neuron 0 is bit 0 of byte 0,
        bits beyond the last neuron are 0.

    Raises:
        TypeError: The outputs can't be compared with 0.
        ValueError: They are not two-dimensional, or there is no neuron.

    Examples:
        >>> compress_states(np.array([[0.5, -1.0, 2.0], [0.0, 3.0, -0.0]]))
        array([[5],
               [2]], dtype=uint8)
    """
    fires = _fires(states)
    if fires.ndim != 2 or fires.shape[1] == 0:
        raise ValueError(
            f"states must have the shape (states, neurons), with a neuron at least; got "
            f"{fires.shape}. Move the neurons' axis last and reshape to two axes"
        )
    return np.packbits(fires, axis=1, bitorder="little")


def decompress_states(states: npt.ArrayLike, num_neurons: int) -> npt.NDArray[np.bool_]:
    """Unpack states that `compress_states` packed.

    Args:
        states: Packed states, shape `(states, ceil(num_neurons / 8))`, uint8.
        num_neurons: Number of neurons.

    Returns:
        Whether each neuron fired, shape `(states, num_neurons)`, bool.

    Raises:
        TypeError: The states are not uint8.
        ValueError: Their width is not that of so many neurons.

    Examples:
        >>> decompress_states(np.array([[5], [2]], np.uint8), 3)
        array([[ True, False,  True],
               [False,  True, False]])
    """
    rows = _rows(states)
    n_neurons = operator.index(num_neurons)
    if n_neurons < 1 or rows.shape[1] != -(-n_neurons // 8):
        raise ValueError(
            f"packed states of {n_neurons} neurons are {-(-n_neurons // 8)} bytes wide, of at "
            f"least one neuron; got {rows.shape[1]} bytes"
        )
    return np.unpackbits(rows, axis=1, count=n_neurons, bitorder="little").astype(np.bool_)


def sort_states(
    states: npt.ArrayLike, state_count: int | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Find equal states.

    Args:
        states: Packed states, shape `(states, bytes)`, uint8.
        state_count: How many of them to look at, from the first on; None for all.

    Returns:
        A tuple `(edges, index)`. `edges` says where each distinct state begins among the sorted
        ones, and their number at the end, so that `np.diff(edges)` counts them, shape
        `(distinct + 1,)`, int64. `index` sorts the states, `states[index]`, by their bytes, equal
        states in the order in which they stood, shape `(state_count,)`, int64.

    Raises:
        TypeError: The states are not uint8.
        ValueError: There are fewer states than `state_count`, or it is negative.

    Examples:
        >>> edges, index = sort_states(np.array([[7], [2], [7]], np.uint8))
        >>> np.diff(edges), index
        (array([1, 2]), array([1, 0, 2]))
    """
    rows = _rows(states)
    count = len(rows) if state_count is None else operator.index(state_count)
    if not 0 <= count <= len(rows):
        raise ValueError(f"state_count must lie between 0 and the {len(rows)} states; got {count}")
    keys = row_keys(rows[:count])
    index = np.argsort(keys, kind="stable")
    ordered = keys[index]
    begins = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    first = [0] if count else []
    return np.concatenate([first, begins, [count]]).astype(np.int64), index.astype(np.int64)


def row_keys(rows: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    """Return one key per packed state, shape `(states,)`, in the order of their bytes."""
    width = rows.shape[1]
    if width > 8:
        return np.ascontiguousarray(rows).view(f"V{width}").reshape(-1)
    padded = np.zeros((len(rows), 8), np.uint8)
    padded[:, :width] = rows
    return padded.view(">u8").reshape(-1).astype(np.uint64)


def _fires(states: Any) -> npt.NDArray[np.bool_]:
    tensor: Any = np.asarray(states) if isinstance(states, (list, tuple)) else states
    kind = str(getattr(tensor, "dtype", ""))
    try:
        if "complex" in kind:
            raise TypeError("a complex number doesn't fire or not fire")
        # In the tensor's own framework: NumPy knows neither its bfloat16 nor its device.
        fires: Any = tensor if "bool" in kind else tensor > 0
        if hasattr(fires, "detach"):
            fires = fires.cpu()
        return np.asarray(fires, np.bool_)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"states must be an array or tensor of real numbers or bool; got "
            f"{type(states).__name__} ({error})"
        ) from error


def _rows(states: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    rows = np.asarray(states)
    if rows.dtype != np.uint8:
        raise TypeError(f"packed states are uint8, as compress_states gives them; got {rows.dtype}")
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise ValueError(f"packed states have the shape (states, bytes); got {rows.shape}")
    return rows
