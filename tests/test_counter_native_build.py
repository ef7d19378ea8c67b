"""Without a C++ compiler the package installs, counts with NumPy and says so once."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
COUNT = """
import warnings
import numpy as np
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from tensorstate_callbacks.states.counter import StateCounter, kernel_report
    counters = [StateCounter(3) for _ in range(3)]
for counter in counters:
    counter.update(np.array([[1.0, -1.0, 2.0], [3.0, 0.0, 4.0], [0.0, 5.0, 0.0]]), 1)
    assert counter.counts().tolist() == [1, 2]
    assert counter.states().tolist() == [[2], [5]]
    assert counter.kernel == "numpy"
assert kernel_report()[0] == "numpy"
for warning in caught:
    print(warning.category.__name__, warning.message)
"""


def install_without_compiler(folder, **environment):
    source = folder / "source"
    ignore = shutil.ignore_patterns("*.so", "*.pyd", "_counter.cpp", "__pycache__")
    shutil.copytree(
        PROJECT / "tensorstate_callbacks", source / "tensorstate_callbacks", ignore=ignore
    )
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        if (PROJECT / name).exists():
            shutil.copy(PROJECT / name, source)
    (source / "README.md").touch()
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--target", folder / "installed"]
    return subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, source],
        env={**os.environ, "CC": "false", "CXX": "false", "TMPDIR": str(folder), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="CC and CXX do not choose MSVC")
def test_without_a_compiler_the_numpy_counter_runs_and_warns_once(tmp_path):
    done = install_without_compiler(tmp_path, TENSORSTATE_REQUIRE_NATIVE="0")
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "installed").rglob("_counter*.so"))
    environment = {k: v for k, v in os.environ.items() if k != "TENSORSTATE_KERNEL"}
    count = subprocess.run(
        [sys.executable, "-c", COUNT],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert count.returncode == 0, count.stderr
    (warning,) = count.stdout.strip().splitlines()
    assert warning.startswith("TensorStateWarning states are counted by NumPy")
    assert "C++17 compiler" in warning


@pytest.mark.skipif(sys.platform == "win32", reason="CC and CXX do not choose MSVC")
def test_without_a_compiler_a_required_native_counter_fails_the_install(tmp_path):
    done = install_without_compiler(tmp_path, TENSORSTATE_REQUIRE_NATIVE="1")
    assert done.returncode != 0
    assert "_counter" in done.stderr + done.stdout
    assert not (tmp_path / "installed" / "tensorstate_callbacks").exists()
