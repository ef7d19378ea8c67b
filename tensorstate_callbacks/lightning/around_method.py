"""Surround one of a LightningModule's own methods for a while, and leave no trace of it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, TypeAlias

from tensorstate_callbacks.recording.instance_override import InstanceOverride

Around: TypeAlias = Callable[[], AbstractContextManager[Any]]


class MethodStandIn:
    """Stands in for a module's method: runs it inside the context of whoever asked for that.

    It lies in the module's `__dict__`, where Lightning finds it as it finds a method, also behind
    the wrapper of a strategy such as DDP.

    Args:
        module: The LightningModule.
        method: Name of the method.
    """

    def __init__(self, module: Any, method: str) -> None:
        self._original: Callable[..., Any] = getattr(module, method)
        # Lightning reads a method's parameters past one decorator: those of ours are the method's.
        self.__wrapped__ = getattr(self._original, "__wrapped__", self._original)
        self._around: list[Around] = []
        self._override = InstanceOverride(module, method, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the method."""
        with ExitStack() as stack:
            # The last to ask is outermost, so that those who asked first are done first.
            for around in reversed(self._around):
                stack.enter_context(around())
            return self._original(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of the module takes its own method along, not this.
        return _itself, (self._original,)

    def add(self, around: Around) -> None:
        """Have a context opened around the method."""
        self._around.append(around)

    def remove(self, around: Around) -> None:
        """Have it opened no more; without any, the module has its own method again."""
        self._around.remove(around)
        if not self._around:
            self._override.restore()


def surround(module: Any, method: str, around: Around) -> Callable[[], None]:
    """Have a context opened around each call of a module's method.

    Several callbacks share one stand-in, so they may end in any order.

    Args:
        module: The LightningModule.
        method: Name of the method, for example `"validation_step"`.
        around: Makes a context manager for each call.

    Returns:
        A function that ends it.
    """
    stand_in = vars(module).get(method)
    if not isinstance(stand_in, MethodStandIn):
        stand_in = MethodStandIn(module, method)
    stand_in.add(around)
    return partial(stand_in.remove, around)


def call_after(module: Any, hook: str, afterwards: Callable[[], None]) -> Callable[[], None]:
    """Have a function called after each run of a module's hook; returns one that ends it.

    Lightning calls the module's hooks after those of all callbacks, so what is logged in them is
    all there when the function is called.
    """

    @contextmanager
    def around() -> Iterator[None]:
        yield
        afterwards()

    return surround(module, hook, around)


def _itself(method: Callable[..., Any]) -> Callable[..., Any]:
    return method
