"""Whole validation passes of today's networks: what groups and positions cost in time and memory.

By the processor's time and by the clock on the wall, on one thread and on two; the targets are on
the processor's time of one thread, which other processes disturb least.
"""

import gc
import os
import statistics
import time
from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import nn

from benchmarks.networks_torch import Batches, batches_of, smooth_images, untrained
from benchmarks.rows import Options, Row, Target, not_installed, relative
from benchmarks.validation_torch import validate
from tensorstate_callbacks.torch import Recording, record

PART = "scale"
NETWORKS = {
    "ResNet-50": "resnet50",
    "ConvNeXt-tiny": "convnext_tiny",
    "ViT-small": "vit_small_patch16_224",
}


class Setting(NamedTuple):
    """Which states are counted.

    Attributes:
        group_size: Neurons of a unit; None: the whole layer.
        positions: Of each sample; None: all.
    """

    group_size: int | None
    positions: int | None

    def __str__(self) -> str:
        unit = "layers" if self.group_size is None else f"groups of {self.group_size}"
        return f"{unit} at {self.positions or 'all'} positions"


EIGHT_AT_64, EIGHT_AT_ALL, WHOLE = Setting(8, 64), Setting(8, None), Setting(None, None)
SETTINGS = [Setting(group, positions) for group in (None, 8, 16) for positions in (16, 64, None)]
# On two threads, and where the numbers don't matter.
FEW = [WHOLE, EIGHT_AT_64, EIGHT_AT_ALL]
TIMES = {EIGHT_AT_64: Target(1.01, False), EIGHT_AT_ALL: Target(1.04, False)}
BYTES = {("ResNet-50", EIGHT_AT_64): Target(64, False, "MB")}


def run(options: Options) -> list[Row]:
    """Measure each network at 224×224, with random weights, on smooth noise."""
    if not find_spec("timm"):
        return [not_installed(PART, name, "timm") for name in NETWORKS]
    rows = []
    settings = FEW if options.quick else SETTINGS
    for name, timm_name in NETWORKS.items():
        model = untrained(timm_name)
        batches = batches_of(smooth_images(1 if options.quick else 64, 224), 8)
        rows += _times(name, model, batches, 1, settings, options)
        if not options.quick and (os.cpu_count() or 1) > 1:
            rows += _times(name, model, batches, 2, FEW, options)
        rows += _memory(name, model, batches, settings)
    return rows


def _times(
    name: str,
    model: nn.Module,
    batches: Batches,
    threads: int,
    settings: list[Setting],
    options: Options,
) -> list[Row]:
    _use_threads(threads)
    calls = {setting: partial(_watched, model, batches, setting) for setting in settings}
    taken = _medians({None: partial(validate, model, batches), **calls}, options.runs(3))
    rows = []
    for setting in settings:
        for clock, ours, theirs in zip(
            ("processor", "wall"), taken[setting], taken[None], strict=True
        ):
            case = f"{name}, {setting}, {threads} thread{'s' * (threads > 1)}, {clock}"
            judged = threads == 1 and clock == "processor"
            target = TIMES.get(setting) if judged else None
            rows.append(
                relative(PART, case, "the same loop", ours * 1e3, theirs * 1e3, "ms", target)
            )
    return rows


def _memory(name: str, model: nn.Module, batches: Batches, settings: list[Setting]) -> list[Row]:
    held = {setting: _held(_watched(model, batches, setting)) / 1e6 for setting in settings}
    n_images = sum(len(images) for images, _ in batches)
    return [
        relative(PART, f"{name}, {setting}, memory after {n_images} images", str(WHOLE),
                 held[setting], held[WHOLE], "MB", BYTES.get((name, setting)))
        for setting in settings if setting != WHOLE
    ]  # fmt: skip


def _watched(model: nn.Module, batches: Batches, setting: Setting) -> Recording:
    with record(model, **setting._asdict()) as recording:
        accuracy = validate(model, batches)
    recording.report(accuracy=accuracy)
    return recording


def _held(recording: Recording) -> int:
    """Return the bytes of all counters, those in reserve too."""
    return sum(
        counter.nbytes
        for probe in recording.recorder.probe_counters().values()
        for counter in probe.levels()
        if counter is not None
    )


def _use_threads(threads: int) -> None:
    torch.set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):
        cores = range(os.cpu_count() or 1)
        os.sched_setaffinity(0, {*cores[-threads:]})


def _medians(
    calls: Mapping[Setting | None, partial[object]], runs: int
) -> dict[Setting | None, tuple[float, float]]:
    """Return the median seconds of each call, the processor's and the wall clock's.

    They run in turn, so that what slows the machine down for a while slows all of them down.
    """
    taken: dict[Setting | None, list[tuple[float, float]]] = {name: [] for name in calls}
    warm_up = min(1, runs - 1)
    for number in range(-warm_up, runs):
        for name, call in calls.items():
            gc.collect()
            began, began_wall = time.process_time(), time.perf_counter()
            call()
            ended = time.process_time() - began, time.perf_counter() - began_wall
            if number >= 0:
                taken[name].append(ended)
    return {
        name: (statistics.median(own), statistics.median(wall))
        for name, (own, wall) in ((n, zip(*pairs, strict=True)) for n, pairs in taken.items())
    }
