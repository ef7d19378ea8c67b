"""The command line: describe what runs here, and show finished runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from tensorstate_callbacks.installation import describe_installation
from tensorstate_callbacks.runs.report_command import add_arguments, report_run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code, 0 if all is well."""
    parser = argparse.ArgumentParser(
        prog="tensorstate-callbacks",
        description="Say which version and kernel run here, why, and which extras are installed.",
    )
    commands = parser.add_subparsers(title="commands", dest="command")
    words = "show what a finished run logged, as tables and curves"
    report = commands.add_parser("report", help=words, description=words.capitalize())
    add_arguments(report)
    given = parser.parse_args(arguments)
    if given.command == "report":
        return report_run(given)
    text, counts = describe_installation()
    print(text)
    return 0 if counts else 1


if __name__ == "__main__":
    raise SystemExit(main())
