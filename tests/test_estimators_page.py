"""The tables of docs/how_to/estimators.md, and the script that writes them."""

import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import estimators  # noqa: E402

PAGE = (ROOT / "docs" / "how_to" / "estimators.md").read_text(encoding="utf-8")


def cells_of(start):
    (line,) = [line for line in PAGE.splitlines() if line.startswith(start)]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_of_the_page_is_what_its_200_draws_give():
    row = estimators.measure(lambda rng: rng.multinomial(1000, estimators.uniform()), 12.0, 200)
    _, _, coverage, truth, *bias, held, width = cells_of("| uniform | 1,000 |")
    assert float(coverage) == pytest.approx(row.coverage, abs=0.006)
    assert float(truth) == row.truth
    # Other versions of NumPy may draw other numbers.
    assert [float(value) for value in bias] == pytest.approx(list(row.bias.values()), abs=0.03)
    assert float(held.rstrip("%")) / 100 == pytest.approx(row.held, abs=0.03)
    assert float(width) == pytest.approx(row.width, abs=0.1)


def test_images_are_drawn_with_all_their_states():
    states = {"conv_1": np.array([[0, 1], [2, 2], [0, 2]])}
    right = np.array([True, False, True])
    report = estimators.report(states, right, np.array([0, 2, 2]))
    assert report.layers["conv_1"].spectrum.values.tolist() == [1, 2, 3]
    assert report.layers["conv_1"].n_states == 6
    assert report.accuracy == 1.0


def test_tables_are_written_between_their_comments(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- a -->\nold\n<!-- end of a -->\nbelow\n", encoding="utf-8")
    estimators.save({"a": ["| 1 |", "| 2 |"]}, page)
    expected = "above\n<!-- a -->\n| 1 |\n| 2 |\n<!-- end of a -->\nbelow\n"
    assert page.read_text(encoding="utf-8") == expected


def test_intervals_are_judged_by_the_truth():
    intervals = [estimators.Interval(2, 1, 3), estimators.Interval(5, 4, 8)]
    assert estimators.judge(intervals, 3) == (0.5, 3.0)
