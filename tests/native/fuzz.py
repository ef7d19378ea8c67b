"""Give hostile inputs to the compiled counter, and check it by a plain map.

    python tests/native/fuzz.py RUNS [seed]

libFuzzer makes them, AddressSanitizer and UndefinedBehaviorSanitizer watch. Takes clang with its
runtime (Debian: clang and libclang-rt-*-dev), named by CLANGXX if it is not `clang++`. Ends with 3,
saying why, where that is missing. An input that fails stands in build/fuzz as crash-<hash>; run it
with build/fuzz/fuzz_counter crash-<hash>.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
NATIVE = HERE.parents[1] / "tensorstate_callbacks" / "_native"
FOLDER = HERE.parents[1] / "build" / "fuzz"
CANNOT_RUN = 3
FLAGS = [
    "-std=c++17", "-O1", "-g1", "-pthread", "-DTS_LEAST_SHARED_LOG2=7",
    "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all",
]  # fmt: skip


def cannot_run(reason: str) -> SystemExit:
    print(f"cannot run here: {reason}", file=sys.stderr)
    return SystemExit(CANNOT_RUN)


def build() -> Path:
    """The fuzzer, compiled anew only where a source is newer."""
    compiler = os.environ.get("CLANGXX", "clang++")
    if shutil.which(compiler) is None:
        raise cannot_run(f"there is no {compiler!r}; install clang, or name it with CLANGXX")
    FOLDER.mkdir(parents=True, exist_ok=True)
    fuzzer = FOLDER / "fuzz_counter"
    sources = [*HERE.glob("*.?pp"), *NATIVE.glob("*.hpp")]
    if fuzzer.exists() and fuzzer.stat().st_mtime > max(path.stat().st_mtime for path in sources):
        return fuzzer
    entry = 'extern "C" int LLVMFuzzerTestOneInput(const char*, unsigned long) { return 0; }'
    linked = subprocess.run(
        [compiler, *FLAGS, "-x", "c++", "-", "-o", os.devnull],
        input=entry,
        capture_output=True,
        text=True,
        check=False,
    )
    if linked.returncode != 0:
        raise cannot_run(f"{compiler} has no libFuzzer with sanitizers: {linked.stderr.strip()}")
    subprocess.run(
        [compiler, *FLAGS, f"-I{NATIVE}", HERE / "fuzz_counter.cpp", "-o", fuzzer], check=True
    )
    return fuzzer


def main(runs: int, seed: int) -> int:
    """The fuzzer's exit code: 0 if no input failed."""
    fuzzer = build()
    print(f"{runs} inputs, seed {seed}", flush=True)
    return subprocess.run(
        [fuzzer, f"-runs={runs}", f"-seed={seed}", "-max_len=1024", "-len_control=10",
         "-timeout=300", "-print_final_stats=1", "-verbosity=0"],
        cwd=FOLDER,
        check=False,
    ).returncode  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    raise SystemExit(main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1))
