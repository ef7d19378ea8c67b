"""A model in; a test function of its own test step out, for us alone, not compiled by Keras."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import keras

from tensorstate_callbacks.recording.instance_override import InstanceOverride


def make_uncompiled(model: keras.Model, **attributes: Any) -> Callable[..., Any]:
    """Let the model make a test function without `jit_compile`, and leave the model as it was.

    Args:
        model: The model.
        attributes: What other attributes of the model are to be while the function is made.
    """
    own_function = model.test_function
    with ExitStack() as stack:
        for name, value in {"_jit_compile": False, **attributes}.items():
            stack.callback(InstanceOverride(model, name, value).restore)
        try:
            model.make_test_function(force=True)
            made: Callable[..., Any] = model.test_function
        finally:
            model.test_function = own_function
    return made
