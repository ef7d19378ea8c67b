"""The compiled counter's tests under sanitizers; the whole of them: make test-asan and so on."""

import subprocess
import sys
from pathlib import Path

import pytest

SANITIZE = Path(__file__).parent / "native" / "sanitize.py"
CANNOT_RUN = 3
# Their data is large: under make test-asan only. The scalar kernel is fuzzed under these
# sanitizers too, with test_native_fuzz.
SLOW = (
    "allocation or other_threads or many_distinct or large_tables or million or colliding"
    " or more_memory or taken_back or test_counter_rollback or test_counter_sizes or scalar"
    " or test_group_counter and (each_unit or merging_adds or counts_stay or one_unit or copy"
    " or batches_order or weigh)"
)


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_the_native_tests_are_clean_under_sanitizers(sanitizers):
    done = subprocess.run(
        [sys.executable, SANITIZE, sanitizers, "-k", f"not numpy and not ({SLOW})"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == CANNOT_RUN:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
