"""What `python -m tensorstate_callbacks` says: version, kernel and why, extras."""

import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

import tensorstate_callbacks
from tensorstate_callbacks import installation
from tensorstate_callbacks.states.counter import available_kernels, kernel_report

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
# The other extras are for users.
FOR_THE_PROJECT = {
    *("all", "bench", "demo", "demo-keras", "demo-lightning", "dev", "docs", "examples", "sweep"),
    "test",
}
ALL_INSTALLED = {
    "accelerate": "1.15.0",
    "transformers": "5.24.0",
    "keras": "3.15.1",
    "pytorch-lightning": "2.6.6",
    "torch": "2.13.0",
    "tensorboard": "2.21.0",
    "mlflow": "3.17.2",
    "matplotlib": "3.11.2",
    "pandas": "3.1.1",
}


def say(kernel="", code="from runpy import run_module; run_module(NAME, run_name='__main__')"):
    code = code.replace("NAME", "'tensorstate_callbacks'")
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "TENSORSTATE_KERNEL": kernel},
        capture_output=True,
        text=True,
        check=False,
    )


def only_installed(monkeypatch, versions):
    def version(name):
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(installation, "version", version)


def extras_said():
    text, counts = installation.describe_installation()
    assert counts
    return dict(line.split(maxsplit=1) for line in text.partition("extras:\n")[2].splitlines())


def test_version_python_and_the_fastest_kernel_are_said():
    fastest, *others = available_kernels()
    first, second, kernel, rest, extras = say().stdout.splitlines()[:5]
    assert first == f"tensorstate_callbacks {tensorstate_callbacks.__version__}"
    assert second == (
        f"Python {platform.python_version()} on {platform.system()} {platform.machine()},"
        f" NumPy {np.__version__}"
    )
    assert kernel.startswith(f"kernel {fastest}: the fastest this processor runs of {fastest}")
    assert rest == f"other kernels here: {', '.join(others)}"
    assert extras == "extras:"


def test_a_forced_kernel_and_who_forced_it_are_said():
    done = say("numpy")
    assert done.returncode == 0, done.stderr
    forced = "kernel numpy: forced by the environment variable TENSORSTATE_KERNEL"
    assert forced in done.stdout.splitlines()
    compiled = available_kernels()[:-1]
    assert f"other kernels here: {', '.join(compiled) or 'none'}" in done.stdout.splitlines()


def test_a_kernel_that_is_not_there_is_said_and_fails():
    done = say("mmx")
    assert done.returncode == 1
    assert "kernel none: kernel 'mmx', asked for by the environment variable" in done.stdout
    assert f"other kernels here: {', '.join(available_kernels())}" in done.stdout
    assert "  mlflow " in done.stdout
    assert done.stderr == ""


def test_a_missing_compiled_counter_is_the_reason(monkeypatch):
    module = sys.modules[kernel_report.__module__]
    monkeypatch.setattr(module, "_missing", "No module named '_counter'")
    monkeypatch.setattr(module, "_native_kernels", ())
    monkeypatch.setattr(module, "_forced", "")
    text, counts = installation.describe_installation()
    assert counts
    reason = "the compiled counter cannot be imported (No module named '_counter')"
    assert f"kernel numpy: {reason}\nother kernels here: none\n" in text


def test_installed_extras_are_said_with_their_versions(monkeypatch):
    only_installed(monkeypatch, ALL_INSTALLED)
    assert extras_said() == {
        "keras": "keras 3.15.1",
        "lightning": "pytorch-lightning 2.6.6, torch 2.13.0",
        "huggingface": "accelerate 1.15.0, torch 2.13.0, transformers 5.24.0",
        "tensorboard": "tensorboard 2.21.0",
        "mlflow": "mlflow 3.17.2",
        "plot": "matplotlib 3.11.2",
        "pandas": "pandas 3.1.1",
    }


def test_a_missing_extra_comes_with_the_command_that_brings_it(monkeypatch):
    only_installed(monkeypatch, {"torch": "2.13.0"})
    said = extras_said()
    assert said["mlflow"] == "mlflow not installed: pip install 'tensorstate_callbacks[mlflow]'"
    assert said["lightning"] == (
        "torch 2.13.0, pytorch-lightning not installed:"
        " pip install 'tensorstate_callbacks[lightning]'"
    )


def test_lightning_counts_under_its_other_name(monkeypatch):
    only_installed(monkeypatch, {"lightning": "2.6.1", "torch": "2.13.0"})
    assert extras_said()["lightning"] == "lightning 2.6.1, torch 2.13.0"


def test_no_framework_is_imported_for_it():
    code = """
import sys
from tensorstate_callbacks.__main__ import main
code = main([])
print([m for m in ('torch', 'tensorflow', 'keras', 'lightning', 'pytorch_lightning', 'mlflow',
                   'matplotlib', 'tensorboard') if m in sys.modules], code)
"""
    assert say(code=code).stdout.splitlines()[-1] == "[] 0"


def test_an_unknown_argument_is_refused():
    from tensorstate_callbacks.__main__ import main

    with pytest.raises(SystemExit) as exit_:
        main(["--kernels"])
    assert exit_.value.code == 2


def test_the_console_script_is_this_command_line():
    tomllib = pytest.importorskip("tomllib", reason="tomllib comes with Python 3.11")
    scripts = tomllib.loads(PYPROJECT.read_text())["project"]["scripts"]
    assert scripts == {"tensorstate-callbacks": "tensorstate_callbacks.__main__:main"}


def test_the_extras_are_those_of_pyproject():
    tomllib = pytest.importorskip("tomllib", reason="tomllib comes with Python 3.11")
    declared = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
    for_users = declared.keys() - FOR_THE_PROJECT
    assert installation.EXTRAS.keys() == for_users
    for extra, names in installation.EXTRAS.items():
        assert {re.match(r"[\w-]+", line).group() for line in declared[extra]} == set(names)
