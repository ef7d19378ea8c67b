"""Sessions that need an environment of their own: other Pythons, other framework versions.

`nox -l` lists them. A session whose interpreter is missing is skipped with a message.
"""

import platform
import shutil
from collections.abc import Callable
from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False
nox.options.error_on_external_run = True


PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]
# The tests of what needs no framework: counter, metrics, reports, plots, files.
CORE_TESTS = """
    agreement budget class_counter class_reports counter* entropy group_counter* heat_map
    installation lifelines masks metrics native_processors neurons notes packed_history partition
    plots positions recorder report_text selection settings turnover units weight_share
    whole_files windows
"""


@nox.session(python=PYTHONS)
def core(session: nox.Session) -> None:
    """Run the tests that need no framework, on any system."""
    session.env["TENSORSTATE_REQUIRE_NATIVE"] = "1"
    session.install(
        *("--constraint", "constraints.txt", "--editable", ".[plot]"),
        *("Cython", "hypothesis", "pytest", "setuptools"),
    )
    tests = [
        str(path)
        for name in CORE_TESTS.split()
        for path in sorted(Path("tests").glob(f"test_{name}.py"))
    ]
    threads = {"OMP_NUM_THREADS": "1"}
    session.run("python", "-m", "pytest", "--quiet", *tests, *session.posargs, env=threads)


@nox.session
def sdist(session: nox.Session) -> None:
    """Build the source distribution into dist/; with a tag given, it must be the version's."""
    session.install("--constraint", "constraints.txt", "build", "twine")
    dist = Path("dist").resolve()
    shutil.rmtree(dist, ignore_errors=True)
    session.run("python", "-m", "build", "--sdist", "--outdir", str(dist))
    (archive,) = dist.glob("*.tar.gz")
    session.run("python", "-m", "twine", "check", "--strict", str(archive))
    version = archive.name.removeprefix("tensorstate_callbacks-").removesuffix(".tar.gz")
    if session.posargs and session.posargs != [f"v{version}"]:
        session.error(f"tag {session.posargs[0]} is not v{version}, of _version.py")


@nox.session(python=PYTHONS)
def wheels(session: nox.Session) -> None:
    """Build sdist and wheel of the last commit; test the wheel in an empty environment."""
    if session.run("git", "status", "--porcelain", external=True, silent=True):
        session.warn("what is not committed is not in the wheel")
    folder = Path(session.create_tmp()).resolve()
    shutil.rmtree(folder)
    source, dist, empty = folder / "source", folder / "dist", folder / "empty"
    source.mkdir(parents=True)
    archive = folder / "source.tar"
    session.run("git", "archive", "--output", str(archive), "HEAD", external=True)
    shutil.unpack_archive(archive, source)
    # The wheel is built from the sdist, and each with its own build requirements.
    session.install("build")
    session.env["TENSORSTATE_REQUIRE_NATIVE"] = "1"
    session.run("python", "-m", "build", "--outdir", str(dist), str(source))
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")

    session.run("python", "-m", "venv", str(empty))
    python = str(next(empty.glob("[bS]*")) / "python")
    packages = [str(wheel), "pytest", "hypothesis"]
    session.run(python, "-m", "pip", "install", "--quiet", *packages, external=True)
    shutil.unpack_archive(sdist, folder / "sdist")
    (tests,) = (folder / "sdist").glob("*/tests")
    with session.chdir(folder):
        session.run(python, str(tests / "native" / "installed.py"), str(wheel), external=True)


# Releases of Keras, with the TensorFlow and the NumPy of their time.
KERAS = {"3.3": ("3.3.3", "2.16.2", "1.26.4"), "3.8": ("3.8.0", "2.18.1", "2.0.2")}
KERAS_TESTS = [str(path) for path in sorted(Path("tests").glob("test_keras_*.py"))]


@nox.session(python="3.11")
@nox.parametrize("release", list(KERAS), ids=list(KERAS))
def keras(session: nox.Session, release: str) -> None:
    """The tests of Keras under an earlier release of it; the pinned one is what `pytest` runs."""
    version, tensorflow, numpy = KERAS[release]
    small = (platform.system(), platform.machine()) == ("Linux", "x86_64")
    session.install(
        *("--editable", "."),
        *(f"keras=={version}", f"numpy=={numpy}"),
        f"{'tensorflow-cpu' if small else 'tensorflow'}=={tensorflow}",
        *("hypothesis", "matplotlib", "mlflow", "mlxtend", "pytest", "setuptools>=77"),
    )
    environment = {"KERAS_BACKEND": "tensorflow", "MLFLOW_DISABLE_TELEMETRY": "true"}
    session.run("python", "-m", "pytest", *KERAS_TESTS, *session.posargs, env=environment)


# What these versions need that today's don't have: pkg_resources, and the way in which Rich ended
# a progress bar before 14.1.
OLD_LIGHTNING = {
    "2.0.9": ["setuptools<81", "rich<14.1"],
    "2.2.5": ["setuptools<81", "rich<14.1"],
    "2.4.0": ["rich<14.1"],
}


def pins(session: nox.Session, *without: str) -> str:
    """Return a file with the pinned versions of all but some packages."""
    lines = Path("constraints.txt").read_text().splitlines()
    file = Path(session.create_tmp()) / "constraints.txt"
    file.write_text("\n".join(pin for pin in lines if pin.partition("==")[0] not in without))
    return str(file)


def lightning_session(
    distribution: str, version: str, namespace: str, extra: list[str]
) -> Callable[[nox.Session], None]:
    """Return a session that runs the Lightning tests with one version under one of its names."""

    def run(session: nox.Session) -> None:
        session.install(
            *("--constraint", pins(session, "pytorch-lightning", "lightning", "setuptools")),
            *(f"{distribution}=={version}", *extra, "--editable", ".[lightning,mlflow,plot]"),
            *("tensorboard", "hypothesis", "pytest", "rich"),
        )
        # Warnings of old versions about what has become old since are not ours to heed.
        old = [f"-Wignore::{kind}Warning" for kind in ("Deprecation", "PendingDeprecation")]
        old += ["-Wignore::FutureWarning", "-Wignore:pkg_resources is deprecated:UserWarning"]
        tests = [str(path) for path in sorted(Path("tests").glob("test_lightning_*.py"))]
        session.run(
            *("python", "-m", "pytest", *old, *tests, *session.posargs),
            env={"TENSORSTATE_TEST_LIGHTNING": namespace},
        )

    run.__doc__ = f"Run the Lightning tests with {distribution} {version} as {namespace}."
    return run


def pinned(package: str) -> str:
    """Return the version that the tests are pinned to."""
    lines = Path("constraints.txt").read_text().splitlines()
    return next(pin.partition("==")[2] for pin in lines if pin.startswith(f"{package}=="))


for old_version, needs in OLD_LIGHTNING.items():
    nox.session(name=f"lightning-{old_version}")(
        lightning_session("pytorch-lightning", old_version, "pytorch_lightning", needs)
    )
nox.session(name="lightning-namespace")(
    lightning_session("lightning", pinned("pytorch-lightning"), "lightning.pytorch", [])
)
