"""Neurons that fired in exactly the same states, or in the others: NumPy's whole columns agree."""

import numpy as np
import pytest
from planted import activations, found_by_numpy, planted

from tensorstate_callbacks import GroupCounter, StateCounter
from tensorstate_callbacks.states import agreement
from tensorstate_callbacks.states.agreement import Agreement
from tensorstate_callbacks.states.partition import part_of


def counted(fires):
    counter = StateCounter(fires.shape[1])
    counter.update(activations(fires), -1)
    return counter


def of_counter(counter):
    return Agreement.of_states(counter.states(), counter.fired(), counter.n_states)


def groups(found, fires):
    """As `found_by_numpy` tells them."""
    often = fires.sum(axis=0)
    sides = found.pairs_of_sides((often > 0) & (often < len(fires)))
    agreeing = sorted(group for pair in sides for group in pair if len(group) > 1)
    return tuple(agreeing), tuple(pair for pair in sides if pair[1])


@pytest.mark.parametrize("n_neurons", [1, 2, 8, 14, 16, 22, 64, 65, 130])
@pytest.mark.parametrize("n_states", [1, 2, 5, 300])
def test_layer_is_that_of_whole_columns(n_neurons, n_states):
    fires = planted(n_states, n_neurons, seed=n_states)
    assert groups(of_counter(counted(fires)), fires) == found_by_numpy(fires)[2:]


def test_planted_groups_are_found_by_name():
    fires = planted()
    agreeing, opposing = groups(of_counter(counted(fires)), fires)
    assert agreeing == ((2, 7), (4, 10, 11))
    assert opposing == (((2, 7), (9,)), ((12,), (13,)))


def test_one_state_in_thousands_tells_two_neurons_apart(monkeypatch):
    # Small pieces, so that the state is in a late one.
    monkeypatch.setattr(agreement, "_SAMPLE", 16)
    monkeypatch.setattr(agreement, "_CELLS", 300)
    fires = planted(6000, 30, seed=1)
    assert groups(of_counter(counted(fires)), fires)[0] == ((2, 7), (4, 10, 11))
    for at in (0, 17, 3000, 5999):
        other = fires.copy()
        other[at, 7] ^= True
        found = groups(of_counter(counted(other)), other)
        assert found == found_by_numpy(other)[2:]
        assert found[0] == ((4, 10, 11),)


@pytest.mark.parametrize("group_size", [1, 3, 8, 16, 22])
@pytest.mark.parametrize("n_neurons", [1, 14, 24, 50])
def test_units_are_told_within_each(group_size, n_neurons):
    for seed in range(3):
        fires = planted(60, n_neurons, seed)
        counter = GroupCounter(n_neurons, group_size)
        counter.update(activations(fires), -1)
        found = Agreement.of_tables(counter.tables(), n_neurons, group_size)
        assert groups(found, fires) == found_by_numpy(fires, group_size)[2:]


def test_many_units_in_several_pieces(monkeypatch):
    monkeypatch.setattr(agreement, "_ENTRIES", 1 << 10)
    fires = np.concatenate([planted(90, 24, seed) for seed in range(9)], axis=1)[:, :-3]
    counter = GroupCounter(fires.shape[1], 8)
    counter.update(activations(fires), -1)
    found = Agreement.of_tables(counter.tables(), fires.shape[1], 8)
    assert groups(found, fires) == found_by_numpy(fires, 8)[2:]


@pytest.mark.parametrize("n_parts", [2, 3, 40])
@pytest.mark.parametrize("n_states", [3, 40, 500])
def test_parts_give_what_the_whole_gives(n_parts, n_states):
    for seed in range(4):
        fires = planted(n_states, 24, seed)
        whole = counted(fires)
        states, counts = whole.snapshot()
        parts = []
        # As ranks share the states: a neuron that varies may be constant in all states of one.
        for part in range(n_parts):
            own, mine = StateCounter(24), part_of(states, n_parts) == part
            own.add_counts(np.ascontiguousarray(states[mine]), counts[mine])
            if own.n_states:
                parts.append(of_counter(own))
        assert Agreement.of_parts(parts) == of_counter(whole)
        assert hash(Agreement.of_parts(parts)) == hash(of_counter(whole))


def test_no_states_say_nothing():
    found = of_counter(StateCounter(5))
    assert found.pairs_of_sides(np.zeros(5, bool)) == []
