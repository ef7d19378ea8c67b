"""Be called after one of a LightningModule's own hooks, and leave no trace of it."""

from collections.abc import Callable
from functools import partial
from typing import Any

from tensorstate_callbacks.instance_override import InstanceOverride


class AfterHook:
    """Stands in for a module's hook: runs it, then whoever asked to be called after it.

    Lightning calls the module's hooks after those of all callbacks, so what is logged in them is
    all there when the functions here are called.

    Args:
        module: The LightningModule.
        hook: Name of the hook.
    """

    def __init__(self, module: Any, hook: str) -> None:
        self._original: Callable[..., Any] = getattr(module, hook)
        self._afterwards: list[Callable[[], None]] = []
        self._override = InstanceOverride(module, hook, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the hook, then the functions."""
        result = self._original(*args, **kwargs)
        for afterwards in tuple(self._afterwards):
            afterwards()
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of the module takes its own hook along, not this.
        return _itself, (self._original,)

    def add(self, afterwards: Callable[[], None]) -> None:
        """Have a function called after the hook."""
        self._afterwards.append(afterwards)

    def remove(self, afterwards: Callable[[], None]) -> None:
        """Have it called no more; without any, the module has its own hook again."""
        self._afterwards.remove(afterwards)
        if not self._afterwards:
            self._override.restore()


def call_after(module: Any, hook: str, afterwards: Callable[[], None]) -> Callable[[], None]:
    """Have a function called after each run of a module's hook.

    Several callbacks share one stand-in, so they may end in any order.

    Args:
        module: The LightningModule.
        hook: Name of the hook, for example `"on_validation_epoch_end"`.
        afterwards: Called without arguments.

    Returns:
        A function that ends it.
    """
    stand_in = vars(module).get(hook)
    if not isinstance(stand_in, AfterHook):
        stand_in = AfterHook(module, hook)
    stand_in.add(afterwards)
    return partial(stand_in.remove, afterwards)


def _itself(hook: Callable[..., Any]) -> Callable[..., Any]:
    return hook
