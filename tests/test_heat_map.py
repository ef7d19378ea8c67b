import math

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from tensorstate_callbacks import EfficiencyReport, LayerReport
from tensorstate_callbacks.display.plots import plot_heat_map
from tensorstate_callbacks.states.spectrum import Spectrum


def history(names, epochs, missing=()):
    """Layer number i of epoch e has 2 ** (i + 1) states, each as often as the others."""
    return [
        EfficiencyReport(
            {
                name: LayerReport.from_spectrum(
                    name, Spectrum.from_counts([e + 1] * 2 ** (i + 1)), np.ones(10, np.uint64)
                )
                for i, name in enumerate(names)
                if (name, e) not in missing
            },
            epoch=e,
        )
        for e in epochs
    ]


def cells(figure):
    (image,) = figure.axes[0].get_images()
    return np.ma.filled(image.get_array(), np.nan)


def test_cells_are_the_layers_efficiencies_in_each_epoch():
    figure = plot_heat_map(history("abc", [0, 1, 4, 5], {("b", 4)}))
    nan = math.nan
    expected = [[0.1] * 4, [0.2, 0.2, nan, 0.2], [0.3] * 4]
    np.testing.assert_allclose(cells(figure), expected, rtol=1e-12)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "5", "6"]
    assert (axes.get_xlabel(), figure.axes[1].get_ylabel()) == (
        "epoch",
        "efficiency (bits per neuron)",
    )


def test_the_scale_begins_at_none_and_darkens_in_black_and_white():
    figure = plot_heat_map(history("abc", [0]))
    (image,) = figure.axes[0].get_images()
    assert image.get_clim() == (0, pytest.approx(0.3))
    shades = image.cmap(np.linspace(0, 1, 50))[:, :3]
    assert (np.diff(shades @ [0.2126, 0.7152, 0.0722]) <= 0).all()
    np.testing.assert_allclose(shades, shades[:, :1].repeat(3, 1), atol=0.01)


def test_cells_hold_their_numbers_in_a_shade_that_stands_out():
    figure = plot_heat_map(history("abc", [0, 1], {("b", 1)}))
    texts = {text.get_position(): text for text in figure.axes[0].texts}
    assert {place: text.get_text() for place, text in texts.items()} == {
        (0, 0): ".100",
        (1, 0): ".100",
        (0, 1): ".200",
        (0, 2): ".300",
        (1, 2): ".300",
    }
    (image,) = figure.axes[0].get_images()
    for (x, y), text in texts.items():
        shade = image.cmap(image.norm(cells(figure)[y, x]))[0]
        assert abs(to_rgb(text.get_color())[0] - shade) > 0.4


def test_numbers_are_left_out_where_they_would_not_fit():
    many = plot_heat_map(history("abc", range(200)))
    assert len(many.axes[0].texts) == 0
    assert cells(many).shape == (3, 200)
    assert len(many.axes[0].get_xticks()) == 15
    deep = plot_heat_map(history([f"l{i % 4}_{i}" for i in range(9)], range(24)))
    assert len(deep.axes[0].texts) == 9 * 24


def test_no_figure_is_larger_than_a_page_can_show():
    names = [f"block_{number}.convolution_with_a_name_that_is_long" for number in range(8)]
    width, height = plot_heat_map(history(names, range(1000))).get_size_inches()
    assert (width < 20, height < 10) == (True, True)


def test_layers_that_use_nothing_are_white():
    report = EfficiencyReport(
        {
            "a": LayerReport.from_spectrum(
                "a", Spectrum.from_counts([7]), np.zeros(10, dtype=np.uint64)
            )
        }
    )
    figure = plot_heat_map([report])
    (image,) = figure.axes[0].get_images()
    assert image.cmap(image.norm(cells(figure)[0, 0]))[:3] == (1.0, 1.0, 1.0)
    assert figure.axes[0].get_xlabel() == "evaluation"


def test_an_empty_history_is_refused():
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_heat_map([])
