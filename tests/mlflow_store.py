"""An MLflow database for tests, and what is in its runs."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd

from tensorstate_callbacks import History

# What MLflow makes of the newest SQLAlchemy.
QUIET = "ignore:The ``noload`` loader strategy is deprecated"


@contextlib.contextmanager
def tracked_at(uri: str) -> Iterator[mlflow.MlflowClient]:
    """Let MLflow's own functions go there for a while."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    # MLflow remembers the experiment by its number, also where another store has none of it.
    mlflow.set_experiment("Default")
    try:
        yield mlflow.MlflowClient()
    finally:
        mlflow.set_tracking_uri(before)


@contextlib.contextmanager
def sqlite_store(folder: Path) -> Iterator[mlflow.MlflowClient]:
    """Make a new database the place of runs, with an experiment whose files are beside it."""
    with tracked_at(f"sqlite:///{folder / 'mlflow.db'}") as client:
        mlflow.create_experiment("digits", (folder / "artifacts").as_uri())
        yield client


class Counted:
    """Counts the batches that reach a store, and their metrics, as long as `monkeypatch` lasts."""

    def __init__(self, monkeypatch: Any, client: mlflow.MlflowClient) -> None:
        self.batches: list[list[str]] = []
        store = type(client._tracking_client.store)
        original = store.log_batch

        def log_batch(self_: Any, run_id: str, metrics: Any, params: Any, tags: Any) -> Any:
            if metrics:
                self.batches.append([metric.key for metric in metrics])
            return original(self_, run_id, metrics, params, tags)

        monkeypatch.setattr(store, "log_batch", log_batch)


def curve(client: mlflow.MlflowClient, run_id: str, key: str) -> list[tuple[int, float]]:
    """Return every point of a metric."""
    points = client.get_metric_history(run_id, key)
    return sorted((point.step, point.value) for point in points)


def files(client: mlflow.MlflowClient, run_id: str) -> list[str]:
    """Return the names of a run's files of ours."""
    return [info.path for info in client.list_artifacts(run_id, "efficiency")]


def table(client: mlflow.MlflowClient, run_id: str, name: str = "layers.json") -> Any:
    """Return a table of a run."""
    path = client.download_artifacts(run_id, f"efficiency/{name}")
    return pd.read_json(path, orient="split")


def check_table(client: mlflow.MlflowClient, run_id: str, history: History) -> None:
    """Check that a run's table has all that the history has."""
    rows, found = pd.DataFrame(history.to_dicts()), table(client, run_id)
    assert list(found) == list(rows)
    # What isn't there is None in one, not a number in the other.
    known = rows.dropna(axis="columns", how="all")
    pd.testing.assert_frame_equal(found[list(known)], known, check_dtype=False, rtol=1e-9)
    assert found.drop(columns=list(known)).isna().all(axis=None)


def png(client: mlflow.MlflowClient, run_id: str, name: str = "history.png") -> bytes:
    """Return the first bytes of a figure."""
    return Path(client.download_artifacts(run_id, f"efficiency/{name}")).read_bytes()[:8]
