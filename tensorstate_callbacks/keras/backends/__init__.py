"""Choose the module that knows how activations leave the test step of Keras's backend."""

import weakref
from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol, cast

import keras
import numpy.typing as npt
from keras.src.backend.common.stateless_scope import get_stateless_scope

from tensorstate_callbacks.recording.overrides import Overrides

_MODULES = {
    name: f"tensorstate_callbacks.keras.backends.{name}" for name in ("tensorflow", "jax", "torch")
}


class Backend(Protocol):
    """What there is to a backend."""

    def tap(self, tensor: Any, observe: Callable[[npt.ArrayLike], None]) -> Any:
        """Give a tensor's values to `observe`, once each time the step runs.

        Returns:
            The tensor to go on with, or None: with the same.
        """

    def tap_layer(self, tensor: Any, observe: Callable[[npt.ArrayLike], None]) -> Any:
        """Return the tensor as it is, and have `observe` see its values, compiled or not.

        It works in a model that runs in any way, where `tap` is for the test step. `observe`
        reads the array and keeps nothing of it: it is the backend's own memory. It keeps its
        errors, which a compiled step turns into others (TensorFlow) or passes over (JAX).
        """

    def helping_threads(self) -> int:
        """Return how many threads may work on a batch: as many as the backend computes with."""

    def build_test_function(self, model: keras.Model) -> Callable[..., Any]:
        """Build a test function of the model's own test step, leaving the model's as it was."""


class WeakObserver:
    """Has a method take a tensor's values, as long as its object lives.

    TensorFlow keeps what a graph calls on the host for as long as the process runs: with the graph
    around the outermost function, which is that of eager execution.

    Args:
        method: Takes the values, after `args`.
        args: What else it takes.
    """

    def __init__(self, method: Callable[..., None], *args: Any) -> None:
        self._method = weakref.WeakMethod(method)
        self._args = args

    def __call__(self, values: npt.ArrayLike) -> None:
        """Hand the values on."""
        method = self._method()
        if method is not None:
            method(*self._args, values)


def current_backend() -> Backend:
    """Return the module for the backend that Keras runs on.

    Raises:
        ValueError: There is none for it.
    """
    name = keras.backend.backend()
    if name not in _MODULES:
        raise ValueError(
            f"tensorstate_callbacks.keras works with Keras on {', '.join(_MODULES)}; the backend "
            f"is {name!r}. Set KERAS_BACKEND to one of these before Keras is imported"
        )
    return cast(Backend, import_module(_MODULES[name]))


__all__ = ["in_symbolic_scope"]

try:
    from keras.src.backend.common.symbolic_scope import in_symbolic_scope
except ImportError:  # Keras before 3.4

    def in_symbolic_scope() -> bool:
        """Tell whether shapes are being worked out: on PyTorch there is no other such scope."""
        return keras.backend.backend() == "torch" and get_stateless_scope() is not None


def make_uncompiled(model: keras.Model, **attributes: Any) -> Callable[..., Any]:
    """Let the model make a test function without `jit_compile`, and leave the model as it was.

    Args:
        model: The model.
        attributes: What other attributes of the model are to be while the function is made.
    """
    own_function, overrides = model.test_function, Overrides()
    try:
        try:
            with overrides, overrides:
                for name, value in {"_jit_compile": False, **attributes}.items():
                    overrides.set(model, name, value)
                model.make_test_function(force=True)
                made: Callable[..., Any] = model.test_function
        finally:
            model.test_function = own_function
    finally:
        # Again, should an interrupt have arrived in the line above.
        model.test_function = own_function
    return made
