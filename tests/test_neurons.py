"""What a report says of single neurons, and what is kept of it where it was asked for."""

import copy
import dataclasses
import json
import pickle

import numpy as np
import pytest
from planted import activations, found_by_numpy, neurons_of, planted

from tensorstate_callbacks import (
    EfficiencyReport,
    History,
    LayerReport,
    StatesNotAvailableError,
    TensorStateWarning,
    write_page,
)
from tensorstate_callbacks.metrics.neurons import NeuronCounts, neuron_rows
from tensorstate_callbacks.recording.budget import Sampling
from tensorstate_callbacks.recording.pass_counts import PassInfo
from tensorstate_callbacks.recording.recorder import Recorder
from tensorstate_callbacks.recording.windows import StateWindow
from tensorstate_callbacks.reports.packed_history import HistoryPacker, unpack_history
from tensorstate_callbacks.states.agreement import Agreement
from tensorstate_callbacks.states.counter import StateCounter


def recorded(fires, *, neurons=True, parts=1, **sampling):
    recorder = Recorder(["a"], sampling=Sampling(neurons=neurons, **sampling))
    for part in np.array_split(activations(fires), parts):
        recorder.observe("a", part, 1)
    return recorder


def report(fires, epoch=0, **options):
    return recorded(fires, **options).report(PassInfo(epoch=epoch, accuracy=0.5))


@pytest.mark.parametrize("group_size", [None, 1, 3, 8, 16, 22])
@pytest.mark.parametrize("n_neurons", [5, 20, 50])
def test_neurons_are_those_of_numpy_however_the_data_is_cut(group_size, n_neurons):
    fires = planted(150, n_neurons, seed=4)
    layers = [report(fires, parts=n, group_size=group_size).layers["a"] for n in (1, 4, 150)]
    assert neurons_of(layers[0]) == found_by_numpy(fires, group_size)
    assert layers[0].firing_rates.dtype == np.float64
    np.testing.assert_array_equal(layers[0].firing_rates, fires.mean(axis=0))
    assert len({*layers}) == 1


def test_rates_and_dead_neurons_are_known_without_asking_and_the_rest_is_not():
    fires = planted()
    layer = report(fires, neurons=False).layers["a"]
    assert (layer.never_fired, layer.always_fired) == ((3,), (5,))
    np.testing.assert_array_equal(layer.firing_rates, fires.mean(axis=0))
    for name in ("agreeing", "opposing"):
        with pytest.raises(StatesNotAvailableError, match="'a' agree isn't known: give neurons=Tr"):
            getattr(layer, name)


COPIES = [
    copy.copy,
    copy.deepcopy,
    lambda given: pickle.loads(pickle.dumps(given)),  # noqa: S301
    lambda given: EfficiencyReport.from_dict(json.loads(json.dumps(given.to_dict()))),
]


@pytest.mark.parametrize("made", COPIES)
@pytest.mark.parametrize("group_size", [None, 8])
def test_what_was_asked_for_is_compared_copied_and_saved(made, group_size):
    given = report(planted(), group_size=group_size)
    found = made(given)
    assert found == given
    assert hash(found) == hash(given)
    assert neurons_of(found.layers["a"]) == neurons_of(given.layers["a"])
    with pytest.raises(ValueError, match="read-only"):
        found.layers["a"].neurons.fired[0] = 7
    # The same counts of states and as many firings, but of other neurons.
    assert report(planted()[:, ::-1], group_size=group_size) != given


@pytest.mark.parametrize("made", COPIES[1:])
def test_what_was_not_asked_for_is_in_nothing_that_is_kept(made):
    given = report(planted(), neurons=False)
    found = made(given)
    assert found == given
    assert hash(found) == hash(given)
    assert "neurons" not in given.to_dict()["layers"]["a"]
    bare = EfficiencyReport({"a": given.layers["a"].without_states()}, accuracy=0.5, epoch=0)
    assert bare.layers["a"].neurons is None
    with pytest.raises(StatesNotAvailableError, match="neuron of 'a' fired isn't known: check"):
        _ = found.layers["a"].firing_rates
    with pytest.raises(StatesNotAvailableError, match="'a' agree isn't known: give neurons=True"):
        _ = found.layers["a"].agreeing


def test_pickles_of_plain_runs_have_no_entry_for_each_neuron():
    # 30 states, so that the spectrum is short whatever the number of neurons.
    sizes = [
        len(pickle.dumps(report(planted(30, n_neurons), neurons=False))) for n_neurons in (24, 4000)
    ]
    assert sizes[1] - sizes[0] < 50


@pytest.mark.parametrize("group_size", [None, 8])
@pytest.mark.parametrize("length", [1, 2, 130, 300])
def test_checkpoints_keep_every_epochs_counts_and_the_last_agreement(group_size, length):
    history = History(
        report(planted(40 + n % 7, 24, seed=n), epoch=n, group_size=group_size)
        for n in range(length)
    )
    packed = pickle.loads(pickle.dumps(HistoryPacker().pack(history)))  # noqa: S301
    back = unpack_history(packed)
    assert list(back) == [*(each.without_states() for each in history[:-1]), history[-1]]
    np.testing.assert_array_equal(back.lifelines("a").rates, history.lifelines("a").rates)
    if length > 1:
        with pytest.raises(StatesNotAvailableError, match="a checkpoint keeps that of its last"):
            _ = back[0].layers["a"].opposing


