"""The metrics of layers by name, and the keys that every logger accepts."""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from tensorstate_callbacks.reports.layer_report import LayerReport

# What MLflow takes: no other characters, no longer keys, no path that isn't in its plainest form.
_MAX_LENGTH = 250
_UNSAFE = re.compile(r"[^\w\-. :/]", re.ASCII)

LAYER_METRICS: dict[str, Callable[[LayerReport], float | None]] = {
    "efficiency": lambda layer: layer.efficiency,
    "entropy": lambda layer: layer.entropy,
    "rate_bound": lambda layer: layer.rate_bound,
    "redundancy": lambda layer: layer.redundancy,
    "coverage": lambda layer: layer.coverage,
    "mean_coverage": lambda layer: layer.mean_coverage,
    "ceiling": lambda layer: layer.ceiling,
    "ceiling_share": lambda layer: layer.ceiling_share,
    "dead": lambda layer: layer.n_never / layer.n_neurons,
    "always": lambda layer: layer.n_always / layer.n_neurons,
    "firing_rate": lambda layer: layer.firing_rate,
    "max_share": lambda layer: layer.max_share,
    "effective_states": lambda layer: 2.0 ** (layer.entropy / layer.n_units),
    "states": lambda layer: float(layer.n_states),
    "distinct": lambda layer: float(layer.n_distinct),
    "singletons": lambda layer: float(layer.n_singletons),
    "turnover": lambda layer: None if layer.probe is None else layer.probe.since_previous,
    "turnover_from_first": lambda layer: None if layer.probe is None else layer.probe.since_first,
    "unchanged": lambda layer: None if layer.probe is None else layer.probe.unchanged,
    "class_information": lambda layer: _of_classes(layer, "information"),
    "shuffled_class_information": lambda layer: _of_classes(layer, "shuffled_information"),
    "class_divergence": lambda layer: _of_classes(layer, "mean_divergence"),
    "shuffled_class_divergence": lambda layer: _of_classes(layer, "mean_shuffled_divergence"),
}
PROBE_METRICS = ("turnover", "turnover_from_first", "unchanged")
"""Those that are known where there is `probe_data`."""
NEED_CLASSES = tuple(name for name in LAYER_METRICS if "class_" in name)
"""Those that only states which are counted by class give."""


def _of_classes(layer: LayerReport, name: str) -> float | None:
    found: float | None = getattr(layer.classes, name, None)
    return found


def safe_key(key: str) -> str:
    """Return `key` with what a logger would refuse replaced by `_`.

    Keys over 250 characters are cut and end in a digest of the whole, so that they stay distinct.

    Examples:
        >>> safe_key("val_efficiency/block[0]/conv")
        'val_efficiency/block_0_/conv'
    """
    parts = (part for part in _UNSAFE.sub("_", key).split("/") if part)
    safe = "/".join("_" * len(part) if set(part) == {"."} else part for part in parts)
    if len(safe) <= _MAX_LENGTH:
        return safe
    digest = hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{safe[: _MAX_LENGTH - 9]}_{digest}"


def layer_keys(names: Iterable[str]) -> list[str]:
    """Return one safe key per layer name; names that become alike get `_2`, `_3`... appended.

    Examples:
        >>> layer_keys(["a[0]", "a(0)", "b"])
        ['a_0_', 'a_0__2', 'b']
    """
    # A dictionary for its order.
    keys: dict[str, None] = {}
    for name in names:
        # Of "/" nothing is left, and its key would be the network's.
        key = safe = safe_key(name) or "_"
        number = 2
        while key in keys:
            key = f"{safe}_{number}"
            number += 1
        keys[key] = None
    return list(keys)


def check_layer_metrics(layer_metrics: bool | Sequence[str]) -> tuple[str, ...]:
    """Return the names of the metrics to log for each layer.

    Args:
        layer_metrics: True for `"efficiency"`, False for none, or a sequence of names. Shares:
            `"efficiency"`, `"ceiling"`, `"ceiling_share"` (of the ceiling, what the efficiency
            reaches), `"rate_bound"` (the efficiency if neurons fired independently), `"redundancy"`
            (of the rate bound, what is lost), `"coverage"` (of units, the smallest) and
            `"mean_coverage"`, `"dead"` and `"always"` (neurons that never and that always fired),
            `"firing_rate"`, `"max_share"` (of the most frequent state). Numbers of states:
            `"states"`, `"distinct"`, `"singletons"` (seen once), `"effective_states"` (used evenly,
            so many have the same entropy; see `LayerReport.effective_states`). Bits: `"entropy"`.
            With `classes=`, in bits: `"class_information"` (of state and label),
            `"class_divergence"` (mean of two classes), and both of shuffled labels,
            `"shuffled_class_information"` and `"shuffled_class_divergence"`. With `probe_data`,
            shares: `"turnover"` (of the bits that changed since the recording before),
            `"turnover_from_first"`, `"unchanged"` (of the neurons that never did).

    Raises:
        ValueError: A name is none of these.
    """
    if isinstance(layer_metrics, bool):
        return ("efficiency",) if layer_metrics else ()
    names = (layer_metrics,) if isinstance(layer_metrics, str) else tuple(layer_metrics)
    for name in names:
        if name not in LAYER_METRICS:
            raise ValueError(
                f"layer_metrics: {name!r} is not a metric of a layer; there are "
                f"{', '.join(LAYER_METRICS)}"
            )
    return names


def layer_scalars(
    layers: Mapping[str, LayerReport], layer_metrics: bool | Sequence[str]
) -> dict[str, float]:
    """Return the metrics of `check_layer_metrics` under their keys, `efficiency/<layer>`...

    Those that aren't known of a layer, such as the change since a recording before the first, are
    left out.
    """
    keys = layer_keys(layers)
    return {
        f"{name}/{key}": value
        for name in check_layer_metrics(layer_metrics)
        for key, layer in zip(keys, layers.values(), strict=True)
        if (value := LAYER_METRICS[name](layer)) is not None
    }
