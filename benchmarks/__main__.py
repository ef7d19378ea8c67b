"""Measure the parts that are named, print their ratios, and write `RESULTS.md` if asked."""

import argparse
import sys

from benchmarks import table
from benchmarks.machine import description
from benchmarks.parts import PARTS
from benchmarks.pinned import measure
from benchmarks.results import RESULTS, save
from benchmarks.rows import Options, Row


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    # No `choices`: argparse checks an empty default against them.
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; or all")
    parser.add_argument("--quick", action="store_true", help="small data: shows only that it works")
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}")
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(
            f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}"
        )
    if arguments.save and arguments.quick:
        parser.error("quick numbers say nothing about speed: leave --quick or --save out")
    rows: list[Row] = []
    for name in arguments.parts or PARTS:
        print(f"{name}...", file=sys.stderr, flush=True)
        rows += measure(name, Options(quick=arguments.quick))
    print("\n".join(description()), table.table(table.lines(rows)), sep="\n\n")
    missed = [row for row in rows if row.met is False]
    print(f"\n{sum(row.met is True for row in rows)} targets met, {len(missed)} missed")
    if arguments.save:
        save(rows)


if __name__ == "__main__":
    main()
