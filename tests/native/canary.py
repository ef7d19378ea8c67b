"""A sanitizer's name in; what it has to report is done on purpose, so that a deaf one is found."""

import sys
import threading

import numpy as np
from numpy.lib.stride_tricks import as_strided

from tensorstate_callbacks.counter import StateCounter


def read_past_the_end() -> None:
    memory = np.zeros((1000, 4), np.float32)
    StateCounter(4).update(as_strided(memory, (1001, 4), (16, 4)), 1)


def overflow_an_offset() -> None:
    memory = np.zeros((1000, 4), np.float32)
    StateCounter(4).update(as_strided(memory, (4, 4, 4), (2**62, 2**62, 4)), 2)


def read_what_another_thread_writes() -> None:
    memory = np.zeros((1 << 14, 4), np.float32)
    zeros, counter = memory.copy(), StateCounter(4)
    writer = threading.Thread(target=lambda: [np.copyto(memory, zeros) for _ in range(30)])
    writer.start()
    while writer.is_alive():
        counter.update(memory, 1)
    writer.join()


if __name__ == "__main__":
    {
        "address": read_past_the_end,
        "undefined": overflow_an_offset,
        "thread": read_what_another_thread_writes,
    }[sys.argv[1]]()
