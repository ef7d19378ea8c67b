"""Stand in for methods of an object for a while, whatever interrupts it."""

from collections.abc import Callable
from typing import Any

_ABSENT = object()


class Overrides:
    """Entries in the `__dict__` of objects that hide their classes' attributes until taken off.

    They are written there directly, past the attribute trackers of Keras layers.

    An interrupt may arrive at any line, and leave some of them there. So all functions of one set
    begin and end to act together, by one assignment. One that was left there runs the method it
    stands in for and removes itself, and the next one for that method replaces it.

    In `with overrides, overrides:` they are taken off twice, and so also if the interrupt arrives
    while they are taken off.

    Attributes:
        active: Whether the functions run in place of the methods.

    Examples:
        >>> class Greeter:
        ...     def greet(self):
        ...         return "hello"
        >>> greeter, overrides = Greeter(), Overrides()
        >>> overrides.wrap(greeter, "greet", lambda method: lambda: method() + "!")
        >>> overrides.activate()
        >>> greeter.greet()
        'hello!'
        >>> overrides.take_off()
        >>> greeter.greet(), vars(greeter)
        ('hello', {})
    """

    def __init__(self) -> None:
        self.active = False
        self._entries: list[_Entry] = []

    def wrap(
        self,
        owner: Any,
        name: str,
        make: Callable[[Any], Callable[..., Any]],
        otherwise: Callable[..., Any] | None = None,
    ) -> None:
        """Put a function in place of a method, which runs as long as this is active.

        Args:
            owner: The object.
            name: The method.
            make: Makes the function of what it stands in for.
            otherwise: What runs while this isn't active; by default the method.
        """
        left = vars(owner).get(name)
        while isinstance(left, StandIn) and left.is_left_of_others(self):
            left.entry.restore()
            left = vars(owner).get(name)
        original = getattr(owner, name)
        stand_in = StandIn(self, otherwise or original, make(original))
        stand_in.entry = _Entry(owner, name, stand_in)
        self._put(stand_in.entry)

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Put a value in place of an attribute, at once."""
        self._put(_Entry(owner, name, value))

    def activate(self) -> None:
        """Let the functions run in place of the methods."""
        self.active = True

    def take_off(self) -> None:
        """Put back what was there before; may be called again.

        What somebody else has put there since is left alone.
        """
        self.active = False
        for entry in reversed(self._entries):
            entry.restore()
        self._entries = []

    def __enter__(self) -> "Overrides":
        """Begin a block at whose end all is taken off."""
        return self

    def __exit__(self, *_: object) -> None:
        """Take all off."""
        self.take_off()

    def _put(self, entry: "_Entry") -> None:
        # Listed before it takes effect: an interrupt in between leaves nothing.
        self._entries.append(entry)
        entry.put()


class StandIn:
    """Runs a function in place of a method as long as its overrides are active.

    A copy of the owner takes its own method along, not this.

    Attributes:
        entry: Where it is put.
    """

    # No `__dict__`, which functools.wraps would copy.
    __slots__ = ("__weakref__", "__wrapped__", "_original", "_overrides", "_run", "entry")

    entry: "_Entry"

    def __init__(self, overrides: Overrides, original: Any, run: Callable[..., Any]) -> None:
        self._overrides, self._original, self._run = overrides, original, run
        # Lightning reads a method's parameters past one decorator: those of ours are the method's.
        self.__wrapped__ = getattr(original, "__wrapped__", original)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function, or what it stands in for."""
        if self._overrides.active:
            return self._run(*args, **kwargs)
        self.entry.restore()
        return self._original(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return _itself, (self._original,)

    def is_over(self) -> bool:
        """Tell whether it runs what it stands in for."""
        return not self._overrides.active

    def is_left_of_others(self, overrides: Overrides) -> bool:
        """Tell whether it was left by other overrides than these."""
        return self._overrides is not overrides and self.is_over()


class _Entry:
    """A value in an object's `__dict__`, and what was there before."""

    def __init__(self, owner: Any, name: str, value: Any) -> None:
        self._owner, self._name, self._value = owner, name, value
        self._before = vars(owner).get(name, _ABSENT)

    def put(self) -> None:
        vars(self._owner)[self._name] = self._value

    def restore(self) -> None:
        entries = vars(self._owner)
        if entries.get(self._name, _ABSENT) is not self._value:
            return
        before = self._before
        while isinstance(before, StandIn) and before.is_over():
            # Its overrides were taken off first, or left it there.
            before = before.entry._before
        if before is _ABSENT:
            del entries[self._name]
        else:
            entries[self._name] = before


def _itself(method: Callable[..., Any]) -> Callable[..., Any]:
    return method
