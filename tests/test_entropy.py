import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorstate_callbacks import entropy
from tensorstate_callbacks.metrics.entropy import spectrum_entropy
from tensorstate_callbacks.states.spectrum import Spectrum

COUNTS = st.lists(st.integers(1, 2**40), min_size=1, max_size=60)


def by_definition(counts, alpha):
    shares = np.array(counts, dtype=np.float64) / sum(counts)
    if alpha == 1:
        return float(-(shares * np.log2(shares)).sum())
    if alpha == math.inf:
        return float(-np.log2(shares.max()))
    return float(np.log2((shares**alpha).sum()) / (1 - alpha))


def test_shannon_entropy_of_a_hand_calculation():
    # 1/2, 1/4, 1/4: 0.5 * 1 + 2 * 0.25 * 2
    assert entropy([2, 1, 1]) == pytest.approx(1.5, abs=1e-15)


@pytest.mark.parametrize(
    ("alpha", "bits"),
    [(0, math.log2(3)), (1, 1.5), (2, math.log2(8 / 3)), (math.inf, 1.0)],
)
def test_renyi_orders_of_a_hand_calculation(alpha, bits):
    assert entropy([2, 1, 1], alpha) == pytest.approx(bits, rel=1e-14)


@given(COUNTS, st.sampled_from([0, 0.5, 1, 1.5, 2, 7, math.inf]))
def test_entropy_is_its_definition(counts, alpha):
    assert entropy(counts, alpha) == pytest.approx(by_definition(counts, alpha), abs=1e-9)


@given(COUNTS, st.randoms(use_true_random=False))
def test_entropy_is_the_same_to_the_last_bit_in_any_order(counts, random):
    shuffled = list(counts)
    random.shuffle(shuffled)
    assert entropy(shuffled) == entropy(counts)
    assert entropy(shuffled, 0.3) == entropy(counts, 0.3)


def test_entropy_of_one_state_is_zero():
    assert entropy([7]) == 0.0
    assert math.copysign(1, entropy([2**60])) == 1.0


def test_entropy_of_nearly_one_state_is_not_negative():
    # The plain difference of logarithms gives -7e-15 here.
    assert entropy([1463886916054414137, 1]) == 0.0


def test_large_orders_neither_overflow_nor_vanish():
    # The largest share alone decides: log2(1 / 0.6) * alpha / (alpha - 1).
    assert entropy([600, 400], 5000) == pytest.approx(math.log2(1 / 0.6) * 5000 / 4999)


def test_zeros_add_nothing():
    assert entropy([2, 0, 1, 1, 0]) == entropy([2, 1, 1])


def test_counts_past_what_64_bits_add_up_to():
    assert entropy(np.array([2**63, 2**63, 2**63, 2**63], dtype=np.uint64)) == 2.0


@pytest.mark.parametrize(
    ("counts", "error", "words"),
    [
        ([], ValueError, "no states"),
        ([0, 0], ValueError, "no states"),
        ([3, -1], ValueError, "negative.*-1"),
        ([0.5, 0.5], TypeError, "whole numbers.*float64"),
        ([[1, 2]], ValueError, r"one-dimensional.*\(1, 2\)"),
    ],
)
def test_counts_that_are_no_counts(counts, error, words):
    with pytest.raises(error, match=words):
        entropy(counts)


@pytest.mark.parametrize("alpha", [-1, -0.001, math.nan])
def test_orders_that_are_no_orders(alpha):
    with pytest.raises(ValueError, match="alpha"):
        entropy([1, 2], alpha)


def test_spectrum_counts_counts():
    spectrum = Spectrum.from_counts([5, 1, 1, 9, 5, 1])
    assert spectrum.values.tolist() == [1, 5, 9]
    assert spectrum.multiplicities.tolist() == [3, 2, 1]
    assert (spectrum.n_states, spectrum.n_distinct, spectrum.n_singletons) == (22, 6, 3)


def test_spectrum_entropy_is_that_of_its_counts():
    counts = [5, 1, 1, 9, 5, 1]
    assert spectrum_entropy(Spectrum.from_counts(counts), 2) == entropy(counts, 2)
