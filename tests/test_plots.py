import numpy as np
import pytest

from tensorstate_callbacks import EfficiencyReport, LayerReport
from tensorstate_callbacks.entropy import Spectrum
from tensorstate_callbacks.plots import plot_history, plot_layers


def layer(name, counts):
    fired = np.ones(20, dtype=np.uint64)
    return LayerReport.from_spectrum(name, Spectrum.from_counts(counts), fired)


def history(epochs, accuracies=None):
    accuracies = accuracies or [0.5 + epoch / 10 for epoch in range(len(epochs))]
    return [
        EfficiencyReport(
            {"a": layer("a", [1] * (8 + i)), "b": layer("b", [5, 3 + i])}, accuracy=acc, epoch=epoch
        )
        for i, (epoch, acc) in enumerate(zip(epochs, accuracies, strict=True))
    ]


def curves(axes):
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for line in axes.get_lines()
        if not line.get_label().startswith("_")
    }


def test_history_draws_the_reports_figures():
    reports = history([0, 1, 2])
    network, layers = plot_history(reports).axes
    assert curves(network) == {
        "accuracy": ([1, 2, 3], [r.accuracy for r in reports]),
        "efficiency": ([1, 2, 3], [r.efficiency for r in reports]),
        "aIQ": ([1, 2, 3], [r.aiq for r in reports]),
    }
    assert curves(layers)["b"][1] == [r.layers["b"].efficiency for r in reports]
    ceilings = [
        list(line.get_ydata()) for line in layers.get_lines() if line.get_linestyle() == ":"
    ]
    assert ceilings == [[r.layers[name].ceiling for r in reports] for name in "ab"]


def test_axes_say_what_they_show():
    network, layers = plot_history(history([0, 1])).axes
    assert (network.get_xlabel(), network.get_ylabel()) == ("epoch", "share (0 to 1)")
    assert layers.get_ylabel() == "efficiency (bits per neuron)"


def test_curves_differ_by_more_than_color():
    network, _ = plot_history(history([0, 1])).axes
    assert len({line.get_marker() for line in network.get_lines()}) == 3
    assert len({line.get_linestyle() for line in network.get_lines()}) == 3


def test_missing_accuracy_leaves_its_curves_out():
    network, _ = plot_history(history([0, 1], [None, None])).axes
    assert list(curves(network)) == ["efficiency"]
    network, _ = plot_history(history([0, 1], [None, 0.5])).axes
    assert curves(network)["accuracy"] == ([2], [0.5])


def test_several_fits_are_drawn_one_after_the_other():
    network, _ = plot_history(history([0, 1, 0, 1])).axes
    assert curves(network)["accuracy"][0] == [1, 2, 3, 4]
    assert network.get_xlabel() == "evaluation"


def test_an_empty_history_is_refused():
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_history([])


def test_layers_are_bars_under_their_ceilings():
    report = history([0])[0]
    (axes,) = plot_layers(report).axes
    ceilings, efficiencies = axes.containers
    assert [bar.get_width() for bar in ceilings] == [x.ceiling for x in report.layers.values()]
    assert [bar.get_width() for bar in efficiencies] == [
        x.efficiency for x in report.layers.values()
    ]


def test_a_report_draws_itself(tmp_path):
    history([0])[0].figure().savefig(tmp_path / "layers.png")
    assert (tmp_path / "layers.png").stat().st_size > 5_000
