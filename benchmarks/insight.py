"""What single neurons, classes and probe data cost: a recorded pass with them over one without.

By the processor's time of a whole validation pass and its report: one thread, no other process.
"""

import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.networks_torch import NETWORKS, Batches
from benchmarks.rows import Options, Row, relative
from benchmarks.timing import medians
from tensorstate_callbacks.reports.report import EfficiencyReport
from tensorstate_callbacks.torch import ProbeSet, record

PART = "insight"
N_PROBED = 64


def run(options: Options) -> list[Row]:
    """Measure two networks, each layer as one unit and in groups of 8."""
    torch.set_num_threads(1)
    rows = []
    for name, load in NETWORKS.items():
        model, batches = load(options.quick)
        probe = ProbeSet(batches[0][0][:N_PROBED])
        asked: dict[str, dict[str, Any]] = {
            "neurons": {"neurons": True},
            "classes": {"classes": True},
            f"probe_data of {N_PROBED}": {"probe_data": probe},
        }
        for units, group_size in (("whole layers", None), ("groups of 8", 8)):
            plain = partial(_recorded, model, batches, group_size=group_size)
            calls: dict[str, Callable[[], object]] = {
                "plain": plain,
                **{what: partial(plain, **arguments) for what, arguments in asked.items()},
            }
            _check(calls)
            taken = medians(calls, options.runs(5), time.process_time)
            rows += [
                relative(
                    PART,
                    f"{name}, {units}, {what}",
                    "the same record without",
                    taken[what] * 1e3,
                    taken["plain"] * 1e3,
                    "ms",
                )
                for what in asked
            ]
    return rows


def _recorded(model: nn.Module, batches: Batches, **arguments: Any) -> EfficiencyReport:
    with warnings.catch_warnings():
        # On random data too little is seen of most layers.
        warnings.simplefilter("ignore")
        with record(model, **arguments) as recording, torch.inference_mode():
            for x, _ in recording.batches(batches):
                model(x)
        return recording.report()


def _check(calls: dict[str, Callable[[], Any]]) -> None:
    """See that each gives what it is measured for, and the same efficiency."""
    reports = {what: call() for what, call in calls.items()}
    efficiencies = {report.efficiency for report in reports.values()}
    plain, neurons, classes, probe = (list(r.layers.values()) for r in reports.values())
    if len(efficiencies) > 1 or any(layer.classes or layer.probe for layer in plain):
        raise RuntimeError("what is asked for besides changes the efficiency")
    if not all(layer.neurons and layer.neurons.agreement for layer in neurons):
        raise RuntimeError("it isn't known which neurons agree")
    if not all(layer.classes for layer in classes) or not all(layer.probe for layer in probe):
        raise RuntimeError("a layer has no metrics of classes, or of probe data")
