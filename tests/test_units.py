"""Metrics of units: each unit's, as of its own spectrum, summed."""

import math

import numpy as np
import pytest

from tensorstate_callbacks import EfficiencyReport, LayerReport
from tensorstate_callbacks.metrics.entropy import ESTIMATORS, estimate_entropy, spectrum_entropy
from tensorstate_callbacks.metrics.intervals import entropy_interval
from tensorstate_callbacks.metrics.units import UnitMetrics, independent_entropy, unit_sizes
from tensorstate_callbacks.states.group_counter import GroupCounter
from tensorstate_callbacks.states.spectrum import Spectrum


def drawn(n_states, n_neurons, seed=0):
    """Bits of states, of neurons that fire at different rates and go together in pairs."""
    rng = np.random.default_rng(seed)
    bits = rng.random((n_states, n_neurons)) < rng.random(n_neurons)
    bits[:, 1::2] ^= bits[:, : n_neurons - n_neurons % 2 : 2] & (rng.random(n_neurons // 2) < 0.5)
    return bits


def spectra(bits, group_size):
    """Spectrum of each unit, by NumPy."""
    units = [bits[:, at : at + group_size] for at in range(0, bits.shape[1], group_size)]
    return [Spectrum.from_counts(np.unique(unit, axis=0, return_counts=True)[1]) for unit in units]


def layer_of(bits, group_size, alpha=1):
    counter = GroupCounter(bits.shape[1], group_size)
    counter.update(bits, -1)
    return LayerReport.from_tables(
        "layer", counter.tables(), counter.group_size, counter.fired(), alpha
    )


CASES = [(1000, 20, 8), (5, 7, 3), (1, 5, 2), (3000, 40, 16), (300, 30, 1), (2, 9, 4)]


@pytest.mark.parametrize(("n_states", "n_neurons", "group_size"), CASES)
def test_metrics_of_units_are_those_of_their_spectra(n_states, n_neurons, group_size):
    bits = drawn(n_states, n_neurons)
    of_units = spectra(bits, group_size)
    sizes = [int(size) for size in unit_sizes(n_neurons, group_size)]
    assert sum(sizes) == n_neurons
    layer = layer_of(bits, group_size)
    assert (layer.group_size, layer.n_units, layer.spectrum) == (group_size, len(sizes), None)
    assert (layer.n_neurons, layer.n_states) == (n_neurons, n_states)
    assert layer.n_distinct == sum(s.n_distinct for s in of_units)
    assert layer.n_singletons == sum(s.n_singletons for s in of_units)
    coverages = [1 - s.n_singletons / n_states for s in of_units]
    assert layer.coverage == min(coverages)
    assert layer.mean_coverage == pytest.approx(sum(coverages) / len(coverages))
    assert layer.max_share == pytest.approx(
        sum(s.largest for s in of_units) / n_states / len(sizes)
    )
    assert layer.efficiency == pytest.approx(sum(map(spectrum_entropy, of_units)) / n_neurons)
    most = sum(min(size, math.log2(n_states)) for size in sizes)
    assert layer.ceiling == pytest.approx(most / n_neurons)
    for alpha in (0, 0.5, 2, math.inf):
        found = layer_of(bits, group_size, alpha).entropy
        assert found == pytest.approx(sum(spectrum_entropy(s, alpha) for s in of_units), abs=1e-12)
    for name in ESTIMATORS:
        expected = (
            estimate_entropy(s, name, max_bits=size)
            for s, size in zip(of_units, sizes, strict=True)
        )
        assert layer.estimate(name) == pytest.approx(sum(expected), rel=1e-9, abs=1e-12)
    for n_samples in (None, 1, 3):
        intervals = [
            entropy_interval(s, 0.9, n_samples=n_samples, max_bits=size)
            for s, size in zip(of_units, sizes, strict=True)
        ]
        ends = [sum(end) / n_neurons for end in zip(*intervals, strict=True)]
        assert layer.interval(0.9, n_samples=n_samples) == pytest.approx(ends, rel=1e-9)


def test_wrong_questions_are_errors():
    layer = layer_of(drawn(50, 20), 8)
    with pytest.raises(ValueError, match="no estimator 'magic'"):
        layer.estimate("magic")
    with pytest.raises(ValueError, match="level"):
        layer.interval(1.5)
    with pytest.raises(ValueError, match="n_samples must be 1 or more"):
        layer.interval(n_samples=0)
    with pytest.raises(ValueError, match="alpha"):
        UnitMetrics.of_tables(np.ones(4, np.uint64), 2, 2, alpha=-1)
    with pytest.raises(ValueError, match="no states"):
        UnitMetrics.of_tables(np.zeros(4, np.uint64), 2, 2)


@pytest.mark.parametrize("seed", range(3))
def test_larger_units_never_show_more(seed):
    bits = drawn(4000, 32, seed)
    whole = LayerReport.from_spectrum("layer", spectra(bits, 32)[0], bits.sum(0).astype(np.uint64))
    etas = [layer_of(bits, size).efficiency for size in (16, 8, 4, 2, 1)]
    assert [whole.efficiency, *etas] == sorted([whole.efficiency, *etas])
    assert etas[0] < etas[-1]
    # To the last bit, from firing counts alone.
    assert etas[-1] == whole.rate_bound == layer_of(bits, 8).rate_bound
    rates = bits.mean(0)
    bound = sum(-p * math.log2(p) - (1 - p) * math.log2(1 - p) for p in rates if 0 < p < 1) / 32
    assert whole.rate_bound == pytest.approx(bound)
    assert whole.redundancy == 1 - whole.efficiency / whole.rate_bound


@pytest.mark.parametrize("group_size", [12, 13, 22])
def test_a_unit_as_large_as_the_layer_is_the_layer(group_size):
    bits = drawn(700, 12)
    whole = LayerReport.from_spectrum("layer", spectra(bits, 12)[0], bits.sum(0).astype(np.uint64))
    found = layer_of(bits, group_size)
    assert found.efficiency == whole.efficiency
    assert found.spectrum == whole.spectrum
    assert found.interval() == whole.interval()
    assert found.group_size == group_size


def test_independent_neurons_have_no_redundancy():
    every = np.array([[i >> j & 1 for j in range(4)] for i in range(16)], bool)
    assert layer_of(every, 4).redundancy == 0
    assert independent_entropy(every.sum(0).astype(np.uint64), 16) == 4
    never = layer_of(np.zeros((3, 4), bool), 2)
    assert (never.rate_bound, never.efficiency, never.redundancy) == (0, 0, 0)


def test_counts_beyond_what_an_integer_of_64_bits_adds_up_to_are_exact():
    half = np.uint64(2**63 - 1)
    units = UnitMetrics.of_tables(np.array([half, half + np.uint64(1)] * 2, np.uint64), 2, 1)
    assert units.largest.tolist() == [2**63] * 2
    assert units.entropy.tolist() == [1.0, 1.0]


def test_a_report_is_shown_without_arrays():
    for group_size in (8, 20):
        layer = layer_of(drawn(90, 20), group_size)
        text = repr(EfficiencyReport({"layer": layer}))
        assert f"efficiency={layer.efficiency!r}" in text
        assert "array" not in text


def test_they_are_saved_and_compared():
    layer = layer_of(drawn(90, 20), 8)
    back = LayerReport.from_dict(layer.to_dict())
    assert back == layer
    assert hash(back) == hash(layer)
    assert back.interval() == layer.interval()
    assert layer != layer_of(drawn(90, 20, seed=1), 8)
