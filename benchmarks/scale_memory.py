"""How memory grows with images in today's networks, and what a budget leaves of 20 GB."""

import math
from functools import partial

import numpy as np
import torch

from benchmarks.footprint import Growth, in_child
from benchmarks.networks_torch import batches_of, smooth_images, untrained
from benchmarks.rows import Options, Row, Target, not_installed, relative
from benchmarks.scale import AT_ALL, NETWORKS, WHOLE, held_bytes
from benchmarks.validation_torch import validate
from tensorstate_callbacks.recording.budget import WHOLE as WHOLE_PASS
from tensorstate_callbacks.recording.budget import Sampling
from tensorstate_callbacks.recording.recorder import Recorder
from tensorstate_callbacks.torch import record

PART = "scale-memory"
BUDGET = 256_000_000
# Channels and side of the layers: about what ResNet-50's convolutions make of 224×224.
LAYERS = [(64, 112), *[(256, 56)] * 9, *[(512, 28)] * 12, *[(1024, 14)] * 18, *[(2048, 7)] * 9]
BATCH = 8


def run(options: Options) -> list[Row]:
    """Measure the process's peak under a budget, and what counters hold of ever more images."""
    if not Growth.measurable():
        return [not_installed(PART, "all", "a system that tells a process's peak (Linux)")]
    rows = [_within_budget(100 if options.quick else 6500)]
    # The network is loaded after that: what it takes is no part of the peak.
    return rows + _growth([1, 2] if options.quick else [10, 100, 1000])


def _within_budget(n_images: int) -> Row:
    few = 100
    _, held = in_child(partial(_count_random, few, WHOLE_PASS))
    grown, _ = in_child(partial(_count_random, n_images, Sampling(max_memory=BUDGET)))
    case = f"random states of {len(LAYERS)} layers, {n_images} images, max_memory=256 MB"
    return relative(
        PART, f"{case}, the process's peak", f"tables of {few} images, in proportion",
        grown / 1e6, held / few * n_images / 1e6, "MB", Target(BUDGET / 1e6, False, "MB"),
    )  # fmt: skip


def _count_random(n_images: int, sampling: Sampling) -> tuple[int, int]:
    """Return how much the process grew by at most, and the bytes that the counters hold."""
    rng = np.random.default_rng(0)
    recorder = Recorder(map(str, range(len(LAYERS))), sampling=sampling)
    # Loads what the first batch loads.
    most = BATCH * max(channels * side**2 for channels, side in LAYERS)
    Recorder(["one"]).observe("one", np.frombuffer(rng.bytes(most), np.int8).reshape(8, 64, -1), 1)
    growth = Growth()
    for _ in range(-(-n_images // BATCH)):
        noise = np.frombuffer(rng.bytes(most), np.int8)
        for name, (channels, side) in enumerate(LAYERS):
            values = noise[: BATCH * channels * side**2]
            recorder.observe(str(name), values.reshape(BATCH, channels, side, side), 1)
    if len(recorder.report().layers) != len(LAYERS):
        raise RuntimeError("a layer was not counted at all")
    return growth.peak(), held_bytes(recorder)


def _growth(sizes: list[int]) -> list[Row]:
    """Measure how memory grows with images, of which none comes twice."""
    torch.set_num_threads(1)
    name, model = "ResNet-50", untrained(NETWORKS["ResNet-50"])
    settings = (WHOLE, AT_ALL)
    held: list[list[float]] = []
    whole, groups = (record(model, max_memory=math.inf, **each._asdict()) for each in settings)
    done = 0
    with whole, groups:
        for size in sizes:
            for seed in range(done, size, min(10, size - done)):
                images = smooth_images(min(10, size - done), 224, seed)
                validate(model, batches_of(images, 10))
            done = size
            held.append([held_bytes(recording.recorder) / 1e6 for recording in (whole, groups)])
    return [
        relative(PART, f"{name}, {setting}, memory after {size} images",
                 f"after {sizes[0]} images", own[number], held[0][number], "MB")
        for number, setting in enumerate(settings)
        for size, own in zip(sizes[1:], held[1:], strict=True)
    ]  # fmt: skip
