"""Memory that really ends: an error of the batch that met it, with everything before intact."""

import subprocess
import sys

import pytest

OUT_OF_MEMORY = """
import resource, sys
import numpy as np
from tensorstate_callbacks.states.counter import StateCounter

width = int(sys.argv[1])
words = -(-width // 64)
rows = np.arange(words * 20_000, dtype=np.uint64).reshape(20_000, words)
rows *= np.uint64(0x9E3779B97F4A7C15)
counter = StateCounter(width)
counter.update_packed(rows.view(np.uint8))
counter.fired(), counter.spectrum()
with open("/proc/self/statm") as statm:
    used = int(statm.read().split()[0]) * resource.getpagesize()
_, hard = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, hard))
batches = 1
try:
    while True:
        rows += np.uint64(1)
        counter.update_packed(rows.view(np.uint8))
        batches += 1
except MemoryError:
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
assert counter.n_states == counter.n_distinct == 20_000 * batches, counter
assert counter.counts().tolist() == [1] * counter.n_distinct
counter.update_packed(rows.view(np.uint8))
assert counter.n_distinct == 20_000 * (batches + 1)
rows -= np.uint64(batches)
counter.update_packed(rows.view(np.uint8))
assert counter.n_states == counter.n_distinct + 20_000 == 20_000 * (batches + 2)
print(batches)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS holds on Linux only")
@pytest.mark.parametrize("width", [64, 128, 512])
def test_the_end_of_memory_is_an_error_that_changes_nothing(width):
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY, str(width)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20
