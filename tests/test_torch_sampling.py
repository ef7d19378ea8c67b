"""Groups, positions and a memory budget in PyTorch, against NumPy."""

import math
import warnings

import numpy as np
import pytest
import torch
from sampling_oracle import fail_to_count, sampled_efficiency
from torch import nn

from tensorstate_callbacks import TensorStateWarning
from tensorstate_callbacks.states.positions import spread_positions
from tensorstate_callbacks.states.spectrum import Spectrum
from tensorstate_callbacks.torch import device_states, record, row_transfers, tensor_recorder
from tensorstate_callbacks.torch.batch_rows import BatchRows
from tensorstate_callbacks.torch.tensor_recorder import TensorRecorder

X = torch.randn(24, 3, 14, 14, generator=torch.Generator().manual_seed(1))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 20, 2, 2)
        self.mix = nn.Linear(20, 24)
        self.norm = nn.LayerNorm(24)
        self.head = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.mix(tokens)).mean(1))


def network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "tokens":
        return Tokens().eval()
    net = nn.Sequential(
        nn.Conv2d(3, 20, 3), nn.ReLU(), nn.Conv2d(20, 33, 3), nn.Flatten(), nn.Linear(3300, 7)
    ).eval()
    return net.to(memory_format=torch.channels_last) if kind == "NHWC" else net


LAYERS = {"NCHW": ["0", "2"], "NHWC": ["0", "2"], "tokens": ["patches", "mix", "norm"]}


def outputs(model: nn.Module, names: list[str]) -> dict[str, np.ndarray]:
    """What the layers give, (samples, positions, neurons)."""
    found = {}

    def hook(name: str):
        def keep(module: nn.Module, args: object, output: torch.Tensor) -> None:
            by_sample = output if isinstance(module, nn.Linear | nn.LayerNorm) else None
            moved = by_sample if by_sample is not None else output.movedim(1, -1).flatten(1, 2)
            found[name] = moved.numpy().copy()

        return keep

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    with torch.no_grad():
        model(X)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("group_size", [None, 8, 5, 1])
@pytest.mark.parametrize("positions", [None, 16, 1])
@pytest.mark.parametrize("kind", LAYERS)
def test_layers_are_those_of_numpy_however_the_data_is_cut(kind, positions, group_size):
    model, names = network(kind), LAYERS[kind]
    reports = []
    for cuts in ([24], [7, 7, 7, 3], [1] * 24):
        options = {"group_size": group_size, "positions": positions}
        with torch.no_grad(), record(model, names, **options) as recording:
            for part in X.split(cuts):
                model(part)
        reports.append(recording.report(0.5))
    assert reports[0] == reports[1] == reports[2]
    for name, values in outputs(model, names).items():
        side = math.isqrt(values.shape[1])
        grid = (values.shape[1],) if kind == "tokens" and name != "patches" else (side, side)
        layer = reports[0].layers[name]
        assert layer.n_states == len(X) * min(positions or values.shape[1], values.shape[1])
        expected, _ = sampled_efficiency(values, grid, group_size, positions)
        assert layer.efficiency == pytest.approx(expected)


def test_order_of_the_samples_changes_nothing():
    model = network("NCHW")
    found = []
    for order in (torch.arange(24), torch.randperm(24)):
        options = {"group_size": 8, "positions": 9}
        with torch.no_grad(), record(model, "Conv2d", **options) as recording:
            model(X[order])
        found.append(recording.report())
    assert found[0] == found[1]


def test_sequences_first_have_their_samples_on_the_second_axis():
    torch.manual_seed(3)
    layer = nn.LSTM(6, 30)
    data = torch.randn(11, 8, 6)
    found = []
    for cuts in ([8], [3, 5], [1] * 8):
        with torch.no_grad(), record(layer, "*", positions=4, exclude=()) as recording:
            for part in data.split(cuts, dim=1):
                layer(part)
        found.append(recording.report())
    assert found[0] == found[1] == found[2]
    (report,) = found[0].layers.values()
    assert report.n_states == 4 * 8


