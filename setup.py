"""The compiled counter; everything else about the package stands in pyproject.toml."""

import os
import sys
from pathlib import Path

from setuptools import Extension, setup

NATIVE = Path("tensorstate_callbacks", "_native")
FLAGS = ["/std:c++17", "/O2"] if sys.platform == "win32" else ["-std=c++17", "-O3", "-pthread"]
LINK_FLAGS = [] if sys.platform == "win32" else ["-pthread"]

# A debug build for gcc or clang: "address", "undefined", "thread" (tests/native/sanitize.py).
if sanitizers := os.environ.get("TENSORSTATE_SANITIZE"):
    LINK_FLAGS += [f"-fsanitize={sanitizers}"]
    FLAGS += [*LINK_FLAGS, "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g1", "-O0"]
    FLAGS += ["-fstrict-overflow", "-fno-wrapv"]  # CPython's own flags hide signed overflows

setup(
    ext_modules=[
        Extension(
            "tensorstate_callbacks._native._counter",
            sources=[str(NATIVE / "_counter.pyx")],
            depends=sorted(str(path) for path in NATIVE.glob("*.hpp")),
            include_dirs=[str(NATIVE)],
            language="c++",
            extra_compile_args=FLAGS,
            extra_link_args=LINK_FLAGS,
            # Without a compiler the NumPy counter runs; this switch makes that an error.
            optional=os.environ.get("TENSORSTATE_REQUIRE_NATIVE", "") != "1",
        )
    ]
)
