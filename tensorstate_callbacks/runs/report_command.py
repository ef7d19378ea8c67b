"""The command `report`: print a finished run's metrics, and draw them where asked to."""

import argparse
import os
import sys
from pathlib import Path

from tensorstate_callbacks.display.page import PAGE_SUFFIXES, write_page
from tensorstate_callbacks.display.plots import plot_history
from tensorstate_callbacks.display.tables import COLUMNS, history_text, layers_text, network_line
from tensorstate_callbacks.display.view import best_and_last, positions
from tensorstate_callbacks.errors import MissingExtraError, RunError
from tensorstate_callbacks.runs.finished_run import FinishedRun, RunEvaluation
from tensorstate_callbacks.runs.mlflow import mlflow_run_id, read_mlflow
from tensorstate_callbacks.runs.tensorboard import read_tensorboard

_SUFFIXES = (".png", ".svg", ".pdf", *PAGE_SUFFIXES)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument(
        "run",
        metavar="RUN",
        help="log folder of TensorBoard, or the folder of one run in it; or runs:/<id> of MLflow",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="draw the curves into this file, .png, .svg or .pdf, or write a page, .html",
    )
    parser.add_argument(
        "--tracking-uri", metavar="URI", help="where MLflow's runs are; default: MLflow's choice"
    )
    parser.add_argument(
        "--keys", metavar="START", help="what stands before aiq and efficiency, such as val_x_"
    )
    parser.add_argument("--accuracy", metavar="KEY", help="key of the accuracy")


def report_run(arguments: argparse.Namespace) -> int:
    """Print a finished run's metrics, draw them where `--output` says, and return the exit code."""
    output: Path | None = arguments.output
    if output is not None and output.suffix.lower() not in _SUFFIXES:
        return _print_error(f"--output {output}: a figure ends in {', '.join(_SUFFIXES)}", 2)
    if output is not None and not output.parent.is_dir():
        return _print_error(f"--output {output}: there is no folder {output.parent}", 2)
    try:
        run = _read_run(arguments)
        print(_describe_run(run))
        if output is not None:
            _draw_run(run, output)
    except (RunError, MissingExtraError) as error:
        return _print_error(str(error), 1)
    if output is not None:
        print(f"\n{'page' if output.suffix.lower() in PAGE_SUFFIXES else 'figure'}: {output}")
    return 0


def _read_run(arguments: argparse.Namespace) -> FinishedRun:
    folder = Path(arguments.run)
    if folder.is_dir():
        return read_tensorboard(folder, arguments.keys, arguments.accuracy)
    run_id = mlflow_run_id(arguments.run)
    if run_id is None:
        raise RunError(
            f"{arguments.run!r} is neither a folder nor an MLflow run: give a log folder of "
            "TensorBoard, or runs:/<id> with the 32 hexadecimal digits of an MLflow run's id"
        )
    # Its tables have some kilobytes: a progress bar would only be in the way.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    return read_mlflow(run_id, arguments.tracking_uri, arguments.keys, arguments.accuracy)


def _describe_run(run: FinishedRun) -> str:
    parts = [run.source, history_text(run.evaluations)]
    unit, where = positions(run.evaluations)
    for index, kind in best_and_last(run.evaluations):
        parts.append(f"{unit} {where[index]} ({kind})\n{_describe_layers(run.evaluations[index])}")
    return "\n\n".join(parts)


def _describe_layers(evaluation: RunEvaluation) -> str:
    layers = evaluation.layers
    # A table in two parts only where there is more than a terminal's width of metrics.
    full = len({name for layer in layers.values() for name in layer.values if name in COLUMNS}) > 8
    table = layers_text(layers, full=full) if layers else "no metrics of layers were logged"
    return f"{table}\n{network_line(evaluation)}"


def _draw_run(run: FinishedRun, output: Path) -> None:
    if output.suffix.lower() in PAGE_SUFFIXES:
        write_page(run.evaluations, output, source=run.source)
    else:
        plot_history(run.evaluations).savefig(output)


def _print_error(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code
