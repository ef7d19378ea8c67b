"""Every kernel, also that of a processor which isn't here, packs what plain comparisons say."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tensorstate_callbacks.states.counter import available_kernels

PROJECT = Path(__file__).parents[1]
CASES = 1500


def run_target(target, programs):
    missing = [program for program in ("make", *programs) if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    done = subprocess.run(
        ["make", "--silent", target, f"CASES={CASES}"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(re.findall(r"(\w+): (\d+) cases agree", done.stdout))


def test_kernels_of_this_processor_agree_with_plain_comparisons():
    checked = run_target("test-kernels", ["g++"])
    assert checked == dict.fromkeys(available_kernels()[:-1], str(CASES))


def test_neon_agrees_with_plain_comparisons_under_emulation():
    checked = run_target("test-neon", ["aarch64-linux-gnu-g++", "qemu-aarch64"])
    assert checked == {"neon": str(CASES), "scalar": str(CASES)}
