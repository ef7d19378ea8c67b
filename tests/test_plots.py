import pickle
from xml.etree import ElementTree

import numpy as np
import pytest

from tensorstate_callbacks import EfficiencyReport, LayerReport
from tensorstate_callbacks.display import plots
from tensorstate_callbacks.display.plots import plot_history, plot_layers, plot_states
from tensorstate_callbacks.runs.finished_run import RunEvaluation, RunLayer
from tensorstate_callbacks.states.spectrum import Spectrum


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


def test_bars_that_tell_of_the_number_of_samples_are_hatched():
    report = EfficiencyReport({"thin": layer("thin", [1] * 9), "b": layer("b", [5, 3])})
    (axes,) = plot_layers(report).axes
    assert [bar.get_hatch() for bar in axes.containers[1]] == ["////", None]
    assert "hatched: coverage below 0.5" in axes.get_title()


def ranks_drawn(line):
    """Return the share drawn at each whole rank: a curve joins the two ends of each level."""
    x, y = np.array(line.get_xdata()), np.array(line.get_ydata())
    return np.interp(np.arange(1, x[-1] + 1), x, y)


def test_states_are_drawn_by_rank_without_one_point_each():
    counts = {"a": [9, 4, 4, 4, 2, 1, 1, 1], "b": [3, 3], "c": [1] * 1_000_000}
    report = EfficiencyReport({name: layer(name, found) for name, found in counts.items()})
    (axes,) = plot_states(report).axes
    for line, found in zip(axes.get_lines(), counts.values(), strict=True):
        np.testing.assert_allclose(ranks_drawn(line), np.sort(found)[::-1] / sum(found))
        assert len(line.get_xdata()) <= 2 * len(set(found))
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert axes.get_ylabel() == "share of states (0 to 1)"
    assert axes.get_xlabel() == "rank of the state (1: most frequent)"
    assert len({line.get_marker() for line in axes.get_lines()}) == 3


def test_many_layers_get_a_panel_each():
    names = [f"layer_{number}" for number in range(20)]
    reports = [
        EfficiencyReport(
            {name: layer(name, [5, 3 + epoch, number + 1]) for number, name in enumerate(names)},
            accuracy=0.5,
            epoch=epoch,
        )
        for epoch in range(2)
    ]
    network, *panels = plot_history(reports).axes
    assert list(curves(network)) == ["accuracy", "efficiency", "aIQ"]
    shown = [axes for axes in panels if axes.axison]
    assert [axes.get_title() for axes in shown] == names
    for axes, name in zip(shown, names, strict=True):
        assert curves(axes)[name][1] == [report.layers[name].efficiency for report in reports]
        # Up to its ceiling, which is the highest of its marks.
        top = max(report.layers[name].ceiling for report in reports)
        assert axes.get_yticks().tolist() == [0, top]
        assert axes.get_ylim()[1] > top
    panels = [axes for axes in plot_states(reports[1]).axes if axes.axison]
    assert [axes.get_title() for axes in panels] == names
    assert ranks_drawn(panels[19].get_lines()[0]).tolist() == [20 / 29, 5 / 29, 4 / 29]
    assert len({axes.get_xlim() for axes in panels}) == 1


@pytest.mark.parametrize("count", [3, 8, 20])
@pytest.mark.parametrize("name", ["conv", "encoder.layer.11.attention.output.dense"])
def test_nothing_grows_out_of_the_figure(count, name):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    layers = {f"{name}_{i}": layer(f"{name}_{i}", [5, 3, 1, 1]) for i in range(count)}
    report = EfficiencyReport(layers, accuracy=0.5, epoch=0)
    for figure in (plot_history([report]), plot_layers(report), plot_states(report)):
        FigureCanvasAgg(figure).draw()
        drawn = figure.get_tightbbox(figure.canvas.get_renderer())
        width, height = figure.get_size_inches()
        assert drawn.x0 >= 0
        assert drawn.y0 >= 0
        assert drawn.x1 <= width
        assert drawn.y1 <= height
        for axes in figure.axes:
            assert axes.bbox.height > 30


def test_a_single_evaluation_has_one_tick_and_marks_its_ceilings():
    network, layers = plot_history(history([4])).axes
    assert [tick for tick in network.get_xticks() if 4.5 <= tick <= 5.5] == [5]
    ceilings = [line for line in layers.get_lines() if line.get_linestyle() == ":"]
    assert [line.get_marker() for line in ceilings] == ["_", "_"]


def test_a_plot_can_be_saved(tmp_path):
    plot_layers(history([0])[0]).savefig(tmp_path / "layers.png")
    assert (tmp_path / "layers.png").stat().st_size > 5_000


def test_notebooks_show_plots_without_pyplot():
    formatters = pytest.importorskip("IPython.core.formatters", reason="IPython isn't installed")
    figure = plot_layers(history([0])[0])
    copied = pickle.loads(pickle.dumps(figure))  # noqa: S301
    for drawn in (figure, copied):
        shown, _ = formatters.DisplayFormatter().format(drawn)
        assert shown["image/png"].startswith(b"\x89PNG")
        size = int.from_bytes(shown["image/png"][16:20], "big")
        assert size == 100 * drawn.get_size_inches()[0]


