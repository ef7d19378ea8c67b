"""Warn once a fit of what is wrong all along, and each time of what happens anew."""

import warnings

from tensorstate_callbacks.errors import TensorStateWarning


class WarnOnce:
    """Gives each kind of warning once, until it is reset."""

    def __init__(self) -> None:
        self._given: set[str] = set()
        self._silent = False

    def __call__(self, kind: str, message: str) -> None:
        """Warn with `message`, unless a warning of this kind was given before.

        Args:
            kind: What is wrong, for example `"accuracy"`.
            message: A sentence that names the layer or key and the ways out.
        """
        if self._silent or kind in self._given:
            return
        self._given.add(kind)
        warnings.warn(message, TensorStateWarning, stacklevel=3)

    def each_time(self, message: str) -> None:
        """Warn with a `message` that tells of an event, which may come again.

        Args:
            message: A sentence that says when it was, since Python gives the same one only once.
        """
        if not self._silent:
            warnings.warn(message, TensorStateWarning, stacklevel=3)

    def reset(self, *, silent: bool = False) -> None:
        """Forget what was warned about: a new fit begins.

        Args:
            silent: Give no warnings from now on: another process gives the same ones.
        """
        self._given.clear()
        self._silent = silent
