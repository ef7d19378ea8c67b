"""States are counted by class wherever states are counted: whatever the batches, masks, devices."""

import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from class_oracle import told
from own_warnings import ours
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.data import DataLoader, TensorDataset
from torch_models import collect, images, small_net

from tensorstate_callbacks import LayerReport, ProbeError, TensorStateWarning
from tensorstate_callbacks.recording.budget import Sampling
from tensorstate_callbacks.recording.class_problems import FEWER, SHORT, THINNED
from tensorstate_callbacks.recording.pass_counts import PassInfo, Width
from tensorstate_callbacks.recording.probe_counter import ProbeCounter
from tensorstate_callbacks.recording.recorder import Recorder
from tensorstate_callbacks.states.class_counter import ClassCounter
from tensorstate_callbacks.states.counter import StateCounter
from tensorstate_callbacks.states.group_counter import GroupCounter
from tensorstate_callbacks.states.positions import spread_positions
from tensorstate_callbacks.torch import record, record_training, tensor_recorder
from tensorstate_callbacks.torch.row_transfers import RowTransfers
from tensorstate_callbacks.torch.tensor_recorder import TensorRecorder

N = 12
X, Y = images(N), torch.arange(N) * 7 % 3 + 4
OPTIONS: list[dict[str, Any]] = [
    {},
    {"group_size": 3},
    {"group_size": 8, "positions": 5},
    {"positions": 4, "threshold": 0.2, "method": "both"},
]


