"""The compiled counter as Microsoft's compiler reads it: without what only gcc and clang know.

That compiler runs on Windows alone. Its preprocessor is imitated by another one, with its macros
and with empty headers of the standard library.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[1] / "tensorstate_callbacks" / "_native"
MACROS = {
    "x86-64": ["-D_MSC_VER=1940", "-D_WIN32", "-D_M_X64", "-U__x86_64__"],
    "arm64": ["-D_MSC_VER=1940", "-D_WIN32", "-D_M_ARM64", "-U__x86_64__"],
}
UNDEFINED = ["-U__GNUC__", "-U__clang__", "-U__SIZEOF_INT128__", "-U__BYTE_ORDER__", "-U__linux__"]
GNU = re.compile(r"__attribute__|__builtin_\w+|__extension__|__int128|__asm__|\basm\b|\btypeof\b")


@pytest.mark.parametrize("machine", MACROS)
@pytest.mark.parametrize("header", ["counter.hpp", "groups.hpp"])
def test_nothing_that_only_gnu_compilers_know_is_left_for_msvc(machine, header, tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("g++, whose preprocessor is used, is not installed")
    sources = [path.read_text() for path in NATIVE.glob("*.hpp")]
    for name in {name for text in sources for name in re.findall(r"#include <(.+)>", text)}:
        (tmp_path / name).touch()
    done = subprocess.run(
        ["g++", "-E", "-x", "c++", "-std=c++17", "-nostdinc", *UNDEFINED, *MACROS[machine],
         "-isystem", tmp_path, "-I", NATIVE, NATIVE / header],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    code = [line for line in done.stdout.splitlines() if not line.startswith("#")]
    assert [line for line in code if GNU.search(line)] == []
    text = "\n".join(code)
    assert "__forceinline" in text
    assert ("_mm512_gf2p8affine_epi64_epi8" in text) == (machine == "x86-64")
    assert ("vpaddq_u8" in text) == (machine == "arm64")
