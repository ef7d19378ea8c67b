"""What every test runs under: no telemetry, quiet TensorFlow, a seed; and the examples' runs."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Tests compile the same few models over and over.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import hypothesis
import numpy as np
import pytest

# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile("project", deadline=None, print_blob=True)
hypothesis.settings.load_profile("project")


def pytest_runtest_logstart(nodeid: str) -> None:
    """Note the test that begins, for the Makefile: a crash of the interpreter names none."""
    if path := os.environ.get("TENSORSTATE_RUNNING_TEST"):
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text(nodeid)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20260)


@pytest.fixture(scope="module")
def mlflow_client(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the client of a store of its own, which has the experiment `tests`."""
    mlflow = pytest.importorskip("mlflow")
    folder = tmp_path_factory.mktemp("mlflow")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    client.create_experiment("tests", artifact_location=str(folder / "artifacts"))
    return client


@pytest.fixture(scope="session", params=["keras_mnist", "lightning_mnist"])
def example(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, subprocess.CompletedProcess[str]]:
    """Run an example for two epochs in an empty folder; return its name, the folder, what it said.

    Nothing may be written there: several tests look at it.
    """
    folder = tmp_path_factory.mktemp(request.param)
    script = Path(__file__).parents[1] / "examples" / f"{request.param}.py"
    command = [sys.executable, script, "--epochs", "2"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return request.param, folder, done


@pytest.fixture
def force_device(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Tell whether Keras makes states where activations lie, as on an accelerator, from now on."""
    return lambda forced: monkeypatch.setenv("TENSORSTATE_KERAS_ON_DEVICE", str(int(forced)))
