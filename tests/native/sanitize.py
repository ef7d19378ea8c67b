"""Build the compiled counter with a sanitizer, and run its tests under it.

    python tests/native/sanitize.py address|undefined|thread|address,undefined [options of pytest]

For Linux with gcc or clang, whichever `CXX` names. The build has a folder of its own,
`build/sanitize-<compiler>-<name>`, in which the reports stand too. Ends with 0 if all is clean, and
with 3, saying why, where the sanitizer cannot run.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
CANNOT_RUN = 3
# test_counter_native_build compiles by itself, without the sanitizer.
TESTS = [
    path
    for name in ("test_counter*.py", "test_group_counter*.py")
    for path in sorted(PROJECT.glob(f"tests/{name}"))
    if "native_build" not in path.name
]
THREAD_TESTS = [path for path in TESTS if re.search("threads|races", path.name)]
# PYTHONMALLOC: each object is an allocation of its own, so that a read past its end is seen.
ENVIRONMENT = {
    "PYTHONMALLOC": "malloc",
    "TENSORSTATE_REQUIRE_NATIVE": "1",
    # Those of packages for other tests only load more libraries.
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    "ASAN_OPTIONS": "allocator_may_return_null=1:malloc_context_size=2",
    "LSAN_OPTIONS": f"suppressions={HERE / 'leaks.supp'}:print_suppressions=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "ignore_noninstrumented_modules=1:die_after_fork=0",
}

TRACER_DIED = "LeakSanitizer has encountered a fatal error"

# What canary.py does, as the sanitizers call it.
MISDEEDS = {
    "address": "heap-buffer-overflow",
    "undefined": "signed integer overflow",
    "thread": "data race",
}


def cannot_run(reason: str) -> SystemExit:
    print(f"cannot run here: {reason}", file=sys.stderr)
    return SystemExit(CANNOT_RUN)


def output_of(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def find_compiler(sanitizers: str) -> tuple[list[str], list[str]]:
    """The compiler, and how it is told to link to the sanitizer's runtime."""
    if sys.platform != "linux":
        raise cannot_run("the sanitizer's runtime is preloaded as Linux does it")
    compiler = shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")
    if shutil.which(compiler[0]) is None:
        raise cannot_run(f"there is no compiler {compiler[0]!r}; install one, or name it with CXX")
    flags = ["-shared-libsan"] if "clang" in output_of(*compiler, "--version") else []
    linked = subprocess.run(
        [*compiler, "-shared", f"-fsanitize={sanitizers}", *flags, "-x", "c++", os.devnull,
         "-o", os.devnull],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    if linked.returncode != 0:
        raise cannot_run(
            f"{compiler[0]} has no runtime for -fsanitize={sanitizers}: {linked.stderr.strip()}"
        )
    return compiler, flags


def build(sanitizers: str, compiler: list[str], flags: list[str], folder: Path) -> tuple[Path, str]:
    """The folder of the built package, and the libraries to load before Python starts."""
    library = folder / "lib"
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build", "--build-base", folder,
         "--build-lib", library],
        cwd=PROJECT,
        env={**os.environ, **ENVIRONMENT, "TENSORSTATE_SANITIZE": sanitizers,
             "CC": shlex.join(compiler), "CXX": shlex.join(compiler),
             "LDFLAGS": shlex.join(flags)},
        check=True,
    )  # fmt: skip
    (extension,) = library.rglob("_counter*.so")
    linked = dict(re.findall(r"(\S+) => (.+?)(?: \(0x.*)?\n", output_of("ldd", extension)))
    runtimes = [name for name in linked if re.search("asan|ubsan|tsan", name)]
    for name in runtimes:
        if linked[name] == "not found":  # clang keeps its own where only it looks
            linked[name] = output_of(*compiler, f"-print-file-name={name}").strip()
    # The C++ library too: the runtime looks for the functions that it wraps as it starts.
    needed = [*runtimes, *(name for name in linked if name.startswith("libstdc++"))]
    return library, " ".join(linked[name] for name in needed)


class Sanitized:
    """Runs Python with the sanitized counter; reports go to files where they can."""

    def __init__(self, sanitizers: str) -> None:
        compiler, flags = find_compiler(sanitizers)
        name = "-".join(["sanitize", Path(compiler[0]).name, *sanitizers.split(",")])
        folder = PROJECT / "build" / name
        self.reports = folder / "reports"
        self.reports.mkdir(parents=True, exist_ok=True)
        self.library, preloaded = build(sanitizers, compiler, flags, folder)
        # ThreadSanitizer finds no room in the address space that some kernels make at random, and
        # clang's is not to be loaded into setarch.
        self.python = ["setarch", "--addr-no-randomize"] if sanitizers == "thread" else []
        self.python += ["env", f"LD_PRELOAD={preloaded}", sys.executable]
        alive = subprocess.run([*self.python, "-c", ""], capture_output=True, check=False)
        if alive.returncode < 0:  # clang 14's for threads, on Debian 12
            raise cannot_run(f"Python dies of {compiler[0]}'s runtime for -fsanitize={sanitizers}")

    def run(self, *arguments: str | Path, **options: str) -> tuple[int, str]:
        """The exit code, and what was reported to stderr and to files."""
        for report in self.reports.iterdir():
            report.unlink()
        environment = {**os.environ, **ENVIRONMENT}
        environment["PYTHONPATH"] = str(self.library)
        for name in environment:
            if name.endswith("SAN_OPTIONS"):
                environment[name] += f":log_path={self.reports / 'report'}:{options.get(name, '')}"
        done = subprocess.run(
            [*self.python, *arguments],
            cwd=self.library,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        reports = "".join(path.read_text() for path in self.reports.iterdir())
        return done.returncode or bool(reports), done.stderr + reports


def main(sanitizers: str, *arguments: str) -> int:
    """0: the tests pass, nothing is reported, and the sanitizer is known to be awake."""
    sanitized = Sanitized(sanitizers)
    for sanitizer in sanitizers.split(","):
        # Once is enough: each report of a race takes long.
        options = "ignore_noninstrumented_modules=0:halt_on_error=1"
        _, report = sanitized.run(HERE / "canary.py", sanitizer, TSAN_OPTIONS=options)
        if MISDEEDS[sanitizer] not in report:
            raise SystemExit(
                f"-fsanitize={sanitizer} is deaf: {MISDEEDS[sanitizer]} unreported in {report!r}"
            )
    tests = THREAD_TESTS if sanitizers == "thread" else TESTS
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--capture=sys", "-k", "not numpy",
               *tests, *arguments]  # fmt: skip
    code, report = sanitized.run(*command)
    # What stops all threads as the process ends, to look for leaks, crashes on a busy machine.
    if TRACER_DIED in report:
        code, report = sanitized.run(*command)
    print(report, file=sys.stderr)
    return code


if __name__ == "__main__":
    if len(sys.argv) < 2 or not set(sys.argv[1].split(",")) <= MISDEEDS.keys():
        raise SystemExit(__doc__)
    raise SystemExit(main(*sys.argv[1:]))
