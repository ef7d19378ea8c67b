"""Import timm without torchvision, of which it uses nothing for its networks.

torchvision's wheels are made for torch with CUDA. Beside a torch for the CPU they can't be
imported, and neither can torchmetrics and Lightning, which look for it: so the tests do without.
"""

import enum
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NAME = "torchvision"


class InterpolationMode(enum.Enum):
    """The only part that timm asks for more than a name."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


class StandIn(types.ModuleType):
    """A module of torchvision's, every name of which is an empty class."""

    __path__ = ()
    __version__ = "0.0"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return InterpolationMode if name == "InterpolationMode" else type(name, (), {})


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds every module of torchvision."""

    def find_spec(self, name: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] != NAME:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> StandIn:
        return StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing is in it."""


@contextmanager
def stand_in() -> Iterator[None]:
    """Let torchvision be imported while the block is open, unless it is installed."""
    if importlib.util.find_spec(NAME) is not None:
        yield
        return
    finder = Finder()
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        # Whoever looks for it afterwards finds that it isn't there.
        for name in [name for name in sys.modules if name.partition(".")[0] == NAME]:
            del sys.modules[name]


def import_timm() -> Any:
    """Return timm.

    Raises:
        ModuleNotFoundError: It is not installed.
    """
    with stand_in():
        return importlib.import_module("timm")
