"""Follow the axis of the neurons through every operation of a forward pass.

While a model runs, a dispatch mode sees each operation that is computed, in modules and between
them, and works out where the neurons of its result lie from where they lay in what it took. It
computes nothing and changes nothing.
"""

import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils.hooks import RemovableHandle

from tensorstate_callbacks.torch.activations import find_tensor, input_tensor
from tensorstate_callbacks.torch.hooks import fast_modules, is_first_run, takes_hooks
from tensorstate_callbacks.torch.operation_axis import place_outputs
from tensorstate_callbacks.torch.places import Parts, Places, shape_of, tensors_in

# Shapes of samples that bring nothing new, after which no others are looked at.
_MOST_WITHOUT_NEWS = 8


def _sample_shapes(args: Any, kwargs: Any) -> tuple[Any, ...]:
    return tuple(shape_of(tensor)[1:] for tensor in tensors_in((args, kwargs)))


class Axes(Protocol):
    """What takes the axes of a model's tensors as they are found out.

    Attributes:
        places: Takes what is found out.
    """

    places: Places

    def note(self, module: nn.Module, taken: torch.Tensor | None, given: torch.Tensor) -> None:
        """Take note of a module's call, while it is followed."""

    def is_enough(self) -> bool:
        """Tell, as a call of the model ends, whether no further one needs to be followed."""


class _Running(threading.local):
    """The call that a thread follows.

    Attributes:
        mode: Sees the call's operations; None where none is followed.
        depth: How many modules have been entered and not left.
    """

    # Of the class: asking for a thread's attribute that isn't there takes 7 µs.
    mode: "Follow | None" = None
    depth = 0


class Follower:
    """Follows a model's data from where it is called to where that call ends.

    It hooks all modules of the model, so that it finds out which call is the outermost one. As soon
    as enough is known it removes the hooks.

    Args:
        axes: Takes what is found out.
    """

    def __init__(self, axes: Axes) -> None:
        self._axes = axes
        self._handles: list[RemovableHandle] = []
        self._hooked: tuple[Callable[[], nn.Module | None], Callable[..., Any]] | None = None
        self._is_done = False
        # Modules that were called from outside of the model, and the shapes of what they took.
        self._entries: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._shapes: set[tuple[Any, ...]] = set()
        self._n_without_news = 0
        self._running = _Running()

    def __getstate__(self) -> dict[str, Any]:
        # A copy of the model follows its own calls: handles and open calls stay behind.
        return {"_axes": self._axes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_axes"])  # type: ignore[misc]

    def is_on(self) -> bool:
        """Tell whether a call is followed now, in this thread."""
        return self._running.mode is not None

    def add_hooks(self, model: nn.Module, wrap: Callable[..., Any]) -> list[RemovableHandle]:
        """Hook all modules of a model: before the probes' hooks, and behind them.

        Args:
            model: The model.
            wrap: Makes a hook of a function.

        Returns:
            Handles that remove the hooks.
        """
        self._unhook()
        self._hooked = weakref.ref(model), wrap
        self._is_done = False
        untouched = fast_modules(model)
        for module in model.modules():
            if module in untouched or not takes_hooks(module):
                continue
            enter = module.register_forward_pre_hook(
                wrap(self._enter), with_kwargs=True, prepend=True
            )
            leave = module.register_forward_hook(
                wrap(self._leave), with_kwargs=True, always_call=True
            )
            self._handles += [enter, leave]
        return self._handles

    def follow_again(self) -> None:
        """Follow the next calls too: what was known was not enough."""
        if self._is_done and self._hooked is not None:
            get_model, wrap = self._hooked
            model = get_model()
            if model is not None:
                self.add_hooks(model, wrap)

    def remove_hooks(self) -> None:
        """Remove all hooks, and end what an interrupt may have left open."""
        self._unhook()
        self._end()

    def _unhook(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._running.mode is not None:
            self._running.depth += 1
        elif not self._is_done and is_first_run():
            self._entries.add(module)
            self._shapes.add(_sample_shapes(args, kwargs))
            self._axes.places.begin(tensors_in((args, kwargs)))
            mode: Any = Follow(self._axes.places)
            self._running.depth, self._running.mode = 1, mode
            mode.__enter__()

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self._running.mode is None:
            return
        tensor = find_tensor(output)
        if tensor is not None:
            self._axes.note(module, input_tensor(args, kwargs), tensor)
        self._running.depth -= 1
        if self._running.depth <= 0:
            self._end()
            if self._axes.is_enough():
                self._await_new_shapes()

    def _await_new_shapes(self) -> None:
        """Follow no further, unless the model is given samples of another shape.

        It may compute something else of them. Where a few shapes brought nothing new, no more are
        looked at.
        """
        self._is_done = True
        self._unhook()
        self._n_without_news += 1
        if self._hooked is not None and self._n_without_news < _MOST_WITHOUT_NEWS:
            _, wrap = self._hooked
            for module in self._entries:
                hook = module.register_forward_pre_hook(wrap(self._check_shapes), with_kwargs=True)
                self._handles.append(hook)

    def _check_shapes(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._running.mode is not None or not is_first_run():
            return
        if _sample_shapes(args, kwargs) not in self._shapes:
            self.follow_again()
            self._enter(module, args, kwargs)

    def _end(self) -> None:
        mode = self._running.mode
        if mode is not None:
            mode.on = False
            _remove_ended()
            self._running.mode = None


def _remove_ended() -> None:
    """Take the modes that are over off this thread's stack, from its top.

    torch restores in one mode what the one below it has found, so their order must be kept. One
    that lies under another that an interrupt has left passes all through, until that one goes.
    """
    while stack := _get_current_dispatch_mode_stack():
        if not isinstance(stack[-1], Follow) or stack[-1].on:
            break
        stack[-1].__exit__(None, None, None)  # type: ignore[no-untyped-call]


class Follow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the place of whatever is computed from the data while it is on.

    Args:
        places: What is known of tensors so far, and takes what is found out.
    """

    # Else torch refuses its higher order operators (flex attention, cond) under any mode.
    supports_higher_order_operators = True

    def __init__(self, places: Places) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._places = places
        self.on = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # To be kept out of compiled code torch would import its compiler, which takes seconds; none
        # runs here.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Compute, then note."""
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if self.on:
            # Arguments that no rule expects must not end the pass: the place of the result is not
            # known then, which is warned of.
            with suppress(Exception):
                self._note(func, args, kwargs, output)
        return output

    def _note(self, func: Any, args: tuple[Any, ...], kwargs: Any, output: Any) -> None:
        places = self._places
        outputs = list(tensors_in(output))
        # What is made anew, after the type of some tensor, holds nothing of it.
        if not outputs or "aten.new_" in str(func):
            return
        taken = list(tensors_in((args, kwargs)))
        data = [(t, place) for t in taken if (place := places.get(t)) is not None]
        if not data:
            # An embedding takes numbers that needn't stem from what the model was given.
            if "embedding" in str(func):
                places.set_axis(outputs[0], -1)
            return
        found = place_outputs(func, args, kwargs, data, [shape_of(o) for o in outputs])
        for tensor, parts in zip(outputs, found, strict=True):
            places.set(tensor, parts)
            # What is written into a view stands in the tensor that it is a view of.
            base = tensor._base
            if base is not None and parts and base.ndim == tensor.ndim:
                known = places.get(base)
                if known is None or known.parts is None:
                    self._set_base(base, parts)

    def _set_base(self, base: torch.Tensor, parts: Parts) -> None:
        self._places.set_axis(base, tuple(part.axis for part in parts))
