"""Figures and page of a deep network's training: how long they take, beside a small network's."""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rows import Options, Row, Target, relative
from benchmarks.timing import medians
from tensorstate_callbacks.display.page import write_page
from tensorstate_callbacks.display.plots import (
    plot_heat_map,
    plot_history,
    plot_layers,
    plot_states,
)
from tensorstate_callbacks.reports.layer_report import LayerReport
from tensorstate_callbacks.reports.report import EfficiencyReport, History
from tensorstate_callbacks.states.spectrum import Spectrum

PART = "display"
LIMIT = Target(3, at_least=False, unit="s")
SMALL = 8


def run(options: Options) -> list[Row]:
    """Measure each figure as a PNG file, and the page."""
    small = _training(SMALL, options)
    rows = []
    for n_layers in (41,) if options.quick else (41, 400):
        deep = _training(n_layers, options)
        for name, draw in _drawings(options).items():
            calls = {"small": partial(draw, small), "deep": partial(draw, deep)}
            taken = medians(calls, 1 if options.quick else 5, time.process_time)
            case, against = f"{name}, {n_layers} layers", f"{SMALL} layers"
            rows.append(relative(PART, case, against, taken["deep"], taken["small"], "s", LIMIT))
    return rows


def _training(n_layers: int, options: Options) -> History:
    drawn = np.random.default_rng(0)
    names = [f"features.{number}.block.conv" for number in range(n_layers)]
    return History(
        EfficiencyReport(
            {
                name: LayerReport.from_spectrum(
                    name,
                    Spectrum.from_counts(drawn.zipf(1.6, 3000).clip(max=10_000)),
                    np.full(64, 100, np.uint64),
                )
                for name in names
            },
            accuracy=0.5,
            epoch=epoch,
        )
        for epoch in range(2 if options.quick else 50)
    )


def _drawings(options: Options) -> dict[str, Callable[[History], Any]]:
    def page(history: History) -> None:
        with tempfile.TemporaryDirectory() as folder:
            write_page(history, Path(folder) / "run.html")

    def picture(plot: Callable[[Any], Any], evaluations: Any) -> None:
        plot(evaluations).savefig(BytesIO())

    drawings: dict[str, Callable[[History], Any]] = {
        "plot_history": partial(picture, plot_history),
        "plot_heat_map": partial(picture, plot_heat_map),
        "plot_layers": lambda history: picture(plot_layers, history[-1]),
        "plot_states": lambda history: picture(plot_states, history[-1]),
        "write_page": page,
    }
    if options.quick:
        drawings = {name: drawings[name] for name in ("plot_heat_map", "write_page")}
    return drawings
