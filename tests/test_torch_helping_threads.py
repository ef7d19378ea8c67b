"""PyTorch's threads help to count: as many as it computes with, and the same numbers."""

import ctypes
import math

import pytest
import torch
from torch import nn

from tensorstate_callbacks.recording import machine
from tensorstate_callbacks.torch import helping_threads as module
from tensorstate_callbacks.torch import record
from tensorstate_callbacks.torch.helping_threads import helping_threads


@pytest.fixture
def set_threads(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(module, "available_processors", lambda: 3)
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_there_are_as_many_as_pytorch_computes_with_and_the_process_may_use(set_threads):
    for threads, helping in ((1, 1), (2, 2), (8, 3)):
        set_threads(threads)
        assert helping_threads() == helping
    assert machine.available_processors() >= 1


@pytest.mark.parametrize(
    "arguments",
    [{}, {"max_memory": 3_000_000}, {"max_memory": math.inf}, {"group_size": 8}, {"positions": 64}],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:the counters need more memory")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_pass_counts_the_same_on_any_number_of_threads(set_threads, arguments, layout):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 20, 3), nn.ReLU(), nn.Conv2d(20, 70, 3), nn.ReLU())
    model = model.to(memory_format=layout)
    images = torch.randn(10, 3, 60, 60).to(memory_format=layout)
    reports = []
    for threads in (1, 2, 3):
        set_threads(threads)
        with record(model, attach_to="ReLU", **arguments) as recording, torch.no_grad():
            for batch in images.split(6):
                model(batch)
        reports.append(recording.report())
    assert reports[0] == reports[1] == reports[2]
    if "max_memory" not in arguments:
        read = [arguments.get("positions", size**2) for size in (58, 56)]
        assert [layer.n_states for layer in reports[0].layers.values()] == [10 * n for n in read]


def test_they_are_those_of_the_openmp_runtime_that_pytorch_has_loaded(monkeypatch, set_threads):
    if not any(True for _ in module._runtimes()):
        pytest.skip("this build of PyTorch brings no OpenMP runtime")
    given = []
    monkeypatch.setattr(module, "use_openmp", given.append)
    module._share_openmp.__wrapped__()
    set_threads(2)
    torch.randn(2000, 2000).relu()
    ran = []
    region = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)(
        given[0]
    )
    job = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda data: ran.append(data))
    region(ctypes.cast(job, ctypes.c_void_p), 7, 2, 0)
    assert ran == [7, 7]


def test_a_runtime_that_is_not_loaded_is_not_loaded_by_us(monkeypatch, tmp_path):
    folder = tmp_path / "torch" / "lib"
    folder.mkdir(parents=True)
    (folder / "libgomp-none.so.1").write_bytes(b"no library")
    monkeypatch.setattr(module.torch, "__file__", str(folder.parent / "__init__.py"))
    given = []
    monkeypatch.setattr(module, "use_openmp", given.append)
    module._share_openmp.__wrapped__()
    assert given == []