@pytest.fixture(params=[False, True], ids=["host", "device"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors are taken for a device's, too."""
    if request.param:
        monkeypatch.setattr(tensor_recorder, "lies_on_device", lambda tensor: True)


def batches(size: int, order: Any = slice(None)) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    yield from zip(X[order].split(size), Y[order].split(size), strict=True)


def layers_of(
    model: nn.Module, loader: Any, attach_to: Any = ("Conv2d", "Linear"), **options: Any
) -> dict[str, LayerReport]:
    """Return what is recorded of a model in batches of (x, labels), without warnings of ours."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with record(model, attach_to, **{"classes": True, **options}) as recording:
            for batch in recording.batches(loader):
                model(batch[0]).detach()
        report = recording.report()
    assert [text for text in ours(caught) if "Coverage" not in text] == []
    check_sums(recording.recorder)
    return dict(report.layers)


def check_sums(recorder: Recorder) -> None:
    """Check that what was counted by class adds up to what was counted, to the bit."""
    counters, problems = recorder.class_results()
    totals = recorder.by_width()
    assert not problems
    assert {*counters} == {*totals}
    for width, counter in counters.items():
        total, summed = totals[width], counter.total()
        if isinstance(total, GroupCounter) and isinstance(summed, GroupCounter):
            assert np.array_equal(summed.tables(), total.tables())
            parts = np.sum([counter.of(label).tables() for label in counter.labels()], axis=0)
            assert np.array_equal(parts, total.tables())
            continue
        assert isinstance(summed, StateCounter)
        assert isinstance(total, StateCounter)
        assert all(map(np.array_equal, summed.snapshot(), total.snapshot()))


def fires(values: torch.Tensor, options: dict[str, Any]) -> Any:
    """Return which neurons fired: (samples, positions, neurons), of neurons along axis 1."""
    by_sample = values.flatten(2).transpose(1, 2) if values.ndim > 2 else values[:, None]
    if by_sample.shape[1] > options.get("positions", 10**6):
        places = spread_positions(tuple(values.shape[2:]), options["positions"])
        by_sample = by_sample[:, places.copy()]
    return (by_sample > options.get("threshold", 0)).numpy()


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_classes_are_those_numpy_finds_in_any_batches(options: dict[str, Any]) -> None:
    model = small_net()
    seen = {name: collect(model[int(name)])[0] for name in "024"}
    expected = layers_of(model, batches(5), **options)
    for name, outputs in seen.items():
        classes = expected[name].classes
        assert classes is not None
        found = told(fires(torch.cat(outputs), options), Y.numpy(), options.get("group_size"))
        assert classes.labels.tolist() == [4, 5, 6]
        assert np.array_equal(classes.n_states, found.n_states)
        for field in ("entropy", "information", "overlap", "divergence"):
            np.testing.assert_allclose(getattr(classes, field), getattr(found, field), atol=1e-11)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(4))
    for size in (1, 7, N):
        assert layers_of(model, batches(size, order), **options) == expected


def test_labels_may_come_in_any_way() -> None:
    expected = layers_of(small_net(), batches(5))
    one_hot = nn.functional.one_hot(Y)
    for classes, given in (
        ("digit", lambda x, y: ({"x": x}, {"digit": y})),
        (lambda batch: batch[1] % 10, lambda x, y: (x, y + 10)),
        (Y, lambda x, y: (x, None)),
        (Y.tolist(), lambda x, y: (x, None)),
        (True, lambda x, y: (x, y.double()[:, None])),
        (True, lambda x, y: [x, y.to(torch.uint8)]),
    ):
        loader = [given(*batch) for batch in batches(5)]
        model = small_net()
        with record(model, ["Conv2d", "Linear"], classes=classes) as recording, torch.no_grad():
            for (batch, _), x in zip(recording.batches(loader), X.split(5), strict=True):
                del batch
                model(x)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert dict(recording.report().layers) == expected, classes
    hot = layers_of(small_net(), zip(X.split(5), one_hot.split(5), strict=True))
    assert hot == expected


class Labelled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(3, 9)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        return self.layer(x)


def test_a_model_that_is_called_with_labels_needs_no_batches() -> None:
    model, x = Labelled(), torch.randn(8, 3, generator=torch.Generator().manual_seed(2))
    y = torch.arange(8) % 3
    found = []
    for call in (lambda: model(x, y), lambda: model(x=x, labels=y)):
        with record(model, "Linear", classes=True) as recording:
            call()
        found.append(recording.report().layers["layer"].classes)
    assert found[0] is not None
    assert found[0].n_states.tolist() == [3, 3, 2]
    assert found[0] == found[1]
    with (
        pytest.raises(ProbeError, match=r"classes=True: .*Take batches from recording.batches"),
        record(model, "Linear", classes=True),
    ):
        model(x)
    with (
        pytest.raises(ProbeError, match="classes='digit': the batch has no such key: there are x"),
        record(model, "Linear", classes="digit"),
    ):
        model(x=x, labels=y)


@pytest.mark.parametrize("named", [False, True])
def test_samples_that_accelerate_repeats_are_in_no_class(named: bool) -> None:
    accelerate = pytest.importorskip("accelerate.data_loader", reason="not installed")
    model = Labelled()
    x = torch.randn(11, 3, generator=torch.Generator().manual_seed(2))
    y = torch.tensor([3, 3, 3, 4, 4, 5, 5, 5, 5, 4, 3])
    whole = Recorder(["layer"], sampling=Sampling(by_class=True))
    whole.begin_batch(y.numpy())
    whole.observe("layer", model(x).detach().numpy(), 1)
    (expected,) = whole.class_results().counters.values()
    merged = ClassCounter(9)
    for rank in range(2):
        loader = accelerate.prepare_data_loader(
            DataLoader(TensorDataset(x, y), 4),
            num_processes=2,
            process_index=rank,
            rng_types=[],
        )
        with record(model, "Linear", classes=True) as recording, torch.no_grad():
            for batch in recording.batches(loader) if named else loader:
                model(*batch)
        (counter,) = recording.recorder.class_results().counters.values()
        merged.merge(counter)
    assert merged.n_samples == {3: 4, 4: 3, 5: 4}
    assert all(map(np.array_equal, merged.rows(), expected.rows()))


def test_nothing_is_kept_where_it_is_not_asked_for() -> None:
    model = small_net()
    with record(model, "Conv2d") as recording:
        for x, _ in recording.batches(batches(5)):
            model(x)
    assert recording.recorder.classes is None
    report = recording.report()
    assert all(layer.classes is None for layer in report.layers.values())
    # What is counted of all is the same with classes, or without.
    by_class = layers_of(model, batches(5), "Conv2d")
    assert {name: layer.without_states() for name, layer in by_class.items()} == {
        name: layer.without_states() for name, layer in report.layers.items()
    }


LENGTHS = torch.tensor([7, 2, 5, 1, 7, 3, 6, 4])
TOKENS = torch.randn(8, 7, 6, generator=torch.Generator().manual_seed(5))
MASK = torch.arange(7) < LENGTHS[:, None]
TEXT_LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 0, 1])


def one_by_one(model: nn.Module, **options: Any) -> dict[str, LayerReport]:
    loader = [(t[None, :n], y[None]) for t, n, y in zip(TOKENS, LENGTHS, TEXT_LABELS, strict=True)]
    return layers_of(model, loader, "Linear", **options)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("options", [{}, {"positions": 3}, {"group_size": 4, "positions": 2}])
@pytest.mark.parametrize("size", [3, 8])
def test_masked_samples_are_counted_as_their_own_class(size: int, options: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 18))
    parts = (TOKENS.split(size), TEXT_LABELS.split(size), MASK.split(size))
    masked = layers_of(
        model,
        list(zip(*parts, strict=True)),
        "Linear",
        mask=lambda name, batch: batch[2],
        **options,
    )
    assert masked == one_by_one(model, **options)


@pytest.mark.usefixtures("device")
def test_packed_sequences_are_counted_as_their_own_class() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.LSTM(6, 5, batch_first=True))
    found = []
    for size in (1, 3, 8):
        with record(model, "LSTM", classes=True) as recording, torch.no_grad():
            loader = zip(TOKENS.split(size), TEXT_LABELS.split(size), strict=True)
            for (x, _), lengths in zip(
                recording.batches(list(loader)), LENGTHS.split(size), strict=True
            ):
                model(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
        check_sums(recording.recorder)
        found.append(recording.report().layers["0"].classes)
    assert found[0] is not None
    assert found[0].n_states.tolist() == [21, 13, 1]
    assert found[0] == found[1] == found[2]


@pytest.mark.usefixtures("device")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_nested_tensors_are_counted_as_their_own_class() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 18))
    pairs = list(zip(TOKENS, LENGTHS.tolist(), strict=True))
    with record(model, "Linear", classes=True) as recording, torch.no_grad():
        nested = torch.nested.nested_tensor([tokens[:n] for tokens, n in pairs])
        for x, _ in recording.batches([(nested, TEXT_LABELS)]):
            model(x)
    assert dict(recording.report().layers) == one_by_one(model)


def test_rows_of_each_sample_that_follow_each_other_are_its_own() -> None:
    """As tokens or heads that lie on the axis of the samples do."""
    torch.manual_seed(0)

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 9)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.flatten(0, 1))

    model = Flat()
    (flat,) = layers_of(model, [(TOKENS, TEXT_LABELS)], "Linear").values()
    (whole,) = layers_of(nn.Sequential(model.layer), [(TOKENS, TEXT_LABELS)], "Linear").values()
    assert flat.classes == whole.classes


class Odd(nn.Module):
    """Layers that see samples, all samples as one, and samples twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.mixed, self.again = nn.Linear(6, 9), nn.Linear(9, 5), nn.Linear(9, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        self.mixed(x.mean(0, keepdim=True))
        return self.again(x) + self.again(-x)


@pytest.mark.usefixtures("device")
def test_a_layer_that_does_not_fit_is_told_of_and_has_no_classes() -> None:
    model, x = Odd(), TOKENS[:, 0]
    with record(model, "Linear", classes=True) as recording, torch.no_grad():
        for batch, _ in recording.batches([(x, TEXT_LABELS)]):
            model(batch)
    with pytest.warns(TensorStateWarning) as caught:
        report = recording.report()
    (text,) = [text for text in ours(caught) if "class" in text]
    assert text.startswith(
        "there are no metrics of classes of mixed ((1, 5) don't lie sample after"
    )
    assert "of 8 labels" in text
    assert "exclude layers" in text
    # Once.
    assert recording.report() == report
    layers = report.layers
    assert layers["mixed"].n_states == 1
    assert layers["mixed"].classes is None
    assert layers["again"].classes is not None
    assert layers["again"].classes.n_states.sum() == 16


@pytest.mark.parametrize(
    ("shape", "axis", "fits"),
    [
        ((3, 9, 5), 0, True),
        ((9, 4, 5), 0, True),
        ((3, 3, 5), 0, True),
        ((9, 3, 5), 1, True),
        # Time first, most likely.
        ((9, 3, 5), 0, False),
        ((4, 9, 5), 0, False),
        ((9, 4, 5), None, False),
    ],
)
def test_samples_are_taken_for_those_of_the_labels_where_it_is_sure(
    shape: tuple[int, ...], axis: int | None, fits: bool
) -> None:
    recorder = Recorder(["a"], sampling=Sampling(by_class=True))
    recorder.begin_batch(np.array([0, 1, 1]))
    recorder.observe("a", np.ones(shape), -1, sample_axis=axis)
    assert bool(recorder.class_results().counters) == fits
    assert [str(shape) in text for text in recorder.class_results().problems.values()] == [True] * (
        not fits
    )


def test_what_comes_without_labels_has_no_classes() -> None:
    model = small_net()
    with record(model, "Conv2d", classes=True) as recording, torch.no_grad():
        for x, _ in recording.batches(batches(5)):
            model(x)
        model(X)
    with pytest.warns(TensorStateWarning, match=r"of 0, 2 \(came without labels\).*batches with"):
        report = recording.report()
    assert {layer.classes for layer in report.layers.values()} == {None}
    assert report.layers["0"].n_states == 2 * N * 49


def test_too_many_classes_are_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 3))
    x = torch.ones(600, 2)
    with record(model, "Linear", classes=True) as recording:
        given = recording.batches([(x, torch.arange(600)), (x, torch.arange(600, 1200))])
        model(next(given)[0])
        with pytest.raises(ProbeError, match="1,200 different values.*at most 1,000 classes"):
            next(given)


@pytest.mark.parametrize("n_bytes", [20_000, 60_000, 70_000, 600_000])
def test_what_memory_is_short_of_depends_on_the_data_alone(n_bytes: int) -> None:
    rng = np.random.default_rng(0)
    data = {name: rng.normal(size=(40, p, n)) for name, p, n in (("a", 9, 40), ("b", 4, 70))}
    # Of few states.
    data["c"] = np.repeat(rng.normal(size=(40, 9, 4)), 5, axis=2)
    labels = rng.integers(0, 3, 40)

    def run(size: int, order: Any) -> Any:
        recorder = Recorder(data, sampling=Sampling(max_memory=n_bytes, by_class=True))
        for at in range(0, 40, size):
            some = order[at : at + size]
            recorder.begin_batch(labels[some])
            for name, values in data.items():
                recorder.observe(name, values[some], -1)
        counts = recorder.counts()
        kept = {width.probe for width in counts.classes}
        return kept, {width.probe: text for width, text in counts.class_problems.items()}

    expected = run(40, np.arange(40))
    for size in (1, 9):
        assert run(size, rng.permutation(40)) == expected
    kept, problems = expected
    assert kept == {20_000: set(), 60_000: {"c"}, 70_000: {"b", "c"}}.get(n_bytes, set(data))
    assert problems == dict.fromkeys(set(data) - kept, SHORT)


def test_a_layer_that_is_thinned_or_counted_elsewhere_too_has_no_classes() -> None:
    sampling = Sampling(max_memory=10**8, by_class=True)
    recorder = Recorder(["a"], sampling=sampling)
    recorder.begin_batch(np.array([0, 1]))
    recorder.observe("a", np.ones((2, 20, 40)), -1)
    (width,) = recorder.class_results().counters
    recorder.probe_counters()[width].levels()
    recorder.probe_counters()[width].keep(1)
    assert recorder.class_results().problems == {width: THINNED}
    recorder.probe_counters()[width].keep(None)
    assert recorder.class_results() == ({}, {})
    grouped = Recorder(["a"], sampling=dataclasses.replace(sampling, group_size=2))
    grouped.begin_batch(np.array([0, 1]))
    grouped.observe("a", np.ones((2, 2)), -1)
    assert grouped.class_results().problems == {}
    grouped.add_tables(Width("a", 2), np.array([3, 0, 0, 0], np.uint64), 3, 1)
    assert grouped.class_results().problems == {Width("a", 2): FEWER}


def fails(*_: Any, **__: Any) -> Any:
    raise MemoryError


@pytest.mark.parametrize("group_size", [None, 2])
def test_a_layer_that_there_is_no_memory_to_pack_is_counted_all_the_same(
    group_size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ProbeCounter, "pack", fails)
    recorder = Recorder(["a"], sampling=Sampling(group_size=group_size, by_class=True))
    recorder.begin_batch(np.array([0, 1]))
    for _ in range(2):
        recorder.observe("a", np.ones((2, 20, 5)), -1)
    counts = recorder.counts()
    assert counts.class_problems == {Width("a", 5): SHORT}
    assert counts.report(PassInfo()).layers["a"].n_states == 80


def test_groups_stay_counted_where_a_device_has_no_memory_for_the_rows_of_classes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(RowTransfers, "add", fails)
    recorder = TensorRecorder(["a"], sampling=Sampling(group_size=2, by_class=True))
    recorder.begin_batch(np.array([0, 1]))
    monkeypatch.setattr(tensor_recorder, "lies_on_device", lambda tensor: True)
    recorder.observe_tensor("a", torch.ones(2, 20, 5), -1)
    counts = recorder.counts()
    assert counts.class_problems == {Width("a", 5): SHORT}
    assert counts.report(PassInfo()).layers["a"].n_states == 40


def test_components_of_nested_tensors_may_be_some_samples_only() -> None:
    recorder = TensorRecorder(["a"], sampling=Sampling(by_class=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nested = torch.nested.nested_tensor([torch.ones(n, 1) for n in (3, 2)])
    labels = np.array([5, 6, 7])
    recorder.observe_tensor("a", nested, -1, samples=np.array([2, 0]), labels=labels)
    ((_, counter),) = recorder.class_results().counters.items()
    assert {label: counter.of(label).n_states for label in counter.labels()} == {7: 3, 5: 2}


def test_memory_is_halved_only_where_there_are_classes() -> None:
    whole, halved = (
        Recorder("a", sampling=Sampling(max_memory=10**6, by_class=on)) for on in (False, True)
    )
    assert whole.budget is not None
    assert whole.budget.n_bytes == 10**6
    assert halved.budget is not None
    assert halved.classes is not None
    assert halved.classes.budget is not None
    assert [halved.budget.n_bytes, halved.classes.budget.n_bytes] == [500_000] * 2


def test_a_machine_without_memory_loses_classes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(ClassCounter, "update_packed", fails)
    recorder = Recorder(["a"], sampling=Sampling(by_class=True))
    recorder.begin_batch(np.array([0, 1]))
    for _ in range(2):
        recorder.observe("a", np.eye(2), 1)
    counts = recorder.counts()
    assert counts.class_problems == {Width("a", 2): SHORT}
    assert recorder.report().layers["a"].n_states == 4


@pytest.mark.parametrize("later", [False, True])
def test_a_call_may_have_labels_and_samples_of_its_own(later: bool) -> None:
    """As on several threads, which have other batches under way."""
    recorder = Recorder(["a"], sampling=Sampling(by_class=True))
    recorder.begin_batch(np.array([9, 9]))
    values = np.array([[1.0, 0], [0, 1], [1, 1]])
    given: dict[str, Any] = {"samples": np.array([2, 0, 1]), "labels": np.array([5, 6, 7])}
    if later:
        rows = np.packbits(values > 0, axis=1, bitorder="little")
        recorder.observe_packed_later("a", rows, 2, (), **given)
    else:
        recorder.observe_later("a", values, 1, **given)
    assert recorder.error is None
    ((_, counter),) = recorder.class_results().counters.items()
    states = {label: counter.of(label).states().tolist() for label in counter.labels()}
    assert states == {7: [[1]], 5: [[2]], 6: [[3]]}


def test_a_dropped_probe_has_no_problems() -> None:
    recorder = Recorder("ab", sampling=Sampling(by_class=True))
    for name in "ab":
        recorder.observe(name, np.eye(2), 1)
    recorder.drop("a")
    assert recorder.class_results().problems == {Width("b", 2): "came without labels"}


def test_training_windows_take_no_classes() -> None:
    with pytest.raises(TypeError, match="record_training takes no classes"):
        record_training(small_net(), classes=True)
    assert record_training(small_net(), classes=None).n_batches == 0
