"""Packing: activations in a cache or in memory; its speed as a share of that of a plain read.

The read is the quickest of three: `torch.sum`, NumPy's `max` of 64-bit integers, and a compiled
loop that does nothing else. Packing is timed apart from counting by the same compiled clock, into
the counter's own block of rows.
"""

import math
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import cache_bytes
from benchmarks.native_clock import NativeClock
from benchmarks.rows import Options, Row, Target, not_installed, relative

# Channels and positions of one sample; None: the samples themselves are the positions.
CONVOLUTIONS = ((20, 24, 24), (50, 8, 8), (64, 64, 64), (256, 14, 14), (512, 7, 7))
LAST = {"dense 512×1": (512,), "tokens 512×768": (512, 768)}
# How many bit patterns fire above 0: those up to infinity.
SPANS = {"float32": 0x7F80_0000, "bfloat16": 0x7F80, "float16": 0x7C00}
IN_CACHE, FROM_MEMORY = Target(0.7), Target(0.9)
BYTES_A_RUN = 64 << 20


class Place(NamedTuple):
    """Where activations lie when they are packed.

    Attributes:
        name: Of the cache, or memory.
        nbytes: How much of them there is.
        target: What is to be reached there.
    """

    name: str
    nbytes: int
    target: Target


def run(options: Options) -> list[Row]:
    """Measure all shapes in both layouts, three places and three number types."""
    try:
        clock = NativeClock()
    except OSError as error:
        return [not_installed("pack", "all", f"a C++ compiler ({error})")]
    return [
        _compare(clock, place, name, shape, axis, options)
        for place in _places(options)
        for name, shape, axis in _layouts()
    ]


def _places(options: Options) -> list[Place]:
    caches = cache_bytes()
    memory = 4 << 20 if options.quick else 8 * caches[3]
    return [
        Place("L2", caches[2] // 2, IN_CACHE),
        Place("L3", min(caches[3] // 4, memory), IN_CACHE),
        Place("memory", memory, FROM_MEMORY),
    ]


def _layouts() -> list[tuple[str, tuple[int, ...], int]]:
    found: list[tuple[str, tuple[int, ...], int]] = []
    for channels, height, width in CONVOLUTIONS:
        name = f"{channels}×{height}×{width}"
        found.append((f"NCHW {name}", (channels, height, width), 0))
        found.append((f"NHWC {name}", (height, width, channels), -1))
    return found + [(name, shape, -1) for name, shape in LAST.items()]


def _compare(
    clock: NativeClock,
    place: Place,
    name: str,
    shape: tuple[int, ...],
    axis: int,
    options: Options,
) -> Row:
    shares: dict[str, float] = {}
    speeds: dict[str, tuple[float, float, str]] = {}
    for dtype, span in SPANS.items():
        memory = _activations(dtype, place.nbytes)
        bits = _shaped(memory, shape, axis)
        _check(clock, bits[: max(1, 50_000 // math.prod(shape))], span, dtype)
        ours, theirs, reader = _speeds(clock, memory, bits, span, options.runs(9))
        shares[dtype], speeds[dtype] = ours / theirs, (ours, theirs, reader)
    ours, theirs, reader = speeds["float32"]
    others = ", ".join(f"{dtype} {shares[dtype]:.2f}" for dtype in list(SPANS)[1:])
    case = f"{place.name}, {name}"
    return relative("pack", case, reader, ours, theirs, "GB/s", place.target, others)


def _activations(dtype: str, nbytes: int) -> NDArray[Any]:
    values = np.random.default_rng(0).standard_normal(1 << 18, np.float32)
    if dtype == "float16":
        bits = values.astype(np.float16).view(np.uint16)
    elif dtype == "bfloat16":
        bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    else:
        bits = values.view(np.uint32)
    return np.resize(bits, nbytes // bits.itemsize)


def _shaped(memory: NDArray[Any], shape: tuple[int, ...], axis: int) -> NDArray[Any]:
    # Where one sample is more than the place holds, it gets fewer rows.
    if math.prod(shape) > memory.size and len(shape) == 3:
        rows = memory.size * shape[1 - axis - 1] // math.prod(shape)
        shape = (shape[0], rows, shape[2]) if axis == 0 else (rows, *shape[1:])
    if math.prod(shape) > memory.size:
        shape = (memory.size // shape[-1], shape[-1])
    samples = memory.size // math.prod(shape)
    array = memory[: samples * math.prod(shape)].reshape(samples, *shape)
    return np.moveaxis(array, axis % len(shape) + 1, -1)


def _check(clock: NativeClock, bits: NDArray[Any], span: int, dtype: str) -> None:
    fires = (bits >= 1) & (bits <= span)
    rows = np.packbits(fires.reshape(-1, bits.shape[-1]), axis=1, bitorder="little")
    found = clock.packed(bits, span).view(np.uint8)[:, : rows.shape[1]]
    if not np.array_equal(rows, found):
        raise RuntimeError(f"{dtype} of shape {bits.shape} is packed otherwise than by NumPy")


def _speeds(
    clock: NativeClock, memory: NDArray[Any], bits: NDArray[Any], span: int, runs: int
) -> tuple[float, float, str]:
    """Return GB/s of packing and of the quickest read, and that read's name."""
    words = memory.view(np.uint64)
    repeats = max(1, BYTES_A_RUN // memory.nbytes)
    calls: dict[str, Callable[[], float]] = {
        "a compiled read": lambda: clock.read(words, repeats),
        "np.max": lambda: _clocked(words.view(np.int64).max, repeats),
        "packing": lambda: clock.pack(bits, span, repeats),
    }
    if find_spec("torch"):
        import torch

        calls["torch.sum"] = lambda: _clocked(torch.from_numpy(words.view(np.float32)).sum, repeats)
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(runs + 1):
        for name, call in calls.items():
            taken[name].append(call())
    size = {name: bits.nbytes if name == "packing" else memory.nbytes for name in calls}
    speed = {
        name: size[name] * repeats / statistics.median(durations[1:]) / 1e9
        for name, durations in taken.items()
    }
    ours = speed.pop("packing")
    reader = max(speed, key=speed.__getitem__)
    return ours, speed[reader], reader


def _clocked(call: Callable[[], Any], repeats: int) -> float:
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    return time.perf_counter() - began