def test_windows_that_lie_one_after_the_other_belong_to_their_sample():
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(3, 20)
            self.head = nn.Linear(20, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            # 4 windows of 49 positions of each sample.
            parts = x.unflatten(2, (2, 7)).unflatten(4, (2, 7)).permute(0, 2, 4, 3, 5, 1)
            mixed = self.mix(parts.reshape(-1, 49, 3))
            return self.head(mixed.unflatten(0, (len(x), 4)).mean((1, 2)))

    torch.manual_seed(4)
    model, found = Windows().eval(), []
    for cuts in ([24], [1] * 24, [5, 19]):
        with torch.no_grad(), record(model, "mix", positions=10) as recording:
            for part in X.split(cuts):
                model(part)
        found.append(recording.report())
    assert found[0] == found[1] == found[2]
    assert found[0].layers["mix"].n_states == 10 * 24


def test_rows_belong_to_their_sample_however_they_lie_in_memory():
    rows = BatchRows()
    rows.n_samples = 4
    tensor = torch.randn(12, 5)
    for values in (tensor, tensor.t().contiguous().t()):
        view, channel_axis, sample_axis = rows.by_sample(nn.Linear(5, 5), values, -1)
        assert (tuple(view.shape), channel_axis, sample_axis) == ((4, 3, 5), 2, 0)
        assert torch.equal(view.flatten(0, 1), tensor)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_components_of_nested_tensors_are_samples():
    model = nn.Sequential(nn.Linear(5, 18), nn.ReLU(), nn.Linear(18, 3))
    parts = [torch.randn(n, 5) for n in (9, 2, 30, 1)]
    with torch.no_grad(), record(model, "0", positions=4) as recording:
        model(torch.nested.nested_tensor(parts))
    values = [model[0](part).detach().numpy() for part in parts]
    fires = np.concatenate([v[spread_positions((len(v),), min(len(v), 4))] > 0 for v in values])
    spectrum = Spectrum.from_counts(np.unique(fires, axis=0, return_counts=True)[1])
    assert recording.report().layers["0"].spectrum == spectrum
    assert recording.report().layers["0"].n_states == 4 + 2 + 4 + 1


@pytest.mark.parametrize("options", [{}, {"positions": 6}, {"group_size": 8, "positions": 6}])
def test_what_lies_on_a_device_is_read_at_the_same_positions(options, monkeypatch):
    model, found = network("NCHW"), []
    for on_device in (False, True):
        monkeypatch.setattr(tensor_recorder, "lies_on_device", lambda _, on=on_device: on)
        with torch.no_grad(), record(model, "Conv2d", **options) as recording:
            model(X[:9])
            model(X[9:])
        found.append(recording.report())
    assert found[0] == found[1]


def test_a_budget_thins_the_widest_layers_and_says_so():
    model = network("NCHW")
    with torch.no_grad(), pytest.warns(TensorStateWarning, match=r"0 \(9 of 144\)"):  # noqa: SIM117
        with record(model, "Conv2d", max_memory=220_000) as recording:
            model(X)
    report = recording.report()
    assert report.layers["2"].n_states == 24 * 100
    assert report.layers["0"].n_states == 24 * 9
    with torch.no_grad(), record(model, "0", positions=9) as asked:
        model(X)
    assert report.layers["0"] == asked.report().layers["0"]


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("options", [{}, {"group_size": 8}, {"positions": 6}])
def test_a_counter_that_finds_no_memory_costs_the_layer(options, on_device, monkeypatch):
    monkeypatch.setattr(tensor_recorder, "lies_on_device", lambda _: on_device)
    model = network("NCHW")
    with torch.no_grad(), record(model, "2", **options) as alone:
        model(X)
    fail_to_count(monkeypatch, 20)
    recording = record(model, "Conv2d", **options)
    recording.__enter__()
    with torch.no_grad():
        for batch in X.split(5):
            model(batch)
    with pytest.warns(TensorStateWarning, match="memory.*0 could not be counted"):
        recording.__exit__(None, None, None)
    assert recording.report().layers == alone.report().layers


@pytest.mark.parametrize(("operation", "options"), [("pack", {}), ("count", {"group_size": 8})])
def test_a_device_without_memory_costs_the_layer(operation, options, monkeypatch):
    original = getattr(device_states, operation)

    def fail(values, *args):
        if values.shape[-1] == 20:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        original(values, *args)

    monkeypatch.setattr(tensor_recorder, "lies_on_device", lambda _: True)
    monkeypatch.setattr(device_states, operation, fail)
    model = network("NCHW")
    recording = record(model, "Conv2d", **options)
    recording.__enter__()
    with torch.no_grad():
        model(X[:9])
        model(X[9:])
    with pytest.warns(TensorStateWarning, match="memory.*0 could not be counted"):
        recording.__exit__(None, None, None)
    assert recording.report().layers["2"].n_states == 24 * 100


def test_a_host_without_memory_for_a_copy_costs_the_layers_in_it(monkeypatch):
    def fail(rows):
        raise MemoryError("no room")

    monkeypatch.setattr(tensor_recorder, "lies_on_device", lambda _: True)
    monkeypatch.setattr(row_transfers, "HostCopy", fail)
    model = network("NCHW")
    recording = record(model, "Conv2d")
    recording.__enter__()
    with torch.no_grad():
        model(X)
    with pytest.warns(TensorStateWarning, match="memory.*0, 2 could not be counted"):
        recording.__exit__(None, None, None)


def test_there_is_a_budget_unless_it_is_lifted():
    model = network("NCHW")
    default = record(model, "Conv2d").recorder.budget
    assert default is not None
    assert default.n_bytes > 1 << 28
    assert record(model, "Conv2d", max_memory=math.inf).recorder.budget is None
    assert isinstance(record(model, "Conv2d", max_memory=5).recorder, TensorRecorder)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"group_size": 0}, "group_size must be a whole number, 1 to 22; got 0"),
        ({"group_size": 23}, "group_size must be a whole number, 1 to 22; got 23"),
        ({"group_size": True}, "group_size"),
        ({"positions": 0}, "positions must be a whole number, at least 1; got 0"),
        ({"positions": 2.5}, "positions"),
        ({"max_memory": 0}, "max_memory, in bytes, must be a whole number, at least 1; got 0"),
        ({"max_memory": "1 GB"}, "max_memory"),
    ],
)
def test_wrong_arguments_are_errors(options, problem):
    with pytest.raises(ValueError, match=problem):
        record(network("NCHW"), **options)


def test_coverage_names_groups_first():
    model = network("NCHW")
    with warnings.catch_warnings(), torch.no_grad(), record(model, "Conv2d") as recording:
        model(X)
    (note, *_) = recording.report(0.5).notes()
    assert "(group_size=8)" in note
