"""Choose the module that knows how activations leave the test step of Keras's backend."""

import os
import weakref
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any, Protocol, cast

import keras
import numpy as np
import numpy.typing as npt
from keras.src.backend.common.stateless_scope import get_stateless_scope

from tensorstate_callbacks.keras.device_states import Operations
from tensorstate_callbacks.recording.accuracy import FoundAccuracy
from tensorstate_callbacks.recording.budget import Sampling
from tensorstate_callbacks.recording.overrides import Overrides
from tensorstate_callbacks.recording.rank_passes import MergedPass
from tensorstate_callbacks.recording.recorder import Recorder

_MODULES = {
    name: f"tensorstate_callbacks.keras.backends.{name}" for name in ("tensorflow", "jax", "torch")
}


class TapRefusedError(Exception):
    """A step that was to be traced without taps needs one."""


class Tally(Protocol):
    """Counts of numbers, which stay on the device until they are read."""

    def __init__(self, n_counts: int, like: Any) -> None:
        """Begin at zero.

        Args:
            n_counts: Counts of the numbers from 0 on.
            like: A tensor on the device.
        """

    def add(self, codes: Any) -> None:
        """Count the numbers in a tensor whenever the step runs."""

    def read(self) -> npt.NDArray[np.int64]:
        """Return the counts."""

    def reset(self) -> None:
        """Begin at zero again."""


class Ranks(Protocol):
    """The processes that share the data of a model's evaluations.

    Attributes:
        rank: The number of this one.
    """

    rank: int

    def check_settings(self, settings: Mapping[str, str]) -> None:
        """Check that all processes record alike; all call it, as a fit begins."""

    def merge(
        self,
        recorder: Recorder,
        find_accuracy: Callable[[], FoundAccuracy],
        failure: Exception | None,
        settings: Mapping[str, str],
    ) -> MergedPass:
        """Merge what all processes recorded; all call it, as an evaluation ends."""

    def send_failure(self, failure: BaseException) -> None:
        """Let the other processes know, where they wait next, that this one won't come and why."""


class Backend(Operations, Protocol):
    """What there is to a backend.

    Attributes:
        TAPS_END_XLA: Whether XLA can't compile a step that has taps.
        RECOMPUTES_UNSEEN: Whether a training step that calls a layer again for its gradients can't
            be told from one that calls it twice.
        Tally: Counts in the graph; for a backend whose `makes_states` may be true.
    """

    TAPS_END_XLA: bool
    RECOMPUTES_UNSEEN: bool
    Tally: type[Tally]

    def makes_states(self) -> bool:
        """Tell whether states are to be made in the graph, so that only they leave the device."""

    def find_ranks(self) -> Ranks | None:
        """Return the processes that share the model's evaluations; None where there is but one.

        Raises:
            ValueError: There are several whose states can't be merged.
        """

    def is_dense(self, tensor: Any) -> bool:
        """Tell whether states can be made of a tensor in the graph."""

    def tap(self, tensor: Any, observe: Callable[..., None], *others: Any) -> Any:
        """Give a tensor's values to `observe`, once each time the step runs.

        Args:
            tensor: Samples along axis 0.
            observe: Takes the values of all tensors, in this order.
            others: Tensors of the same samples, such as a mask, or of one that holds for all.

        Returns:
            The tensor to go on with, or None: with the same.
        """

    def tap_layer(self, tensor: Any, observe: Callable[[npt.ArrayLike], None]) -> Any:
        """Return the tensor as it is, and have `observe` see its values, compiled or not.

        It works in a model that runs in any way, where `tap` is for the test step. `observe`
        reads the array and keeps nothing of it: it is the backend's own memory. It keeps its
        errors, which a compiled step turns into others (TensorFlow) or passes over (JAX).
        """

    def new_recorder(self, names: Iterable[str], threshold: float, sampling: Sampling) -> Recorder:
        """Return what records the arrays that taps give, on as many threads as compute them."""

    def build_test_function(self, model: keras.Model, *, has_taps: bool) -> Callable[..., Any]:
        """Build a test function of the model's own test step, leaving the model's as it was.

        Args:
            model: The model.
            has_taps: Whether there may be taps in it.
        """

    def build_train_function(self, model: keras.Model) -> Callable[..., Any]:
        """Build a train function of the model's own train step, leaving the model's as it was.

        It trains as the model's own does. In it a tap may be refused (`TapRefusedError`): what
        runs in a loop or a recomputation within the step can't leave it.
        """

    def is_recomputing(self) -> bool:
        """Tell whether a layer is called for a gradient, as it was before for its output."""

    def run_aside(self, model: keras.Model, function: Callable[[], object]) -> None:
        """Call a function that runs the model outside of its steps, and have its taps observed.

        There are no gradients, and nothing is compiled.
        """

    def keep_values(self, model: keras.Model, variables: list[Any]) -> Callable[[], None]:
        """Return what puts back the values of variables; it may be called several times."""

    def keep_state(self, model: keras.Model, outputs: Any) -> None:
        """Let the model have what a train function gave, where its caller won't get that far."""


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

    def __call__(self, *values: npt.ArrayLike) -> None:
        """Hand the values on."""
        method = self._method()
        if method is not None:
            method(*self._args, *values)


_ON_DEVICE = "TENSORSTATE_KERAS_ON_DEVICE"


def wants_device(found: bool) -> bool:
    """Tell whether states are to be made where the activations lie.

    Args:
        found: Whether that is an accelerator. The environment variable has the last word.

    Raises:
        ValueError: `TENSORSTATE_KERAS_ON_DEVICE` is neither 0 nor 1.
    """
    asked = os.environ.get(_ON_DEVICE, "")
    if asked not in ("", "0", "1"):
        raise ValueError(f"{_ON_DEVICE} takes 1 (always), 0 (never) or nothing; got {asked!r}")
    return asked == "1" if asked else found


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


def make_uncompiled(model: keras.Model, kind: str, **attributes: Any) -> Callable[..., Any]:
    """Let the model make a function without `jit_compile`; see `make_function`."""
    return make_function(model, kind, _jit_compile=False, **attributes)


def make_function(model: keras.Model, kind: str, **attributes: Any) -> Callable[..., Any]:
    """Let the model make a function that runs its steps, and leave the model as it was.

    Args:
        model: The model.
        kind: `"test"` or `"train"`.
        attributes: What attributes of the model are to be while the function is made.
    """
    name, overrides = f"{kind}_function", Overrides()
    own_function = getattr(model, name)
    try:
        try:
            with overrides, overrides:
                for attribute, value in attributes.items():
                    overrides.set(model, attribute, value)
                getattr(model, f"make_{kind}_function")(force=True)
                made: Callable[..., Any] = getattr(model, name)
        finally:
            setattr(model, name, own_function)
    finally:
        # Again, should an interrupt have arrived in the line above.
        setattr(model, name, own_function)
    return made
