"""When neurons died and came back over a history, and how that is drawn."""

import dataclasses
from io import BytesIO

import numpy as np
import pytest
from matplotlib.colors import to_hex

from tensorstate_callbacks import (
    EfficiencyReport,
    History,
    LayerReport,
    StatesNotAvailableError,
    plot_neurons,
)
from tensorstate_callbacks.display.plot_style import COLORS
from tensorstate_callbacks.loggers.neurons import draw_neurons, neuron_columns
from tensorstate_callbacks.metrics.neurons import NeuronCounts
from tensorstate_callbacks.runs.finished_run import RunEvaluation, RunLayer
from tensorstate_callbacks.states.agreement import Agreement
from tensorstate_callbacks.states.spectrum import Spectrum

# Four neurons over five epochs: one lives, one dies, one comes back, one never fired.
FIRED = np.array([[4, 5, 6, 7, 8], [3, 2, 0, 0, 0], [1, 0, 0, 1, 1], [0, 0, 0, 0, 0]], np.uint64)


def layer(fired, name="fc", n_states=10, followed=True):
    spectrum = Spectrum.from_counts([n_states - 4, 4])
    return LayerReport.from_spectrum(
        name, spectrum, np.asarray(fired, np.uint64), followed=followed
    )


def evaluation(fired, epoch=0, **options):
    return EfficiencyReport({"fc": layer(fired, **options)}, accuracy=0.5, epoch=epoch)


def history(fired=FIRED, epochs=None, **options):
    epochs = range(fired.shape[1]) if epochs is None else epochs
    return History(evaluation(f, e, **options) for f, e in zip(fired.T, epochs, strict=True))


def test_rates_are_those_of_each_evaluation():
    lines = history().lifelines("fc")
    np.testing.assert_array_equal(lines.rates, FIRED / 10)
    assert lines.rates.dtype == np.float64
    assert (lines.layer, lines.unit, lines.evaluations.tolist()) == ("fc", "epoch", [1, 2, 3, 4, 5])
    with pytest.raises(ValueError, match="read-only"):
        lines.rates[0, 0] = 1


def test_deaths_and_returns_are_told_by_epochs():
    lines = history(epochs=[1, 3, 5, 7, 9]).lifelines("fc")
    # Every second epoch is recorded: it died after the fourth, in the sixth it was dead.
    assert lines.died == {1: 6, 3: 2}
    assert lines.came_back == {2: (8,)}
    assert lines.last_fired.tolist() == [10, 4, 10, 0]


def test_a_neuron_may_come_back_often_and_die_after_all():
    fired = np.array([[1, 0, 1, 0, 0, 2, 0], [0, 0, 0, 0, 0, 0, 1]])
    lines = history(fired).lifelines("fc")
    assert lines.died == {0: 7}
    assert lines.came_back == {0: (3, 6), 1: (7,)}
    assert lines.last_fired.tolist() == [6, 7]


def test_random_lives_are_those_that_a_loop_tells():
    rng = np.random.default_rng(3)
    fired = rng.integers(0, 3, (40, 9)) * (rng.random((40, 9)) < 0.5)
    lines = history(fired).lifelines("fc")
    for neuron, row in enumerate(fired.tolist()):
        alive = [epoch for epoch, count in enumerate(row, start=1) if count]
        last = max(alive, default=0)
        assert lines.last_fired[neuron] == last
        assert lines.died.get(neuron) == (None if last == 9 else last + 1)
        back = tuple(e for e in alive if e > 1 and row[e - 2] == 0)
        assert lines.came_back.get(neuron, ()) == back


def test_a_layer_that_was_not_seen_leaves_a_gap():
    other = EfficiencyReport({"conv": layer([1, 1], "conv")}, accuracy=0.5, epoch=2)
    reports = history()
    reports[2] = other
    lines = reports.lifelines("fc")
    assert np.isnan(lines.rates[:, 2]).all()
    assert (lines.died, lines.came_back) == ({1: 4, 3: 1}, {2: (4,)})
    assert lines.last_fired.tolist() == [5, 2, 5, 0]
    # And at the end.
    assert reports[:3].lifelines("fc").died == {2: 2, 3: 1}
    plot_neurons(reports[:3], "fc").savefig(BytesIO())


def test_evaluations_without_epochs_are_counted():
    reports = History(dataclasses.replace(each, epoch=None) for each in history())
    assert reports.lifelines("fc").unit == "evaluation"
    assert reports.lifelines("fc").died == {1: 3, 3: 1}


def test_what_is_not_known_is_named_with_the_way_out():
    reports = history()
    reports[0] = EfficiencyReport(
        {"fc": layer(FIRED[:, 0], followed=False).without_states()}, accuracy=0.5, epoch=0
    )
    for ask in (reports.lifelines, lambda name: plot_neurons(reports, name)):
        with pytest.raises(
            StatesNotAvailableError, match=r"'fc' fired isn't known of epoch 1: .*neurons=True"
        ):
            ask("fc")
        with pytest.raises(ValueError, match="no evaluation has a layer named 'fd'; there are fc"):
            ask("fd")
    assert reports[1:].lifelines("fc").died == {1: 3, 3: 2}
    with pytest.raises(ValueError, match="'fc' has 2 and 4 neurons in different evaluations"):
        History([evaluation([1, 2]), *reports[1:]]).lifelines("fc")
    with pytest.raises(ValueError, match="no report yet"):
        plot_neurons([], "fc")


