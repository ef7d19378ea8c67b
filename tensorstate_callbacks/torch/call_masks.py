"""Take masks of padding from the calls of modules, and say which of them holds for a tensor."""

import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from tensorstate_callbacks.errors import ProbeError
from tensorstate_callbacks.recording.masks import MaskedSamples
from tensorstate_callbacks.torch.activations import under_transform
from tensorstate_callbacks.torch.hooks import Hooks, fast_modules, is_first_run, takes_hooks
from tensorstate_callbacks.torch.packed import find_packed, packed_rows
from tensorstate_callbacks.torch.padding import (
    DATA_MASKS,
    argument_places,
    data_positions,
    other_tensor,
)

# What a decoder also takes of its encoder, and the mask that goes with it.
_MEMORIES = {"encoder_hidden_states": "encoder_attention_mask", "memory": "memory_key_padding_mask"}
# Hugging Face marks targets so that are not to be learned, such as padding.
_IGNORED = -100


class _Scope(NamedTuple):
    """What the latest call of a module says of padding.

    Attributes:
        masked: Which positions count; None where they all do, as far as it says.
        memory: Where the states of an encoder lie that the module was also given; 0 for none.
        of_memory: Which positions of these count.
    """

    masked: MaskedSamples | None
    memory: int = 0
    of_memory: MaskedSamples | None = None