def test_a_checkpoint_holds_reports_with_and_without_counts_of_some_layers():
    some = report(planted(), epoch=0)
    layers = {
        "b": dataclasses.replace(some.layers["a"], name="b"),
        "a": report(planted(), neurons=False).layers["a"],
    }
    mixed = EfficiencyReport(layers, accuracy=0.5, epoch=1)
    history = History([some, mixed, report(planted(seed=9), epoch=2), mixed, some])
    back = unpack_history(HistoryPacker().pack(history))
    assert list(back) == [*(each.without_states() for each in history[:-1]), some]
    assert back[1].layers["a"].neurons is None
    assert back[1].layers["b"].never_fired == (3,)


def test_checkpoints_of_plain_runs_are_as_before():
    history = [report(planted(seed=n), epoch=n, neurons=False) for n in range(3)]
    packed = HistoryPacker().pack(history)
    (block,) = packed["earlier"]
    assert [list(alike) for alike in block] == [["stage", "alpha", "beta", "layers", "metrics"]]
    assert "neurons" not in packed["last"]["layers"]["a"]
    assert list(unpack_history(packed)[:-1]) == [each.without_states() for each in history[:-1]]


def test_an_epoch_of_counts_costs_a_checkpoint_few_bytes_a_neuron():
    sizes = []
    for neurons in (False, True):
        reports = [report(planted(200, 300, seed=n), neurons=neurons) for n in range(65)]
        sizes.append(len(pickle.dumps(HistoryPacker().pack(reports)["earlier"])))
    assert (sizes[1] - sizes[0]) / (64 * 300) < 1.5


