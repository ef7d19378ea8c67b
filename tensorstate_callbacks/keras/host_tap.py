"""A tensor anywhere in a model in; its values given to a function whenever that place runs."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras.src.backend.common.stateless_scope import get_stateless_scope

from tensorstate_callbacks.keras.backends import current_backend
from tensorstate_callbacks.keras.symbolic import in_symbolic_scope


def tap(tensor: Any, observe: Callable[[npt.ArrayLike], None]) -> Any:
    """Return the tensor as it is, and have `observe` see its values, compiled or not.

    Args:
        tensor: Of the current backend. Shapes that are only being worked out are not observed.
        observe: Reads the array and keeps nothing of it: it is the backend's own memory. It keeps
            its errors, which a compiled step turns into others (TensorFlow) or passes over (JAX).
    """
    if in_symbolic_scope():
        return tensor
    if keras.backend.backend() == "jax":
        from tensorstate_callbacks.keras import jax_host_tap

        scope = get_stateless_scope()
        if scope is not None and not scope.state_mapping and not jax_host_tap.is_traced(tensor):
            # `predict` builds a model by running it on its first batch, with no state given.
            return tensor
        return jax_host_tap.tap(tensor, observe)
    current_backend().tap(tensor, lambda values: observe(np.asarray(values)))
    return tensor
