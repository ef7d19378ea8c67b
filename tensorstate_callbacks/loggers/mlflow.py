"""Log a fit to an MLflow run: metrics where nobody else does, parameters, table and figure."""

import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from tensorstate_callbacks._version import __version__
from tensorstate_callbacks.display.plots import plot_history
from tensorstate_callbacks.display.view import printable
from tensorstate_callbacks.errors import MissingExtraError, TensorStateWarning
from tensorstate_callbacks.loggers.mlflow_run import MlflowRun, RunPlace
from tensorstate_callbacks.loggers.neurons import draw_neurons, neuron_columns
from tensorstate_callbacks.loggers.tracker import describe_error
from tensorstate_callbacks.recording.settings import Settings
from tensorstate_callbacks.reports.metric_keys import safe_key
from tensorstate_callbacks.reports.report import EfficiencyReport, History

# What MLflow takes of a parameter; names beyond it are in the table of layers.
_MAX_LENGTH = 6000
_SETTINGS = (
    *("beta", "threshold", "alpha", "group_size", "positions", "max_memory"),
    *("method", "every_n_epochs", "attach_to", "exclude"),
)


def active_run() -> RunPlace | None:
    """Return the run that the user started, or None; MLflow is not imported for that."""
    mlflow = sys.modules.get("mlflow")
    find = getattr(mlflow, "active_run", None)
    run = None if find is None else find()
    if mlflow is None or run is None:
        return None
    return RunPlace(mlflow.get_tracking_uri(), run.info.run_id)


class MlflowTracker:
    """Logs one fit to an MLflow run.

    Where something doesn't arrive, one warning names a file with the fit's whole history.

    Args:
        find_run: Returns where the run is, or None as long as there is none.
        log_metrics: Whether to log the metrics of each epoch; False where a logger of MLflow's or
            the framework's does that.
        versions: Versions of what the fit runs with, under the packages' names.
    """

    def __init__(
        self,
        find_run: Callable[[], RunPlace | None],
        *,
        log_metrics: bool,
        versions: Mapping[str, str],
    ) -> None:
        self._find_run, self._log_metrics, self._versions = find_run, log_metrics, versions
        self._settings = Settings()
        self._layers: Sequence[str] = ()
        self._run: MlflowRun | None = None
        self._n_logged = 0
        self._problem: str | None = None
        self._address = ""
        self.name = "MLflow"

    def begin(self, settings: Settings, layers: Sequence[str]) -> None:
        """Log the parameters."""
        self._settings, self._layers = settings, layers
        self._open()

    def epoch(
        self, epoch: int, report: EfficiencyReport, history: History, logs: Mapping[str, Any]
    ) -> None:
        """Log the epoch's metrics."""
        run = self._open()
        if run is not None:
            try:
                if self._log_metrics:
                    run.log_metrics(_select_numbers(logs), epoch)
                self._n_logged = len(history)
            except Exception as error:  # noqa: BLE001 - in the warning at the end
                self._note(error)

    def end(self, history: History) -> None:
        """Log tables and figures, and write the history to a file if anything didn't arrive."""
        run, self._run = self._run, None
        if run is not None:
            try:
                self._finish(run, history)
            except Exception as error:  # noqa: BLE001 - in the warning
                self._note(error)
            finally:
                problem = run.close()
            self._problem = self._problem or problem
        if self._problem is not None:
            warnings.warn(
                f"{self.name} doesn't have everything of this fit: {self._problem}. Training is "
                f"not affected. {_save_history(history)}",
                TensorStateWarning,
                stacklevel=2,
            )

    def _open(self) -> MlflowRun | None:
        if self._run is None and self._problem is None:
            try:
                place = self._find_run()
                if place is not None:
                    self._address = place.tracking_uri
                    self.name = str(place)[0].upper() + str(place)[1:]
                    self._run = MlflowRun.share(place)
                    self._run.log_params(make_params(self._settings, self._layers, self._versions))
            except Exception as error:  # noqa: BLE001 - in the warning at the end
                self._note(error)
        return self._run

    def _note(self, error: Exception) -> None:
        self._problem = self._problem or describe_error(error, self._address)

    def _finish(self, run: MlflowRun, history: History) -> None:
        settings = self._settings
        if self._log_metrics:
            # Broken off between the evaluation and the end of the epoch.
            for report in history[self._n_logged :]:
                scalars = report.scalars(settings.prefix, layer_metrics=settings.layer_metrics)
                run.log_metrics(scalars, report.epoch or 0)
        if not history:
            return
        rows = history.to_dicts()
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        run.log_table(columns, self._name_artifact("layers.json"))
        if settings.neurons:
            run.log_table(neuron_columns(history[-1]), self._name_artifact("neurons.json"))
        try:
            figures = {"history": plot_history(history)}
            if settings.neurons:
                figures |= draw_neurons(history)
        except MissingExtraError as error:
            warnings.warn(
                f"The MLflow run gets no figure. {error}", TensorStateWarning, stacklevel=2
            )
        else:
            for name, figure in figures.items():
                run.log_figure(figure, self._name_artifact(f"{name}.png"))

    def _name_artifact(self, name: str) -> str:
        return f"efficiency/{safe_key(self._settings.prefix + name)}"


