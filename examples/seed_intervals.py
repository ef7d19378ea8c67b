"""Figures of several seeds in, their mean with an interval out, and tables of them."""

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
        half: Half the width of Student's 95 % interval; NaN for a single seed.
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


def interval_of(values: Sequence[float]) -> Interval:
    """Return the mean of some seeds' values and its interval.

    Given the differences between two arms that share their seeds, this is the paired t interval.

    Args:
        values: One value per seed.
    """
    mean, half = bands_of([[value] for value in values])
    return Interval(float(mean[0]), float(half[0]))


def bands_of(
    curves: Sequence[Sequence[float]],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the mean of some seeds' curves, and half of its interval, at each epoch.

    Args:
        curves: One curve per seed, all of one length.

    Returns:
        Two arrays, a number for each epoch.
    """
    array = np.asarray(curves, dtype=np.float64)
    n_seeds = len(array)
    if n_seeds < 2:
        return array.mean(axis=0), np.full(array.shape[1], np.nan)
    quantile = stats.t.ppf((1 + LEVEL) / 2, n_seeds - 1)
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
