"""Estimate means over seeds with their intervals, and lay them out in tables."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

LEVEL = 0.95


class Interval(NamedTuple):
    """A mean, and how far it may be off.

    Attributes:
        mean: Mean over the seeds.
        half: Half the width of Student's interval; NaN for a single seed.
    """

    mean: float
    half: float

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + self._width()

    def signed(self) -> str:
        """Return it as a difference, with its sign."""
        return f"{self.mean:+.3f}" + self._width()

    def _width(self) -> str:
        return "" if math.isnan(self.half) else f" ± {self.half:.3f}"

    def verdict(self) -> str:
        """Return which sign the interval leaves: `"higher"`, `"lower"`, or `"undecided"`."""
        if self.mean - self.half > 0:
            return "higher"
        return "lower" if self.mean + self.half < 0 else "undecided"


def interval_of(values: Sequence[float], n_comparisons: int = 1) -> Interval:
    """Return the mean of some seeds' values and its interval.

    Given the differences between two arms that share their seeds, this is the paired t interval.

    Args:
        values: One value per seed.
        n_comparisons: Number of intervals that hold the truth together in 95 % of all cases, by
            Bonferroni's correction.
    """
    mean, half = bands_of([[value] for value in values], n_comparisons)
    return Interval(float(mean[0]), float(half[0]))


def describe_difference(values: Sequence[float], n_comparisons: int) -> str:
    """Return a difference with its corrected interval, bold where that leaves one sign only.

    The half width without the correction follows in parentheses.

    Args:
        values: One difference per seed.
        n_comparisons: Number of comparisons that the correction is for.
    """
    corrected, alone = interval_of(values, n_comparisons), interval_of(values)
    if math.isnan(alone.half):
        return corrected.signed()
    text = f"{corrected.signed()} ({alone.half:.3f})"
    return text if corrected.verdict() == "undecided" else f"**{text}**"


def bands_of(
    curves: Sequence[Sequence[float]], n_comparisons: int = 1
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the mean of some seeds' curves, and half of its interval, at each epoch.

    Args:
        curves: One curve per seed, all of one length.
        n_comparisons: As for `interval_of`.

    Returns:
        Two arrays, a number for each epoch.
    """
    array = np.asarray(curves, dtype=np.float64)
    n_seeds = len(array)
    if n_seeds < 2:
        return array.mean(axis=0), np.full(array.shape[1], np.nan)
    quantile = stats.t.isf((1 - LEVEL) / (2 * n_comparisons), n_seeds - 1)
    return array.mean(axis=0), quantile * stats.sem(array, axis=0)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, its columns aligned for the eye too."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * width for width in widths]
    lines = [
        " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in (header, rule, *rows)
    ]
    return "\n".join(f"| {line} |" for line in lines)
