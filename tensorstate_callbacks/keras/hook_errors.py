"""Keras's list of callbacks in; a call as soon as one of them raises: Keras tells nobody."""

import functools
import weakref
from collections.abc import Callable
from typing import Any

import keras

_HOOKS = [name for name in dir(keras.callbacks.CallbackList) if name.startswith("on_")]


class HookErrors:
    """Reacts to an error in any hook of a callback list, before the error goes on.

    It doesn't keep the list alive, nor lets the list do so.

    Args:
        callbacks: The list; None watches nothing.
        react: Called without arguments; may end the watch.
    """

    def __init__(self, callbacks: Any, react: Callable[[], None]) -> None:
        self._before: dict[str, Any] = {}
        self._reacting: dict[str, Any] = {}
        self._callbacks: Callable[[], Any] = lambda: None
        if callbacks is None:
            return
        self._callbacks = weakref.ref(callbacks)
        for name in _HOOKS:
            hook = self._before[name] = vars(callbacks).get(name)
            if hook is None:
                # Not the bound method: by that the list would hold itself.
                hook = functools.partial(_call, self._callbacks, getattr(type(callbacks), name))
            self._reacting[name] = vars(callbacks)[name] = _reacting(hook, react)

    def end(self) -> None:
        """Leave the list as it was; may be called again."""
        callbacks = self._callbacks()
        hooks = {} if callbacks is None else vars(callbacks)
        for name, reacting in self._reacting.items():
            if hooks.get(name) is reacting:
                if self._before[name] is None:
                    del hooks[name]
                else:
                    hooks[name] = self._before[name]


def _reacting(hook: Callable[..., Any], react: Callable[[], None]) -> Callable[..., Any]:
    def reacting(*args: Any, **kwargs: Any) -> Any:
        try:
            return hook(*args, **kwargs)
        except BaseException:
            react()
            raise

    return reacting


def _call(callbacks: Callable[[], Any], hook: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return hook(callbacks(), *args, **kwargs)
