"""A Trainer in; the trackers of the MLflow runs that its fit is followed in, out."""

import sys
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch

from tensorstate_callbacks.loggers.mlflow import MlflowTracker, RunPlace, active_run


def mlflow_trackers(trainer: Any) -> Iterable[MlflowTracker]:
    """Yield a tracker for the run of each MLFlowLogger.

    Where there is none, one for the run that autologging logs to, or that the user started. The
    metrics of that last one are logged by nobody else.

    Args:
        trainer: The Trainer.
    """
    name = next(kind for kind in type(trainer).__mro__ if kind.__name__ == "Trainer").__module__
    package = name.partition(".trainer")[0]
    versions = {package: sys.modules[package].__version__, "torch": torch.__version__}
    found = [
        partial(_logger_run, logger)
        for logger in trainer.loggers
        if _is_a(logger, "MLFlowLogger", "loggers.mlflow")
    ] or [
        partial(_autologged_run, callback)
        for callback in trainer.callbacks
        if _is_a(callback, "__MlflowPLCallback", "mlflow.pytorch._lightning_autolog")
    ]
    for find_run in found:
        yield MlflowTracker(find_run, log_metrics=False, versions=versions)
    if not found:
        yield MlflowTracker(active_run, log_metrics=True, versions=versions)


def _is_a(instance: Any, name: str, module: str) -> bool:
    kinds = type(instance).__mro__
    return any(kind.__name__ == name and kind.__module__.endswith(module) for kind in kinds)


def _logger_run(logger: Any) -> RunPlace:
    return RunPlace(logger.experiment.tracking_uri, logger.run_id, logger)


def _autologged_run(callback: Any) -> RunPlace:
    return RunPlace(sys.modules["mlflow"].get_tracking_uri(), callback.run_id)
