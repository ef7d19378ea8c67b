"""The entropy of counted states, in bits: as seen, and corrected for states that were not seen.

The plug-in entropy takes observed shares for probabilities, and so it is too low on average: states
that were never seen add nothing. Each estimator here corrects that from the spectrum alone, in one
pass over its distinct counts, and to the last bit the same in whatever order the states came.

In the formulas, N states were seen, c_i of them equal to the i-th distinct one, S distinct ones.
"""

import math
from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

import numpy.typing as npt

from tensorstate_callbacks.states.spectrum import Spectrum, check_alpha


def spectrum_entropy(spectrum: Spectrum, alpha: float = 1) -> float:
    """Return the Rényi entropy of order `alpha` in bits; see `entropy`."""
    check_alpha(alpha)
    n_states = _n_states(spectrum)
    if spectrum.n_distinct == 1:
        return 0.0
    log_n = math.log2(n_states)
    if alpha == 1:
        # A difference of near equals: rounding must not make it negative.
        return max(log_n - spectrum.moment(1) / n_states, 0.0)
    if math.isinf(alpha):
        return log_n - math.log2(spectrum.moment(alpha))
    # Shares first: count**alpha passes the largest float for large orders. Scaled by the largest
    # share, so that for large orders the sum doesn't vanish either.
    top = spectrum.largest
    scaled = math.fsum(m * (c / top) ** alpha for c, m in spectrum.pairs())
    return (alpha * (math.log2(top) - log_n) + math.log2(scaled)) / (1 - alpha)


def entropy(counts: npt.ArrayLike, alpha: float = 1) -> float:
    """Return the entropy, in bits, of states seen `counts` times each.

    It is the plug-in estimate: the observed shares are taken for probabilities.

    Source: A. Rényi, "On measures of entropy and information" (1961); C. Shannon, "A mathematical
    theory of communication" (1948).

    Args:
        counts: How often each distinct state was seen, shape `(distinct,)`, whole numbers; zeros
            add nothing.
        alpha: Order of the Rényi entropy: 1 is Shannon's, 0 Hartley's (the logarithm of the
            number of distinct states), `math.inf` the min-entropy.

    Returns:
        The entropy in bits, between 0 and `log2(distinct)`.

    Raises:
        TypeError: The counts are not whole numbers.
        ValueError: There is no count above zero, one is negative, or `alpha` is negative or NaN.

    Examples:
        >>> entropy([2, 2, 4])
        1.5
        >>> entropy([5, 5, 5, 5], alpha=0)
        2.0
    """
    return spectrum_entropy(Spectrum.from_counts(counts), alpha)


def effective_number(entropy_bits: float, n_distinct: int) -> float:
    """Return how many states, used evenly, have that entropy: `2**entropy_bits`.

    Args:
        entropy_bits: Rényi entropy of the states, of any order.
        n_distinct: Distinct states, at least 1: never less than that number.

    Source: M. O. Hill, "Diversity and evenness: a unifying notation and its consequences", Ecology
    54 (1973) 427-432.
    """
    # A logarithm and its inverse: rounding must not pass the bounds.
    return min(math.pow(2, entropy_bits), float(n_distinct))


Estimator: TypeAlias = Literal["plug-in", "miller-madow", "chao-shen", "grassberger", "jackknife"]
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)

# From here on the series of the digamma function is exact to the last bit.
_SERIES_FROM = 32


def estimate_entropy(
    spectrum: Spectrum, estimator: Estimator = "chao-shen", *, max_bits: float = math.inf
) -> float:
    """Return an estimate of the Shannon entropy that infinitely many states would show, in bits.

    Args:
        spectrum: Frequency spectrum of the states.
        estimator: Which one to take:

            - `"plug-in"`: what was seen, uncorrected.
            - `"miller-madow"`: the first term of the bias added (G. A. Miller, 1955). Too little
              where many states were never seen.
            - `"chao-shen"`: shares scaled down by the coverage, each term divided by the
              probability that its state was seen at all (A. Chao and T.-J. Shen, Environ. Ecol.
              Stat. 10, 2003).
            - `"grassberger"`: P. Grassberger, arXiv physics/0307138 (2003), eq. 35.
            - `"jackknife"`: S. Zahl, Ecology 58 (1977).
        max_bits: What the states can carry at most, the number of neurons. An estimate beyond it
            is cut down to it, and one below 0 (Grassberger's can be) is raised to 0. An estimate
            may well pass `log2(N)`, the most that N states can show: that is its purpose.

    Returns:
        Entropy in bits, between 0 and `max_bits`.

    Raises:
        ValueError: No state was seen, or there is no estimator of that name.

    Examples:
        >>> spectrum = Spectrum.from_counts([4, 2, 3, 2, 4, 2, 1, 1])
        >>> [round(estimate_entropy(spectrum, name), 3) for name in ("plug-in", "chao-shen")]
        [2.84, 3.176]
    """
    if estimator not in _ESTIMATES:
        raise ValueError(f"there is no estimator {estimator!r}; there are {', '.join(ESTIMATORS)}")
    return min(max(_ESTIMATES[estimator](spectrum), 0.0), max_bits)


