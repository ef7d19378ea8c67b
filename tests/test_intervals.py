"""Intervals against jackknives by hand, SciPy, and how often they hold what they promise."""

import math

import numpy as np
import pytest
from scipy import stats

from tensorstate_callbacks import EfficiencyReport, LayerReport, aIQ
from tensorstate_callbacks.metrics.entropy import chao_shen, grassberger
from tensorstate_callbacks.metrics.intervals import (
    Interval,
    accuracy_interval,
    aiq_interval,
    efficiency_interval,
    entropy_interval,
    network_interval,
)
from tensorstate_callbacks.states.spectrum import Spectrum

COUNTS = [9, 7, 5, 5, 3, 2, 1, 1]
RARE = [8, 3, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1]
Z = stats.norm.ppf(0.975)


def layer(counts, n_neurons=4, alpha=1, name="conv"):
    fired = np.ones(n_neurons, dtype=np.uint64)
    return LayerReport.from_spectrum(name, Spectrum.from_counts(counts), fired, alpha)


def jackknife_error(counts):
    """Standard error from the entropies with one state left out, each worked out by itself."""
    n, left_out = sum(counts), []
    for i, count in enumerate(counts):
        rest = stats.entropy([c - (j == i) for j, c in enumerate(counts)], base=2)
        left_out += [rest] * count
    return math.sqrt((n - 1) * np.var(left_out))


def test_ends_are_both_estimators_and_the_error_of_the_jackknife():
    spectrum = Spectrum.from_counts(RARE)
    least, most, error = grassberger(spectrum), chao_shen(spectrum), jackknife_error(RARE)
    assert most > least
    estimate, low, high = entropy_interval(spectrum)
    assert estimate == most
    assert low == pytest.approx(least - Z * error, rel=1e-12)
    assert high == pytest.approx(most + (most - least) + Z * error, rel=1e-12)


def test_where_chao_shen_corrects_less_the_larger_estimate_counts():
    spectrum = Spectrum.from_counts(COUNTS)
    assert chao_shen(spectrum) < grassberger(spectrum)
    estimate, low, high = entropy_interval(spectrum, 0.9)
    error = stats.norm.ppf(0.95) * jackknife_error(COUNTS)
    assert estimate == grassberger(spectrum)
    assert (low, high) == pytest.approx((estimate - error, estimate + error), rel=1e-12)


def test_samples_count_as_one_observation_each():
    spectrum = Spectrum.from_counts(COUNTS)
    half = entropy_interval(spectrum).high - entropy_interval(spectrum).estimate
    by_sample = entropy_interval(spectrum, n_samples=10)
    assert by_sample.high - by_sample.estimate == pytest.approx(half * math.sqrt(32 / 9))
    for n_samples in (33, 34, 10**6):
        assert entropy_interval(spectrum, n_samples=n_samples) == entropy_interval(spectrum)


def test_of_one_observation_nothing_is_known():
    assert efficiency_interval(Spectrum.from_counts([1]), 4)[1:] == (0, 1)
    assert efficiency_interval(Spectrum.from_counts([3, 2]), 4, n_samples=1)[1:] == (0, 1)


def test_efficiency_is_its_share_of_the_neurons_and_stays_a_share():
    spectrum = Spectrum.from_counts(COUNTS)
    bits = entropy_interval(spectrum, max_bits=8)
    assert efficiency_interval(spectrum, 8) == tuple(end / 8 for end in bits)
    assert layer(COUNTS, 8).interval() == efficiency_interval(spectrum, 8)
    assert layer(COUNTS, 8).interval(0.5, n_samples=9) == efficiency_interval(
        spectrum, 8, 0.5, n_samples=9
    )
    assert efficiency_interval(spectrum, 3).high == 1
    assert efficiency_interval(Spectrum.from_counts([1, 1, 7]), 3, n_samples=2).low == 0


def test_layers_estimate_their_entropy_within_what_neurons_can_carry():
    rare = layer(RARE, 8)
    assert rare.estimate() == chao_shen(rare.spectrum) > 3.8
    assert rare.estimate("grassberger") == grassberger(rare.spectrum)
    assert layer([1] * 8, 3).estimate() == 3


