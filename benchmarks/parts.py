"""The parts of the benchmarks: a name in, the function that measures it out.

To add a part, write a module with `run(options) -> list[Row]` and name it here.
"""

from importlib import import_module

from benchmarks.rows import Part

# In the order of the table. Each runs in a process of its own.
PARTS = {
    "pack": "benchmarks.pack",
    "count": "benchmarks.count",
    "groups": "benchmarks.groups",
    "memory": "benchmarks.memory",
    "growth": "benchmarks.growth",
    "exchange": "benchmarks.exchange",
    "validation-torch": "benchmarks.validation_torch",
    "validation-keras": "benchmarks.validation_keras",
    "scale": "benchmarks.scale",
    "scale-threads": "benchmarks.scale_threads",
    "scale-keras": "benchmarks.scale_keras",
    "scale-memory": "benchmarks.scale_memory",
    "device": "benchmarks.device",
    "training": "benchmarks.training",
    "insight": "benchmarks.insight",
    "display": "benchmarks.display",
}


def load(module: str) -> Part:
    """Import a part's module and return its `run`."""
    run: Part = import_module(module).run
    return run
