"""Which Keras the callback works with, and what an older one is told at import."""

import subprocess
import sys
from pathlib import Path

import pytest
from keras_models import once


@pytest.mark.parametrize("version", ["2.15.0", "3.0.5", "3.2.1"])
@once
def test_an_older_keras_is_refused_at_import(version):
    code = f"""
import sys, types
keras = types.ModuleType("keras")
keras.__version__ = {version!r}
sys.modules["keras"] = keras
import tensorstate_callbacks as ts
try:
    ts.keras
except ImportError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.stdout.startswith(
        f"tensorstate_callbacks.keras needs Keras 3.3 or later; Keras {version} is installed."
    )
    assert "pip install --upgrade keras" in done.stdout


@once
def test_a_model_of_keras_2_is_told_so():
    """TF_USE_LEGACY_KERAS and tf_keras make models of Keras 2 beside a Keras 3."""
    code = """
import sys, types
from tensorstate_callbacks.keras import EfficiencyCallback
class Model:
    layers = []
Model.__module__ = "tf_keras.src.engine.training"
try:
    EfficiencyCallback().set_model(Model())
except TypeError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert "tf_keras" in done.stdout
    assert "Keras 3" in done.stdout
