"""Estimators of entropy against published values, hand calculations and other implementations."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import digamma

from tensorstate_callbacks.metrics.entropy import (
    ESTIMATORS,
    chao_shen,
    estimate_entropy,
    grassberger,
    grassberger_number,
    jackknife,
    miller_madow,
)
from tensorstate_callbacks.states.spectrum import Spectrum

GAMMA = 0.57721566490153286
NATS = math.log(2)
SMALL = [4, 2, 3, 2, 4, 2, 1, 1]
COUNTS = st.lists(st.integers(1, 400), min_size=1, max_size=40)


def spectrum(counts):
    return Spectrum.from_counts(counts)


def uniform(rng):
    return rng.multinomial(700, np.full(600, 1 / 600))


def zipf(rng):
    shares = 1 / np.arange(1, 3001)
    return rng.multinomial(5000, shares / shares.sum())


def lenet5(_rng):
    from lenet5_torch import digits, trained_lenet5

    import tensorstate_callbacks

    model, (images, _) = trained_lenet5(), digits()
    with tensorstate_callbacks.torch.record(model, attach_to="conv_1") as recording:
        model(images[:40])
    seen = recording.report().layers["conv_1"].spectrum
    return np.repeat(seen.values, seen.multiplicities.astype(np.int64)).astype(np.int64)


STATES = pytest.mark.parametrize("states", [uniform, zipf, lenet5])


@pytest.mark.parametrize(
    ("estimator", "counts", "nats"),
    [
        # What R's package `entropy` (Hausser and Strimmer) gives for the example of its manual,
        # and for six states seen once each; quoted to 12 digits in the tests of a Julia package.
        ("plug-in", SMALL, 1.968382408728),
        ("chao-shen", SMALL, 2.201137101279),
        ("chao-shen", [1] * 6, 3.840549310406),
    ],
)
def test_published_values(estimator, counts, nats):
    assert estimate_entropy(spectrum(counts), estimator) * NATS == pytest.approx(nats, abs=1e-12)


@pytest.mark.parametrize(
    ("count", "value"),
    [
        (1, -GAMMA - NATS),
        (2, 2 - GAMMA - NATS),
        (3, 2 - GAMMA - NATS),
        (4, 2 + 2 / 3 - GAMMA - NATS),
        (7, 2 + 2 / 3 + 2 / 5 - GAMMA - NATS),
    ],
)
def test_numbers_of_grassberger_as_the_paper_defines_them(count, value):
    assert grassberger_number(count) == pytest.approx(value, abs=1e-15)


def test_numbers_of_grassberger_follow_his_recursion_on_both_sides_of_the_series():
    total = Fraction(0)
    for half in range(1, 200):
        total += Fraction(2, 2 * half - 1)
        expected = float(total) - GAMMA - NATS
        for count in (2 * half, 2 * half + 1):
            assert grassberger_number(count) == pytest.approx(expected, abs=2e-15)


def test_miller_madow_adds_half_the_states_over_n():
    assert miller_madow(spectrum([2, 1, 1])) == pytest.approx(1.5 + 2 / (2 * 4 * NATS), abs=1e-15)


def test_chao_shen_of_a_hand_calculation():
    # Counts 2, 2, 1: C = 4/5, shares 8/25, 8/25, 4/25, seen with 1 - (17/25)**5, 1 - (21/25)**5.
    often, once = 1 - (17 / 25) ** 5, 1 - (21 / 25) ** 5
    bits = 2 * (8 / 25 * math.log2(25 / 8)) / often + 4 / 25 * math.log2(25 / 4) / once
    assert chao_shen(spectrum([2, 2, 1])) == pytest.approx(bits, abs=1e-15)


def test_grassberger_of_a_hand_calculation():
    # Counts 2, 1: ln 3 - (2 G(2) + G(1)) / 3.
    nats = math.log(3) - (2 * (2 - GAMMA - NATS) + (-GAMMA - NATS)) / 3
    assert grassberger(spectrum([2, 1])) == pytest.approx(nats / NATS, abs=1e-15)


@given(COUNTS.filter(lambda counts: sum(counts) > 1))
def test_jackknife_leaves_each_state_out_once(counts):
    n = sum(counts)
    left_out = []
    for i, count in enumerate(counts):
        rest = stats.entropy([c - (j == i) for j, c in enumerate(counts)], base=2)
        left_out += [rest] * count
    expected = n * stats.entropy(counts, base=2) - (n - 1) * math.fsum(left_out) / n
    assert jackknife(spectrum(counts)) == pytest.approx(expected, abs=1e-8)


@STATES
def test_infomeasure_gives_the_same(states, rng):
    infomeasure = pytest.importorskip("infomeasure")
    counts = states(rng)
    data = np.repeat(np.arange(len(counts)), counts)
    for ours, theirs in [("plug-in", "discrete"), ("miller-madow", "mm"), ("chao-shen", "cs")]:
        expected = infomeasure.entropy(data, approach=theirs, base=2)
        assert estimate_entropy(spectrum(counts), ours) == pytest.approx(expected, rel=1e-11)


@STATES
def test_dit_gives_the_same_for_grassberger(states, rng):
    estimators = pytest.importorskip(
        "dit.inference.estimators", reason="dit needs Python 3.11 or later"
    )
    counts = states(rng)
    data = np.repeat(np.arange(len(counts)), counts)
    # It takes the digamma function of N where Grassberger takes the logarithm.
    bits = estimators.entropy_2(data) + (math.log(len(data)) - digamma(len(data))) / NATS
    assert estimate_entropy(spectrum(counts), "grassberger") == pytest.approx(bits, rel=1e-11)


@given(COUNTS, st.randoms(use_true_random=False), st.sampled_from(ESTIMATORS))
def test_estimates_are_the_same_to_the_last_bit_in_any_order(counts, random, estimator):
    shuffled = list(counts)
    random.shuffle(shuffled)
    first = estimate_entropy(spectrum(counts), estimator)
    assert estimate_entropy(spectrum(shuffled), estimator) == first


@pytest.mark.parametrize("estimator", ["miller-madow", "chao-shen", "grassberger", "jackknife"])
def test_estimates_of_a_fair_die_are_closer_than_the_plug_in(estimator, rng):
    rolls = [spectrum(rng.multinomial(12, np.full(6, 1 / 6))) for _ in range(300)]
    corrected = np.mean([estimate_entropy(roll, estimator) for roll in rolls])
    plain = np.mean([estimate_entropy(roll, "plug-in") for roll in rolls])
    assert plain < math.log2(6) - 0.2
    assert abs(corrected - math.log2(6)) < 0.6 * (math.log2(6) - plain)


@pytest.mark.parametrize("estimator", ["plug-in", "miller-madow", "chao-shen", "jackknife"])
def test_one_state_has_no_entropy(estimator):
    for count in (1, 2, 3, 10**18):
        assert estimate_entropy(spectrum([count]), estimator) == 0.0


def test_grassberger_of_one_state():
    # ln 1 - G(1); ln 2 - G(2) is negative; ln 3 - G(2); nothing is left for many.
    assert grassberger(spectrum([1])) * NATS == pytest.approx(GAMMA + NATS, abs=1e-15)
    assert grassberger(spectrum([2])) < 0
    assert estimate_entropy(spectrum([2]), "grassberger") == 0.0
    assert grassberger(spectrum([3])) * NATS == pytest.approx(math.log(3) - 2 + GAMMA + NATS)
    assert grassberger(spectrum([10**18])) == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_counts_past_what_floats_and_64_bits_hold(estimator):
    counts = np.array([2**63 + 1] * 4, dtype=np.uint64)
    assert estimate_entropy(spectrum(counts), estimator) == pytest.approx(2.0, abs=1e-14)


def test_estimates_pass_what_n_states_can_show_but_not_what_neurons_can_carry():
    seen = spectrum([1] * 64)
    assert estimate_entropy(seen, "chao-shen") > 11.9 > 6
    assert estimate_entropy(seen, "chao-shen", max_bits=10) == 10
    assert estimate_entropy(seen, "plug-in", max_bits=10) == pytest.approx(6)


def test_unknown_estimators_and_no_states():
    with pytest.raises(ValueError, match=r"no estimator 'nsb'; there are plug-in, miller-madow"):
        estimate_entropy(spectrum([1]), "nsb")
    for estimator in ESTIMATORS:
        with pytest.raises(ValueError, match="no states"):
            estimate_entropy(spectrum([]), estimator)
