"""A fit's epochs in; an MLflow run with their metrics, parameters, table and figure out."""

import base64
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tensorstate_callbacks.display.plots import plot_history
from tensorstate_callbacks.errors import MissingExtraError
from tensorstate_callbacks.loggers.mlflow_params import parameters
from tensorstate_callbacks.loggers.mlflow_run import MlflowRun
from tensorstate_callbacks.recording.settings import Settings
from tensorstate_callbacks.reports.history import History
from tensorstate_callbacks.reports.metric_keys import safe_key
from tensorstate_callbacks.reports.report import EfficiencyReport


class RunPlace(NamedTuple):
    """Where a run is.

    Attributes:
        tracking_uri: Address of the server or database.
        run_id: The run.
        logger: Lightning's logger that ends the run after the fit, if one does.
    """

    tracking_uri: str
    run_id: str
    logger: Any = None


def active_run() -> RunPlace | None:
    """Return the run that the user started, or None; MLflow is not imported for that."""
    mlflow = sys.modules.get("mlflow")
    find = getattr(mlflow, "active_run", None)
    run = None if find is None else find()
    if mlflow is None or run is None:
        return None
    return RunPlace(mlflow.get_tracking_uri(), run.info.run_id)


class MlflowTracker:
    """Tells an MLflow run of one fit: how, by epoch, and in the end.

    Args:
        find_run: Tells where the run is, or None as long as there is none.
        log_metrics: Whether the metrics of each epoch are to be logged; False where a logger of
            MLflow's or the framework's does that.
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

    def begin(self, settings: Settings, layers: Sequence[str]) -> None:
        """Log the parameters."""
        self._settings, self._layers = settings, layers
        run = self._open()
        if run is not None:
            run.tell()

    def epoch(
        self, epoch: int, report: EfficiencyReport, history: History, logs: Mapping[str, Any]
    ) -> None:
        """Log the epoch's metrics, and what couldn't be sent before."""
        run = self._open()
        if run is None:
            return
        if self._log_metrics:
            self._post_metrics(run, logs, epoch)
        self._n_logged = len(history)
        run.retry()

    def end(self, history: History) -> None:
        """Log table and figure, and see to what couldn't be sent."""
        run, self._run = self._run, None
        if run is None:
            return
        try:
            if self._log_metrics:
                # Broken off between the evaluation and the end of the epoch.
                for report in history[self._n_logged :]:
                    self._post_metrics(run, self._scalars(report), report.epoch or 0)
            if history:
                self._post_table(run, history)
                self._post_figure(run, history)
        finally:
            run.release()

    def _open(self) -> MlflowRun | None:
        if self._run is None:
            place = self._find_run()
            if place is not None:
                self._run = MlflowRun.share(*place)
                params = parameters(self._settings, self._layers, self._versions)
                self._run.post(params=params)
        return self._run

    def _scalars(self, report: EfficiencyReport) -> dict[str, float]:
        settings = self._settings
        return report.scalars(settings.prefix, layer_metrics=settings.layer_metrics)

    def _post_metrics(self, run: MlflowRun, logs: Mapping[str, Any], epoch: int) -> None:
        numbers = {safe_key(key): _number(value) for key, value in logs.items()}
        run.post_metrics({key: x for key, x in numbers.items() if x is not None}, epoch)

    def _post_table(self, run: MlflowRun, history: History) -> None:
        rows = history.to_dicts()
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        run.post(name=self._artifact("layers.json"), table=columns)

    def _post_figure(self, run: MlflowRun, history: History) -> None:
        try:
            figure = plot_history(history)
        except MissingExtraError as error:
            run.warn("figure", f"The MLflow run gets no figure. {error}")
            return
        content = io.BytesIO()
        figure.savefig(content, format="png")
        encoded = base64.b64encode(content.getvalue()).decode()
        run.post(name=self._artifact("history.png"), file=encoded)

    def _artifact(self, name: str) -> str:
        return f"efficiency/{safe_key(self._settings.prefix + name)}"


def _number(value: Any) -> float | None:
    if isinstance(value, str):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return None
