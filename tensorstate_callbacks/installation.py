"""Describe what runs here: versions, the kernel and why, the extras."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from tensorstate_callbacks._version import __version__
from tensorstate_callbacks.states.counter import available_kernels, kernel_report

# Extra to the distributions that it installs, as in pyproject.toml; a test compares them.
EXTRAS: dict[str, tuple[str, ...]] = {
    "keras": ("keras",),
    "lightning": ("pytorch-lightning", "torch"),
    "huggingface": ("accelerate", "torch", "transformers"),
    "tensorboard": ("tensorboard",),
    "mlflow": ("mlflow",),
    "plot": ("matplotlib",),
    "pandas": ("pandas",),
}
# The same framework under another name.
_INSTEAD = {"pytorch-lightning": "lightning"}


def describe_installation() -> tuple[str, bool]:
    """What runs here, and whether counting can: not if a kernel is forced that there isn't.

    Nothing but NumPy is imported for it: versions come from the installed metadata.
    """
    try:
        kernel, reason = kernel_report()
    except ValueError as error:
        counts, kernel, reason = False, "none", str(error)
    else:
        counts = True
    others = [name for name in available_kernels() if name != kernel]
    lines = [
        f"tensorstate_callbacks {__version__}",
        f"Python {platform.python_version()} on {platform.system()} {platform.machine()},"
        f" NumPy {np.__version__}",
        f"kernel {kernel}: {reason}",
        f"other kernels here: {', '.join(others) or 'none'}",
        "extras:",
        *(f"  {extra:<12} {_describe_extra(extra)}" for extra in EXTRAS),
    ]
    return "\n".join(lines), counts


def _describe_extra(extra: str) -> str:
    found = [_installed(name) for name in EXTRAS[extra]]
    parts = [text for text in found if text is not None]
    missing = [name for name, text in zip(EXTRAS[extra], found, strict=True) if text is None]
    if missing:
        command = f"pip install 'tensorstate_callbacks[{extra}]'"
        parts.append(f"{', '.join(missing)} not installed: {command}")
    return ", ".join(parts)


def _installed(name: str) -> str | None:
    """A distribution's name and version, if it is there, itself or under its other name."""
    for candidate in (name, _INSTEAD.get(name)):
        if candidate is None:
            continue
        try:
            return f"{candidate} {version(candidate)}"
        except PackageNotFoundError:
            continue
    return None
