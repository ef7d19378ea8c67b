"""Measure what merging ranks by hash takes, with ever more distinct states each.

Compared with the plain way, that one rank gathers all states and counts them. Ranks are processes
on one machine, on the core that the benchmarks are pinned to: what a network would add shows in
the bytes, not in the time.
"""

import os
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from benchmarks.footprint import Growth, in_child
from benchmarks.rows import Options, Row, not_installed, relative, speed_up
from benchmarks.states import distinct_states
from tensorstate_callbacks.states.counter import StateCounter
from tensorstate_callbacks.states.partition import join_states, partition_states
from tensorstate_callbacks.states.spectrum import Spectrum, add_spectra
from tensorstate_callbacks.torch.distributed.state_exchange import StateExchange

NEURONS = 64
RANKS = 4
# How far the states of one rank are from the next one's: half of them are seen by both.
OWN = 0.5

# The spectrum of all ranks' states, on each of them; what this one sent and received, bytes.
Merged = tuple[Spectrum, int, int]
Way = Callable[[StateCounter], Merged]


def run(options: Options) -> list[Row]:
    """Measure 10⁶ and 10⁷ distinct states on each of four ranks."""
    if not Growth.measurable():
        return [not_installed("exchange", "all", "a system that tells a process's peak (Linux)")]
    sizes = [10**4] if options.quick else [10**6, 10**7]
    return [row for size in sizes for row in _rows(size)]


def _rows(size: int) -> list[Row]:
    ours, theirs = (in_child(partial(_on_ranks, way, size)) for way in (by_hash, on_one_rank))
    if ours[4:] != theirs[4:]:
        raise RuntimeError(f"{size} states on each of {RANKS} ranks: the ways differ")
    case, against = f"{RANKS} ranks of {size:,} distinct states, {NEURONS} bit", "all on one rank"
    return [
        speed_up("exchange", f"{case}: time", against, ours[0], theirs[0], "s"),
        *(
            relative("exchange", f"{case}: {what}", against, mine / 1e6, other / 1e6, "MB")
            for what, mine, other in zip(
                ("sent by all ranks", "received by one", "most memory of one"),
                ours[1:4],
                theirs[1:4],
                strict=True,
            )
        ),
    ]


def by_hash(counter: StateCounter) -> Merged:
    """Merge as the package does."""
    exchange = StateExchange(dist.group.WORLD)
    share = exchange.own_share(counter, counter.n_distinct).spectrum()
    spectra: list[Any] = [None] * RANKS
    dist.all_gather_object(spectra, share)
    return add_spectra(spectra), exchange.bytes_sent, exchange.bytes_received


def on_one_rank(counter: StateCounter) -> Merged:
    """Merge on rank 0, which then tells the others the spectrum."""
    table = torch.from_numpy(partition_states(*counter.snapshot(), 1).table)
    first = dist.get_rank() == 0
    # All ranks have equally many.
    tables = [torch.empty_like(table) for _ in range(RANKS)] if first else None
    dist.gather(table, tables)
    spectrum: list[Any] = [None]
    if tables is not None:
        merged = StateCounter(NEURONS)
        for part in tables:
            merged.add_counts(*join_states(part.numpy(), NEURONS))
        spectrum = [merged.spectrum()]
    dist.broadcast_object_list(spectrum)
    others = (RANKS - 1) * table.nbytes
    return (spectrum[0], 0, others) if first else (spectrum[0], table.nbytes, 0)


def _on_ranks(way: Way, size: int) -> list[float]:
    """Seconds; bytes sent by all ranks, most received by and in use of one; what was merged."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    others = []
    for rank in range(1, RANKS):
        process = os.fork()
        if not process:
            status = 1
            try:
                _on_rank(way, size, rank, port)
                status = 0
            finally:
                os._exit(status)
        others.append(process)
    found = _on_rank(way, size, 0, port)
    if any(os.waitpid(process, 0)[1] for process in others):
        raise RuntimeError("a rank failed")
    return found


def _on_rank(way: Way, size: int, rank: int, port: int) -> list[float]:
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS
    )
    counter = StateCounter(NEURONS)
    counter.update_packed(distinct_states(NEURONS, size, int(rank * size * OWN)))
    dist.barrier()
    growth, began = Growth(), time.perf_counter()
    spectrum, sent, received = way(counter)
    measured = np.array([time.perf_counter() - began, sent, received, growth.peak()])
    everyone: list[Any] = [None] * RANKS
    dist.all_gather_object(everyone, measured)
    all_seconds, all_sent, all_received, peaks = np.array(everyone).T
    return [
        all_seconds.max(), all_sent.sum(), all_received.max(), peaks.max(),
        spectrum.n_states, spectrum.n_distinct, spectrum.n_singletons,
    ]  # fmt: skip
