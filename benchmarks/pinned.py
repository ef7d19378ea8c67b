"""Measure a part in a process of its own, on one thread of one core unless it needs a GPU."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from benchmarks.parts import PARTS, load
from benchmarks.rows import Options, Row, Target

ROOT = Path(__file__).parents[1]
# Libraries read these as they are imported: too late to set them afterwards.
ONE_THREAD = {
    **dict.fromkeys(
        (
            "OMP_NUM_THREADS",
            "OPENBLAS_NUM_THREADS",
            "MKL_NUM_THREADS",
            "VECLIB_MAXIMUM_THREADS",
            "NUMEXPR_NUM_THREADS",
            "POLARS_MAX_THREADS",
            "RAYON_NUM_THREADS",
            "TF_NUM_INTRAOP_THREADS",
            "TF_NUM_INTEROP_THREADS",
        ),
        "1",
    ),
    "KERAS_BACKEND": "tensorflow",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "CUDA_VISIBLE_DEVICES": "",
}

# Beside a GPU the host's other cores count.
ON_GPU = ("device",)


def measure(name: str, options: Options) -> list[Row]:
    """Run one part.

    Raises:
        RuntimeError: It failed; the message is what it wrote.
    """
    # The tests have the reference LeNet-5 and its digits.
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    own = {} if name in ON_GPU else ONE_THREAD
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "rows.json")
        done = subprocess.run(
            [sys.executable, "-m", __spec__.name, name, str(int(options.quick)), str(target)],
            env=os.environ | own | {"PYTHONPATH": path.rstrip(os.pathsep)},
            cwd=folder,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"the part {name!r} failed:\n{done.stdout}{done.stderr}")
        return [_row(entry) for entry in json.loads(target.read_text())]


def pin() -> None:
    """Keep this process to the last of the cores it may use: the first ones serve interrupts."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def _row(entry: dict[str, object]) -> Row:
    target = entry.pop("target")
    return Row(**entry, target=None if target is None else Target(**target))  # type: ignore[arg-type]


def _run(name: str, quick: bool, target: Path) -> None:
    if not quick and name not in ON_GPU:
        pin()
    rows = load(PARTS[name])(Options(quick))
    target.write_text(json.dumps([asdict(row) for row in rows]))


if __name__ == "__main__":
    _run(sys.argv[1], bool(int(sys.argv[2])), Path(sys.argv[3]))
