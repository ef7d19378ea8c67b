"""Packed states on their way from a device: nothing is read too early, lost or waited for in vain.

The CPU is taken for a device here.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch_models import images, recorded, small_net

from tensorstate_callbacks import ProbeError
from tensorstate_callbacks.torch import record, row_transfers, tensor_recorder
from tensorstate_callbacks.torch.device_streams import DeviceStream
from tensorstate_callbacks.torch.row_transfers import HostCopy


class LateCopy(HostCopy):
    """A copy that arrives when waited for; until then, rubbish."""

    made: list["LateCopy"]

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows
        self.host = np.full(tuple(rows.shape), 0x55, np.uint8)
        LateCopy.made.append(self)

    def wait(self) -> np.ndarray[Any, Any]:
        self.host[:] = self.rows.numpy()
        return self.host


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[LateCopy]]:
    monkeypatch.setattr(tensor_recorder, "lies_on_device", lambda tensor: True)
    monkeypatch.setattr(row_transfers, "HostCopy", LateCopy)
    monkeypatch.setattr(LateCopy, "made", [], raising=False)
    yield LateCopy
    assert LateCopy.made


def test_nothing_is_read_before_it_has_arrived(
    late: type[LateCopy], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as on_the_host:
        on_the_host.setattr(tensor_recorder, "lies_on_device", lambda tensor: False)
        expected = recorded(small_net(), *images(40).split(1))
    # Layers of 49, 49 and 25 bytes a sample: in one copy, in some, and in one each.
    for size, n_copies in ((8 << 20, 1), (500, 15), (1, 120)):
        monkeypatch.setattr(row_transfers, "COPY_BYTES", size)
        late.made.clear()
        assert recorded(small_net(), *images(40).split(1)) == expected
        assert len(late.made) == n_copies


def test_the_model_waits_rather_than_the_queue_grows(
    late: type[LateCopy], monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting: list[int] = []
    wait = row_transfers.CountingThreads.wait

    def waits(self: Any, most_bytes: int | None = None) -> None:
        wait(self, most_bytes)
        waiting.append(self._n_bytes + sum(job.n_bytes for job in self._jobs))

    monkeypatch.setattr(row_transfers, "COPY_BYTES", 100)
    monkeypatch.setattr(row_transfers, "MOST_WAITING", 300)
    monkeypatch.setattr(row_transfers.CountingThreads, "wait", waits)
    recorded(small_net(), *images(40).split(1))
    assert len(waiting) >= 60
    assert max(waiting) <= 300


@pytest.mark.usefixtures("late")
def test_counts_asked_for_in_between_are_whole() -> None:
    model = small_net()
    with record(model, "Conv2d") as recording:
        for n in range(1, 4):
            model(images(1))
            assert recording.counters["0"].n_states == n * 49
            assert recording.report().layers["2"].n_states == n * 25


@pytest.mark.usefixtures("late")
def test_counts_before_an_exception_stay() -> None:
    model = small_net()
    model.register_forward_hook(lambda model, args, output: 1 / (len(output) - 3))
    with pytest.raises(ZeroDivisionError), record(model, "Conv2d") as recording:
        model(images(3))
    assert recording.report().layers["0"].n_states == 3 * 49


def test_a_copy_that_fails_is_an_error_of_the_report(
    late: type[LateCopy], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: LateCopy) -> Any:
        raise RuntimeError("the device was lost")

    monkeypatch.setattr(LateCopy, "wait", fails)
    model, text = small_net(), "'[02]' could not be counted: the device was lost"
    with pytest.raises(ProbeError, match=text), record(model, "Conv2d") as recording:
        model(images(2))
    with pytest.raises(ProbeError, match=text):
        recording.report()


def test_event_is_recorded_after_the_copy_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    class Event:
        def record(self, stream: Any) -> None:
            assert stream == torch.cpu.current_stream()
            assert torch.equal(copy._host, rows)
            done.append("record")

        def synchronize(self) -> None:
            done.append("synchronize")

    monkeypatch.setattr(torch.cpu, "Event", Event, raising=False)
    rows, copy = torch.ones(2, 3, dtype=torch.uint8), HostCopy.__new__(HostCopy)
    copy.__init__(rows)  # type: ignore[misc]
    assert copy._host.data_ptr() != rows.data_ptr()
    assert np.array_equal(copy.wait(), rows.numpy())
    assert done == ["record", "synchronize"]


def test_device_without_events_is_waited_for_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[None] = []
    monkeypatch.delattr(torch.cpu, "Event", raising=False)
    monkeypatch.setattr(torch.cpu, "synchronize", lambda: waited.append(None))
    copy = HostCopy(torch.ones(2, 3, dtype=torch.uint8))
    assert waited == [None]
    assert copy.wait().sum() == 6


def test_device_with_one_stream_only(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[tuple[Any, ...]] = []

    class Event:
        def record(self, *args: Any) -> None:
            recorded.append(args)

    monkeypatch.setattr(torch.cpu, "Event", Event, raising=False)
    monkeypatch.delattr(torch.cpu, "current_stream")
    HostCopy(torch.ones(2, 3, dtype=torch.uint8))
    assert recorded == [()]
    with DeviceStream.current(torch.device("cpu")).block():
        pass
