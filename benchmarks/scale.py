"""Whole validation passes of today's networks: what groups and positions cost in time and memory.

By the processor's time and by the clock on the wall, on one thread and on two; the targets are on
the processor's time of one thread, which other processes disturb least.
"""

import gc
import os
import statistics
import time
from collections.abc import Mapping
from contextlib import nullcontext
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import nn

from benchmarks.networks_torch import Batches, batches_of, lenet5, smooth_images, untrained
from benchmarks.rows import Options, Row, Target, not_installed, relative
from benchmarks.timing import timed_calls
from benchmarks.validation_torch import validate
from tensorstate_callbacks.recording.probe_counter import ProbeCounter
from tensorstate_callbacks.recording.recorder import Recorder
from tensorstate_callbacks.torch import record

PART = "scale"
BATCH = 8
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


AT_64, AT_ALL, WHOLE = Setting(8, 64), Setting(8, None), Setting(None, None)
SETTINGS = [Setting(group, positions) for group in (None, 8, 16) for positions in (16, 64, None)]
# On two threads, and where the numbers don't matter.
FEW = [WHOLE, AT_64, AT_ALL]
TIMES = {AT_64: Target(1.01, False), AT_ALL: Target(1.04, False)}
EQUAL = Target(1, False)
BYTES = {("ResNet-50", AT_64): Target(64, False, "MB")}


class Taken(NamedTuple):
    """What a pass took, and what was held after it.

    Attributes:
        processor: Seconds.
        wall: Seconds.
        counting: Seconds of the processor that counters took of it.
        report: Seconds of the processor for the report, which are the same however much was seen.
        held: Bytes of all counters.
    """

    processor: float
    wall: float
    counting: float
    report: float

    @property
    def note(self) -> str:
        """What the counters took beside the rest of the pass, and what the report took."""
        share = self.counting / (self.processor - self.counting)
        return f"counting {share:.2%}, report {self.report * 1e3:.0f} ms"

    held: float


def run(options: Options) -> list[Row]:
    """Measure LeNet-5, and each network at 224×224 with random weights on smooth noise."""
    rows = _lenet5(options)
    if not find_spec("timm"):
        return rows + [not_installed(PART, name, "timm") for name in NETWORKS]
    for name, timm_name in NETWORKS.items():
        model = untrained(timm_name)
        batches = batches_of(smooth_images(1 if options.quick else BATCH, 224), BATCH)
        use_threads(1)
        taken = _measure(model, batches, FEW if options.quick else SETTINGS, options)
        rows += _times(f"{name}, {{}}, 1 thread", taken, TIMES)
        rows += _memory(name, len(batches[0][0]) * len(batches), taken)
        if not options.quick and (os.cpu_count() or 1) > 1:
            use_threads(2)
            rows += _times(f"{name}, {{}}, 2 threads", _measure(model, batches, FEW, options), {})
    return rows


def _lenet5(options: Options) -> list[Row]:
    """Measure where groups are not needed: they are to cost no more than whole layers."""
    model, batches = lenet5(options.quick)
    use_threads(1)
    taken = _measure(model, batches, FEW, options)
    whole, groups = ((taken[one].processor + taken[one].report) * 1e3 for one in (WHOLE, AT_ALL))
    rows = _times("LeNet-5, {}, 1 thread", taken, {})
    row = relative(PART, f"LeNet-5, {AT_ALL}, with report", str(WHOLE), groups, whole, "ms", EQUAL)
    return [*rows, row]


def _times(
    case: str, taken: Mapping[Setting | None, Taken], targets: Mapping[Setting, Target]
) -> list[Row]:
    plain = taken[None]
    return [
        relative(PART, f"{case.format(setting)}, {clock}", "the same loop", ours * 1e3,
                 theirs * 1e3, "ms", targets.get(setting) if clock == "processor" else None,
                 own.note if clock == "processor" else "")
        for setting, own in taken.items() if setting is not None
        for clock, ours, theirs in (
            ("processor", own.processor, plain.processor), ("wall", own.wall, plain.wall),
        )
    ]  # fmt: skip


def _memory(name: str, n_images: int, taken: Mapping[Setting | None, Taken]) -> list[Row]:
    whole = taken[WHOLE].held / 1e6
    return [
        relative(PART, f"{name}, {setting}, memory after {n_images} images", str(WHOLE),
                 own.held / 1e6, whole, "MB", BYTES.get((name, setting)))
        for setting, own in taken.items() if setting not in (None, WHOLE)
    ]  # fmt: skip


def _measure(
    model: nn.Module, batches: Batches, settings: list[Setting], options: Options
) -> dict[Setting | None, Taken]:
    """Return the medians of a plain pass, under None, and of passes that are watched.

    They run in turn, so that what slows the machine down for a while slows all of them down.
    """
    runs = options.runs(5)
    found: dict[Setting | None, list[Taken]] = {each: [] for each in (None, *settings)}
    for number in range(-min(1, runs - 1), runs):
        for setting, taken in found.items():
            one = run_pass(model, batches, setting)
            if number >= 0:
                taken.append(one)
    return {
        setting: Taken(*map(statistics.median, zip(*taken, strict=True)))
        for setting, taken in found.items()
    }


def run_pass(model: nn.Module, batches: Batches, setting: Setting | None) -> Taken:
    """Run a validation pass, plain where there is no setting."""
    gc.collect()
    recording = None if setting is None else record(model, **setting._asdict())
    first, labels = batches[0]
    with recording or nullcontext(), timed_calls(ProbeCounter, "update") as counting:
        # The first batch of thousands also finds out where the neurons are.
        validate(model, [(first[:1], labels[:1])])
        counting.clear()
        began, began_wall = time.process_time(), time.perf_counter()
        validate(model, batches)
        ended, ended_wall = time.process_time(), time.perf_counter()
    times = ended - began, ended_wall - began_wall, sum(counting)
    if recording is None:
        return Taken(*times, 0, 0)
    began = time.process_time()
    recording.report(accuracy=1)
    return Taken(*times, time.process_time() - began, held_bytes(recording.recorder))


def held_bytes(recorder: Recorder) -> int:
    """Return the bytes of all counters, those in reserve too."""
    return sum(
        counter.nbytes
        for probe in recorder.probe_counters().values()
        for counter in probe.levels()
        if counter is not None
    )


def use_threads(threads: int) -> None:
    """Have PyTorch compute with so many threads, on as many processors."""
    torch.set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {*range(os.cpu_count() or 1)[-threads:]})
