"""Whole validation passes on a GPU: what it takes there to count states.

By the clock on the wall, from the first batch until all states are counted. Without a GPU the table
says so; `--quick` runs the same on the CPU, which is then taken for a device.
"""

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import nn

from benchmarks.networks_torch import lenet5, smooth_images, untrained
from benchmarks.rows import Options, Row, Target, not_installed, relative
from benchmarks.scale import AT_64, AT_ALL, Setting
from benchmarks.timing import medians
from tensorstate_callbacks.torch import record, tensor_recorder
from tensorstate_callbacks.torch.counting_threads import CountingThreads, Job

PART = "device"
BATCH = 256
# How long a plain pass is to take, in seconds: the whole part stays under five minutes.
_PASS = 2.0
_MOST_BATCHES = 16
NETWORKS = {"ResNet-50": "resnet50", "ViT-base": "vit_base_patch16_224"}
_SMALL = {"ResNet-18": "resnet18", "ViT-tiny": "vit_tiny_patch16_224"}


SETTINGS = {
    AT_64: Target(1.02, False),
    AT_ALL: Target(1.15, False),
    Setting(None, 64): Target(1.05, False),
}
CASES = [
    (f"{name}, {setting}", target) for name in NETWORKS for setting, target in SETTINGS.items()
]


class Pass(NamedTuple):
    """A validation pass on a device.

    Attributes:
        model: The network.
        batches: Images and labels, on the device.
        repeats: How often it sees all of them.
    """

    model: nn.Module
    batches: list[tuple[torch.Tensor, torch.Tensor]]
    repeats: int = 1

    @property
    def n_batches(self) -> int:
        """How many batches it has."""
        return len(self.batches) * self.repeats

    @property
    def n_images(self) -> int:
        """How many images it has."""
        return sum(len(labels) for _, labels in self.batches) * self.repeats

    def run(self) -> float:
        """Return the accuracy, which is all that waits for the device."""
        with torch.inference_mode():
            right = torch.zeros((), dtype=torch.int64, device=self.batches[0][1].device)
            for _ in range(self.repeats):
                for images, labels in self.batches:
                    right += (self.model(images).argmax(1) == labels).sum()
        return int(right) / self.n_images

    def run_watched(self, setting: Setting) -> None:
        """Run it while it is watched, until all states are counted."""
        with record(self.model, **setting._asdict()) as recording:
            self.run()
            recording.recorder.probe_counters()


def run(options: Options) -> list[Row]:
    """Measure two networks at 224×224, with random weights, in bfloat16, and LeNet-5."""
    if torch.cuda.is_available():
        return list(_measure(torch.device("cuda"), options))
    if not options.quick:
        note = "no GPU was measured: torch finds none that CUDA drives"
        cases = [*((f"LeNet-5, {setting}", None) for setting in SETTINGS), *CASES]
        return [
            Row(PART, case, 0, 0, "", "the same loop", 0, target, note) for case, target in cases
        ]
    on_device = tensor_recorder.lies_on_device
    tensor_recorder.lies_on_device = lambda tensor: True
    try:
        return list(_measure(torch.device("cpu"), options))
    finally:
        tensor_recorder.lies_on_device = on_device


def _measure(device: torch.device, options: Options) -> Iterator[Row]:
    model, batches = lenet5(options.quick)
    on_device = [(images.to(device), labels.to(device)) for images, labels in batches]
    for setting in SETTINGS:
        yield _compare("LeNet-5", Pass(model.to(device), on_device), setting, None, options)
    if not find_spec("timm"):
        yield from (not_installed(PART, case, "timm", target) for case, target in CASES)
        return
    for name, timm_name in (_SMALL if options.quick else NETWORKS).items():
        network = untrained(timm_name).to(device, torch.bfloat16)
        images = smooth_images(1 if options.quick else BATCH, 224).to(device, torch.bfloat16)
        labels = torch.zeros(len(images), dtype=torch.int64, device=device)
        one = Pass(network, [(images, labels)])
        one.run()
        began = time.perf_counter()
        one.run()
        repeats = max(2, min(_MOST_BATCHES, int(_PASS / (time.perf_counter() - began))))
        whole = one._replace(repeats=1 if options.quick else repeats)
        for setting, target in SETTINGS.items():
            yield _compare(name, whole, setting, target, options)


def _compare(
    name: str, whole: Pass, setting: Setting, target: Target | None, options: Options
) -> Row:
    watched = partial(whole.run_watched, setting)
    taken = medians({"plain": whole.run, "watched": watched}, options.runs(5))
    with _bytes_sent() as sent:
        watched()
    is_gpu = torch.cuda.is_available()
    note = f"{sum(sent) / whole.n_images:,.0f} bytes an image"
    if is_gpu:
        more = _waits(whole, setting) - _waits(whole, None)
        note += f", {more / whole.n_batches:g} more waits for the device a batch"
    else:
        note += ", on the CPU: no GPU was measured"
    return relative(
        PART, f"{name}, {setting}", "the same loop", taken["watched"] * 1e3, taken["plain"] * 1e3,
        "ms", target if is_gpu else None, note,
    )  # fmt: skip


@contextmanager
def _bytes_sent() -> Iterator[list[int]]:
    """Collect the bytes of all that is moved from the device to be counted."""
    put, sent = CountingThreads.put, []

    def collect(threads: CountingThreads, job: Job) -> None:
        sent.append(job.n_bytes)
        put(threads, job)

    CountingThreads.put = collect  # type: ignore[method-assign]
    try:
        yield sent
    finally:
        CountingThreads.put = put  # type: ignore[method-assign]


def _waits(whole: Pass, setting: Setting | None) -> int:
    """Return how often the host waits for the device in a pass, after its first batch."""
    recording: Any = None if setting is None else record(whole.model, **setting._asdict())
    with recording or nullcontext():
        # Finds out where the neurons are, and moves the places that are read.
        whole._replace(repeats=1).run()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                whole.run()
            finally:
                torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(each.message) for each in caught)
