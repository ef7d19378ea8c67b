"""Runs a function of `rank_runs` in several processes of one gloo group: what each returned out.

All are forked off one process that has imported everything: importing is what takes long.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent


def run(name: str, n_ranks: int, deadline: float = 120) -> list[dict[str, Any]]:
    """Return what `rank_runs.<name>()` returned on each rank, by rank; JSON's types only.

    Args:
        name: The function; it runs with the environment variables that launchers set.
        n_ranks: How many processes.
        deadline: Seconds after which they are ended.

    Raises:
        AssertionError: One raised an error or didn't end; the message has its output.
    """
    paths = [str(TESTS), str(TESTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, __file__, name, str(n_ranks), folder, str(deadline)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        files = [Path(folder, f"{rank}.json") for rank in range(n_ranks)]
        # A rank that ended on purpose left nothing.
        return [json.loads(f.read_text()) if f.exists() else {} for f in files]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rank_process(function: Callable[[], Any], environment: dict[str, str], result: Path) -> None:
    os.environ.update(environment)
    status = 1
    try:
        result.write_text(json.dumps(function()))
        status = 0
    except BaseException:  # noqa: BLE001 - a forked process must not go on in the caller
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main(name: str, n_ranks: int, folder: str, deadline: float) -> int:
    import rank_runs

    function = getattr(rank_runs, name)
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        # Lightning takes WORLD_SIZE out when a Trainer ends.
        "N_RANKS": str(n_ranks),
        "WORLD_SIZE": str(n_ranks),
        "NODE_RANK": "0",
        "OMP_NUM_THREADS": "1",
    }
    running = {}
    for rank in range(n_ranks):
        process = os.fork()
        if not process:
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            rank_process(function, {**common, **own}, Path(folder, f"{rank}.json"))
        running[process] = rank
    status, end = 0, time.monotonic() + deadline
    while running:
        process, ended = os.waitpid(-1, os.WNOHANG)
        if process:
            code = os.waitstatus_to_exitcode(ended)
            rank = running.pop(process)
            if code not in (0, rank_runs.DIED_ON_PURPOSE):
                print(f"rank {rank} ended with {code}")
                status = 1
        elif time.monotonic() > end:
            print(f"ranks {sorted(running.values())} did not end within {deadline} s")
            for left in running:
                os.kill(left, 9)
                os.waitpid(left, 0)
            return 1
        else:
            time.sleep(0.02)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4])))
