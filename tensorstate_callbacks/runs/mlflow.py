"""Read a finished run of MLflow."""

import json
import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorstate_callbacks.display.tables import COLUMNS
from tensorstate_callbacks.errors import RunError, require
from tensorstate_callbacks.loggers.passwords import hide_passwords
from tensorstate_callbacks.loggers.tracker import describe_error
from tensorstate_callbacks.reports.report import NETWORK_KEYS
from tensorstate_callbacks.runs.finished_run import (
    FinishedRun,
    Point,
    RunEvaluation,
    RunLayer,
    choose_lead,
    find_evaluations,
)

# Where the tables of the layers' metrics are, one per callback.
_FOLDER = "efficiency"
_TABLE = "layers.json"


def mlflow_run_id(text: str) -> str | None:
    """Return the id in `runs:/<id>`, or None if it isn't of that form.

    Examples:
        >>> mlflow_run_id("runs:/0123456789abcdef0123456789abcdef")
        '0123456789abcdef0123456789abcdef'
    """
    found = re.fullmatch(r"runs:/([0-9a-f]{32})/?", text)
    return found[1] if found else None


def read_mlflow(
    run_id: str,
    tracking_uri: str | None = None,
    lead: str | None = None,
    accuracy: str | None = None,
) -> FinishedRun:
    """Return a run, with the metrics of its table where it has one.

    Args:
        run_id: The run's id.
        tracking_uri: Address of the server or database; None for MLflow's own choice.
        lead: What stands before our names in its keys; None for the likeliest.
        accuracy: Key of the accuracy; None for the usual names.

    Raises:
        MissingExtraError: MLflow is not installed.
        RunError: There is no such run, or nothing of ours in it.
    """
    mlflow = require("mlflow", extra="mlflow", purpose="Reading a run of MLflow")
    address = tracking_uri or mlflow.get_tracking_uri()
    uri = hide_passwords(address, address)  # it goes to pages that are handed on
    problems: list[str] = []
    try:
        _check_database(address)
        client = mlflow.MlflowClient(tracking_uri=address)
        run = client.get_run(run_id)
        keys = sorted(run.data.metrics)
        lead = choose_lead(keys, lead, f"run {run_id} at {uri}")
        scalars = {
            key: [
                Point(metric.step, metric.timestamp, metric.value)
                for metric in client.get_metric_history(run_id, key)
            ]
            for key in keys
        }
        tables = _read_tables(client, run_id, address, problems)
    except RunError:
        raise
    except Exception as error:
        text = " ".join(hide_passwords(str(error), address).split())
        raise RunError(
            f"MLflow can't read run {run_id} at {uri}: {text}. --tracking-uri says where else"
        ) from error
    source = f"run {run.info.run_name} ({run_id}) at {uri}, keys {lead}aiq, {lead}efficiency..."
    # How the metrics were made, which a callback logs beside them; its prefix comes before.
    prefix = lead[lead.find("_") + 1 :]
    for name in ("beta", "alpha"):
        given = run.data.params.get(f"{_FOLDER}.{prefix}{name}")
        source += f", {name} {given}" if given is not None else ""
    evaluations = _complete(find_evaluations(scalars, lead, accuracy), tables)
    return FinishedRun(source, evaluations, problems)


def _check_database(uri: str) -> None:
    # MLflow would make a new database of that name and find no run in it.
    path = uri.removeprefix("sqlite:///")
    if path != uri and not Path(path).is_file():
        raise RunError(
            f"there is no database {path!r}: --tracking-uri says where MLflow's runs are, for "
            "example sqlite:///mlflow.db or http://localhost:5000"
        )


def _read_tables(
    client: Any, run_id: str, address: str, problems: list[str]
) -> list[RunEvaluation]:
    found: list[RunEvaluation] = []
    for artifact in client.list_artifacts(run_id, _FOLDER):
        if artifact.path.endswith(_TABLE):
            try:
                with tempfile.TemporaryDirectory() as folder:
                    path = client.download_artifacts(run_id, artifact.path, folder)
                    content = Path(path).read_bytes()
                found += _from_rows(_read_rows(content))
            except Exception as error:  # noqa: BLE001 - without it there is less to show
                reason = " ".join(describe_error(error, address).split())
                problems.append(f"table {artifact.path} of run {run_id} ({reason})")
    return found


def _read_rows(content: bytes) -> list[dict[str, Any]]:
    """Return the rows of a table.

    Raises:
        LookupError, RecursionError, TypeError, ValueError: It is no table of `History.to_dicts`.
    """
    table = json.loads(content)
    rows = [dict(zip(table["columns"], cells, strict=True)) for cells in table["data"]]
    for row in rows:
        for name in ("efficiency", *NETWORK_KEYS, *(set(COLUMNS) & set(row))):
            kinds = (str,) if name in ("name", "stage") else (int, float, type(None))
            if not isinstance(row[name], kinds) or isinstance(row[name], bool):
                raise TypeError(f"{name} is {row[name]!r}")
        if not isinstance(row["name"], str):
            raise TypeError(f"a layer's name is {row['name']!r}")
    return rows


def _from_rows(rows: Sequence[Mapping[str, Any]]) -> list[RunEvaluation]:
    """Return evaluations of rows as `History.to_dicts` gives them."""
    grouped: list[list[Mapping[str, Any]]] = []
    for row in rows:
        before = grouped[-1] if grouped else []
        # Rows of several fits may follow each other.
        same = bool(before) and all(row[key] == before[0][key] for key in NETWORK_KEYS)
        if not same or row["name"] in {one["name"] for one in before}:
            grouped.append([])
        grouped[-1].append(row)
    return [
        RunEvaluation(
            epoch=group[0]["epoch"],
            accuracy=group[0]["accuracy"],
            efficiency=group[0]["network_efficiency"],
            aiq=group[0]["aiq"],
            layers={
                row["name"]: RunLayer({name: row[name] for name in COLUMNS if name in row})
                for row in group
            },
        )
        for group in grouped
    ]


def _complete(
    logged: Sequence[RunEvaluation], tables: Sequence[RunEvaluation]
) -> list[RunEvaluation]:
    """Return the logged evaluations, with all metrics where a table has the same one."""
    return [
        next((known for known in reversed(tables) if _is_same(known, evaluation)), evaluation)
        for evaluation in logged
    ]


def _is_same(known: RunEvaluation, logged: RunEvaluation) -> bool:
    if known.epoch != logged.epoch or known.efficiency is None or logged.efficiency is None:
        return False
    # Databases and servers keep 64 bits of a metric, JSON 10 or more digits of it.
    return math.isclose(known.efficiency, logged.efficiency, rel_tol=1e-6, abs_tol=1e-9)
