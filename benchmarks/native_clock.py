"""Time packing activations, or only reading them, without Python."""

import ctypes
import os
import shlex
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensorstate_callbacks.states.counter import kernel_report

_HERE = Path(__file__).parent
_HEADERS = _HERE.parent / "tensorstate_callbacks" / "_native"


class NativeClock:
    """The compiled loops; compiled with the flags that the package is.

    Raises:
        OSError: There is no compiler.
        subprocess.CalledProcessError: They don't compile.
    """

    def __init__(self) -> None:
        compiler = shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder, "native_clock.so")
            flags = ["-std=c++17", "-O3", "-shared", "-fPIC", f"-I{_HEADERS}", "-o", str(library)]
            subprocess.run([*compiler, *flags, str(_HERE / "native_clock.cpp")], check=True)
            self._library = ctypes.CDLL(str(library))
        self._library.pack_seconds.restype = ctypes.c_double
        self._library.read_seconds.restype = ctypes.c_double
        self._kernel = kernel_report()[0].encode()

    def pack(self, bits: NDArray[Any], span: int, repeats: int) -> float:
        """Return the seconds in which activations are packed `repeats` times.

        Args:
            bits: Any view of floats as unsigned integers, neurons last.
            span: How many bit patterns fire, from 1 on.
            repeats: How often.
        """
        return self._pack(bits, span, repeats, None)

    def packed(self, bits: NDArray[Any], span: int) -> NDArray[np.uint64]:
        """Return what is packed: `(positions, words)` uint64."""
        words = -(-bits.shape[-1] // 64)
        out = np.zeros((bits.size // bits.shape[-1], words), np.uint64)
        self._pack(bits, span, 1, out.ctypes.data)
        return out

    def read(self, memory: NDArray[np.uint64], repeats: int) -> float:
        """Return the seconds in which memory is read `repeats` times."""
        address, size = ctypes.c_void_p(memory.ctypes.data), ctypes.c_size_t(memory.size)
        seconds: float = self._library.read_seconds(address, size, ctypes.c_size_t(repeats))
        return seconds

    def _pack(self, bits: NDArray[Any], span: int, repeats: int, out: int | None) -> float:
        seconds: float = self._library.pack_seconds(
            self._kernel,
            ctypes.c_void_p(bits.ctypes.data),
            ctypes.c_size_t(bits.ndim),
            (ctypes.c_size_t * bits.ndim)(*bits.shape),
            (ctypes.c_ssize_t * bits.ndim)(*bits.strides),
            ctypes.c_size_t(bits.itemsize),
            ctypes.c_uint64(1),
            ctypes.c_uint64(span),
            ctypes.c_size_t(repeats),
            ctypes.c_void_p(out),
        )
        if seconds < 0:
            raise RuntimeError(f"no compiled kernel is called {self._kernel.decode()!r}")
        return seconds
