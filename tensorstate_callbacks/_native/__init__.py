"""Choose the counter that runs on this machine."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tensorstate_callbacks._native import fallback
from tensorstate_callbacks._native.fallback import NumpyEngine, NumpyGroupEngine
from tensorstate_callbacks._native.layout import Firing, Layout, Memory
from tensorstate_callbacks.errors import TensorStateWarning

try:
    from tensorstate_callbacks._native._counter import (
        NativeEngine,
        NativeGroupEngine,
        after_fork_in_child,
        after_fork_in_parent,
        before_fork,
        kernels,
    )
    from tensorstate_callbacks._native._counter import pack_positions as _native_pack_positions
    from tensorstate_callbacks._native._counter import use_openmp as _native_use_openmp
except ImportError as error:
    _native_kernels: tuple[str, ...] = ()
    _missing: str | None = str(error)
else:
    _native_kernels = kernels()
    _missing = None
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=before_fork,
            after_in_parent=after_fork_in_parent,
            after_in_child=after_fork_in_child,
        )

_forced = os.environ.get("TENSORSTATE_KERNEL", "")
_forced_by = "the environment variable TENSORSTATE_KERNEL"
_warned = False


class RowsEngine(Protocol):
    """What every engine does; arguments but the padding of rows are checked before."""

    @property
    def n_states(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def add_firing(self, firing: Firing) -> None: ...
    def add_memory(self, memory: Memory, layout: Layout) -> None: ...
    def add_rows(self, rows: NDArray[np.uint8], counts: NDArray[np.uint64] | None) -> None: ...
    def reset(self) -> None: ...


class Engine(RowsEngine, Protocol):
    """Counts distinct states."""

    @property
    def n_distinct(self) -> int: ...
    def snapshot(self) -> tuple[NDArray[np.uint8], NDArray[np.uint64]]: ...
    def spectrum(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]: ...
    def fired(self) -> NDArray[np.uint64]: ...


class GroupEngine(RowsEngine, Protocol):
    """Counts the states of each unit; `snapshot` gives all units' counts and `n_states`."""

    def add_tables(self, tables: NDArray[np.uint64], n_states: int) -> None: ...
    def snapshot(self) -> tuple[NDArray[np.uint64], int]: ...


def available_kernels() -> tuple[str, ...]:
    """Return the names of the kernels that this machine can run, the fastest first.

    `"numpy"` is always among them.
    """
    return (*_native_kernels, "numpy")


def kernel_report() -> tuple[str, str]:
    """The kernel that new counters use, and why that one.

    Raises:
        ValueError: if the forced kernel is unknown or cannot run on this machine.
    """
    if _forced:
        return _checked(_forced, _forced_by), f"forced by {_forced_by}"
    if _missing is not None:
        return "numpy", f"the compiled counter cannot be imported ({_missing})"
    names = available_kernels()
    return names[0], f"the fastest this processor runs of {', '.join(names)}"


def use_openmp(parallel_region: int) -> None:
    """Have the threads of an OpenMP runtime help to count large batches.

    Args:
        parallel_region: the address of its `GOMP_parallel`; 0: threads of our own.
    """
    if _missing is None:
        _native_use_openmp(parallel_region)


@contextmanager
def use_kernel(name: str) -> Iterator[None]:
    """Make new counters of the whole process use one kernel while the block is open.

    Args:
        name: One of `available_kernels`.

    Raises:
        ValueError: It is unknown, or can't run on this machine.

    Examples:
        >>> from tensorstate_callbacks import StateCounter
        >>> with use_kernel("numpy"):
        ...     counter = StateCounter(8)
        >>> counter.kernel
        'numpy'
    """
    global _forced, _forced_by
    before = _forced, _forced_by
    _forced, _forced_by = _checked(name, "use_kernel"), "use_kernel"
    try:
        yield
    finally:
        _forced, _forced_by = before


def make_engine(n_neurons: int, n_threads: int = 1) -> tuple[str, Engine]:
    """An empty engine for states of `n_neurons` bits, with the name of its kernel.

    Args:
        n_neurons: bits of a state.
        n_threads: at most so many work on a large batch; NumPy counts on the caller's alone.
    """
    name = _kernel_of_new_counters()
    if name == "numpy":
        return name, NumpyEngine(n_neurons)
    return name, NativeEngine(n_neurons, name, n_threads)


def make_group_engine(
    n_neurons: int, group_size: int, n_threads: int = 1
) -> tuple[str, GroupEngine]:
    """An empty engine for units of `group_size` of the neurons; see `make_engine`."""
    name = _kernel_of_new_counters()
    if name == "numpy":
        return name, NumpyGroupEngine(n_neurons, group_size)
    return name, NativeGroupEngine(n_neurons, group_size, name, n_threads)


def merge_engines(target: Engine, source: Engine) -> None:
    """Add all states of `source` to `target`, whatever the kind of either."""
    if _missing is None and isinstance(target, NativeEngine) and isinstance(source, NativeEngine):
        target.merge(source)
    else:
        target.add_rows(*source.snapshot())


def merge_group_engines(target: GroupEngine, source: GroupEngine) -> None:
    """Add all that `source` has counted to `target`, which has the same units."""
    if (
        _missing is None
        and isinstance(target, NativeGroupEngine)
        and isinstance(source, NativeGroupEngine)
    ):
        target.merge(source)
    else:
        target.add_tables(*source.snapshot())


def pack_positions(
    kernel: str,
    activations: NDArray[Any] | Memory,
    layout: Layout,
    sample_axis: int | None,
    places: NDArray[np.intp] | None,
    n_threads: int = 1,
) -> NDArray[np.uint8]:
    """The packed states of positions, sample after sample.

    Args:
        kernel: one of `available_kernels`.
        activations: of the kind that `layout_of` was asked for.
        layout: how they are read.
        sample_axis: counted from 0, not the channel axis; None where there is one sample.
        places: the positions, indices in C order of the other axes; None: all.
        n_threads: at most so many pack a large batch.

    Returns:
        (samples * places, ceil(neurons / 8)) uint8.

    Raises:
        ValueError: if a place is none of a sample's positions, or there is no memory.
    """
    if kernel == "numpy" or layout.always_alike:
        array = activations.array() if isinstance(activations, Memory) else activations
        return fallback.pack_positions(layout.firing(array), layout, sample_axis, places)
    if places is not None:
        places = np.ascontiguousarray(places, np.intp)
    if not isinstance(activations, Memory):
        activations = layout.unsigned_array(activations)
    return _native_pack_positions(kernel, activations, layout, sample_axis, places, n_threads)


def _checked(name: str, asked_by: str) -> str:
    if name not in available_kernels():
        missing = f" (the compiled ones are missing: {_missing})" if _missing else ""
        raise ValueError(
            f"kernel {name!r}, asked for by {asked_by}, does not run on this machine;"
            f" available: {', '.join(available_kernels())}{missing}"
        )
    return name


def _kernel_of_new_counters() -> str:
    """The kernel's name; a warning, once, where NumPy counts unasked."""
    global _warned
    name, _ = kernel_report()
    if name == "numpy" and not _forced and not _warned:
        _warned = True
        warnings.warn(
            "states are counted by NumPy, many times slower than by the compiled counter, because"
            f" that cannot be imported ({_missing}); to get it, install a C++17 compiler and then"
            " tensorstate_callbacks again (with TENSORSTATE_REQUIRE_NATIVE=1 a failing build says"
            " why), or set TENSORSTATE_KERNEL=numpy to ask for NumPy",
            TensorStateWarning,
            stacklevel=4,
        )
    return name
