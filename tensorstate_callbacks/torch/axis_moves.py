"""Follow the axis of the neurons through operations that move numbers and make no others."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch

from tensorstate_callbacks.torch.places import Part, Parts, Place, Shape, whole

Arguments: TypeAlias = Mapping[str, Any]

Rule: TypeAlias = Callable[[Arguments, Place, Shape], Parts | None]


def carry_over(_: Arguments, place: Place, shape: Shape) -> Parts | None:
    """Keep the axes: of whatever computes entry by entry, cuts, pads, pools or resizes."""
    return keep(place, shape)


def keep(place: Place, shape: Shape) -> Parts | None:
    """Keep the axes, counted from the front where there are as many, else from the end."""
    if place.parts is None:
        return None
    shift = len(shape) - len(place.shape)
    if shift < 0:
        return None
    return _shifted(place, {axis: axis + shift for axis in range(len(place.shape))}, shape)


def _shifted(place: Place, axes: Mapping[int, int], shape: Shape) -> Parts | None:
    """Give parts their new axes; those whose axis is gone are gone too."""
    moved = []
    for part in place.parts or ():
        axis = axes.get(part.axis)
        if axis is None:
            continue
        size = place.shape[part.axis]
        if part.inner == 1 and part.extent == size:
            moved.append(whole(axis, shape))
        elif shape[axis] == size:
            moved.append(Part(axis, part.inner, part.extent))
        else:
            return None
    return tuple(moved)


def _permute(given: Arguments, place: Place, shape: Shape) -> Parts | None:
    order = [dim % len(shape) for dim in given["dims"]]
    return _shifted(place, {old: new for new, old in enumerate(order)}, shape)


def _transpose(given: Arguments, place: Place, shape: Shape) -> Parts | None:
    if len(shape) < 2:
        return keep(place, shape)
    one, other = (given.get(name, dim) % len(shape) for name, dim in (("dim0", 0), ("dim1", 1)))
    axes = {axis: axis for axis in range(len(shape))}
    axes[one], axes[other] = other, one
    return _shifted(place, axes, shape)


def _unsqueeze(given: Arguments, place: Place, shape: Shape) -> Parts | None:
    new = given["dim"] % len(shape)
    axes = {axis: axis + (axis >= new) for axis in range(len(place.shape))}
    return _shifted(place, axes, shape)


def _drop(place: Place, dropped: set[int], shape: Shape) -> Parts | None:
    kept = [axis for axis in range(len(place.shape)) if axis not in dropped]
    return _shifted(place, {old: new for new, old in enumerate(kept)}, shape)


def _dims(given: Arguments, n_axes: int) -> set[int]:
    dim = given.get("dim")
    if dim is None or (isinstance(dim, (list, tuple)) and not dim):
        return set(range(n_axes))
    return {each % n_axes for each in (dim if isinstance(dim, (list, tuple)) else [dim])}


def _squeeze(given: Arguments, place: Place, shape: Shape) -> Parts | None:
    asked = _dims(given, len(place.shape))
    return _drop(place, {axis for axis in asked if place.shape[axis] == 1}, shape)


def _select(given: Arguments, place: Place, shape: Shape) -> Parts | None:
    return _drop(place, {given.get("dim", 0) % len(place.shape)}, shape)


def _stack(given: Arguments, place: Place, shape: Shape) -> Parts | None:
    return _unsqueeze({"dim": given.get("dim", 0)}, place, shape)


def reduce_axes(given: Arguments, place: Place, shape: Shape) -> Parts | None:
    """Drop the axes along which a sum, a mean or a largest entry was taken."""
    if len(shape) == len(place.shape):
        return keep(place, shape)
    return _drop(place, _dims(given, len(place.shape)), shape)


def _from_front(_: Arguments, place: Place, shape: Shape) -> Parts | None:
    axes = {axis: axis for axis in range(min(len(place.shape), len(shape)))}
    return _shifted(place, axes, shape)


def _index(given: Arguments, place: Place, shape: Shape) -> Parts | None:
    """Advanced indexing: the indexed axes become those of the indices, at the first one's place."""
    taken: list[int] = []
    axis, width = 0, 0
    for index in given["indices"]:
        n_axes = 1
        if index is not None:
            is_mask = index.dtype in (torch.bool, torch.uint8)
            n_axes = index.ndim if is_mask else 1
            taken += range(axis, axis + n_axes)
            width = max(width, 1 if is_mask else index.ndim)
        axis += n_axes
    adjacent = taken == list(range(taken[0], taken[0] + len(taken)))
    start = taken[0] if adjacent else 0
    rest = [axis for axis in range(len(place.shape)) if axis not in taken]
    axes = {old: new + (width if new >= start else 0) for new, old in enumerate(rest)}
    if len(taken) == width == 1:
        # Some entries of one axis, which stays what it was.
        axes[taken[0]] = start
    return _shifted(place, axes, shape)


def _columns(given: Arguments, place: Place, shape: Shape) -> Parts | None:
    """Of `im2col`: (N, C, H, W) becomes (N, C * places in a kernel, positions)."""
    if len(place.shape) != 4 or place.parts != (whole(1, place.shape),):
        return None
    return (Part(1, math.prod(given["kernel_size"]), place.shape[1]),)


def _from_columns(_: Arguments, place: Place, shape: Shape) -> Parts | None:
    return (whole(1, shape),) if len(shape) == 4 and place.parts else None


def _view(_: Arguments, place: Place, shape: Shape) -> Parts | None:
    """Follow neurons through a change of shape that keeps the order of the numbers."""
    if 0 in shape or 0 in place.shape:
        return None
    starts, new_starts = _strides(place.shape), _strides(shape)
    found: list[tuple[int, int, int]] = []
    for axis, inner, extent in place.parts or ():
        # The neurons as a factor of the place in memory: that is what a view keeps.
        low = starts[axis] * inner
        high = low * extent
        covered = 1
        for new, size in enumerate(shape):
            begin = max(low, new_starts[new])
            end = min(high, new_starts[new] * size)
            if begin < end:
                if end % begin or begin % new_starts[new]:
                    return None
                found.append((new, begin // new_starts[new], end // begin))
                covered *= end // begin
        if covered != extent:
            return None
        if extent == 1:
            ones = [new for new, size in enumerate(shape) if size == 1 and new_starts[new] == low]
            found += [(new, 1, 1) for new in ones[:1]]
    return _joined(found)


def _joined(found: Sequence[tuple[int, int, int]]) -> Parts:
    """Join factors of one axis that lie next to each other: heads and what each has."""
    parts: list[Part] = []
    for axis, inner, extent in sorted(found):
        last = parts[-1] if parts else None
        if last is not None and last.axis == axis and last.inner * last.extent == inner:
            parts[-1] = Part(axis, last.inner, last.extent * extent)
        else:
            parts.append(Part(axis, inner, extent))
    return tuple(parts)


def _strides(shape: Shape) -> list[int]:
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


MOVES: dict[str, Rule] = {
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias"), _view),
    **{"permute": _permute, "transpose": _transpose, "t": _transpose, "unsqueeze": _unsqueeze},
    **{"squeeze": _squeeze, "select": _select, "unbind": _select, "stack": _stack},
    **{"index": _index, "im2col": _columns, "col2im": _from_columns},
    **dict.fromkeys(("unfold", "view_as_real", "view_as_complex"), _from_front),
}
