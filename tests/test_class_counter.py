"""A counter by classes holds of each class what one of its samples alone would, to the bit."""

import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tensorstate_callbacks.states import joint_rows
from tensorstate_callbacks.states.class_counter import ClassCounter
from tensorstate_callbacks.states.counter import StateCounter
from tensorstate_callbacks.states.group_counter import GroupCounter

LABELS = np.array([-1, 0, 7, 2_000_000_000])
UNITS = [(1, None), (20, None), (70, None), (8, 8), (20, 8), (10, 3), (5, 22), (33, 1), (40, 16)]


def sampled(
    rng: np.random.Generator, n_neurons: int, n_positions: int, n_samples: int = 50
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Return firing states (samples, positions, neurons), few enough to meet, and labels."""
    fires = rng.random((n_samples, n_positions, n_neurons)) < 0.9
    fires[:, :, 2:] = fires[:, :, 2:3]
    return fires, rng.choice(LABELS, n_samples)


def packed(fires: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    return np.packbits(fires.reshape(-1, fires.shape[-1]), axis=1, bitorder="little")


def plain(fires: npt.NDArray[np.bool_], group_size: int | None) -> StateCounter | GroupCounter:
    n_neurons = fires.shape[-1]
    counter = StateCounter(n_neurons) if group_size is None else GroupCounter(n_neurons, group_size)
    counter.update_packed(packed(fires))
    return counter


def contents(counter: StateCounter | GroupCounter) -> list[Any]:
    if isinstance(counter, GroupCounter):
        return [counter.n_states, counter.tables().tolist()]
    return [column.tolist() for column in counter.snapshot()]


def same(counter: ClassCounter, other: ClassCounter) -> bool:
    alike = all(map(np.array_equal, counter.rows(), other.rows()))
    return alike and (counter.n_samples, counter.n_states) == (other.n_samples, other.n_states)


@pytest.mark.parametrize("n_positions", [1, 6])
@pytest.mark.parametrize(("n_neurons", "group_size"), UNITS)
def test_each_class_is_that_of_its_samples_alone(
    rng: np.random.Generator, n_neurons: int, group_size: int | None, n_positions: int
) -> None:
    fires, labels = sampled(rng, n_neurons, n_positions)
    counter = ClassCounter(n_neurons, group_size)
    counter.update_packed(packed(fires), labels)
    for label in LABELS:
        assert contents(counter.of(label)) == contents(plain(fires[labels == label], group_size))
    assert contents(counter.total()) == contents(plain(fires, group_size))
    assert counter.n_states == 50 * n_positions
    assert counter.n_samples == {label: (labels == label).sum() for label in labels}
    assert counter.labels().tolist() == sorted({*labels.tolist()})
    assert counter.of(99).n_states == 0


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize(("n_neurons", "group_size"), UNITS)
def test_batches_order_and_merging_change_nothing(
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    n_neurons: int,
    group_size: int | None,
    size: int,
) -> None:
    fires, labels = sampled(rng, n_neurons, 5)
    whole, parts = ClassCounter(n_neurons, group_size), ClassCounter(n_neurons, group_size)
    whole.update_packed(packed(fires), labels)
    monkeypatch.setattr(joint_rows, "_MOST_BYTES", 500)
    order = rng.permutation(len(labels))
    for start in range(0, len(order), size):
        some = order[start : start + size]
        part = ClassCounter(n_neurons, group_size)
        part.update_packed(packed(fires[some]), labels[some])
        parts.merge(part)
    assert same(parts, whole)
    assert same(copy.deepcopy(parts), whole)
    again = ClassCounter.of_joint(n_neurons, group_size, whole.joint, dict(whole.n_samples))
    assert same(again, whole)


def test_rows_tell_in_how_many_samples_a_state_was_seen_how_often() -> None:
    # Sample 0 and 2 of class 4 show state 1 twice, sample 1 of class 5 three times.
    states = np.array([[1], [1], [2], [1], [1], [1], [3], [1], [1]], np.uint8)
    counter = ClassCounter(2)
    counter.update_packed(states, np.array([4, 5, 4]))
    rows = counter.rows()
    found = zip(*(column.tolist() for column in rows[1:]), strict=True)
    assert [*found] == [
        (0, [1], 4, 2, 2),
        (0, [1], 5, 3, 1),
        (0, [2], 4, 1, 1),
        (0, [3], 4, 1, 1),
    ]


def test_nothing_comes_of_no_samples() -> None:
    counter = ClassCounter(3)
    counter.update_packed(np.zeros((0, 1), np.uint8), np.zeros(0, np.int64))
    counter.update_packed(np.zeros((0, 1), np.uint8), np.array([1, 2]))
    assert (counter.n_states, counter.n_rows, counter.n_samples) == (0, 0, {})


@pytest.mark.parametrize(
    ("labels", "error", "text"),
    [
        (np.array([1, 2]), ValueError, "3 states can't be those of 2 samples"),
        (np.zeros(0, np.int64), ValueError, "3 states can't be those of 0 samples"),
        (np.array([1.0, 2.0, 3.0]), TypeError, "whole numbers.*float64"),
        (np.array([[1], [2], [3]]), TypeError, r"shape \(3, 1\)"),
        (np.array([1, 2, 2**31]), ValueError, "more than 32 bits"),
    ],
)
def test_a_refused_call_leaves_the_counter_as_it_was(labels: Any, error: Any, text: str) -> None:
    counter = ClassCounter(3)
    with pytest.raises(error, match=text):
        counter.update_packed(np.zeros((3, 1), np.uint8), labels)
    for rows, problem in ((np.full((3, 2), 1), "the shape"), (np.full((3, 1), 8), "bits set")):
        with pytest.raises(ValueError, match=f"{problem}.* 3 neurons|3 neurons.*{problem}"):
            counter.update_packed(rows.astype(np.uint8), np.array([1, 2, 3]))
    assert (counter.n_states, counter.n_rows, counter.n_samples) == (0, 0, {})


def test_other_units_are_not_merged() -> None:
    with pytest.raises(ValueError, match="4 neurons in units of 2 into 4 neurons in units of None"):
        ClassCounter(4).merge(ClassCounter(4, 2))
