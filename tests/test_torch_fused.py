"""The kernel gives to the bit what torch's own operations do; where it fails, they go on."""

import os
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from tensorstate_callbacks import TensorStateWarning
from tensorstate_callbacks.torch import fused, record, tensor_recorder

RUNS = Path(__file__).with_name("fused_runs.py")
# In a folder of its own beside TensorFlow.
APART = Path(sys.prefix, "apart")
needs_triton = pytest.mark.skipif(
    not (find_spec("triton") or Path(APART, "triton").is_dir()), reason="triton is not installed"
)


@needs_triton
@pytest.mark.parametrize(
    ("what", "expected"), [("interpret", "65 alike\n"), ("compile", "compiled\n")]
)
def test_the_kernel_does_what_numpy_does_and_can_be_compiled(what: str, expected: str) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": str(int(what == "interpret"))}
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [os.environ.get("PYTHONPATH"), str(APART)])
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", str(RUNS), what],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "threshold", [0.0, -0.0, 0.5, -0.5, 0.1, -0.1, 1e-50, -1e-50, 7e4, -7e4, 1e39, -1e39]
)
def test_keys_between_the_spans_ends_are_those_of_numbers_that_fire(
    dtype: torch.dtype, threshold: float
) -> None:
    low, high = fused.firing_span(threshold, dtype)
    if dtype == torch.float32:
        drawn = np.random.default_rng(0).integers(0, 2**32, 10_000, np.uint64).astype(np.uint32)
        with np.errstate(over="ignore"):
            near = np.array([threshold, 0.0, -0.0, np.inf, -np.inf, np.nan], np.float32)
        near = near.view(np.uint32)
        around = np.concatenate([near - 1, near, near + 1])
        bits = torch.from_numpy(np.concatenate([drawn, around]).view(np.int32))
    else:
        bits = torch.arange(-(2**15), 2**15).to(torch.int16)
    numbers, keys = bits.view(dtype), bits.to(torch.int64)
    keys = torch.where(keys < 0, keys ^ torch.iinfo(bits.dtype).max, keys)
    assert torch.equal((keys > low) & (keys <= high), numbers.double() > threshold)


def test_triton_is_not_loaded_behind_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both bring LLVM, and the second one to register its options ends the process."""
    asked: list[str] = []

    def find(name: str) -> object:
        asked.append(name)
        raise ImportError(name)

    monkeypatch.setattr(fused, "import_module", find)
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    monkeypatch.setitem(sys.modules, "tensorflow", object())
    assert fused._kernel.__wrapped__() is None
    assert asked == []
    monkeypatch.delitem(sys.modules, "tensorflow")
    assert fused._kernel.__wrapped__() is None
    assert asked == ["triton"]


@pytest.mark.parametrize("group_size", [None, 3])
def test_a_kernel_that_fails_is_warned_of_once_and_torch_goes_on(
    group_size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Kernel:
        def __getitem__(self, grid: tuple[int, int]) -> object:
            raise RuntimeError("no compiler")

    layer = torch.nn.Conv2d(3, 7, 3)
    data = torch.randn(4, 3, 8, 8)
    options = {"group_size": group_size, "exclude": ()}
    with torch.no_grad(), record(layer, "*", **options) as expected:
        layer(data)
        layer(data)
    monkeypatch.setattr(tensor_recorder, "lies_on_device", lambda tensor: True)
    monkeypatch.setattr(fused, "_is_driven", lambda device: True)
    monkeypatch.setattr(fused, "_kernel", Kernel)
    monkeypatch.setattr(fused, "_has_failed", False)
    with torch.no_grad(), record(layer, "*", **options) as recording:
        with pytest.warns(TensorStateWarning, match="RuntimeError: no compiler"):
            layer(data)
        with warnings.catch_warnings(record=True) as again:
            layer(data)
    assert not again
    assert recording.report(0.5) == expected.report(0.5)


def test_a_device_without_memory_is_no_failure_of_the_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Kernel:
        def __getitem__(self, grid: tuple[int, int]) -> object:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(tensor_recorder, "lies_on_device", lambda tensor: True)
    monkeypatch.setattr(fused, "_is_driven", lambda device: True)
    monkeypatch.setattr(fused, "_kernel", Kernel)
    layer = torch.nn.Conv2d(3, 7, 3)
    recording = record(layer, "*", exclude=())
    recording.__enter__()
    layer(torch.randn(4, 3, 8, 8))
    with pytest.warns(TensorStateWarning, match="could not be counted at all"):
        recording.__exit__(None, None, None)
    assert not fused._has_failed


def test_what_the_kernel_does_not_take_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_is_driven", lambda device: True)
    monkeypatch.setattr(fused, "_kernel", lambda: object())
    assert fused.takes(torch.ones(2, 3))
    assert not fused.takes(torch.ones(2, 3, dtype=torch.float64))
    assert not fused.takes(torch.ones(2, 3, dtype=torch.int32))
    imaginary = torch.ones(2, 3, dtype=torch.complex64).conj().imag
    assert imaginary.is_neg()
    assert not fused.takes(imaginary)
    assert not fused.takes(torch.ones(1, 1, 1).expand(2**16, 2**15, 1))
    monkeypatch.setattr(fused, "_kernel", lambda: None)
    assert not fused.takes(torch.ones(2, 3))
