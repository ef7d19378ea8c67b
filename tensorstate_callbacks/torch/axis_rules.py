"""Work out where the neurons lie in an operation's results, from where they lay in what it took."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch


class Part(NamedTuple):
    """Neurons on one axis, or on a factor of it.

    Of an axis that was made by merging several, the neurons may be one factor: heads in an axis of
    samples times heads. The neuron is then `(index // inner) % extent`.

    Attributes:
        axis: Counted from the front.
        inner: Size of what varies faster than the neurons on this axis.
        extent: Number of neurons.
    """

    axis: int
    inner: int
    extent: int


# Several parts are the neurons together: heads and what each has. None at all: one neuron.
Parts: TypeAlias = tuple[Part, ...]
Shape: TypeAlias = tuple[int, ...]


class Place(NamedTuple):
    """Where the neurons of a tensor that stems from the data lie.

    Attributes:
        shape: Of the tensor.
        parts: Where; None: that isn't known.
    """

    shape: Shape
    parts: Parts | None


Input: TypeAlias = tuple[torch.Tensor, Place]
Arguments: TypeAlias = Mapping[str, Any]
Rule: TypeAlias = Callable[[Arguments, Place, Shape], Parts | None]


def whole(axis: int, shape: Sequence[int]) -> Part:
    """Return the part that is all of an axis."""
    return Part(axis, 1, shape[axis])


def place_outputs(
    func: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    data: Sequence[Input],
    shapes: Sequence[Shape],
) -> list[Parts | None]:
    """Return where the neurons lie in each tensor that an operation gave.

    Args:
        func: The operation, as a dispatch mode sees it.
        args: Its arguments by place.
        kwargs: Its arguments by name.
        data: The tensors among them that stem from the data, and their places.
        shapes: Of the tensors it gave.
    """
    schema = getattr(func, "_schema", None)
    if schema is None:
        return [_keep(_best(data, shape), shape) for shape in shapes]
    # relu_ and permute_copy do what relu and permute do.
    name = schema.name.rpartition("::")[2].removesuffix("_").removesuffix("_copy")
    given = dict(zip((argument.name for argument in schema.arguments), args, strict=False))
    given.update(kwargs)
    made = _made_by(name, given, data, shapes)
    if made is not None:
        return made
    if all(place.parts is None for _, place in data):
        return [_from_weights(name, given, args, shape) for shape in shapes]
    rule = _MOVES.get(name)
    if rule is None and "dim" in given and any(len(s) < len(data[0][1].shape) for s in shapes):
        rule = _reduce
    found = []
    for shape in shapes:
        found.append((rule or _carry_over)(given, _best(data, shape), shape))
    return found


def _from_weights(name: str, given: Arguments, args: tuple[Any, ...], shape: Shape) -> Parts | None:
    """Where the neurons of data of unknown origin are, by the weights that meet them."""
    if name in ("native_layer_norm", "_fused_rms_norm", "rms_norm"):
        return _on_axis(len(shape) - len(given["normalized_shape"]), shape)
    if name.endswith(("batch_norm", "group_norm")):
        return _on_axis(1, shape)
    found = {axis for part in args if (axis := _scaled_axis(part, shape)) is not None}
    return _on_axis(found.pop(), shape) if len(found) == 1 else None


def _scaled_axis(weight: Any, shape: Shape) -> int | None:
    """The axis along which a parameter, or a view of one, has a number for each neuron."""
    if not isinstance(weight, torch.Tensor) or not 0 < weight.ndim <= len(shape):
        return None
    if not isinstance(weight if weight._base is None else weight._base, torch.nn.Parameter):
        return None
    shift = len(shape) - weight.ndim
    long = [axis + shift for axis, size in enumerate(weight.shape) if size > 1]
    if len(long) != 1 or shape[long[0]] != weight.shape[long[0] - shift]:
        return None
    return long[0]


def _best(data: Sequence[Input], shape: Shape) -> Place:
    """The input that says most about a result: known, of the same shape, the first."""

    def worth(place: Place) -> tuple[bool, bool, bool, bool]:
        parts = place.parts
        spread = bool(parts) and all(place.shape[p.axis] > 1 for p in parts or ())
        same_axes = len(place.shape) == len(shape)
        return parts is not None, place.shape == shape, spread, same_axes

    return max((place for _, place in data), key=worth)


def _carry_over(_: Arguments, place: Place, shape: Shape) -> Parts | None:
    return _keep(place, shape)


def _keep(place: Place, shape: Shape) -> Parts | None:
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
        return _keep(place, shape)
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


def _reduce(given: Arguments, place: Place, shape: Shape) -> Parts | None:
    if len(shape) == len(place.shape):
        return _keep(place, shape)
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


_MOVES: dict[str, Rule] = {
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias"), _view),
    **{"permute": _permute, "transpose": _transpose, "t": _transpose, "unsqueeze": _unsqueeze},
    **{"squeeze": _squeeze, "select": _select, "unbind": _select, "stack": _stack},
    **{"index": _index, "im2col": _columns, "col2im": _from_columns},
    **dict.fromkeys(("unfold", "view_as_real", "view_as_complex"), _from_front),
}
# (first factor, second factor) of the operations that multiply matrices.
_PRODUCTS = {
    **dict.fromkeys(("mm", "bmm", "matmul"), ("self", "mat2")),
    **dict.fromkeys(("addmm", "_addmm_activation"), ("mat1", "mat2")),
    "baddbmm": ("batch1", "batch2"),
}
# Operations that make neurons of their own, on the last axis.
_MAKE_LAST = ("linear", "embedding", "lstm", "gru", "rnn", "multi_head", "transformer_encoder")
# Of these names only part is one of the above: upsample_bilinear2d, _convert_weight.
_OTHERS = ("upsample", "convert", "backward")


def _made_by(
    name: str, given: Arguments, data: Sequence[Input], shapes: Sequence[Shape]
) -> list[Parts | None] | None:
    """Results of the operations that make neurons, or bring those of two inputs together."""
    if name in ("mv", "addmv"):
        place = _place_of(given.get("mat", given["self"]), data)
        parts = None if place is None else place.parts
        return [None if parts is None else tuple(p for p in parts if p.axis == 0)]
    if name in _PRODUCTS:
        return [_product(*_factors(name, given, data), shapes[0])]
    if any(word in name for word in _OTHERS):
        return None
    if "conv" in name:
        weight = given.get("weight")
        n_spatial = weight.ndim - 2 if isinstance(weight, torch.Tensor) else len(shapes[0]) - 2
        return [_on_axis(len(shape) - 1 - n_spatial, shape) for shape in shapes]
    if any(word in name for word in _MAKE_LAST):
        return [_on_axis(len(shape) - 1, shape) for shape in shapes]
    if "attention" in name and isinstance(given.get("value"), torch.Tensor):
        value = _place_of(given["value"], data)
        first = None if value is None else _keep(value, shapes[0])
        return [first, *(None for _ in shapes[1:])]
    if name == "copy" and isinstance(given.get("src"), torch.Tensor):
        source = _place_of(given["src"], data)
        if source is not None:
            return [_keep(source, shape) for shape in shapes]
    return None


def _on_axis(axis: int, shape: Shape) -> Parts | None:
    return (whole(axis, shape),) if 0 <= axis < len(shape) else None


def _place_of(tensor: Any, data: Sequence[Input]) -> Place | None:
    return next((place for known, place in data if known is tensor), None)


def _factors(
    name: str, given: Arguments, data: Sequence[Input]
) -> tuple[Place | None, Place | None]:
    first, second = _PRODUCTS[name]
    other = given.get(second, given.get("other"))
    return _place_of(given[first], data), _place_of(other, data)


def _product(first: Place | None, second: Place | None, shape: Shape) -> Parts | None:
    """Where the neurons lie in a product of matrices.

    Data times a weight makes neurons of the weight's columns, a weight times data of its rows.
    Where both are data (attention), rows and columns that were neurons remain so.
    """
    rows, columns = len(shape) - 2, len(shape) - 1
    if rows < 0:
        return None
    batch_from = first or second
    parts: list[Part] = []
    if batch_from is not None and len(batch_from.shape) == len(shape):
        parts += [p for p in batch_from.parts or () if p.axis < rows]
    if second is None:
        return (*parts, whole(columns, shape))
    if first is None:
        return (*parts, whole(rows, shape))
    if first.parts is None or second.parts is None:
        known = second if second.parts is not None else first
        axis = columns if known is second else rows
        parts += [p for p in known.parts or () if len(known.shape) == len(shape) and p.axis == axis]
        return tuple(parts) or None
    parts += [p for p in first.parts if p.axis == len(first.shape) - 2 == rows]
    parts += [p for p in second.parts if p.axis == len(second.shape) - 1 == columns]
    return tuple(parts)