def miller_madow(spectrum: Spectrum) -> float:
    """Return the plug-in entropy plus (S - 1) / 2N nats, in bits.

    Corrects the first term of the bias; too little where many states were never seen.

    Source: G. A. Miller, "Note on the bias of information estimates" (1955).
    """
    nats = (spectrum.n_distinct - 1) / (2 * _n_states(spectrum))
    return spectrum_entropy(spectrum) + nats / math.log(2)


def chao_shen(spectrum: Spectrum) -> float:
    """Return the coverage-adjusted entropy, in bits.

    Shares are scaled down by the Good-Turing coverage, C = 1 - singletons / N, to leave room for
    unseen states, and each term is divided by the probability that its state was seen at all:
    - sum of p log2(p) / (1 - (1 - p)**N), with p = C c_i / N. Where all states are singletons, C
      would be 0; as is customary, one of them is then not counted as such.

    Source: A. Chao and T.-J. Shen, "Nonparametric estimation of Shannon's index of diversity when
    there are unseen species in sample", Environ. Ecol. Stat. 10 (2003) 429-443.
    """
    n_states, n_singletons = _n_states(spectrum), spectrum.n_singletons
    covered = n_states - min(n_singletons, n_states - 1)
    terms = []
    for count, multiplicity in spectrum.pairs():
        # A quotient of whole numbers: it rounds once, and holds for counts past 2**53.
        share = covered * count / n_states**2
        seen = -math.expm1(n_states * math.log1p(-share)) if share < 1 else 1.0
        terms.append(multiplicity * (share * -math.log2(share) / seen))
    return math.fsum(terms)


def grassberger(spectrum: Spectrum) -> float:
    """Return log N - (1/N) sum of c_i G(c_i), in bits, with Grassberger's numbers G.

    G(1) = - gamma - ln 2, G(2) = 2 - gamma - ln 2, G(2k + 1) = G(2k),
    G(2k + 2) = G(2k) + 2 / (2k + 1), with Euler's gamma, all in nats.

    Source: P. Grassberger, "Entropy estimates from insufficient samplings", arXiv physics/0307138
    (2003), eq. 35; not the estimator of the same author from 1988.
    """
    return _mean_difference(spectrum, math.log, grassberger_number) / math.log(2)


def jackknife(spectrum: Spectrum) -> float:
    """Return N H - (N - 1) times the mean of the plug-in entropies without one state, in bits.

    The N entropies without a state depend on that state's count only, and with
    d(c) = c log2 c - (c - 1) log2 (c - 1) it all adds up to d(N) - (1/N) sum of c_i d(c_i).

    Source: S. Zahl, "Jackknifing an index of diversity", Ecology 58 (1977) 907-913; after
    M. H. Quenouille (1956).
    """
    return _mean_difference(spectrum, last_count_bits, last_count_bits)


def last_count_bits(count: int) -> float:
    """Return `c log2 c - (c - 1) log2 (c - 1)`: what the last of `c` states adds, in bits.

    Written as a sum of positive terms, for the difference loses all digits where `c` is large.
    """
    if count == 1:
        return 0.0
    return math.log2(count) - (count - 1) * math.log1p(-1 / count) / math.log(2)


def grassberger_number(count: int) -> float:
    """Return G(count) in nats; see `grassberger`.

    In closed form it is the digamma function at `count // 2 + 1/2`, plus ln 2.
    """
    half = count // 2
    start = max(half, _SERIES_FROM)
    inverse = 1 / start**2
    # Asymptotic series of the digamma function at start + 1/2 (DLMF 5.11(ii), Bernoulli
    # polynomials at 1/2), then down by its recurrence.
    series = inverse * (
        1 / 24 - inverse * (7 / 960 - inverse * (31 / 8064 - inverse * 127 / 30720))
    )
    steps = (-2 / (2 * k + 1) for k in range(half, start))
    return math.fsum([math.log(start), series, math.log(2), *steps])


def _mean_difference(
    spectrum: Spectrum, of_all: Callable[[int], float], of_one: Callable[[int], float]
) -> float:
    n_states = _n_states(spectrum)
    whole = of_all(n_states)
    return math.fsum(m * c / n_states * (whole - of_one(c)) for c, m in spectrum.pairs())


def _n_states(spectrum: Spectrum) -> int:
    n_states = spectrum.n_states
    if n_states == 0:
        raise ValueError("the entropy of no states is not defined: count some activations first")
    return n_states


_ESTIMATES: dict[str, Callable[[Spectrum], float]] = {
    "plug-in": spectrum_entropy,
    "miller-madow": miller_madow,
    "chao-shen": chao_shen,
    "grassberger": grassberger,
    "jackknife": jackknife,
}
