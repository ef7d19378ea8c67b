"""The installed package in, never a checkout; its native tests run out.

python tests/native/installed.py [wheel, whose contents are to be looked at]
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
TESTS = [
    path
    for name in ("test_counter*.py", "test_group_counter*.py", "test_entropy.py")
    for path in sorted(HERE.parent.glob(name))
    if "native_build" not in path.name  # builds from a checkout
]
CHECK = """
import sys
import tensorstate_callbacks
from tensorstate_callbacks.states.counter import available_kernels, kernel_report
print(tensorstate_callbacks.__file__)
if "scalar" not in available_kernels():
    sys.exit(kernel_report()[1])
"""


def look_into(wheel: str) -> None:
    """Refuse a wheel with C++ sources in it, or without types or the compiled counter."""
    names = zipfile.ZipFile(wheel).namelist()
    sources = [name for name in names if name.endswith((".hpp", ".cpp", ".pyx"))]
    foreign = [name for name in names if not name.startswith("tensorstate_callbacks")]
    if sources or foreign:
        raise SystemExit(f"{wheel} should not hold {', '.join(sources + foreign)}")
    for end in ("/py.typed", "/_counter.pyi", "/page.html", (".so", ".pyd")):
        if not any(name.endswith(end) for name in names):
            raise SystemExit(f"{wheel} holds no {end}")


def main() -> int:
    """The exit code of pytest, run from an empty folder."""
    for wheel in sys.argv[1:]:
        look_into(wheel)
    with tempfile.TemporaryDirectory() as folder:
        found = subprocess.run(
            [sys.executable, "-c", CHECK], cwd=folder, stdout=subprocess.PIPE, text=True, check=True
        )
        package = Path(found.stdout.strip()).resolve()
        if package.is_relative_to(HERE.parents[1]) and "site-packages" not in package.parts:
            raise SystemExit(f"{package} is the checkout, not what was installed")
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider",
             "-c", "/dev/null" if sys.platform != "win32" else "NUL", "--rootdir", folder, *TESTS],
            cwd=folder,
            check=False,
        ).returncode  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
