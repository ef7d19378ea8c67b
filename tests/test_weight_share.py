"""What is said of layers whose weights the default selection leaves out."""

import pytest

from tensorstate_callbacks.recording.selection import uncovered_message


@pytest.mark.parametrize(
    ("owned", "covered"), [({}, 0), ({}, 5), ({"a": 10}, 90), ({"a": 5, "b": 5}, 91)]
)
def test_nine_tenths_of_the_weights_are_enough(owned, covered):
    assert uncovered_message(owned, covered) is None


def test_layers_of_one_percent_or_more_are_named_largest_first():
    text = uncovered_message({"small": 10, "tiny": 9, "large": 581}, 400)
    assert "covers 40 % of the weights; not probed: large (58 %), small (1 %). " in text
    assert "attach_to" in text


def test_the_list_is_cut():
    text = uncovered_message({f"expert_{n}": 10 for n in range(9)}, 10)
    assert "expert_5 (10 %) and 3 more. " in text


def test_many_small_layers_are_spoken_for_by_one():
    text = uncovered_message({f"part_{n}": 1 for n in range(500)}, 500)
    assert "covers 50 % of the weights; not probed: part_0 (less than 1 %). " in text


def test_nothing_covered_is_said():
    assert "covers 0 % of the weights; not probed: lstm (100 %)" in uncovered_message(
        {"lstm": 3}, 0
    )
