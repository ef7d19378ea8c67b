"""Set up the virtual environment that `make` works in, and say what is going on."""

from __future__ import annotations  # an old Python has to get as far as saying that it is too old

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple


class Part(NamedTuple):
    """What one of make's targets needs.

    Attributes:
        target: The target.
        newest: Minor version of the newest Python 3 that all of it has wheels for.
        contents: What is installed, in words.
        stamps: The files in the environment's folder that say it is there.
    """

    target: str
    newest: int
    contents: str
    stamps: tuple[str, ...]


# By the extra in pyproject.toml that names the packages. `dev` has what the others need too.
PARTS = {
    "demo-keras": Part("demo", 13, "TensorFlow, Keras, TensorBoard and MLflow", (".demo-keras",)),
    "demo-lightning": Part(
        "demo-lightning", 14, "PyTorch, Lightning, TensorBoard and MLflow", (".demo-lightning",)
    ),
    "docs": Part("docs", 14, "what the documentation is built with", (".docs",)),
    "dev": Part(
        "test",
        13,
        "all frameworks, and what tests, documentation and benchmarks need",
        (".demo-keras", ".demo-lightning", ".docs", ".ready"),
    ),
}
OLDEST = 10

# Without what they bring along, a torchvision that doesn't fit and a second TensorFlow; of fastai's
# what it is trained with.
ALONE = (
    "timm",
    'keras-hub; python_version >= "3.11"',
    "kagglehub",
    "kagglesdk",
    "fastai",
    "fastcore",
    "fastdownload",
    "fastprogress",
    "fasttransform",
    "plum-dispatch",
    "beartype",
)
# Into a folder of their own: after TensorFlow, Triton ends the process; beside pytorch_lightning,
# MLflow and Ray would take lightning. Optuna's callback needs it.
APART = ('triton>=3.0; sys_platform == "linux" and platform_machine == "x86_64"', "lightning")

SAY_IF_SLOW = """
from tensorstate_callbacks.states.counter import available_kernels
if list(available_kernels()) == ["numpy"]:
    print("The counter could not be compiled (is there a C++17 compiler?): NumPy counts instead, "
          "to the same numbers, many times slower.")
"""


class Environment:
    """A virtual environment.

    Args:
        folder: Where it is, or is to be.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._python = str(folder / "bin" / "python")

    def minor_version(self) -> int | None:
        """Return the minor version of its Python 3; None if it isn't there, or not whole."""
        if not (self._folder / "bin" / "pip").exists():
            return None
        lines = (self._folder / "pyvenv.cfg").read_text().splitlines()
        settings = dict(line.replace(" ", "").partition("=")[::2] for line in lines)
        return int(settings["version"].split(".")[1])

    def make(self) -> None:
        """Make it of the Python that runs."""
        import venv

        print(f"Making a virtual environment in {self._folder}", flush=True)
        venv.create(self._folder, symlinks=True, with_pip=True)

    def install(self, *requirements: str) -> None:
        """Install packages in the versions that the tests ran with; pip tells of errors only.

        Without bytecode, which Python makes of a file when it is imported: of all files it would
        take longer than to unpack them.
        """
        command = [self._python, "-m", "pip", "install", "-qq", "--no-compile"]
        command += ["--constraint", "constraints.txt", *requirements]
        if subprocess.run(command, check=False).returncode:
            sys.exit(f"pip could not install {' '.join(requirements)} into {self._folder}.")

    def takes_pytorch_from_pypi(self) -> bool:
        """Return whether pip has yet to fetch PyTorch, and is set to look on PyPI alone."""
        shown = [self._python, "-m", "pip", "show", "--quiet", "torch"]
        if not subprocess.run(shown, capture_output=True, check=False).returncode:
            return False
        listed = [self._python, "-m", "pip", "config", "list"]
        settings = subprocess.run(listed, capture_output=True, text=True, check=False).stdout
        return "index-url" not in settings and "find-links" not in settings

    def run(self, code: str) -> None:
        """Run some Python."""
        subprocess.run([self._python, "-c", code], check=False)

    def mark(self, stamps: tuple[str, ...]) -> None:
        """Note for make what is there."""
        for stamp in stamps:
            (self._folder / stamp).touch()


def refuse(part: Part, version: int) -> str | None:
    """Return why this Python won't do, and the way out; None if it will.

    Args:
        part: What is to be installed.
        version: The minor version of the Python 3.
    """
    if OLDEST <= version <= part.newest:
        return None
    return (
        f"Python 3.{version} won't do: `make {part.target}` needs 3.{OLDEST} to 3.{part.newest}. "
        f"If there is one on this machine, name it: make {part.target} PYTHON=python3.12"
    )


def refuse_without_venv(part: Part) -> str | None:
    """Return what to install where Python comes without its venv module; None if it has it."""
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        return (
            "This Python can't make virtual environments. Install its venv module (on Debian and "
            f"Ubuntu: apt-get install python3-venv), then run `make {part.target}` again."
        )
    return None


def set_up(extra: str, folder: Path) -> None:
    """Make the environment where it is missing, and install an extra of the package."""
    part, environment = PARTS[extra], Environment(folder)
    found = environment.minor_version()
    if found is None:
        if reason := refuse(part, sys.version_info[1]) or refuse_without_venv(part):
            sys.exit(reason)
        environment.make()
    elif reason := refuse(part, found):
        sys.exit(f"{reason}, after `make clean`, which removes {folder}.")
    started = time.perf_counter()
    print(
        f"Installing {part.contents} into {folder}, and compiling the counter: a minute or more",
        flush=True,
    )
    with_pytorch = extra in ("demo-lightning", "dev")
    if with_pytorch and sys.platform == "linux" and environment.takes_pytorch_from_pypi():
        print(
            "PyPI's PyTorch for Linux comes with CUDA, gigabytes of it: to do without, stop here, "
            "and see docs/examples.md",
            flush=True,
        )
    # In place, so that the counter is compiled again only when its sources change.
    environment.install("Cython>=3.1", "setuptools>=77")
    environment.install("--no-build-isolation", "--editable", f".[{extra}]")
    if extra == "dev":
        environment.install("--no-deps", *ALONE)
        environment.install("--no-deps", "--target", str(folder / "apart"), *APART)
    environment.run(SAY_IF_SLOW)
    environment.mark(part.stamps)
    print(f"Installed in {time.perf_counter() - started:.0f} s", flush=True)


def main() -> None:
    """Set up what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("extra", choices=PARTS)
    parser.add_argument("--folder", type=Path, default=Path(".venv"))
    arguments = parser.parse_args()
    set_up(arguments.extra, arguments.folder)


if __name__ == "__main__":
    main()
