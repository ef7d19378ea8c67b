"""Import an optional dependency, or say which extra brings it."""

from importlib import import_module
from types import ModuleType

from tensorstate_callbacks.errors import MissingExtraError


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
