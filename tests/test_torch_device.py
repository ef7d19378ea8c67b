"""States packed on a device are those of the host, and nothing is read before it has arrived.

The CPU is taken for a device here; where there is a real one, it is tested too.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from state_oracle import counted_states, expected_states
from torch import nn
from torch_models import collect, images, small_net

from tensorstate_callbacks import ProbeError
from tensorstate_callbacks.torch import record, tensor_recorder
from tensorstate_callbacks.torch.tensor_recorder import HostCopy

DEVICES = [
    name
    for name in ("cuda", "mps", "xpu")
    if getattr(getattr(torch, name, None), "is_available", bool)()
    or (name == "mps" and torch.backends.mps.is_available())
]


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> None:
    """All tensors are taken for a device's."""
    monkeypatch.setattr(tensor_recorder, "lies_on_device", lambda tensor: True)


class LateCopy(HostCopy):
    """A copy that arrives when waited for, or after so many later ones; until then, rubbish."""

    patience = 10**9
    under_way: list["LateCopy"]
    most = 0

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows
        self.host = np.full(tuple(rows.shape), 0x55, np.uint8)
        LateCopy.under_way.append(self)
        LateCopy.most = max(LateCopy.most, len(LateCopy.under_way))

    def arrived(self) -> bool:
        assert LateCopy.under_way[0] is self
        return len(LateCopy.under_way) > self.patience

    def wait(self) -> np.ndarray[Any, Any]:
        # A device works in order.
        assert LateCopy.under_way.pop(0) is self
        self.host[:] = self.rows.numpy()
        return self.host


@pytest.fixture
def late(forced: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[LateCopy]]:
    monkeypatch.setattr(tensor_recorder, "HostCopy", LateCopy)
    monkeypatch.setattr(LateCopy, "under_way", [], raising=False)
    monkeypatch.setattr(LateCopy, "most", 0)
    yield LateCopy
    assert not LateCopy.under_way


def recorded(model: nn.Module, *batches: torch.Tensor, **options: Any) -> Any:
    with torch.no_grad(), record(model, ["Conv2d", "ReLU"], **options) as recording:
        for batch in batches:
            model(batch)
    return {name: counted_states(counter) for name, counter in recording.counters.items()}


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_counts_are_those_numpy_makes(dtype: torch.dtype, layout: torch.memory_format) -> None:
    model = small_net().to(dtype=dtype, memory_format=layout)
    data = images().to(dtype=dtype, memory_format=layout)
    seen = {name: collect(model[int(name)])[0] for name in "012"}
    counts = recorded(model, *data.split(5), threshold=0.1)
    assert list(counts) == ["0", "1", "2"]
    assert counts == {name: expected_states(outputs, 1, 0.1) for name, outputs in seen.items()}


