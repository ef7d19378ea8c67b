"""Have the threads that PyTorch computes with help to count."""

import ctypes
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import torch

from tensorstate_callbacks.recording.machine import available_processors
from tensorstate_callbacks.states.counter import use_openmp


def helping_threads() -> int:
    """Return how many threads may work on a batch: as many as PyTorch computes with.

    They are PyTorch's own where these are of OpenMP: behind an operation they spin for a while,
    and threads of ours would wait for a processor meanwhile.
    """
    _share_openmp()
    return min(torch.get_num_threads(), available_processors())


@lru_cache(maxsize=1)
def _share_openmp() -> None:
    for path in _runtimes():
        try:
            # As it is loaded already, or not at all: a second runtime would have other threads.
            runtime = ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD | os.RTLD_NOW)
            region = runtime.GOMP_parallel
        except (AttributeError, OSError):
            continue
        use_openmp(ctypes.cast(region, ctypes.c_void_p).value or 0)
        return


def _runtimes() -> Iterator[Path]:
    """Where a wheel of PyTorch may have its OpenMP runtime."""
    package = Path(torch.__file__).parent
    for folder in (package / "lib", package.parent / "torch.libs"):
        yield from sorted(path for path in folder.glob("lib*omp*") if ".so" in path.name)
