"""Follow Keras's masks of padding from tensor to tensor, beyond where Keras drops them."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import keras

from tensorstate_callbacks.keras.axis_flow import reference_to, shape_of, tensors_in
from tensorstate_callbacks.keras.axis_rules import Shape
from tensorstate_callbacks.keras.mask_arguments import (
    Given,
    concerned_by,
    fits,
    get_keras_mask,
    given_to,
    hides_keys,
    is_mask,
    names_mask,
)


class Lost(NamedTuple):
    """In place of a mask: there may be padding, but which positions it is, nothing tells.

    Attributes:
        mask: What is known of it; where it hides nothing, there is no padding.
    """

    mask: Any


class _Scope(NamedTuple):
    """A call under way.

    Attributes:
        default: The mask of what nothing else is known of in it.
        seen: Masks that were seen in it, by samples and positions.
    """

    default: Any
    seen: dict[Shape, Any]


class _Pass(threading.local):
    """What is known in one pass: each replica of a model runs on a thread of its own."""

    def __init__(self) -> None:
        self.notes: dict[int, tuple[Any, Any]] = {}
        # The innermost last.
        self.scopes: list[_Scope] = []


class MaskFlow:
    """The masks of the tensors of one forward pass.

    Keras hangs masks on tensors, and drops them behind layers that don't support them; libraries
    give them as arguments (`padding_mask`). Here they stay with what layers make of a tensor as
    long as it has positions, and hold within a layer's call for what nothing else is known of.

    Attributes:
        began: Whether a pass was followed.
        seen: Whether any mask was.
    """

    def __init__(self) -> None:
        self._pass = _Pass()
        self.began = self.seen = False

    def begin(self, model: keras.Model, arguments: Any) -> None:
        """Begin a pass through a model, and its call; see `enter`."""
        self.began = True
        self._pass.notes.clear()
        self._pass.scopes.clear()
        self.enter(model, arguments)

    def enter(self, layer: Any, arguments: Any) -> None:
        """Note the masks that a call comes with; they hold in it until `leave`.

        Args:
            layer: What is called: a layer, or an operation.
            arguments: What with, `(args, kwargs)`.
        """
        given = list(given_to(layer, arguments))
        masks = dict(self._find_masks(given))
        others = [item for item in given if not names_mask(item)]
        tensors = [tensor for item in others for tensor in tensors_in(item.value)]
        for tensor in tensors:
            self.note(tensor, masks[id(tensor)] if id(tensor) in masks else self.of(tensor))
        default = self._noted(tensors[0]) if tensors else self._scope().default
        if default is None and any(isinstance(value, Mapping) for value in arguments[0]):
            # Of several inputs, one with a mask speaks for what isn't known.
            distinct = {id(mask): mask for mask in masks.values() if mask is not None}
            default = next(iter(distinct.values())) if len(distinct) == 1 else None
        if default is not None and isinstance(layer, keras.layers.TimeDistributed):
            # What runs inside gets one step at a time, and isn't told which.
            default = default if isinstance(default, Lost) else Lost(default)
        self._pass.scopes.append(_Scope(default, {}))

    def leave(self, layer: Any, arguments: Any, outputs: Any) -> None:
        """Note the masks of what a call gave.

        Args:
            layer: What was called.
            arguments: What with, `(args, kwargs)`.
            outputs: What it gave; None where it failed.
        """
        scope = self._pass.scopes.pop() if self._pass.scopes else self._scope()
        tensors = list(tensors_in(outputs))
        if not tensors:
            return
        given = [item for item in given_to(layer, arguments) if not names_mask(item)]
        inputs = [each for item in given for each in tensors_in(item.value)]
        is_layer = isinstance(layer, keras.layers.Layer)
        # Of a layer Keras passes on the mask of the first argument.
        first = next(iter((*arguments[0], *arguments[1].values()))) if is_layer else inputs
        before = [self._noted(each) for each in keras.tree.flatten(first)]
        made = self._made_masks(layer, first, before) if is_layer else []
        kept = next((mask for mask in before if mask is not None), None)
        rank = next((len(shape_of(tensor) or ()) for tensor in inputs), 0)
        for at, tensor in enumerate(tensors):
            is_known = self._is_noted(tensor)
            mask = self._noted(tensor) if is_known else None
            if mask is None:
                mask = get_keras_mask(tensor)
            if mask is None:
                mask = made[at] if at < len(made) else None
                mask = kept if mask is None and not is_known else mask
                if mask is not None and _gives_last_first(layer):
                    mask = mask if isinstance(mask, Lost) else keras.ops.flip(mask, axis=1)
                if mask is None and not is_known:
                    mask = _lost(tensor, scope)
            if mask is not None and not _has_positions(tensor, mask, rank):
                mask = None
            self.note(tensor, mask)

    def of(self, tensor: Any) -> Any:
        """Return the mask of a tensor; None where there is none, `Lost` where it was lost."""
        if self._is_noted(tensor):
            return self._noted(tensor)
        mask = get_keras_mask(tensor)
        if is_mask(mask):
            self._see(mask)
            return mask
        scope = self._scope()
        return _lost(tensor, scope) if scope.default is None else scope.default

    def of_input(self, layer: Any, tensor: Any) -> Any:
        """Return the mask of what a layer takes; that of `Masking` it makes itself."""
        if isinstance(layer, keras.layers.Masking):
            self.seen = True
            return layer.compute_mask(tensor)
        return self.of(tensor)

    def note(self, tensor: Any, mask: Any) -> None:
        """Remember the mask of a tensor; None: it has no padding."""
        if mask is not None:
            self._see(mask)
        self._pass.notes[id(tensor)] = reference_to(tensor), mask

    def _see(self, mask: Any) -> None:
        self.seen = True
        shape = None if isinstance(mask, Lost) else shape_of(mask)
        if shape is not None:
            for scope in self._pass.scopes:
                scope.seen[shape[:2]] = mask

    def _is_noted(self, tensor: Any) -> bool:
        kept, _ = self._pass.notes.get(id(tensor), (None, None))
        return kept is not None and kept() is tensor

    def _noted(self, tensor: Any) -> Any:
        return self._pass.notes[id(tensor)][1] if self._is_noted(tensor) else None

    def _scope(self) -> _Scope:
        scopes = self._pass.scopes
        return scopes[-1] if scopes else _Scope(None, {})

    def _find_masks(self, given: list[Given]) -> Iterator[tuple[int, Any]]:
        """Yield the `id` of tensors that a call is given masks for, and the masks."""
        others = [item for item in given if not names_mask(item)]
        masks = [item for item in given if names_mask(item)]
        weak = [item for item in masks if item.name.endswith("attention_mask")]
        strong = [item for item in masks if not item.name.endswith("attention_mask")]
        concerned = [(item, concerned_by(item, others)) for item in strong]
        # What is said of fewer tensors holds against what is said of more.
        for item, values in sorted(concerned, key=lambda each: -len(each[1])):
            found = keras.tree.flatten(item.value)
            tensors = [tensor for value in values for tensor in keras.tree.flatten(value)]
            if len(found) == 1:
                found *= len(tensors)
            for tensor, mask in zip(tensors, found, strict=False):
                # One that Keras took from the tensor may be less exact than ours.
                is_keras_own = mask is get_keras_mask(tensor) and self._is_noted(tensor)
                if not is_keras_own and is_mask(mask) and fits(shape_of(mask), tensor):
                    yield id(tensor), mask
        distinct = {id(each): each for item in others for each in tensors_in(item.value)}
        long = [each for each in distinct.values() if len(shape_of(each) or ()) > 2]
        for item in weak:
            # It hides keys: those that ask are the same where there is only one tensor.
            if strong or len(long) > 1 or not hides_keys(item.value):
                continue
            sizes = shape_of(item.value) or ()
            for tensor in long or distinct.values():
                if self.of(tensor) is None and fits((sizes[0], sizes[-1]), tensor):
                    yield id(tensor), item.value

    @staticmethod
    def _made_masks(layer: Any, first: Any, flat: list[Any]) -> list[Any]:
        """Return what Keras is about to compute: masks of the layer's outputs."""
        makes_own = type(layer).compute_mask is not keras.layers.Layer.compute_mask
        masks = [None if isinstance(mask, Lost) else mask for mask in flat]
        has_any = any(mask is not None for mask in masks)
        if not (getattr(layer, "supports_masking", False) and (makes_own or has_any)):
            return []
        before = keras.tree.pack_sequence_as(first, masks)
        # Keras makes the same call, and says what is wrong with it.
        with suppress(Exception):
            return [
                mask if is_mask(mask) else None
                for mask in keras.tree.flatten(layer.compute_mask(first, before))
            ]
        return []


