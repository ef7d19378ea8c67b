"""The examples' runs in TensorBoard, as somebody sees them who opens its Custom Scalars tab."""

from pathlib import Path

import numpy as np
import pytest
from board_folder import LAYERS, NETWORK, BoardFolder
from board_page import charts, custom_scalars, photograph
from browser import in_browser
from matplotlib.image import imread

COLORS = [(255, 112, 67), (0, 119, 187)]
EXPECTED = {
    "keras_mnist": {
        NETWORK: ["epoch_accuracy", "epoch_accuracy", "epoch_aiq", "epoch_efficiency"],
        LAYERS: [f"epoch_efficiency/conv_{number}" for number in (1, 2, 3)],
    },
    "lightning_mnist": {
        NETWORK: ["val_accuracy", "val_aiq", "val_efficiency"],
        LAYERS: [f"val_efficiency/conv_{number}" for number in (1, 2, 3)],
    },
}


@in_browser
def test_the_charts_are_drawn_as_they_were_logged(
    example: tuple[str, Path, object], tmp_path: Path
) -> None:
    name, root, _ = example
    folder = root / "runs" / name / "tensorboard"
    logged, expected = BoardFolder(folder), EXPECTED[name]
    with custom_scalars(folder) as driver:
        drawn = charts(driver, 2, sum(map(len, expected.values())))
        assert [chart["title"] for chart in drawn] == [NETWORK, LAYERS]
        for chart in drawn:
            curves = logged.curves("Efficiency", chart["title"])
            assert sorted(tag for _, tag in curves) == expected[chart["title"]]
            legend = {(run.strip("()"), tag) for _, tag, run in chart["legend"]}
            assert legend == set(curves)
            # One line for each, whose points are where the logged values belong on the axis.
            lines = [line["values"] for line in chart["lines"] if line["shown"]]
            assert sorted(lines) == [pytest.approx(c, abs=1e-5) for c in sorted(curves.values())]
        photograph(driver, tmp_path / "tab.png", 1180, 620)
    pixels = imread(tmp_path / "tab.png")
    assert pixels.shape[:2] == (930, 1770)
    # TensorBoard's colours of the first and the second run, in lines, markers and the legend.
    runs = sorted({run for run, _ in logged.curves("Efficiency", NETWORK)})
    for run, color in zip(runs, COLORS, strict=False):
        near = abs(pixels[:, 400:, :3] - np.divide(color, 255)).max(axis=2) < 0.02
        assert near.sum() > 1000, run
