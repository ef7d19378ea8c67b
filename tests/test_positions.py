"""The positions that are read lie all over a sample, and depend on its shape alone."""

import math

import numpy as np
import pytest

from tensorstate_callbacks.states.positions import spread_positions

GRIDS = [(112, 112), (7, 7), (197,), (16, 7, 7), (3, 200), (1, 9, 1), (2, 2, 2, 2), (1,), ()]


@pytest.mark.parametrize("grid", GRIDS)
def test_those_of_fewer_are_among_those_of_more(grid):
    total = math.prod(grid)
    before = set()
    for count in (1, 2, 3, 4, 8, 16, 50, total // 2, total - 1, total, total + 5):
        if count < 1 or min(count, total) < len(before):
            continue
        places = spread_positions(grid, count).tolist()
        assert places == sorted(set(places))
        assert len(places) == min(count, total)
        assert 0 <= places[0] <= places[-1] < total
        assert before <= set(places)
        before = set(places)
    assert len(before) == total


def test_sixteen_of_a_map_lie_in_all_its_quarters():
    rows, columns = np.divmod(spread_positions((112, 112), 16), 112)
    in_quarters = np.histogram2d(rows, columns, bins=2, range=[[0, 112]] * 2)[0]
    assert in_quarters.sum() == 16
    assert in_quarters.min() >= 3


@pytest.mark.parametrize(
    ("grid", "count", "parts"),
    [((200,), 16, 8), ((56, 56), 64, 4), ((14, 14), 16, 2), ((8, 28, 28), 256, 4)],
)
def test_they_are_even(grid, count, parts):
    places = np.stack(np.unravel_index(spread_positions(grid, count), grid), axis=1)
    ranges = [[0, size] for size in grid]
    counts = np.histogramdd(places, bins=[parts] * len(grid), range=ranges)[0]
    mean = count / parts ** len(grid)
    assert counts.min() >= mean / 2
    assert counts.max() <= 2 * mean


def test_places_are_read_only():
    with pytest.raises(ValueError, match="read-only"):
        spread_positions((8, 8), 4)[0] = 1