class CallMasks:
    """The masks that modules are called with in one run of a model.

    A mask holds for what runs within the module's call and for what comes after it, until another
    module is called with one. The states of an encoder have a mask of their own in a decoder.

    Args:
        model: The model.
        names: The parameters of modules that are taken for masks.

    Attributes:
        labels: Targets of the run under way, shape `(N, T)`, which tell what a decoder reads that
            is given no mask; None where there are none.
    """

    def __init__(self, model: nn.Module, names: frozenset[str]) -> None:
        if "attention_mask" in names:
            names |= {"encoder_attention_mask"}
        self._model, self._names = model, names
        modules = [module for module in model.modules() if takes_hooks(module)]
        places = [(m, argument_places(m, names | _MEMORIES.keys())) for m in modules]
        self._masked = [(m, found) for m, found in places if names & found.keys()]
        self._recurrent = [m for m in modules if isinstance(m, nn.RNNBase)]
        self.labels: torch.Tensor | None = None
        # The latest last.
        self._scopes: dict[int, _Scope] = {}
        self._decoder: int | None = None
        self._read = ReadMasks()
        self._active: Callable[[], bool] = lambda: False
        self._on_enter: Callable[[MaskedSamples], None] = lambda masked: None

    @property
    def has_modules(self) -> bool:
        """Whether any module has such a parameter."""
        return bool(self._masked)

    @property
    def has_recurrent(self) -> bool:
        """Whether there are modules that may be called with a PackedSequence."""
        return bool(self._recurrent)

    @property
    def has_seen(self) -> bool:
        """Whether a module was called with a mask in the run under way."""
        return bool(self._scopes)

    def add_hooks(
        self, hooks: Hooks, active: Callable[[], bool], on_enter: Callable[[MaskedSamples], None]
    ) -> None:
        """Watch the calls of modules that take masks, or packed sequences.

        Args:
            hooks: What the hooks are of; it removes them.
            active: Calls are looked at only while it gives True.
            on_enter: Is told of each mask that leaves something out.
        """
        self._active, self._on_enter = active, on_enter
        for recurrent in self._recurrent:
            recurrent.register_forward_pre_hook(hooks.make(self._see_packed), with_kwargs=True)
        # Known only now that the probes are there.
        untouched = fast_modules(self._model)
        for module, places in self._masked:
            if module in untouched:
                continue
            see = hooks.make(partial(self._open_scope, places))
            module.register_forward_pre_hook(see, with_kwargs=True)
            module.register_forward_hook(hooks.make(self._close_scope))

    def begin(self) -> None:
        """Forget what was known of the run before."""
        self._scopes.clear()
        self._decoder = self.labels = None

    def of(
        self, fits: Callable[[MaskedSamples], bool], source: torch.Tensor | None
    ) -> MaskedSamples | None:
        """Return the mask that holds for a tensor; None where none does.

        Args:
            fits: Tells whether a mask has the form of the tensor.
            source: What the module was given that made it.
        """
        unfit: MaskedSamples | None = None
        for scope in reversed(list(self._scopes.values())):
            if scope.memory and source is not None and source.data_ptr() == scope.memory:
                return scope.of_memory
            if scope.masked is None:
                break
            if fits(scope.masked):
                return scope.masked
            unfit = unfit or scope.masked
        return unfit

    def _looks(self) -> bool:
        return self._active() and is_first_run() and not under_transform()

    def _see_packed(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        packed = find_packed((*args, *kwargs.values()))
        if packed is not None and self._looks():
            self._enter(module, _Scope(packed_rows(packed).masked))

    def _open_scope(
        self, places: Mapping[str, int], module: nn.Module, args: Any, kwargs: Mapping[str, Any]
    ) -> None:
        if not self._looks():
            return
        given = {
            name: value
            for name, place in places.items()
            if isinstance(
                value := kwargs.get(name, args[place] if place < len(args) else None), torch.Tensor
            )
        }
        masks = {
            name: self._read.of_call(name, value, other_tensor(value, args, kwargs))
            for name, value in given.items()
            if name in self._names
        }
        own = [m for name, m in masks.items() if m is not None and name not in _MEMORIES.values()]
        memory = next((name for name in _MEMORIES if name in given), None)
        if memory is None:
            if own:
                self._enter(module, _Scope(own[0]))
        elif own or self._decoder is None:
            # Within a decoder only masks of another form go on.
            self._decoder = self._decoder or id(module)
            masked = own[0] if own else self._targets()
            of_memory = masks.get(_MEMORIES[memory])
            self._enter(module, _Scope(masked, given[memory].data_ptr(), of_memory))

    def _close_scope(self, module: nn.Module, *_: Any) -> None:
        if self._decoder == id(module):
            self._decoder = None
        scope = self._scopes.pop(id(module), None)
        if scope is not None:
            # What comes next is most likely made of what this module gave.
            self._scopes[id(module)] = scope

    def _enter(self, module: nn.Module, scope: _Scope) -> None:
        self._scopes.pop(id(module), None)
        self._scopes[id(module)] = scope
        if scope.masked is not None and not scope.masked.keeps_all:
            self._on_enter(scope.masked)

    def _targets(self) -> MaskedSamples | None:
        labels = self.labels
        return None if labels is None else self._read.given(labels, lambda its: its != _IGNORED)


class ReadMasks:
    """Masks that were read: the same one goes on to many modules, and reading waits for devices."""

    def __init__(self) -> None:
        self._read: dict[tuple[int, bool], tuple[weakref.ref[Any], int, MaskedSamples | None]] = {}

    def of_call(
        self, name: str, mask: torch.Tensor, other: torch.Tensor | None
    ) -> MaskedSamples | None:
        """Return a mask that a module was called with; None where it is none of padding.

        Args:
            name: The parameter.
            mask: The mask.
            other: What else the module was given.
        """

        def read() -> MaskedSamples | None:
            kept = data_positions(name, mask, other)
            return None if kept is None else MaskedSamples(kept.numpy(force=True))

        return self._remembered(mask, name in DATA_MASKS, read)

    def given(self, mask: Any, make: Callable[[Any], Any] = lambda mask: mask) -> MaskedSamples:
        """Return a mask that the user gave.

        Args:
            mask: An array or a tensor.
            make: Makes the mask of it, if it isn't the mask itself.

        Raises:
            ProbeError: It is no mask; says why.
        """

        def read() -> MaskedSamples:
            made = make(mask)
            if isinstance(made, torch.Tensor):
                made = (made.float() if made.is_floating_point() else made).numpy(force=True)
            try:
                return MaskedSamples(made)
            except (TypeError, ValueError) as error:
                raise ProbeError(f"mask: {error}") from error

        found = self._remembered(mask, True, read)
        return read() if found is None else found

    def _remembered(
        self, mask: Any, is_data: bool, read: Callable[[], MaskedSamples | None]
    ) -> MaskedSamples | None:
        if not isinstance(mask, torch.Tensor):
            return read()
        key = id(mask), is_data
        version = 0 if mask.is_inference() else mask._version
        kept, kept_version, found = self._read.get(key, (None, 0, None))
        if kept is None or kept() is not mask or kept_version != version:
            found = read()
            reference = weakref.ref(mask, lambda _: self._read.pop(key, None) and None)
            self._read[key] = reference, version, found
        return found
