"""Pack a history so that the checkpoint of every epoch can hold it.

The last report is kept whole, of those before it the metrics: a spectrum may have thousands of
entries, and an epoch's checkpoint would have those of all epochs so far. Where `neurons=True` asked
for them, how often each neuron fired is kept of all reports; which of them agree, of the last.
"""

import math
import operator
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorstate_callbacks.metrics.neurons import NeuronCounts
from tensorstate_callbacks.metrics.turnover import ProbeChange
from tensorstate_callbacks.reports.layer_report import LayerReport
from tensorstate_callbacks.reports.report import EfficiencyReport, History

# What a layer's other metrics follow from.
_WHOLE = ("n_states", "n_distinct", "n_singletons", "n_never", "n_always", "largest")
_REAL = ("entropy", "firing_rate", "rate_bound")
_OF_UNITS = ("coverage", "mean_coverage")
# Of layers that were followed on `probe_data`; NaN is None.
_OF_PROBE = ("since_previous", "since_first", "unchanged", "naswot")
# Reports that are packed together.
_BLOCK = 128


class HistoryPacker:
    """Packs a history that grows; what doesn't change any more is packed once."""

    def __init__(self) -> None:
        self._blocks: list[tuple[Sequence[EfficiencyReport], list[dict[str, Any]]]] = []

    def pack(self, history: Sequence[EfficiencyReport]) -> dict[str, Any]:
        """Return a history as plain dicts, lists, numbers and bytes, for `unpack_history`."""
        starts = range(0, len(history) - 1, _BLOCK)
        del self._blocks[len(starts) :]
        for number, start in enumerate(starts):
            block = list(history[start : min(start + _BLOCK, len(history) - 1)])
            known = self._blocks[number][0] if number < len(self._blocks) else ()
            if len(known) != len(block) or not all(map(operator.is_, known, block)):
                self._blocks[number : number + 1] = [(block, _pack_block(block))]
        return {
            "last": history[-1].to_dict() if history else None,
            "earlier": [packed for _, packed in self._blocks],
        }


def unpack_history(packed: Mapping[str, Any]) -> History:
    """Return the history; all of its reports but the last are without spectra and agreement."""
    history = History()
    for block in packed["earlier"]:
        placed = [pair for alike in block for pair in _unpack(alike)]
        history += [report for _, report in sorted(placed, key=operator.itemgetter(0))]
    if packed["last"] is not None:
        history.append(EfficiencyReport.from_dict(packed["last"]))
    return history


def _pack_block(block: Sequence[EfficiencyReport]) -> list[dict[str, Any]]:
    """Pack reports by what most of them have in common."""
    alike: dict[tuple[Any, ...], list[tuple[int, EfficiencyReport]]] = {}
    for place, report in enumerate(block):
        layers = tuple(
            (name, (layer.n_neurons, layer.group_size)) for name, layer in report.layers.items()
        )
        followed = tuple(
            name
            for name, layer in report.layers.items()
            if layer.neurons is not None and layer.neurons.followed
        )
        probed = tuple(n for n, layer in report.layers.items() if layer.probe is not None)
        kind = report.stage, report.alpha, report.beta, layers, followed, probed
        alike.setdefault(kind, []).append((place, report))
    return [
        {
            "stage": stage,
            "alpha": alpha,
            "beta": beta,
            "layers": dict(layers),
            "metrics": _pack(reports),
            **({"followed": followed, "fired": _pack_fired(reports, followed)} if followed else {}),
            **({"probed": list(probed)} if probed else {}),
        }
        for (stage, alpha, beta, layers, followed, probed), reports in alike.items()
    ]


def _pack(reports: Sequence[tuple[int, EfficiencyReport]]) -> bytes:
    whole, real = [], []
    for place, report in reports:
        layers = [vars(layer) for layer in report.layers.values()]
        # 0 is None.
        times = [0 if time is None else time + 1 for time in (report.epoch, report.step)]
        whole.append([place, *times, *(layer[name] for layer in layers for name in _WHOLE)])
        accuracy = math.nan if report.accuracy is None else report.accuracy
        metrics = [layer[name] for layer in layers for name in _REAL]
        if any(layer["group_size"] for layer in layers):
            metrics += [layer[name] for layer in layers for name in _OF_UNITS]
        probes = [layer["probe"] for layer in layers if layer["probe"] is not None]
        known = [getattr(probe, name) for probe in probes for name in _OF_PROBE]
        metrics += [math.nan if value is None else value for value in known]
        real.append([accuracy, *metrics])
    return _compress(np.array(whole, "<u8").T.tobytes() + np.array(real, "<f8").T.tobytes())


