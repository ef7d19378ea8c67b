"""Find where the neurons lie in an operation's results, from where they lay in what it took."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch

from tensorstate_callbacks.torch.axis_moves import MOVES, Arguments, carry_over, keep, reduce_axes
from tensorstate_callbacks.torch.places import Part, Parts, Place, Shape, whole

Input: TypeAlias = tuple[torch.Tensor, Place]


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
        return [keep(_best(data, shape), shape) for shape in shapes]
    # relu_ and permute_copy do what relu and permute do.
    name = schema.name.rpartition("::")[2].removesuffix("_").removesuffix("_copy")
    given = dict(zip((argument.name for argument in schema.arguments), args, strict=False))
    given.update(kwargs)
    made = _made_by(name, given, data, shapes)
    if made is not None:
        return made
    if all(place.parts is None for _, place in data):
        return [_from_weights(name, given, args, shape) for shape in shapes]
    rule = MOVES.get(name)
    if rule is None and "dim" in given and any(len(s) < len(data[0][1].shape) for s in shapes):
        rule = reduce_axes
    found = []
    for shape in shapes:
        found.append((rule or carry_over)(given, _best(data, shape), shape))
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
        first = None if value is None else keep(value, shapes[0])
        return [first, *(None for _ in shapes[1:])]
    if name == "copy" and isinstance(given.get("src"), torch.Tensor):
        source = _place_of(given["src"], data)
        if source is not None:
            return [keep(source, shape) for shape in shapes]
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
