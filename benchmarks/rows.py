"""What a part is given, and what it gives: one row for each comparison."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple


class Options(NamedTuple):
    """How much to measure.

    Attributes:
        quick: Small data and few runs: shows that everything works, not how fast it is.
    """

    quick: bool = False

    def runs(self, full: int) -> int:
        """Return how many interleaved runs to take a median of."""
        return 1 if self.quick else full


@dataclass(frozen=True)
class Target:
    """What a row is to reach.

    Args:
        limit: The bound.
        at_least: Whether it is a lower bound.
        unit: Of the bound, where it isn't on the ratio but on our own number.
    """

    limit: float
    at_least: bool = True
    unit: str = ""

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.limit:g}{self.unit and ' ' + self.unit}"


@dataclass(frozen=True)
class Row:
    """One comparison, made in one run.

    Args:
        part: The part of the benchmarks it belongs to.
        case: What was measured.
        ours: Our number.
        theirs: The number of what it is compared with.
        unit: Of both.
        against: What it is compared with.
        ratio: Theirs / ours of durations, else ours / theirs.
        target: What the ratio, or where it has a unit our number, is to reach; or None.
        note: What else there is to say.
    """

    part: str
    case: str
    ours: float
    theirs: float
    unit: str
    against: str
    ratio: float
    target: Target | None = None
    note: str = ""

    @property
    def missing(self) -> bool:
        """Whether there was nothing to compare with."""
        return self.ratio == 0

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        if self.target is None or self.missing:
            return None
        # As printed: a target of 3 is met by what the table shows as 3.00.
        judged = round(self.ours, 1) if self.target.unit else round(self.ratio, 3)
        return judged >= self.target.limit if self.target.at_least else judged <= self.target.limit


def speed_up(
    part: str,
    case: str,
    against: str,
    ours: float,
    theirs: float,
    unit: str,
    target: Target | None = None,
    note: str = "",
) -> Row:
    """Return a row whose ratio says how many times quicker ours is."""
    return Row(part, case, ours, theirs, unit, against, theirs / ours, target, note)


def relative(
    part: str,
    case: str,
    against: str,
    ours: float,
    theirs: float,
    unit: str,
    target: Target | None = None,
    note: str = "",
) -> Row:
    """Return a row whose ratio is our number over theirs."""
    return Row(part, case, ours, theirs, unit, against, ours / theirs, target, note)


def not_installed(part: str, case: str, against: str, target: Target | None = None) -> Row:
    """Return the row of a comparison that can't be made here."""
    return Row(part, case, 0, 0, "", against, 0, target, f"{against} is not installed")


Part = Callable[[Options], list[Row]]