def _pack_fired(reports: Sequence[tuple[int, EfficiencyReport]], followed: Sequence[str]) -> bytes:
    """Pack how often the neurons of some layers fired, each over all reports."""
    layers = [[report.layers[name].neurons for name in followed] for _, report in reports]
    rows = [np.concatenate([each.fired for each in row if each is not None]) for row in layers]
    return _compress(np.array(rows, "<u8").T.tobytes())


def _unpack_fired(
    alike: Mapping[str, Any], n_reports: int
) -> list[dict[str, npt.NDArray[np.uint64]]]:
    """Return how often the neurons of layers fired, for each report; nothing where none asked."""
    followed = alike.get("followed", ())
    if not followed:
        return [{} for _ in range(n_reports)]
    rows = _decompress(alike["fired"]).view("<u8").reshape(-1, n_reports).T
    cuts = np.cumsum([alike["layers"][name][0] for name in followed])[:-1]
    return [dict(zip(followed, np.split(row, cuts), strict=True)) for row in rows]


def _compress(numbers: bytes) -> bytes:
    # The first bytes of all numbers, then the second ones...: most are alike.
    return zlib.compress(np.frombuffer(numbers, np.uint8).reshape(-1, 8).T.tobytes(), 1)


def _decompress(packed: bytes) -> npt.NDArray[np.uint8]:
    numbers = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(8, -1)
    return np.ascontiguousarray(numbers.T)


def _unpack(alike: Mapping[str, Any]) -> list[tuple[int, EfficiencyReport]]:
    layers: Mapping[str, tuple[int, int | None]] = alike["layers"]
    n_whole, n_real = 3 + len(_WHOLE) * len(layers), 1 + len(_REAL) * len(layers)
    in_units = any(group_size for _, group_size in layers.values())
    if in_units:
        n_real += len(_OF_UNITS) * len(layers)
    probed, n_before_probes = alike.get("probed", ()), n_real - 1
    n_real += len(_OF_PROBE) * len(probed)
    columns = _decompress(alike["metrics"]).reshape(n_whole + n_real, -1)
    integer_columns = columns[:n_whole].view("<u8")
    found = []
    for whole, real, fired in zip(
        integer_columns.T.tolist(),
        columns[n_whole:].view("<f8").T.tolist(),
        _unpack_fired(alike, integer_columns.shape[1]),
        strict=True,
    ):
        place, epoch, step, *integers = whole
        accuracy, *floats = real
        parts = {}
        for number, (name, (n_neurons, group_size)) in enumerate(layers.items()):
            values: dict[str, Any] = dict(
                zip(_WHOLE, integers[number * len(_WHOLE) :], strict=False)
            )
            values |= dict(zip(_REAL, floats[number * len(_REAL) :], strict=False))
            if in_units:
                coverages = floats[len(_REAL) * len(layers) + number * len(_OF_UNITS) :]
                values |= dict(zip(_OF_UNITS, coverages, strict=False))
            if name in fired:
                values["neurons"] = NeuronCounts(fired[name], values["n_states"], followed=True)
            if name in probed:
                start = n_before_probes + probed.index(name) * len(_OF_PROBE)
                known = [None if math.isnan(value) else value for value in floats[start:]]
                values["probe"] = ProbeChange(**dict(zip(_OF_PROBE, known, strict=False)))
            parts[name] = LayerReport.from_metrics(name, n_neurons, group_size=group_size, **values)
        report = EfficiencyReport(
            layers=parts,
            beta=alike["beta"],
            accuracy=None if math.isnan(accuracy) else accuracy,
            epoch=epoch - 1 if epoch else None,
            step=step - 1 if step else None,
            stage=alike["stage"],
            alpha=alike["alpha"],
        )
        found.append((place, report))
    return found
