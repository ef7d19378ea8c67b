"""The callbacks of a fit in; the tracker of the MLflow run that it is followed in, out."""

from collections.abc import Sequence
from importlib import import_module

import keras

from tensorstate_callbacks.loggers.mlflow import MlflowTracker, active_run


def mlflow_tracker(callbacks: Sequence[keras.callbacks.Callback]) -> MlflowTracker:
    """Return the tracker of the run that the user started, or starts while the fit goes on.

    MLflow's own callback, which autologging adds, logs all that is in the logs of an epoch.

    Args:
        callbacks: The fit's callbacks.
    """
    logged = any(
        getattr(callback, "log_every_epoch", False)
        for callback in callbacks
        for kind in type(callback).__mro__
        if kind.__name__ == "MlflowCallback" and kind.__module__.startswith("mlflow.")
    )
    backend = keras.backend.backend()
    versions = {"keras": keras.__version__, backend: import_module(backend).__version__}
    return MlflowTracker(active_run, log_metrics=not logged, versions=versions)