def _lost(tensor: Any, scope: _Scope) -> Lost | None:
    """Return the mask that a tensor of raw operations may have lost in a call."""
    shape = shape_of(tensor) or ()
    # As many samples and positions as another one that has a mask.
    mask = scope.seen.get(shape[:2]) if len(shape) > 2 else None
    return None if mask is None else Lost(mask)


def _gives_last_first(layer: Any) -> bool:
    """Tell whether a layer gives the steps in the other order, with which Keras's mask isn't."""
    is_recurrent = isinstance(layer, keras.layers.RNN)
    return is_recurrent and layer.go_backwards and layer.return_sequences


def _has_positions(tensor: Any, mask: Any, rank_before: int) -> bool:
    """Tell whether a tensor may have the positions of the mask of what it was made of."""
    shape = shape_of(tensor)
    if shape is None or len(shape) > 2:
        return True
    if isinstance(mask, Lost):
        return rank_before == 2
    sizes = shape_of(mask)
    if len(shape) < 2 or sizes is None:
        return False
    if "int" in str(getattr(tensor, "dtype", "")) and shape == sizes:
        # Tokens.
        return True
    if shape[0] is None or sizes[0] is None:
        # All tokens one below the other, or one row for each sample.
        return rank_before == 2
    return shape[0] != sizes[0]
