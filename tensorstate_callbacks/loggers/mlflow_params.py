"""A callback's settings in; MLflow parameters that say how the figures were made, out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tensorstate_callbacks.recording.settings import Settings
from tensorstate_callbacks.reports.metric_keys import safe_key

# What MLflow takes; names beyond it are in the table of layers.
_MAX_LENGTH = 6000
_SETTINGS = ("beta", "threshold", "alpha", "method", "every_n_epochs", "attach_to", "exclude")


def parameters(
    settings: Settings, layers: Sequence[str], versions: Mapping[str, str]
) -> dict[str, str]:
    """Return the parameters of one callback: `efficiency.beta`, `efficiency.layers`...

    Args:
        settings: What the callback was given; its prefix tells the names of several apart.
        layers: Names of the probes.
        versions: Versions of what it runs with, under the packages' names.
    """
    from tensorstate_callbacks._version import __version__

    lead = f"efficiency.{settings.prefix}"
    given = {name: _spell(getattr(settings, name)) for name in _SETTINGS}
    probes = {"n_layers": str(len(layers)), "layers": _join(layers)}
    packages = {
        "tensorstate_callbacks": __version__,
        "numpy": np.__version__,
        **versions,
    }
    return {
        **{safe_key(lead + name): value for name, value in {**given, **probes}.items()},
        **{f"efficiency.version.{name}": value for name, value in packages.items()},
    }


def _spell(value: Any) -> str:
    if value is None:
        return "default"
    if isinstance(value, (list, tuple, set, frozenset)):
        return _join([_spell(item) for item in value]) or "none"
    return str(getattr(value, "__name__", value))[:_MAX_LENGTH]


def _join(names: Sequence[str]) -> str:
    """Return the names, and how many more there are than MLflow takes.

    Example:
        >>> len(_join(["layer"] * 2000)), _join(["layer"] * 2000)[-27:]
        (5977, 'layer, layer, and 1148 more')
    """
    text, shown = ", ".join(names), len(names)
    while len(text) > _MAX_LENGTH:
        # Room for the words at the end; each turn leaves out at least one name.
        shown = min(shown - 1, text.count(", ", 0, _MAX_LENGTH - 30))
        text = ", ".join([*names[:shown], f"and {len(names) - shown} more"])
    return text
