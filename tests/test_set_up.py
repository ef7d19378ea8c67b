"""What `make demo` and `make test` install, and what they say where they can't."""

import ast
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PART_OF_EACH_DEMO = {"tensorboard", "mlflow", "matplotlib"}


@pytest.fixture
def set_up(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    import set_up

    return set_up


def requirements_of(extra):
    """Return the distributions that an extra names, by itself or by another extra."""
    tomllib = pytest.importorskip("tomllib", reason="tomllib comes with Python 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = {distribution_of(line) for line in project["dependencies"]}
    for line in project["optional-dependencies"][extra]:
        name, extras = re.match(r"([\w-]+)(?:\[(.*?)\])?", line).groups()
        if name == "tensorstate_callbacks":
            found.update(*(requirements_of(each) for each in extras.split(",")))
        else:
            found.add(distribution_of(name))
    return found


def distribution_of(requirement):
    return re.match(r"[\w-]+", requirement).group().replace("_", "-").lower()


def imports_of(example):
    """Return what an example and its neighbours import as they are loaded.

    Of each package the distributions that hold it: MLflow's are three.
    """
    distributions = metadata.packages_distributions()
    neighbours = {path.stem: path for path in (ROOT / "examples").glob("*.py")}
    waiting, seen, found = [example], set(), {}
    while waiting:
        name = waiting.pop()
        seen.add(name)
        for node in ast.parse(neighbours[name].read_text()).body:
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module]
            else:
                continue
            for module in (each.partition(".")[0] for each in modules):
                if module in neighbours:
                    waiting += [] if module in seen else [module]
                elif module not in {*sys.stdlib_module_names, "tensorstate_callbacks"}:
                    found[module] = set(map(distribution_of, distributions[module]))
    return found


@pytest.mark.parametrize(
    ("extra", "example", "framework", "others"),
    [
        ("demo-keras", "keras_mnist", {"keras", "tensorflow-cpu"}, {"torch", "jax"}),
        ("demo-lightning", "lightning_mnist", {"pytorch-lightning", "torch"}, {"keras", "jax"}),
    ],
)
def test_a_demo_installs_all_that_it_imports_and_one_framework(extra, example, framework, others):
    named = requirements_of(extra)
    imported = imports_of(example)
    assert {"mlxtend", "sklearn", "tqdm"} < imported.keys()
    assert [module for module, holders in imported.items() if not holders & named] == []
    assert framework | PART_OF_EACH_DEMO <= named
    assert not named & others
    assert named <= requirements_of("examples") <= requirements_of("dev")


@pytest.mark.parametrize(("extra", "newest"), [("demo-keras", 13), ("demo-lightning", 14)])
def test_a_python_that_is_too_old_or_too_new_is_refused_in_a_sentence(set_up, extra, newest):
    part = set_up.PARTS[extra]
    assert [set_up.refuse(part, version) for version in (10, newest)] == [None, None]
    for version in (9, newest + 1):
        assert set_up.refuse(part, version) == (
            f"Python 3.{version} won't do: `make {part.target}` needs 3.10 to 3.{newest}. If there "
            f"is one on this machine, name it: make {part.target} PYTHON=python3.12"
        )


def test_a_refused_python_makes_and_installs_nothing(set_up, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(set_up.sys, "version_info", (3, 9, 2))
    with pytest.raises(SystemExit, match="Python 3.9 won't do"):
        set_up.set_up("demo-keras", tmp_path / "venv")
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def test_an_environment_of_another_python_is_not_taken_away(set_up, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pip").touch()
    (tmp_path / "pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.14.1\n")
    with pytest.raises(SystemExit, match=r"Python 3.14 won't do.*after `make clean`"):
        set_up.set_up("dev", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "pyvenv.cfg"]


def test_a_python_without_its_venv_module_is_told_what_to_install(set_up, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    monkeypatch.setattr(set_up.sys, "version_info", (3, 11, 2))
    with pytest.raises(SystemExit, match="apt-get install python3-venv.*`make demo` again"):
        set_up.set_up("demo-keras", tmp_path / "venv")


@pytest.fixture
def nothing_installed(set_up, monkeypatch):
    """Have no command run, and return those that would have."""
    commands = []

    def run(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, stdout="", stderr="")

    monkeypatch.setattr(set_up.subprocess, "run", run)
    monkeypatch.setattr(set_up.Environment, "minor_version", lambda self: 11)
    return commands


def test_the_demo_is_installed_in_place_by_one_framework_and_says_so(
    set_up, nothing_installed, tmp_path, capsys
):
    set_up.set_up("demo-keras", tmp_path)
    tools, demo, _ = nothing_installed
    assert tools[-2:] == ["Cython>=3.1", "setuptools>=77"]
    assert demo[-3:] == ["--no-build-isolation", "--editable", ".[demo-keras]"]
    assert {"-qq", "--no-compile", "constraints.txt"} < set(demo)
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"Installing TensorFlow, Keras, TensorBoard and MLflow into {tmp_path}")
    assert re.fullmatch(r"Installed in \d+ s", last)


def test_a_failing_pip_ends_it_and_leaves_no_stamp(set_up, monkeypatch, tmp_path):
    monkeypatch.setattr(set_up.Environment, "minor_version", lambda self: 11)
    monkeypatch.setattr(
        set_up.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1)
    )
    with pytest.raises(SystemExit, match="pip could not install"):
        set_up.set_up("demo-keras", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_counter_that_could_not_be_compiled_is_told_in_one_line(set_up, monkeypatch, capsys):
    from tensorstate_callbacks.states import counter

    exec(set_up.SAY_IF_SLOW)  # noqa: S102
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(counter, "available_kernels", lambda: ("numpy",))
    exec(set_up.SAY_IF_SLOW)  # noqa: S102
    (line,) = capsys.readouterr().out.splitlines()
    assert "could not be compiled" in line
    assert "NumPy counts instead" in line


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not there")
def test_make_installs_what_is_missing_only(set_up, nothing_installed, monkeypatch, tmp_path):
    real_run = subprocess.Popen  # what `run` would have used

    def planned(target):
        """Return what `make` would set up for a target."""
        command = ["make", "--dry-run", "--no-print-directory", target]
        environment = {key: value for key, value in os.environ.items() if key != "MAKEFLAGS"}
        with real_run(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
        ) as made:
            said, _ = made.communicate()
        return re.findall(r"tools/set_up.py (\S+)", said)

    for name in ("Makefile", "pyproject.toml", "setup.py", "constraints.txt", "tools/set_up.py"):
        copy = tmp_path / name
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, copy)
        os.utime(copy, (0, 0))
    (tmp_path / ".venv").mkdir()
    assert planned("demo") == ["demo-keras"]
    assert planned("demo-lightning") == ["demo-lightning"]
    assert planned("docs") == ["docs"]
    assert planned("lint") == ["dev"]
    set_up.set_up("demo-keras", tmp_path / ".venv")
    assert planned("demo") == []
    assert planned("demo-lightning") == ["demo-lightning"]
    assert planned("docs") == ["docs"]
    set_up.set_up("dev", tmp_path / ".venv")
    assert all(not planned(target) for target in ("demo", "demo-lightning", "docs", "lint"))
    os.utime(tmp_path / "pyproject.toml", (2e9, 2e9))
    assert planned("demo") == ["demo-keras"]
