"""Replace one attribute on one object for a while, and leave no trace of it."""

from typing import Any

_ABSENT = object()


class InstanceOverride:
    """An entry in an object's `__dict__` that hides the class's attribute until restored.

    It is written there directly, past the attribute trackers of Keras layers.

    Args:
        owner: The object.
        name: The attribute.
        value: What it is to be for now.
    """

    def __init__(self, owner: Any, name: str, value: Any) -> None:
        self._owner, self._name, self._value = owner, name, value
        self._before = vars(owner).get(name, _ABSENT)
        vars(owner)[name] = value

    def restore(self) -> None:
        """Put back what was there before; a later override by somebody else is left alone."""
        entries = vars(self._owner)
        if entries.get(self._name, _ABSENT) is not self._value:
            return
        if self._before is _ABSENT:
            del entries[self._name]
        else:
            entries[self._name] = self._before
