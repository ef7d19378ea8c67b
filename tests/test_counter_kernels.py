"""Which kernel counts, and why: chosen from one table, forced by name, refused by name."""

import os
import subprocess
import sys

import pytest

from tensorstate_callbacks.states import counter as counter_module
from tensorstate_callbacks.states.counter import (
    StateCounter,
    available_kernels,
    kernel_report,
    use_kernel,
)


def run_with_kernel(name, code):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "TENSORSTATE_KERNEL": name},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_fastest_kernel_is_chosen():
    names = available_kernels()
    assert names[-1] == "numpy"
    code = "from tensorstate_callbacks import StateCounter; print(StateCounter(3).kernel)"
    done = run_with_kernel("", code)
    assert done.stdout.strip() == names[0], done.stderr


def test_the_compiled_counter_is_built_here():
    assert "scalar" in available_kernels(), kernel_report()[1]


@pytest.mark.parametrize("name", available_kernels())
def test_a_kernel_can_be_forced_by_context_and_by_environment(name):
    before = StateCounter(3).kernel
    with use_kernel(name):
        assert StateCounter(3).kernel == name
        assert kernel_report() == (name, "forced by use_kernel")
    assert StateCounter(3).kernel == before
    code = "from tensorstate_callbacks import StateCounter; print(StateCounter(3).kernel)"
    done = run_with_kernel(name, code)
    assert done.stdout.strip() == name, done.stderr


def test_an_unknown_kernel_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=f"'mmx'.*use_kernel.*{', '.join(available_kernels())}"):
        use_kernel("mmx").__enter__()
    code = "from tensorstate_callbacks import StateCounter; print('imported'); StateCounter(3)"
    done = run_with_kernel("mmx", code)
    assert done.stdout.strip() == "imported"
    assert "'mmx'" in done.stderr
    assert "TENSORSTATE_KERNEL" in done.stderr
    assert "available: " + ", ".join(available_kernels()) in done.stderr


def test_kernels_forced_within_each_other_come_back_in_order():
    with use_kernel("numpy"):
        with use_kernel(available_kernels()[0]):
            pass
        assert counter_module.kernel_report()[0] == "numpy"
