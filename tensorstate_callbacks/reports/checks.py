"""Check what was read from a file, which may hold anything."""

import numpy as np

from tensorstate_callbacks.metrics.neurons import NeuronCounts
from tensorstate_callbacks.metrics.turnover import ProbeChange
from tensorstate_callbacks.metrics.units import unit_sizes
from tensorstate_callbacks.reports.layer_report import LayerReport

_REAL = (
    "entropy",
    "efficiency",
    "ceiling",
    "coverage",
    "mean_coverage",
    "firing_rate",
    "rate_bound",
)


def check_layer(layer: LayerReport) -> None:
    """Check a layer's report.

    Raises:
        TypeError: A field is of another kind.
        ValueError: A number is out of its range, or what is known of the states or units is not
            what the layer's metrics say.
    """
    name = layer.name
    if not isinstance(name, str):
        raise TypeError(f"a layer's name must be a text; got {name!r}")
    for field in ("n_neurons", "n_states", "n_distinct", "n_singletons", "n_never", "n_always"):
        check_count(f"{field} of {name!r}", getattr(layer, field))
    if layer.group_size is not None and check_count(f"unit of {name!r}", layer.group_size) < 1:
        raise ValueError(f"the units of {name!r} have no neurons")
    for field in _REAL:
        value = check_number(f"{field} of {name!r}", getattr(layer, field))
        most = layer.n_neurons if field == "entropy" else 1
        if not 0 <= value <= most * (1 + 1e-9):  # rounding
            raise ValueError(f"{field} of {name!r} is out of its range: {value}")
    if layer.probe is not None:
        _check_probe(name, layer.probe)
    expected = (layer.n_distinct, layer.n_singletons)
    spectrum, units = layer.spectrum, layer.units
    if spectrum is not None:
        if any(column.ndim != 1 for column in spectrum) or len({*map(len, spectrum)}) != 1:
            raise ValueError(f"the spectrum of {name!r} must be two lists of the same length")
        found = (spectrum.n_distinct, spectrum.n_singletons)
        if (spectrum.n_states, *found) != (layer.n_states, *expected):
            raise ValueError(f"the spectrum of {name!r} is not that of its states")
    if units is not None:
        sizes = unit_sizes(layer.n_neurons, layer.group_size or layer.n_neurons)
        if any(column.shape != sizes.shape for column in units):
            raise ValueError(f"the units of {name!r} must be lists of one entry for each unit")
        found = (int(units.n_distinct.sum()), int(units.n_singletons.sum()))
        if not np.array_equal(units.n_neurons, sizes) or found != expected:
            raise ValueError(f"the units of {name!r} are not those of its states")
    if layer.neurons is not None:
        _check_neurons(layer, layer.neurons)
    _check_classes(layer)


def _check_neurons(layer: LayerReport, neurons: NeuronCounts) -> None:
    name, shape = layer.name, (layer.n_neurons,)
    columns = [neurons.fired, *(neurons.agreement or ())]
    if any(column.shape != shape for column in columns):
        raise ValueError(f"the counts of {name!r} must be lists of one entry for each neuron")
    ends = len(neurons.never_fired), len(neurons.always_fired)
    if int(neurons.fired.max()) > layer.n_states or ends != (layer.n_never, layer.n_always):
        raise ValueError(f"the counts of the neurons of {name!r} are not those of its states")
    if neurons.agreement is not None:
        firsts = neurons.agreement.firsts
        own = np.arange(layer.n_neurons)
        if not ((firsts >= 0) & (firsts <= own)).all() or (firsts[firsts] != firsts).any():
            raise ValueError(f"the neurons of {name!r} that agree are no groups of its neurons")


def _check_probe(name: str, probe: ProbeChange) -> None:
    for field in ("since_previous", "since_first", "unchanged"):
        value = getattr(probe, field)
        if value is not None and not 0 <= check_number(f"{field} of {name!r}", value) <= 1:
            raise ValueError(f"{field} of {name!r} is out of its range: {value}")
    if probe.naswot is not None:
        check_number(f"naswot of {name!r}", probe.naswot)


def _check_classes(layer: LayerReport) -> None:
    classes = layer.classes
    if classes is None:
        return
    n = classes.n_classes
    pairs = ("overlap", "shuffled_overlap", "divergence", "shuffled_divergence")
    for field, values in classes._asdict().items():
        if field in pairs and values is None:
            continue
        shape = () if "information" in field else (n, n) if field in pairs else (n,)
        if np.shape(values) != shape or not np.isfinite(values).all():
            raise ValueError(f"{field} of the classes of {layer.name!r} must be numbers of {shape}")
    if classes.n_states.sum() != layer.n_states:
        raise ValueError(f"the classes of {layer.name!r} are not those of its states")


def check_count(name: str, value: object) -> int:
    """Return `value`, or raise `ValueError` or `TypeError` if it is no whole number of 0 or more.

    Args:
        name: What it counts, for the message.
        value: What was given.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number; got {value!r}")
    if value < 0:
        raise ValueError(f"{name} must not be negative; got {value}")
    return value


def check_number(name: str, value: object) -> float:
    """Return `value`, or raise `TypeError` if it is no number.

    Args:
        name: What it measures, for the message.
        value: What was given.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number; got {value!r}")
    return value
