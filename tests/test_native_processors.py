"""On processors that are not here, emulated: the kernel they run is chosen, and counts right."""

import os
import platform
import shutil
import subprocess
import sys

import pytest

COUNT = """
import numpy as np
from tensorstate_callbacks.states.counter import StateCounter, available_kernels
print(*available_kernels())
for width in (20, 50, 100, 200):
    states = np.random.default_rng(0).random((700, width)) < 0.5
    states[300:] = states[:400]
    for activations, axis in ((states, 1), (states.astype(np.float32).T, 0)):
        counter = StateCounter(width)
        counter.update(activations, axis)
        rows, counts = np.unique(
            np.packbits(states, axis=1, bitorder="little"), axis=0, return_counts=True
        )
        assert counter.states().tolist() == rows.tolist()
        assert counter.counts().tolist() == counts.tolist()
        assert counter.fired().tolist() == states.sum(axis=0).tolist()
"""


# Nehalem has no AVX2, Haswell has; no kernel may use what the system doesn't save (xsave).
@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="qemu-x86_64 runs this Python where that is Linux's for x86-64",
)
@pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="qemu-x86_64 is not installed")
@pytest.mark.parametrize(
    ("processor", "kernels"),
    [
        ("Nehalem", "scalar numpy"),
        ("Haswell", "avx2 scalar numpy"),
        ("Haswell,-avx2", "scalar numpy"),
        ("Haswell,-xsave", "scalar numpy"),
    ],
)
def test_the_kernel_of_an_older_processor_is_found_and_counts(processor, kernels):
    # What NumPy may have been told of the processor that is here.
    environment = {name: each for name, each in os.environ.items() if "OPENBLAS" not in name}
    done = subprocess.run(
        ["qemu-x86_64", "-cpu", processor, sys.executable, "-W", "error", "-c", COUNT],
        capture_output=True,
        env=environment,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == kernels