def test_files_of_both_kinds_are_read(tmp_path):
    history = History([report(planted()), report(planted(), epoch=1, group_size=8)])
    history.save(tmp_path / "run.json")
    assert History.load(tmp_path / "run.json") == history
    # As of a version that knew nothing of neurons.
    plain = History([report(planted(), neurons=False)])
    plain.save(tmp_path / "old.json")
    assert '"neurons"' not in (tmp_path / "old.json").read_text()
    assert History.load(tmp_path / "old.json") == plain


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda n: n["fired"].pop(), "one entry for each neuron"),
        (lambda n: n["inverted"].pop(), "one entry for each neuron"),
        (lambda n: n["fired"].__setitem__(0, 999), "not those of its states"),
        (lambda n: n["fired"].__setitem__(3, 1), "not those of its states"),
        (lambda n: n["firsts"].__setitem__(0, 1), "no groups of its neurons"),
        (lambda n: n["firsts"].__setitem__(7, -1), "no groups of its neurons"),
        (lambda n: n["firsts"].__setitem__(8, 7), "no groups of its neurons"),
        (lambda n: n.pop("firsts"), "firsts"),
        (lambda n: n.__setitem__("fired", "many"), "does not hold reports"),
    ],
)
def test_a_file_whose_neurons_are_wrong_is_refused(change, words, tmp_path):
    fields = report(planted()).to_dict()
    change(fields["layers"]["a"]["neurons"])
    (tmp_path / "run.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=words):
        EfficiencyReport.load(tmp_path / "run.json")


@pytest.mark.parametrize("sampling", [{}, {"group_size": 8}, {"positions": 2}, {"group_size": 3}])
def test_windows_tell_the_neurons_of_their_batches(sampling):
    window, batches = StateWindow(3), [planted(31, 24, seed=n % 4) for n in range(6)]
    shape = lambda fires: activations(fires).reshape(-1, 1, 24)  # noqa: E731
    for fires in batches:
        recorder = Recorder(["a"], sampling=Sampling(neurons=True, **sampling))
        recorder.observe("a", shape(fires), 2)
        window.add(recorder)
    layer = window.counts().report(PassInfo(stage="train")).layers["a"]
    assert neurons_of(layer) == found_by_numpy(
        np.concatenate(batches[-3:]), sampling.get("group_size")
    )


def test_without_memory_for_a_second_copy_of_the_states_the_rest_is_reported(monkeypatch):
    def none(self):
        raise MemoryError

    monkeypatch.setattr(StateCounter, "states", none)
    with pytest.warns(TensorStateWarning, match="no memory to find the neurons that agree in a:"):
        layer = report(planted()).layers["a"]
    assert (layer.never_fired, layer.n_distinct) == ((3,), 199)
    with pytest.raises(StatesNotAvailableError, match="or there was no memory to find it"):
        _ = layer.agreeing


def test_tables_notes_and_pages_name_the_first_few_where_asked(tmp_path):
    given = report(planted())
    lines = given.table(full=True).split("\n\n")[2].splitlines()
    assert [line.split(maxsplit=1) for line in lines[:5]] == [
        ["layer", "state         neurons  which"],
        ["a", "never fired   1        3"],
        ["a", "always fired  1        5"],
        ["a", "agree         5        2=7; 4=10=11"],
        ["a", "oppose        5        2=7 != 9; 12 != 13"],
    ]
    assert [note for note in given.notes() if note.startswith("Neurons")] == [
        "Neurons that never fired: a (1: 3).",
        "Neurons that fired in every state: a (1: 5).",
        "Neurons that fired in exactly the same states: a (5: 2=7; 4=10=11).",
        "Neurons of which one fired exactly where another did not: a (5: 2=7 != 9; 12 != 13).",
    ]
    write_page(given, tmp_path / "run.html")
    for html in (given._repr_html_(), (tmp_path / "run.html").read_text(encoding="utf-8")):
        assert "<td>2=7; 4=10=11" in html
    in_units = report(planted(), group_size=8).notes()
    assert any("known within each unit only in a (units of 8)" in note for note in in_units)


def test_nothing_of_it_is_shown_where_nobody_asked(tmp_path):
    given, one_unit = report(planted(), neurons=False), report(planted(n_neurons=20), group_size=22)
    assert len(given.table(full=True).split("\n\n")) == 2
    assert not [note for note in given.notes() if "eurons" in note and "groups of" not in note]
    assert not any("within each unit" in note for note in one_unit.notes())
    write_page(given, tmp_path / "run.html")
    for html in (given._repr_html_(), (tmp_path / "run.html").read_text(encoding="utf-8")):
        assert "never fired</td>" not in html


def test_long_lists_are_cut_and_the_rest_is_counted():
    n = 4000
    fired = np.where(np.arange(n) % 2, 0, 5).astype(np.uint64)
    groups = Agreement(np.arange(n) // 100 * 100, np.arange(n) % 4 == 2)
    never, agree, oppose = neuron_rows(NeuronCounts(fired, 9, groups, followed=True))
    assert (never.number, agree.number, oppose.number) == (2000, 2000, 2000)
    assert never.which.startswith("1, 3, 5, 7, ")
    assert never.which.endswith(f"and {2000 - never.which.count(', ') - 1} more")
    # 40 classes of two sides, of which half of the neurons fired.
    assert agree.which == "0=4=8=12=16=20=… (25); 2=6=10=14=18=22=… (25) and 78 more"
    assert oppose.which == "0=4=8=… (25) != 2=6=10=… (25) and 39 more"
    assert max(len(row.which) for row in (never, agree, oppose)) < 70


@pytest.mark.parametrize("order", [0, 0.5, 1, 2, 7.5, np.inf])
def test_effective_states_are_hills_numbers(order):
    fires = planted(500, 6, seed=2)
    layer = report(fires).layers["a"]
    shares = np.unique(fires, axis=0, return_counts=True)[1] / 500
    if order == 1:
        expected = np.exp(-(shares * np.log(shares)).sum())
    elif order == np.inf:
        expected = 1 / shares.max()
    else:
        expected = (shares**order).sum() ** (1 / (1 - order))
    assert layer.effective_states(order) == pytest.approx(expected, rel=1e-12)
    assert 1 <= layer.effective_states(order) <= layer.n_distinct


def test_effective_states_of_units_are_their_geometric_mean():
    fires = planted(500, 20, seed=2)
    layer = report(fires, group_size=8).layers["a"]
    whole = [report(fires[:, s : s + 8]).layers["a"] for s in (0, 8, 16)]
    for order in (0, 1, np.inf):
        each = [unit.effective_states(order) for unit in whole]
        assert layer.effective_states(order) == pytest.approx(np.prod(each) ** (1 / 3))
    with pytest.raises(StatesNotAvailableError, match="order 2 isn't known of the units of 'a'"):
        layer.effective_states(2)


def test_effective_states_are_logged_by_the_reports_own_order():
    fires = planted(500, 20, seed=2)
    for alpha, group_size in ((1, None), (2, None), (2, 8), (1, 8)):
        found = recorded(fires, group_size=group_size).report(PassInfo(alpha=alpha))
        layer = found.layers["a"]
        (value,) = [
            value
            for key, value in found.scalars(layer_metrics="effective_states").items()
            if key == "val_effective_states/a"
        ]
        assert value == pytest.approx(2 ** (layer.entropy / layer.n_units))
        if alpha == 1 or group_size is None:
            assert value == pytest.approx(layer.effective_states(alpha))


@pytest.mark.parametrize("order", [-1, np.nan])
def test_orders_below_zero_are_refused(order):
    with pytest.raises(ValueError, match="alpha, the order"):
        report(planted()).layers["a"].effective_states(order)


def test_effective_states_need_a_spectrum():
    bare = report(planted()).layers["a"].without_states()
    assert isinstance(bare, LayerReport)
    with pytest.raises(StatesNotAvailableError, match="spectrum of 'a'"):
        bare.effective_states()