@pytest.mark.parametrize(("accuracy", "n"), [(0.9912, 5000), (0.5, 7), (0.0, 20), (1.0, 20)])
def test_accuracy_has_the_interval_of_scipy(accuracy, n):
    expected = stats.binomtest(round(accuracy * n), n).proportion_ci(0.9, "wilson")
    if accuracy == 0.5:  # 3.5 of 7: between two numbers of hits, by Wilson's formula
        centre, half = 0.5, math.sqrt(0.25 / n + (z := stats.norm.ppf(0.95)) ** 2 / (4 * n * n))
        expected = (centre - z * half / (1 + z * z / n), centre + z * half / (1 + z * z / n))
    estimate, *ends = accuracy_interval(accuracy, 0.9, n_samples=n)
    assert estimate == accuracy
    assert ends == pytest.approx(list(expected), abs=1e-12)
    assert 0 <= ends[0] <= accuracy <= ends[1] <= 1


def test_network_takes_all_ends_at_once():
    layers = [Interval(0.2, 0.1, 0.4), Interval(0.8, 0.4, 0.9)]
    network = network_interval(iter(layers))
    assert network == pytest.approx((0.4, 0.2, 0.6))
    accuracy = Interval(0.9, 0.8, 1.0)
    expected = [aIQ(0.4, 0.9, 3), aIQ(0.2, 0.8, 3), aIQ(0.6, 1.0, 3)]
    assert aiq_interval(network, accuracy, 3) == pytest.approx(expected)


def test_report_has_intervals_of_the_network_and_of_aiq():
    layers = [layer(COUNTS, 4, name="a"), layer([30, 20, 4, 1, 1], 6, name="b")]
    report = EfficiencyReport({x.name: x for x in layers}, accuracy=0.9, beta=3)
    network = network_interval(x.interval(0.8, n_samples=20) for x in layers)
    assert report.interval(0.8, n_samples=20) == network
    expected = aiq_interval(network, accuracy_interval(0.9, 0.8, n_samples=20), 3)
    assert report.aiq_interval(0.8, n_samples=20) == expected
    assert report.interval() == network_interval(x.interval() for x in layers)
    assert EfficiencyReport({"a": layers[0]}).aiq_interval(n_samples=20) is None


def test_other_orders_than_shannons_have_no_interval():
    report = EfficiencyReport({"conv": layer(COUNTS, alpha=2)}, accuracy=0.9, alpha=2)
    for interval in (report.interval, lambda: report.aiq_interval(n_samples=10)):
        with pytest.raises(ValueError, match="alpha=1; the metrics of this report are of order 2"):
            interval()


@pytest.mark.parametrize("level", [0, 1, -0.5, 95, math.nan])
def test_levels_that_are_none(level):
    with pytest.raises(ValueError, match=r"level.*got"):
        entropy_interval(Spectrum.from_counts(COUNTS), level)
    with pytest.raises(ValueError, match=r"level.*got"):
        accuracy_interval(0.5, level, n_samples=10)


def test_numbers_of_samples_and_accuracies_that_are_none():
    with pytest.raises(ValueError, match="n_samples must be 1 or more; got 0"):
        entropy_interval(Spectrum.from_counts(COUNTS), n_samples=0)
    with pytest.raises(ValueError, match="n_samples must be 1 or more; got -3"):
        accuracy_interval(0.5, n_samples=-3)
    with pytest.raises(ValueError, match="accuracy must be a share, 0 to 1; got 97"):
        accuracy_interval(97, n_samples=10)
    with pytest.raises(ValueError, match="no states"):
        entropy_interval(Spectrum.from_counts([]))


@pytest.mark.parametrize("n_states", [300, 3_000, 300_000])
def test_intervals_hold_the_true_entropy(n_states, rng):
    """At coverages of 0.14, 0.77 and 1; docs/how_to/estimators.md has more."""
    held = 0
    for _ in range(100):
        counts = rng.multinomial(n_states, np.full(2**11, 2.0**-11))
        _, low, high = entropy_interval(Spectrum.from_counts(counts))
        held += low <= 11 <= high
    # 100 draws of 0.95 give 89 or more in 99 of 100 cases.
    assert held >= 89


def test_sharp_intervals_miss_as_often_as_they_say(rng):
    """Where nothing is unseen, half of the intervals of level 0.5 miss."""
    shares = np.array([0.5, 0.3, 0.15, 0.05])
    truth = -float((shares * np.log2(shares)).sum())
    held = 0
    for _ in range(400):
        _, low, high = entropy_interval(Spectrum.from_counts(rng.multinomial(2000, shares)), 0.5)
        held += low <= truth <= high
    assert 170 <= held <= 230
