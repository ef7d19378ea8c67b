"""What a measurement ran on: the processor, its caches, the versions of everything compared."""

import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tensorstate_callbacks.states.counter import kernel_report

COMPARED = (
    *("numpy", "torch", "pandas", "polars", "keras", "tensorflow-cpu", "tensorflow"),
    *("pytorch-lightning",),
)
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_INSTRUCTIONS = ("avx2", "avx512f", "avx512bw", "gfni", "asimd", "sve")


def processor() -> str:
    """Return the processor's name, family and model, and which vector instructions it has."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor() or platform.machine()
    found = dict(re.findall(r"^(\w[\w ]*?)\s*: (.*)$", info.read_text().split("\n\n")[0], re.M))
    flags = found.get("flags", found.get("Features", "")).split()
    name = found.get("model name", platform.machine())
    if "cpu family" in found:
        name += f" (family {found['cpu family']}, model {found['model']})"
    return f"{name}, {' '.join(flag for flag in _INSTRUCTIONS if flag in flags)}"


def cache_bytes() -> dict[int, int]:
    """Return the size of the caches that hold data, by level; usual ones where nothing tells."""
    sizes = {1: 32 << 10, 2: 1 << 20, 3: 16 << 20}
    for cache in _CACHES.glob("index*"):
        if (cache / "type").read_text().strip() != "Instruction":
            level, size = ((cache / name).read_text().strip() for name in ("level", "size"))
            sizes[int(level)] = int(size.rstrip("K")) << 10
    return sizes


def versions() -> dict[str, str]:
    """Return the versions of what is compared, as far as it is installed."""
    found = {"Python": platform.python_version()}
    for name in COMPARED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def description() -> list[str]:
    """Return lines that say what a measurement ran on."""
    caches = ", ".join(f"L{level} {size >> 10} KiB" for level, size in cache_bytes().items())
    kernel, why = kernel_report()
    return [
        f"Processor: {processor()}; {caches}",
        f"System: {platform.system()} {platform.release()}",
        f"Kernel: {kernel}, {why}",
        "Versions: " + ", ".join(f"{name} {number}" for name, number in versions().items()),
    ]
