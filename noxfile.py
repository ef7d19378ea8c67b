"""Sessions that need an environment of their own: other Pythons, other framework versions.

`nox -l` lists them. A session whose interpreter is missing is skipped with a message.
"""

import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False
nox.options.error_on_external_run = True


@nox.session(python=["3.10", "3.11", "3.12", "3.13"])
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
