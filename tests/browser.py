"""Show what a command serves in a headless Chromium, for tests and pictures.

Takes Debian's packages chromium and chromium-driver, or another Chromium and its chromedriver.
"""

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import pytest
from selenium import webdriver

Found = TypeVar("Found")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
MISSING = [name for name, path in [("chromium", CHROMIUM), ("chromedriver", DRIVER)] if not path]

# No GPU, no sandbox for root in a container, nothing from the network but what is asked for.
_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--force-device-scale-factor=1",
)


def in_browser(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test as one of pages; it is skipped, saying so, where there is no browser."""
    reason = f"needs {' and '.join(MISSING)} (Debian: apt-get install chromium chromium-driver)"
    return pytest.mark.browser(pytest.mark.skipif(bool(MISSING), reason=reason)(test))


@contextlib.contextmanager
def chromium(width: int = 1400, height: int = 1000) -> Iterator[webdriver.Chrome]:
    """Start a browser that nobody used before, and close it in the end.

    Args:
        width: Of the page, pixels.
        height: Of the page, pixels.
    """
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    with tempfile.TemporaryDirectory() as profile:
        for option in (
            *_OPTIONS,
            f"--user-data-dir={profile}",
            f"--window-size={width},{height}",
        ):
            options.add_argument(option)
        # With both paths given, selenium looks for no driver on the network.
        service = webdriver.ChromeService(executable_path=DRIVER)
        driver = webdriver.Chrome(options=options, service=service)
        try:
            driver.set_page_load_timeout(120)
            driver.set_script_timeout(60)
            yield driver
        finally:
            driver.quit()


def free_port() -> int:
    """Return a port of this machine that nobody listens to."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def served(
    command: Sequence[str | Path], url: str, seconds: float = 120, **options: object
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the end of the block, which begins once `url` answers.

    Args:
        command: The server's command line.
        url: A page of it.
        seconds: How long to wait for the answer.
        options: More arguments for `subprocess.Popen`.

    Raises:
        RuntimeError: It ended before it answered; the message holds what it wrote.
        TimeoutError: It didn't answer in time.
    """
    with tempfile.TemporaryFile() as written:
        process = subprocess.Popen(
            list(map(str, command)),
            stdout=written,
            stderr=subprocess.STDOUT,
            **options,  # type: ignore[call-overload]
        )

        def answers() -> bool:
            if process.poll() is not None:
                written.seek(0)
                raise RuntimeError(f"{command[0]} ended: {written.read().decode()[-2000:]}")
            try:
                with urllib.request.urlopen(url, timeout=5) as page:  # noqa: S310 - loopback
                    return bool(page.status == 200)
            except (urllib.error.URLError, OSError):
                return False

        try:
            wait_for(answers, f"an answer from {url}", seconds)
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for(look: Callable[[], Found], what: str, seconds: float = 60) -> Found:
    """Look again and again until something true is found, and return it.

    Args:
        look: Returns what is looked for, or something false while it isn't there.
        what: Its name, for the error.
        seconds: How long to wait.

    Raises:
        TimeoutError: It never came; the message holds what was found instead.
    """
    end = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds} s for {what}; found {found!r}")
        time.sleep(0.2)
    return found
