"""Words of a command line in; text out: `python -m tensorstate_callbacks` says what runs here."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from tensorstate_callbacks.installation import describe_installation


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code, 0 if all is well."""
    parser = argparse.ArgumentParser(
        prog="python -m tensorstate_callbacks",
        description="Say which version and kernel run here, why, and which extras are installed.",
    )
    parser.parse_args(arguments)
    text, counts = describe_installation()
    print(text)
    return 0 if counts else 1


if __name__ == "__main__":
    raise SystemExit(main())
