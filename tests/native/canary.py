"""Do on purpose what a sanitizer has to report, so that a deaf one is found."""

import sys
import threading

import numpy as np
from numpy.lib.stride_tricks import as_strided

from tensorstate_callbacks.states.counter import StateCounter, use_kernel


def read_past_the_end() -> None:
    memory = np.zeros((1000, 4), np.float32)
    StateCounter(4).update(as_strided(memory, (1001, 4), (16, 4)), 1)


def overflow_an_offset() -> None:
    memory = np.zeros((1000, 4), np.float32)
    StateCounter(4).update(as_strided(memory, (4, 4, 4), (2**62, 2**62, 4)), 2)


def read_what_another_thread_writes() -> None:
    memory = np.zeros((1 << 12, 4), np.float32)
    zeros, counter, done = memory.copy(), StateCounter(4), threading.Event()

    def write() -> None:
        while not done.is_set():
            np.copyto(memory, zeros)

    writer = threading.Thread(target=write)
    writer.start()
    for _ in range(100):
        counter.update(memory, 1)
    done.set()
    writer.join()


if __name__ == "__main__":
    # Compilers leave the masked loads of vector kernels alone; guard pages watch over those, in
    # kernels_agree.cpp.
    with use_kernel("scalar"):
        {
            "address": read_past_the_end,
            "undefined": overflow_an_offset,
            "thread": read_what_another_thread_writes,
        }[sys.argv[1]]()