def test_layers_of_finished_runs_are_drawn_as_far_as_they_are_known():
    layers = {
        "a": RunLayer({"efficiency": 0.2, "ceiling": 0.5, "coverage": 0.4}),
        "b": RunLayer({"efficiency": 0.3}),
    }
    (axes,) = plot_layers(RunEvaluation(0, None, None, None, layers)).axes
    assert [[bar.get_width() for bar in bars] for bars in axes.containers] == [[0.5], [0.2]]
    assert [bar.get_hatch() for bar in axes.containers[1]] == ["////"]
    unknown = RunEvaluation(0, None, None, None, {"b": layers["b"]})
    with pytest.raises(ValueError, match="no layer has an efficiency and a ceiling"):
        plot_layers(unknown)
    with pytest.raises(ValueError, match="no layer has a spectrum"):
        plot_states(unknown)


def test_all_plots_are_public():
    assert sorted(plots.__all__) == [
        "plot_classes",
        "plot_heat_map",
        "plot_history",
        "plot_layers",
        "plot_neurons",
        "plot_states",
    ]


# What frameworks allow in a name, and Matplotlib, SVG or a font do not.
NAMES = [
    *("a$_$b", "$$", r"$\x$", r"\$", "%_^{", "_hidden", "__", "a--b<&>", "two\nlines\r"),
    *("x" * 3000, "שלום", "漢 😀", "nul\0", "\udc80", "\u202e", " "),
]


def named(names):
    return EfficiencyReport({name: layer(name, [5, 3, 1, 1]) for name in names}, epoch=0)


# As curves, as panels, as rows.
@pytest.mark.parametrize(
    "names",
    [NAMES[:8], [*NAMES[:2], *NAMES[9:]], [name + end for end in ("", "'", '"') for name in NAMES]],
    ids=len,
)
def test_any_name_is_drawn(names, tmp_path):
    report = named(names)
    for plot in (plot_history, plots.plot_heat_map, plot_layers, plot_states):
        plot([report] if "h" in plot.__name__[5:] else report).savefig(tmp_path / "plot.svg")
        ElementTree.parse(tmp_path / "plot.svg")  # noqa: S314 - ours


def test_names_are_drawn_as_they_are_written_where_the_font_has_the_letters():
    ticks = plots.plot_heat_map([named(NAMES)]).axes[0].get_yticklabels()
    labels = [label.get_text() for label in ticks]
    assert labels[:8] == NAMES[:8]
    assert labels[8:] == [
        *("two\\nlines\\r", "x" * 13 + "…" + "x" * 26, "שלום", "\\u6f22 😀", "nul\\x00"),
        *("\\udc80", "\\u202e", " "),
    ]


def test_a_name_that_begins_with_an_underscore_is_in_the_legend():
    names = ["_a", "__b", "c$x$"]
    report = EfficiencyReport({name: layer(name, [5, 3]) for name in names}, epoch=0)
    for axes in (plot_history([report]).axes[1], plot_states(report).axes[0]):
        texts = axes.get_legend().get_texts()
        assert [text.get_text() for text in texts] == names
        assert not any(text.get_parse_math() or text.get_usetex() for text in texts)


@pytest.mark.parametrize("count", [41, 400])
def test_a_figure_of_many_layers_is_made_of_few_parts(count):
    names = [f"block_{number}" for number in range(count)]
    reports = [
        EfficiencyReport({name: layer(name, [5, 3 + epoch]) for name in names}, epoch=epoch)
        for epoch in range(4)
    ]
    for plot in (plot_history, plots.plot_heat_map, plot_layers, plot_states):
        figure = plot(reports if "h" in plot.__name__[5:] else reports[0])
        assert len(figure.axes) <= 3
        assert len(figure.findobj()) < 600
        width, height = figure.get_size_inches()
        assert (width < 20, height < 15) == (True, True)


def test_many_layers_are_shades_of_their_numbers():
    names = [f"block_{number}" for number in range(50)]
    reports = [
        EfficiencyReport(
            {name: layer(name, [5] * (1 + i + epoch)) for i, name in enumerate(names)}, epoch=epoch
        )
        for epoch in range(2)
    ]
    network, shown, _ = plot_history(reports).axes
    assert list(curves(network)) == ["efficiency"]
    np.testing.assert_array_equal(
        shown.get_images()[0].get_array(),
        [[report.layers[name].efficiency for report in reports] for name in names],
    )
    # Each state of a layer has the same share, and the layer number i has i + 1 of them.
    (image,) = plot_states(reports[0]).axes[0].get_images()
    shares = np.ma.filled(image.get_array(), np.nan)
    np.testing.assert_allclose(shares[:, 0], [1 / (1 + i) for i in range(50)])
    edges = np.linspace(0, np.log10(51), 51)
    assert (np.isnan(shares[0]) == ((edges[1:] + edges[:-1]) / 2 >= np.log10(2))).all()
    assert not np.isnan(shares[49]).any()
    _, _, ceilings = plot_layers(reports[0]).axes[0].patches
    np.testing.assert_array_equal(
        ceilings.get_data().values, [one.ceiling for one in reports[0].layers.values()]
    )
