"""States packed and counted on a device are those of the host.

The CPU is taken for a device here; where there is a real one, it is tested too.
"""

from typing import Any

import numpy as np
import pytest
import torch
from group_oracle import assert_groups
from state_oracle import expected_states
from torch import nn
from torch_models import collect, images, recorded, small_net

from tensorstate_callbacks import ProbeError
from tensorstate_callbacks.recording.budget import Sampling
from tensorstate_callbacks.recording.probe_counter import ProbeCounter
from tensorstate_callbacks.states.positions import spread_positions
from tensorstate_callbacks.torch import (
    device_states,
    record,
    row_transfers,
    tensor_recorder,
)
from tensorstate_callbacks.torch.tensor_recorder import TensorRecorder

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


def fires(tensor: torch.Tensor, positions: int | None, threshold: float) -> np.ndarray[Any, Any]:
    """Which neurons fired, (states, neurons), of activations (samples, neurons, height, width)."""
    by_sample = (tensor.double() > threshold).flatten(2).transpose(1, 2).numpy()
    if positions is not None:
        by_sample = by_sample[:, spread_positions(tuple(tensor.shape[2:]), positions)]
    return by_sample.reshape(-1, tensor.shape[1])


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize("group_size", [1, 3, 8, 13, 22])
@pytest.mark.parametrize("positions", [None, 6])
def test_groups_are_those_numpy_counts(
    group_size: int, positions: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(3)
    layer = nn.Conv2d(3, 27, 3)
    for at_once in (64 << 20, 5_000):
        monkeypatch.setattr(device_states, "MOST_BYTES", at_once)
        seen, handle = collect(layer)
        options = {"group_size": group_size, "positions": positions, "exclude": ()}
        with torch.inference_mode(), record(layer, "*", threshold=0.1, **options) as recording:
            for batch in images(9).split(4):
                layer(batch)
        handle.remove()
        (counter,) = recording.counters.values()
        assert_groups(counter, np.concatenate([fires(each, positions, 0.1) for each in seen]))


def test_a_large_batch_is_counted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(5, 6, 7, 10).permute(1, 3, 2, 0)
    for most in (1, 3, 50, 419, 420):
        parts = device_states._parts(values, most)
        assert sum(part.shape[:-1].numel() for part in parts) == 420
        assert all(part.shape[:-1].numel() <= most for part in parts)
        assert torch.equal(
            torch.cat([part.flatten() for part in parts]).sort()[0], values.flatten().sort()[0]
        )


@pytest.mark.usefixtures("forced")
def test_batches_in_and_out_of_inference_mode_are_counted_in_one_table() -> None:
    model = small_net()
    for options in ({"group_size": 3}, {}):
        with record(model, "Conv2d", **options) as recording:
            with torch.inference_mode():
                model(images(2))
            model(images(3))
            with torch.autocast("cpu", torch.bfloat16):
                model(images(4))
        assert recording.counters["0"].n_states == 9 * 49


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize("group_size", [None, 3])
def test_deterministic_algorithms_count_the_same(group_size: int | None) -> None:
    model, found = small_net(), []
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        try:
            with torch.no_grad(), record(model, "0", group_size=group_size) as recording:
                model(images())
        finally:
            torch.use_deterministic_algorithms(False)
        found.append(recording.report(0.5))
    assert found[0] == found[1]


@pytest.mark.usefixtures("forced")
def test_groups_are_added_once_however_often_they_are_asked_for() -> None:
    model = small_net()
    data = images(6)
    seen, _ = collect(model[0])
    with torch.no_grad(), record(model, "Conv2d", group_size=4) as recording:
        for n in range(1, 4):
            model(data[2 * n - 2 : 2 * n])
            for _ in range(2):
                states = np.concatenate([fires(each, None, 0) for each in seen])
                assert_groups(recording.counters["0"], states)


def test_places_of_sizes_without_end_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[None] = []
    monkeypatch.setattr(device_states, "_MOST_KEPT", 2)
    monkeypatch.setattr(torch.cpu, "synchronize", lambda: waited.append(None))
    states = device_states.DeviceStates(0.0)
    drawn = torch.Generator().manual_seed(0)
    for side in (4, 5, 4, 6, 7, 4):
        values = torch.randn(2, side, side, 9, generator=drawn)
        rows = torch.zeros(2 * 3, 2, dtype=torch.uint8)
        places = spread_positions((side, side), 3)
        states.pack(values, places, rows)
        fired = (values.flatten(1, 2).numpy()[:, places] > 0).reshape(6, 9)
        assert np.array_equal(rows.numpy(), np.packbits(fired, axis=1, bitorder="little"))
        assert len(states._kept) <= 2
    assert len(waited) == 2


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize("group_size", [None, 4])
@pytest.mark.parametrize("is_put", [False, True])
def test_a_batch_after_an_interrupted_reading_is_counted(
    group_size: int | None, is_put: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = row_transfers.CountingThreads.put

    def interrupted(self: Any, job: Any) -> None:
        if is_put:
            put(self, job)
        raise KeyboardInterrupt

    model, data = small_net(), images(6)
    with torch.no_grad(), record(model, "Conv2d", group_size=group_size) as recording:
        model(data[:2])
        with monkeypatch.context() as once:
            once.setattr(row_transfers.CountingThreads, "put", interrupted)
            with pytest.raises(KeyboardInterrupt):
                recording.report()
        model(data[2:])
    with torch.no_grad(), record(model, "Conv2d", group_size=group_size) as whole:
        model(data)
    assert recording.report(0.5) == whole.report(0.5)


def test_each_stream_has_a_table_of_its_own(forced: None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream:
        pass

    streams = [Stream(), Stream()]
    monkeypatch.setattr(torch.cpu, "stream", lambda stream: torch.no_grad())
    recorder = TensorRecorder(["a"], sampling=Sampling(group_size=2))
    values = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    for number in (0, 1, 0):
        monkeypatch.setattr(torch.cpu, "current_stream", lambda *_, n=number: streams[n])
        recorder.observe_tensor("a", values, -1)
    assert recorder._tables is not None
    assert [int(t.counts.sum()) for t in recorder._tables._tables] == [8, 4]
    assert recorder.counters["a"].tables().tolist() == [0, 3, 0, 3, 3, 3]


@pytest.mark.parametrize("group_size", [None, 2])
@pytest.mark.parametrize("on_device", ["first", "second"])
def test_forward_order_is_that_of_the_calls(
    on_device: str, group_size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    width = {"first": 7, "second": 5}[on_device]
    monkeypatch.setattr(tensor_recorder, "lies_on_device", lambda t: t.shape[1] == width)
    model = small_net()
    with record(model, ["Conv2d", "ReLU"], group_size=group_size) as recording:
        model(images(2))
    assert list(recording.counters) == ["0", "1", "2"]


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize(
    ("options", "method"), [({}, "update_packed"), ({"group_size": 2}, "add_tables")]
)
def test_a_failure_on_a_thread_is_named_and_the_other_layers_are_counted(
    options: dict[str, int], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = getattr(ProbeCounter, method)

    def fails(self: ProbeCounter, *args: Any) -> None:
        if self.n_neurons == 5:
            raise RuntimeError("the device was lost")
        whole(self, *args)

    monkeypatch.setattr(ProbeCounter, method, fails)
    model = small_net()
    text = "'2' could not be counted: the device was lost"
    with pytest.raises(ProbeError, match=text), record(model, "Conv2d", **options) as recording:
        [model(images(n)) for n in (2, 3)]
    assert recording.counters["0"].n_states == 5 * 49
    # Its states are missing, so there is no report.
    with pytest.raises(ProbeError, match=text) as caught:
        recording.report()
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize("group_size", [None, 2])
def test_error_at_once_names_the_layer(group_size: int | None) -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    with record(model, "Linear", channel_axis=0, group_size=group_size) as recording:
        model(torch.ones(4, 3))
        with pytest.raises(ProbeError, match="'0'.*has 5 entries, and had 4 in an earlier batch"):
            model(torch.ones(5, 3))
    wave = nn.Sequential(nn.Linear(3, 3, dtype=torch.complex64))
    text = "'0' could not be counted: its activations are complex"
    with pytest.raises(ProbeError, match=text), record(wave, "Linear", group_size=group_size):
        wave(torch.ones(4, 3, dtype=torch.complex64))
    assert recording.report().layers["0"].n_states == 3


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize("group_size", [None, 2])
def test_batches_without_samples_count_nothing(group_size: int | None) -> None:
    recorder = TensorRecorder(["a"], sampling=Sampling(group_size=group_size))
    recorder.observe_tensor("a", torch.ones(0, 4, 3), -1)
    assert recorder.counters["a"].n_states == 0
    assert recorder.unseen() == ["a"]
    recorder.observe_tensor("a", torch.ones(2, 4, 3), -1)
    assert recorder.counters["a"].n_states == 8


@pytest.mark.skipif(not DEVICES, reason="no GPU: neither cuda, nor mps, nor xpu is available")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_real_device_gives_the_states_of_its_own_activations(
    device: str, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    model = small_net().to(device, dtype, memory_format=layout)
    data = images(64).to(device, dtype).to(memory_format=layout)
    seen = {name: collect(model[int(name)])[0] for name in "012"}
    counts = recorded(model, *data.split(5))
    on_host = {name: [output.cpu() for output in outputs] for name, outputs in seen.items()}
    assert counts == {name: expected_states(outputs, 1) for name, outputs in on_host.items()}
    for positions in (None, 6):
        for outputs in seen.values():
            outputs.clear()
        options = {"group_size": 3, "positions": positions}
        with torch.no_grad(), record(model, ["Conv2d", "ReLU"], **options) as recording:
            for batch in data.split(5):
                model(batch)
        for name, counter in recording.counters.items():
            states = [fires(output.cpu(), positions, 0) for output in seen[name]]
            assert_groups(counter, np.concatenate(states))
