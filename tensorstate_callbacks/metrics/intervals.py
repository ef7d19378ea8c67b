"""Confidence intervals of entropy, efficiency and aIQ.

An interval is about the entropy that infinitely many states would show, so where many were never
seen it lies above the plug-in estimate. It costs one pass over a spectrum, nothing is drawn at
random, and the same spectrum gives the same interval. `docs/how_to/estimators.md` says how often
the intervals hold what they promise, and where they don't.
"""

import math
from collections.abc import Iterable
from statistics import NormalDist
from typing import NamedTuple

from tensorstate_callbacks.metrics.efficiency import aIQ, efficiency, network_efficiency
from tensorstate_callbacks.metrics.entropy import estimate_entropy, last_count_bits
from tensorstate_callbacks.states.spectrum import Spectrum


class Interval(NamedTuple):
    """An estimate and the range that the true value may well lie in.

    Attributes:
        estimate: The value, corrected for what was not seen.
        low: Lower end.
        high: Upper end.
    """

    estimate: float
    low: float
    high: float


def entropy_interval(
    spectrum: Spectrum,
    level: float = 0.95,
    *,
    n_samples: int | None = None,
    max_bits: float = math.inf,
) -> Interval:
    """Return an interval for the Shannon entropy of a layer's states, in bits.

    Two things are uncertain: which states were drawn, and what was never seen. For the first, it
    takes the standard error of the jackknife. For the second, two estimators that err in opposite
    ways: Grassberger's corrects too little where much was not seen, Chao and Shen's corrects
    little too much more often than too little. The estimate is the larger of both, and d, by which
    Chao and Shen's is the larger, counts as its possible error: low = Grassberger - z se,
    high = estimate + d + z se.

    Args:
        spectrum: Frequency spectrum of the states.
        level: How often intervals are meant to hold the true entropy, above 0 and below 1.
        n_samples: The samples (images) that the states come from. States of one sample resemble
            each other, so that many of them are worth less than as many independent ones. With
            the number given, a sample counts as one observation, however many states it gave:
            never too narrow, wider than need be. None: all states count as independent, which is
            right for layers with one state per sample only.
        max_bits: What the states can carry at most, the number of neurons.

    Returns:
        Estimate and ends, each between 0 and `max_bits`. Of one state, or one sample, nothing is
        known: the ends are 0 and `max_bits`.

    Raises:
        ValueError: No state was seen, `level` is not between 0 and 1, or `n_samples` is below 1.

    Source: jackknife standard error: S. Zahl, Ecology 58 (1977) 907-913. The larger of the two
    estimators: E. Marcon, "Practical estimation of diversity from abundance data" (2015).
    """
    z = normal_quantile(level)
    least = estimate_entropy(spectrum, "grassberger", max_bits=max_bits)
    estimate = max(least, estimate_entropy(spectrum, "chao-shen", max_bits=max_bits))
    observations = n_observations(spectrum.n_states, n_samples)
    if observations == 1:
        return Interval(estimate, 0.0, max_bits)
    error = z * math.sqrt(_variance(spectrum) / (observations - 1))
    return Interval(estimate, max(least - error, 0.0), min(2 * estimate - least + error, max_bits))


def efficiency_interval(
    spectrum: Spectrum, n_neurons: int, level: float = 0.95, *, n_samples: int | None = None
) -> Interval:
    """Return an interval for a layer's efficiency, share 0 to 1; see `entropy_interval`."""
    bits = entropy_interval(spectrum, level, n_samples=n_samples, max_bits=n_neurons)
    return Interval(*(efficiency(end, n_neurons) for end in bits))


def accuracy_interval(accuracy: float, level: float = 0.95, *, n_samples: int) -> Interval:
    """Return Wilson's interval for the accuracy on `n_samples` samples, share 0 to 1.

    Raises:
        ValueError: `n_samples` is below 1, `level` is not between 0 and 1, or the accuracy is not a
            share.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
    J. Am. Stat. Assoc. 22 (1927) 209-212.
    """
    if not 0 <= accuracy <= 1:
        raise ValueError(f"the accuracy must be a share, 0 to 1; got {accuracy}")
    n, z2 = _count("n_samples", n_samples), normal_quantile(level) ** 2
    centre = (accuracy + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (accuracy * (1 - accuracy) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    # Rounding must not leave the accuracy itself outside, or pass 0 and 1.
    low, high = max(min(centre - half, accuracy), 0.0), min(max(centre + half, accuracy), 1.0)
    return Interval(accuracy, low, high)


def network_interval(layers: Iterable[Interval]) -> Interval:
    """Return an interval for the network efficiency, from those of its layers' efficiencies.

    Layers see the same samples, so their errors may well go together. The ends are those of all
    layers at their low and at their high ends at once: wide enough however they go together.
    """
    estimates, lows, highs = zip(*layers, strict=True)
    return Interval(*map(network_efficiency, (estimates, lows, highs)))


def aiq_interval(efficiency: Interval, accuracy: Interval, beta: float = 2) -> Interval:
    """Return an interval for aIQ, from those of the network efficiency and of the accuracy.

    As in `network_interval`, both are taken at their low and at their high ends at once.
    """
    pairs = zip(efficiency, accuracy, strict=True)
    return Interval(*(aIQ(share, correct, beta) for share, correct in pairs))


def _variance(spectrum: Spectrum) -> float:
    # The plug-in entropy without one state of count c is a constant plus d(c) / (N - 1), so the
    # jackknife's variance is that of d over the states, divided by N - 1.
    n_states = spectrum.n_states
    terms = [(m * c / n_states, last_count_bits(c)) for c, m in spectrum.pairs()]
    mean = math.fsum(share * bits for share, bits in terms)
    return math.fsum(share * (bits - mean) ** 2 for share, bits in terms)


def n_observations(n_states: int, n_samples: int | None) -> int:
    """Return how many states count as independent; see `entropy_interval`.

    Raises:
        ValueError: `n_samples` is below 1.
    """
    return n_states if n_samples is None else min(n_states, _count("n_samples", n_samples))


def normal_quantile(level: float) -> float:
    """Return how many standard errors an interval reaches to each side.

    Raises:
        ValueError: `level` is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level, how often an interval is to hold, must be in 0...1; got {level}")
    return NormalDist().inv_cdf((1 + level) / 2)


def _count(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name} must be 1 or more; got {value}")
    return value
