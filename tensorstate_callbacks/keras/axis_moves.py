"""Follow axes through what rearranges them: transposing, reshaping, reducing, indexing."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tensorstate_callbacks.keras.axis_rules import LAST, Axes, Shape

_REDUCTIONS = frozenset(
    {"Mean", "Max", "Min", "Sum", "Prod", "Any", "All", "Std", "Var", "Median", "Logsumexp"}
)


def moved_axes(operation: Any, arguments: Any, axes: Axes, before: Shape, after: Shape) -> Axes:
    """Return where the axes of a tensor are after one of Keras's own operations.

    Args:
        operation: A layer, or an operation of `keras.ops` in a functional model.
        arguments: What it was called with, `(args, kwargs)`.
        axes: Axes of what it took, counted from the end.
        before: Shape of what it took, with None for what isn't known.
        after: Shape of what it gave.

    Returns:
        The axes, counted from the end; none where they are lost, or it isn't known where they went.
    """
    kind = type(operation)
    if not kind.__module__.startswith("keras."):
        return carried_axes(axes, before, after)
    if kind.__name__ == "Flatten":
        return LAST
    if kind.__name__ == "Reshape":
        return reshaped_axes(axes, before, after)
    places = [axis % len(before) for axis in axes]
    order = _order(operation, arguments, len(before), before)
    if order is None:
        return carried_axes(axes, before, after)
    if len(order) != len(after):
        return ()
    return tuple(at - len(order) for at, old in enumerate(order) if old in places)


def carried_axes(axes: Axes, before: Shape, after: Shape) -> Axes:
    """Return the axes after an operation that isn't known, as far as the shapes tell.

    They stay where they are if their sizes do (a crop, a sum with something broadcast), or if
    nothing but their sizes changes (a product with a kernel).
    """
    if len(before) != len(after):
        return ()
    same = [a == b for a, b in zip(before, after, strict=True)]
    others = all(same[at] for at in range(len(before)) if at - len(before) not in axes)
    return axes if others or all(same[axis] for axis in axes) else ()


def reshaped_axes(axes: Axes, before: Shape, after: Shape) -> Axes:
    """Return where neurons are after a reshape: all axes that theirs became, or were put into.

    Examples:
        >>> reshaped_axes((-1,), (None, 7, 8), (None, 7, 2, 4))
        (-2, -1)
        >>> reshaped_axes((-2, -1), (32, 7, 2, 4), (32, 7, 8))
        (-1,)
        >>> reshaped_axes((-3,), (None, 6, 5, 4), (None, 6, 20))
        (-2,)
    """
    places = {axis % len(before) for axis in axes}
    found: list[int] = []
    for old, new in _groups(before, after):
        if not places & set(old):
            continue
        whole = all(at in places for at in old if before[at] != 1)
        if not whole and len(new) > 1:
            return ()
        found += [at for at in new if after[at] != 1] or new[:1]
    return tuple(at - len(after) for at in found)


def _groups(before: Shape, after: Shape) -> list[tuple[list[int], list[int]]]:
    """Return the smallest runs of axes that hold the same numbers before and after."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) and j < len(after):
        old, new, a, b = [i], [j], before[i], after[j]
        i, j = i + 1, j + 1
        while a != b:
            if a is None or b is None:
                return []
            if a < b and i < len(before):
                size, i = before[i], i + 1
                old.append(i - 1)
                a = None if size is None else a * size
            elif a > b and j < len(after):
                size, j = after[j], j + 1
                new.append(j - 1)
                b = None if size is None else b * size
            else:
                return []
        groups.append((old, new))
    return groups


def _order(operation: Any, arguments: Any, n_axes: int, shape: Shape) -> list[int | None] | None:
    """Return which old axis each new axis is, None for a new one; None if it isn't known."""
    name = type(operation).__name__
    old: list[int | None] = list(range(n_axes))
    if name in _REDUCTIONS:
        if operation.keepdims:
            return old
        gone = range(n_axes) if operation.axis is None else _listed(operation.axis)
        return [at for at in old if at not in {each % n_axes for each in gone}]
    change = _CHANGES.get(name)
    return None if change is None else change(operation, old, arguments, shape)


def _permute(operation: Any, old: list[int | None], arguments: Any, shape: Shape) -> Any:
    return [old[at] for at in (0, *operation.dims)]


def _transpose(operation: Any, old: list[int | None], arguments: Any, shape: Shape) -> Any:
    return old[::-1] if operation.axes is None else [old[at] for at in operation.axes]


def _swap(operation: Any, old: list[int | None], arguments: Any, shape: Shape) -> Any:
    return _numbered(old, lambda array: np.swapaxes(array, operation.axis1, operation.axis2))


def _move(operation: Any, old: list[int | None], arguments: Any, shape: Shape) -> Any:
    return _numbered(old, lambda array: np.moveaxis(array, operation.source, operation.destination))


def _squeeze(operation: Any, old: list[int | None], arguments: Any, shape: Shape) -> Any:
    if operation.axis is None:
        return [at for at, size in zip(old, shape, strict=True) if size != 1]
    gone = {at % len(old) for at in _listed(operation.axis)}
    return [at for at in old if at not in gone]


def _expand(operation: Any, old: list[int | None], arguments: Any, shape: Shape) -> Any:
    added = _listed(operation.axis)
    new = {at % (len(old) + len(added)) for at in added}
    rest = iter(old)
    return [None if at in new else next(rest) for at in range(len(old) + len(new))]


def _stack(operation: Any, old: list[int | None], arguments: Any, shape: Shape) -> Any:
    return _expand(operation, old, arguments, shape)


def _index(operation: Any, old: list[int | None], arguments: Any, shape: Shape) -> Any:
    args, kwargs = arguments
    key = kwargs["key"] if "key" in kwargs else args[1]
    parts = list(key) if isinstance(key, (tuple, list)) else [key]
    if not all(part is None or part is ... or isinstance(part, (int, slice)) for part in parts):
        return None
    if ... not in parts:
        parts.append(...)
    taken = sum(part is not None and part is not ... for part in parts)
    new: list[int | None] = []
    rest = list(old)
    for part in parts:
        if part is None:
            new.append(None)
        elif part is ...:
            kept = len(old) - taken
            new, rest = new + rest[:kept], rest[kept:]
        else:
            first = rest.pop(0)
            new += [first] if isinstance(part, slice) else []
    return new


_CHANGES: Mapping[str, Callable[[Any, list[int | None], Any, Shape], Any]] = {
    "Permute": _permute,
    "Transpose": _transpose,
    "Swapaxes": _swap,
    "Moveaxis": _move,
    "Squeeze": _squeeze,
    "ExpandDims": _expand,
    "Stack": _stack,
    "GetItem": _index,
}


def _numbered(old: list[int | None], change: Callable[[Any], Any]) -> list[int]:
    """Return the order that a function of NumPy's brings axes into."""
    # Sizes tell the axes apart; the array takes no memory.
    array = np.broadcast_to(np.zeros(()), tuple(range(1, len(old) + 1)))
    return [size - 1 for size in change(array).shape]


def _listed(axis: int | Sequence[int]) -> list[int]:
    return [axis] if isinstance(axis, int) else list(axis)
