"""An MLflow server on this machine that can be killed and started again, for tests."""

import contextlib
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from browser import free_port, wait_for


class MlflowServer:
    """`mlflow server` on a database and a folder of artifacts.

    Args:
        folder: Where both are, and what the server has to say.
        database: Another place of the database.
    """

    def __init__(self, folder: Path, database: Path | None = None) -> None:
        self.folder, self.port = folder, free_port()
        self._database = database or folder / "mlflow.db"
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        options = {
            "--port": self.port,
            "--backend-store-uri": f"sqlite:///{self._database}",
            "--artifacts-destination": self.folder / "artifacts",
            "--workers": 1,
        }
        words = [*command, *(str(word) for pair in options.items() for word in pair)]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                words, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
            )
        wait_for(self._answers, f"an answer from {self.uri}", 120)

    def kill(self) -> None:
        """End it and its workers as a power cut would."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def hang(self) -> None:
        """Let it take connections and answer none of them."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it answer again."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError((self.folder / "server.log").read_text()[-2000:])
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as page:  # noqa: S310
                return bool(page.status == 200)
        except (urllib.error.URLError, OSError):
            return False


@contextlib.contextmanager
def mlflow_server(folder: Path, database: Path | None = None) -> Iterator[MlflowServer]:
    """Run a server until the end of the block."""
    server = MlflowServer(folder, database)
    server.start()
    try:
        yield server
    finally:
        server.kill()
