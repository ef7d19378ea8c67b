"""What a person sees of a fit in MLflow's pages."""

import re
from pathlib import Path

import mlflow
import pytest
from browser import chromium, in_browser, wait_for
from keras_models import train
from mlflow_page import RunPages
from mlflow_server import mlflow_server
from mlflow_store import QUIET, sqlite_store

from tensorstate_callbacks.keras import EfficiencyCallback


def shown(page: str, name: str) -> str:
    """Return what stands beside a name in a table of a page."""
    found = re.search(rf"^{re.escape(name)}\s+(\S+)", page, re.MULTILINE)
    assert found is not None, page
    return found[1]


@in_browser
@pytest.mark.filterwarnings(QUIET)
def test_the_run_page_shows_parameters_curves_table_and_figure(tmp_path: Path) -> None:
    ours = EfficiencyCallback("conv_1", beta=3)
    with sqlite_store(tmp_path) as client:
        mlflow.set_experiment("digits")
        with mlflow.start_run() as started:
            train([ours], epochs=3)
        run = client.get_run(started.info.run_id)
    last = ours.history[-1]
    assert last.aiq is not None
    with mlflow_server(tmp_path) as server, chromium(1200, 1800) as driver:
        pages = RunPages(driver, server.uri, run)
        overview = pages.open("", "efficiency.beta", "val_aiq")
        assert shown(overview, "efficiency.beta") == "3"
        conv_1 = last.layers["conv_1"].efficiency
        for key, value in {"val_aiq": last.aiq, "val_efficiency/conv_1": conv_1}.items():
            figure = shown(overview, key)
            # As many digits as MLflow shows.
            n_digits = len(figure.partition(".")[2])
            assert n_digits >= 2
            assert float(figure) == pytest.approx(value, abs=0.6 * 10**-n_digits)

        pages.open("/model-metrics", "val_aiq", "val_efficiency/conv_1", "val_accuracy")
        curves = wait_for(pages.charts, "curves", 90)
        # Three epochs: a line of three points.
        assert all(path.count("L") == 2 for path in curves)

        pages.open("/artifacts/efficiency/layers.json", "layers.json", "history.png", "n_distinct")
        # 101 images of 8 x 8 positions.
        assert last.layers["conv_1"].n_states == 6464
        assert "6464" in pages.text()
        pages.click("history.png")
        # Ten inches by four, of 150 dots.
        wait_for(lambda: (1500, 600) in pages.images(), "the figure", 60)
