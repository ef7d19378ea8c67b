"""The package's exceptions, its one warning category, and how both are given."""

import warnings
from collections.abc import Iterable
from importlib import import_module
from types import ModuleType


class TensorStateError(Exception):
    """Base of the errors that only this package raises."""


class NoLayerMatchedError(TensorStateError, ValueError):
    """`attach_to` and `exclude` leave no layer to probe; the message says what the model has."""


class ProbeError(TensorStateError, RuntimeError):
    """A layer's activations could not be counted; the message names the layer."""


class RankError(TensorStateError, RuntimeError):
    """Another process failed, or didn't come to merge its counts; the message names its rank."""


class MissingExtraError(TensorStateError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


class TensorStateWarning(UserWarning):
    """Something you asked for can't be measured, or only in part or slowly.

    It is given once a fit, or once a recording, and names the layer or key and the ways out.
    """


class StatesNotAvailableError(TensorStateError, RuntimeError):
    """What was asked for was not recorded, or not kept; the message says how to keep it."""


class RunError(TensorStateError, ValueError):
    """A finished run can't be read back; the message says what was found instead."""


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


def list_some(words: Iterable[str], most: int = 6) -> str:
    """Return the first `most` of the words, and how many more there are, for a message.

    Examples:
        >>> list_some(["conv", "fc", "out"], 2)
        'conv, fc and 1 more'
    """
    listed = list(words)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Return the imported `module`.

    Args:
        module: Dotted name of the module, for example `"matplotlib.pyplot"`.
        extra: The extra of this package that installs it, for example `"plot"`.
        purpose: What needs it, as the start of a sentence: `"Drawing figures"`.

    Raises:
        MissingExtraError: The module's package is not installed. An import error from within an
            installed package is passed on as it is.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise MissingExtraError(
            f"{purpose} needs the package '{package}', which is not installed. "
            f"Install it with: pip install 'tensorstate_callbacks[{extra}]'",
            name=package,
        ) from error
