"""What a running fit or evaluate knows and doesn't tell its callbacks."""

import sys
from typing import Any, NamedTuple

import keras

# A hook may be overridden and called with super(), some times over.
_DEPTH = 8


class Caller(NamedTuple):
    """The call that a callback's hook runs in.

    Attributes:
        callback_list: Keras's list of the callbacks of that call: it lives as long as the call,
            also when the call ends in an exception. None where the hook was called otherwise.
        has_validation: Whether fit was given validation data; None where that can't be told.
        method: The method of the model that calls: `fit`, `evaluate`; or a function of the user's.
    """

    callback_list: Any
    has_validation: bool | None
    method: str = ""


def find_caller() -> Caller:
    """Look up the frames above the hook that calls this: the callback list's, and fit's."""
    frame = sys._getframe(2)
    for _ in range(_DEPTH):
        if frame.f_back is None:
            break
        callback_list = frame.f_locals.get("self")
        if isinstance(callback_list, keras.callbacks.CallbackList):
            fit = frame.f_back.f_locals
            given = fit["validation_data"] is not None if "validation_data" in fit else None
            return Caller(callback_list, given, frame.f_back.f_code.co_name)
        frame = frame.f_back
    return Caller(None, None)
