"""The examples' runs in TensorBoard, as somebody sees them who opens its Custom Scalars tab."""

from pathlib import Path

import numpy as np
import pytest
from board_folder import LAYERS, NETWORK, BoardFolder
from board_page import charts, custom_scalars, photograph
from browser import in_browser
from matplotlib.image import imread

COLORS = [(255, 112, 67), (0, 119, 187)]
PAPER, GROUPS = "Efficiency", "Efficiency (g8_)"
LEADS = {
    "keras_mnist": ("epoch_", ["epoch_accuracy", "epoch_accuracy"]),
    "lightning_mnist": ("val_", ["val_accuracy"]),
}


def expected_tags(name: str, category: str, chart: str) -> list[str]:
    lead, accuracies = LEADS[name]
    lead += "g8_" if category == GROUPS else ""
    if chart == LAYERS:
        return [f"{lead}efficiency/conv_{number}" for number in (1, 2, 3)]
    return [*accuracies, f"{lead}aiq", f"{lead}efficiency"]


@in_browser
def test_the_charts_are_drawn_as_they_were_logged(
    example: tuple[str, Path, object], tmp_path: Path
) -> None:
    name, root, _ = example
    folder = root / "runs" / name / "tensorboard"
    logged = BoardFolder(folder)
    places = [(category, chart) for category in (PAPER, GROUPS) for chart in (NETWORK, LAYERS)]
    with custom_scalars(folder) as driver:
        drawn = charts(driver, 4, sum(len(logged.curves(*place)) for place in places))
        assert [chart["title"] for chart in drawn] == [NETWORK, LAYERS] * 2
        for place, chart in zip(places, drawn, strict=True):
            curves = logged.curves(*place)
            assert sorted(tag for _, tag in curves) == expected_tags(name, *place)
            legend = {(run.strip("()"), tag) for _, tag, run in chart["legend"]}
            assert legend == set(curves)
            # One line for each, whose points are where the logged values belong on the axis.
            lines = [line["values"] for line in chart["lines"] if line["shown"]]
            assert sorted(lines) == [pytest.approx(c, abs=1e-5) for c in sorted(curves.values())]
        photograph(driver, tmp_path / "tab.png", 1180, 620)
    pixels = imread(tmp_path / "tab.png")
    assert pixels.shape[:2] == (930, 1770)
    # TensorBoard's colours of the first and the second run, in lines, markers and the legend.
    runs = sorted({run for run, _ in logged.curves(PAPER, NETWORK)})
    for run, color in zip(runs, COLORS, strict=False):
        near = abs(pixels[:, 400:, :3] - np.divide(color, 255)).max(axis=2) < 0.02
        assert near.sum() > 1000, run