def make_params(
    settings: Settings, layers: Sequence[str], versions: Mapping[str, str]
) -> dict[str, str]:
    """Return the parameters of one callback: `efficiency.beta`, `efficiency.layers`...

    Args:
        settings: What the callback was given; its prefix tells the names of several apart.
        layers: Names of the probes.
        versions: Versions of what it runs with, under the packages' names.
    """
    lead = f"efficiency.{settings.prefix}"
    given = {name: _format_value(getattr(settings, name)) for name in _SETTINGS}
    probes = {"n_layers": str(len(layers)), "layers": _join_names(layers)}
    packages = {"tensorstate_callbacks": __version__, "numpy": np.__version__, **versions}
    return {
        **{safe_key(lead + name): value for name, value in {**given, **probes}.items()},
        **{f"efficiency.version.{name}": value for name, value in packages.items()},
    }


def _format_value(value: Any) -> str:
    if value is None:
        return "default"
    if isinstance(value, (list, tuple, set, frozenset)):
        return _join_names([_format_value(item) for item in value]) or "none"
    return printable(str(getattr(value, "__name__", value)))[:_MAX_LENGTH]


def _join_names(names: Sequence[str]) -> str:
    """Return the names, and how many more there are than MLflow takes.

    Examples:
        >>> len(_join_names(["layer"] * 2000)), _join_names(["layer"] * 2000)[-27:]
        (5977, 'layer, layer, and 1148 more')
    """
    names = list(map(printable, names))
    text, shown = ", ".join(names), len(names)
    while len(text) > _MAX_LENGTH:
        # Space for the words at the end; each turn leaves out at least one name.
        shown = min(shown - 1, text.count(", ", 0, _MAX_LENGTH - 30))
        text = ", ".join([*names[:shown], f"and {len(names) - shown} more"])
    return text


def _select_numbers(logs: Mapping[str, Any]) -> dict[str, float]:
    numbers = {}
    for key, value in logs.items():
        try:
            if not isinstance(value, str):
                numbers[safe_key(key)] = float(value)
        except Exception:  # noqa: BLE001, S112 - whatever others log that is no number
            continue
    return numbers


def _save_history(history: History) -> str:
    """Write the history to a new file that only its owner can read, and return where it is."""
    if not history:
        return "No evaluation was recorded"
    problem = ""
    for find_folder in (os.getcwd, tempfile.gettempdir):
        path = None
        try:
            file, path = tempfile.mkstemp(".json", "efficiency-history-", find_folder())
            os.close(file)
            history.save(path)
        except Exception as error:  # noqa: BLE001 - a full disk, a folder that is gone
            problem = describe_error(error)
            if path is not None:
                with suppress(OSError):
                    os.unlink(path)
        else:
            return f"All its reports are in {path}, to be read by History.load"
    return f"Its reports could not be written to a file ({problem}): callback.history has them"