def test_finished_runs_know_of_no_neurons():
    run = [RunEvaluation(0, 0.5, 0.5, 0.5, {"fc": RunLayer({"efficiency": 0.5})})]
    with pytest.raises(StatesNotAvailableError, match="isn't known of epoch 1"):
        plot_neurons(run, "fc")


def marks(axes):
    return {
        line.get_label(): (
            to_hex(line.get_color()).upper(),
            sorted(zip(line.get_xdata(), line.get_ydata(), strict=True)),
        )
        for line in axes.get_lines()
    }


def test_figure_has_a_row_for_each_neuron_the_dead_ones_below():
    # The neuron that never fired is the first.
    fired = FIRED[[3, 0, 1, 2]]
    axes, _ = plot_neurons(history(fired), "fc").axes
    rows = axes.get_images()[0].get_array()
    np.testing.assert_array_equal(rows, fired[[1, 3, 2, 0]] / 10)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1", "3", "2", "0"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "3", "4", "5"]
    # Column and row, from 0.
    assert marks(axes) == {
        "died": (COLORS[1], [(0, 3), (2, 2)]),
        "came back": (COLORS[0], [(3, 1)]),
    }
    assert axes.get_title() == "Neurons of fc: 2 of 4 dead in the end"
    assert axes.get_xlabel() == "epoch"


def test_neurons_of_a_wide_layer_share_rows_that_show_their_mean():
    rng = np.random.default_rng(0)
    fired = rng.integers(1, 10, (1000, 6)) * (np.arange(6) < rng.integers(1, 12, (1000, 1)))
    figure = plot_neurons(history(fired), "fc")
    axes = figure.axes[0]
    rows = np.asarray(axes.get_images()[0].get_array())
    assert rows.shape == (250, 6)
    assert rows.mean() == pytest.approx(fired.mean() / 10)
    alive = int((fired[:, -1] > 0).sum())
    # Sorted by the last rate, four a row: the last column falls.
    assert (np.diff(rows[:, -1]) <= 0).all()
    assert not rows[-(-alive // 4) :, -1].any()
    assert axes.get_ylabel() == "1,000 neurons, 4 a row"
    assert max(figure.get_size_inches()) < 15
    n_marks = len(marks(axes)["died"][1])
    assert 0 < n_marks <= 250 * 6


def test_a_figure_of_one_neuron_and_of_a_dead_layer_can_be_drawn():
    for fired in (np.ones((1, 1), int), np.zeros((3, 4), int)):
        plot_neurons(history(fired), "fc").savefig(BytesIO())


def test_loggers_draw_the_first_layers_and_what_was_seen_since_a_width_changed():
    names = [f"layer[{n}]" for n in range(8)]
    reports = History(
        EfficiencyReport({name: layer(fired, name) for name in names}, accuracy=0.5, epoch=epoch)
        for epoch, fired in enumerate([[1, 2], [1, 2, 3], [0, 3, 2]])
    )
    drawn = dict(draw_neurons(reports))
    assert list(drawn) == [f"neurons/layer_{n}_" for n in range(6)]
    assert drawn["neurons/layer_0_"].axes[0].get_images()[0].get_array().shape == (3, 2)


def test_neurons_are_described_by_the_first_that_they_agree_with_and_oppose():
    found = Agreement(np.array([0, 0, 0, 3, 0, 3, 6]), np.array([0, 0, 1, 0, 0, 0, 0]))
    counts = NeuronCounts(np.array([5, 5, 4, 2, 5, 2, 0]), 9, found)
    assert counts.describe() == [
        "agrees with 1, opposes 2",
        "agrees with 0, opposes 2",
        "opposes 0",
        "agrees with 5",
        "agrees with 0, opposes 2",
        "agrees with 3",
        "never fired",
    ]


def test_the_table_of_neurons_is_bounded_and_says_so(monkeypatch):
    monkeypatch.setattr("tensorstate_callbacks.loggers.neurons.MOST_ROWS", 6)
    columns = neuron_columns(evaluation([0, 5, 10, 3, 7]))
    assert columns == {
        "layer": ["fc"] * 5,
        "neuron": [0, 1, 2, 3, 4],
        "firing_rate": [0.0, 0.5, 1.0, 0.3, 0.7],
        "state": ["never fired", "", "always fired", "", ""],
    }
    cut = neuron_columns(evaluation([0, 5, 10, 3, 7, 0, 1]))
    assert cut["neuron"] == [0, 2, 5, None]
    assert cut["state"][-1] == "4 more neurons are not listed"
    assert len(neuron_columns(evaluation([0] * 20))["state"]) == 7