def test_nothing_is_read_before_it_has_arrived(
    late: type[LateCopy], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as on_the_host:
        on_the_host.setattr(tensor_recorder, "lies_on_device", lambda tensor: False)
        expected = recorded(small_net(), *images(40).split(1))
    assert recorded(small_net(), *images(40).split(1)) == expected
    # 40 batches of three layers: as many as allowed, and the one that was just added.
    assert late.most == tensor_recorder.MOST_UNDER_WAY + 1
    for patience in (0, 1, 3):
        monkeypatch.setattr(LateCopy, "patience", patience)
        late.most = 0
        assert recorded(small_net(), *images(40).split(1)) == expected
        assert late.most == patience + 1


@pytest.mark.usefixtures("late")
def test_counts_asked_for_in_between_are_whole() -> None:
    model = small_net()
    with record(model, "Conv2d") as recording:
        for n in range(1, 4):
            model(images(1))
            assert recording.counters["0"].n_states == n * 49
            assert recording.report().layers["2"].n_states == n * 25


@pytest.mark.parametrize("on_device", ["first", "second"])
def test_forward_order_is_that_of_the_calls(
    on_device: str, late: type[LateCopy], monkeypatch: pytest.MonkeyPatch
) -> None:
    width = {"first": 7, "second": 5}[on_device]
    monkeypatch.setattr(tensor_recorder, "lies_on_device", lambda t: t.shape[1] == width)
    counts = recorded(small_net(), images(2))
    assert list(counts) == ["0", "1", "2"]


@pytest.mark.usefixtures("late")
def test_counts_before_an_exception_stay() -> None:
    model = small_net()
    model.register_forward_hook(lambda model, args, output: 1 / (len(output) - 3))
    with pytest.raises(ZeroDivisionError), record(model, "Conv2d") as recording:
        model(images(3))
    assert recording.report().layers["0"].n_states == 3 * 49


def test_failed_copy_is_named_and_the_others_are_counted(
    late: type[LateCopy], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: LateCopy) -> Any:
        if self.rows.shape[0] == 2 * 25:
            late.under_way.remove(self)
            raise RuntimeError("the device was lost")
        return whole(self)

    whole = LateCopy.wait
    monkeypatch.setattr(LateCopy, "wait", fails)
    model = small_net()
    text = "'2' could not be counted: the device was lost"
    with pytest.raises(ProbeError, match=text), record(model, "Conv2d") as recording:
        [model(images(n)) for n in (2, 3)]
    assert recording.counters["0"].n_states == 5 * 49
    assert recording.counters["2"].n_states == 3 * 25
    # Its states are missing, so there is no report.
    with pytest.raises(ProbeError, match=text):
        recording.report()


@pytest.mark.usefixtures("late")
def test_error_at_once_names_the_layer() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    with record(model, "Linear", channel_axis=0) as recording:
        model(torch.ones(4, 3))
        with pytest.raises(ProbeError, match="'0'.*has 5 entries, and had 4 in an earlier batch"):
            model(torch.ones(5, 3))
    wave = nn.Sequential(nn.Linear(3, 3, dtype=torch.complex64))
    text = "'0' could not be counted: its activations are complex"
    with pytest.raises(ProbeError, match=text), record(wave, "Linear"):
        wave(torch.ones(4, 3, dtype=torch.complex64))
    assert recording.report().layers["0"].n_states == 3


def test_event_is_recorded_after_the_copy_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    class Event:
        def record(self, stream: Any) -> None:
            assert stream == torch.cpu.current_stream()
            assert torch.equal(copy._host, rows)
            done.append("record")

        def query(self) -> bool:
            return bool(done.append("query"))

        def synchronize(self) -> None:
            done.append("synchronize")

    monkeypatch.setattr(torch.cpu, "Event", Event, raising=False)
    rows, copy = torch.ones(2, 3, dtype=torch.uint8), HostCopy.__new__(HostCopy)
    copy.__init__(rows)  # type: ignore[misc]
    assert copy._host.data_ptr() != rows.data_ptr()
    assert not copy.arrived()
    assert np.array_equal(copy.wait(), rows.numpy())
    assert done == ["record", "query", "synchronize"]


def test_device_without_events_is_waited_for_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[None] = []
    monkeypatch.delattr(torch.cpu, "Event", raising=False)
    monkeypatch.setattr(torch.cpu, "synchronize", lambda: waited.append(None))
    copy = HostCopy(torch.ones(2, 3, dtype=torch.uint8))
    assert waited == [None]
    assert copy.arrived()
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


@pytest.mark.skipif(not DEVICES, reason="no GPU: neither cuda, nor mps, nor xpu is available")
@pytest.mark.parametrize("device", DEVICES)
def test_real_device_gives_the_states_of_its_own_activations(device: str) -> None:
    model, data = small_net().to(device), images(64).to(device)
    seen = {name: collect(model[int(name)])[0] for name in "012"}
    counts = recorded(model, *data.split(5))
    assert counts == {
        name: expected_states([output.cpu() for output in outputs], 1)
        for name, outputs in seen.items()
    }
