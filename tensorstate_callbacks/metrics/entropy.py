"""Entropy in bits of states that were counted."""

import math

import numpy.typing as npt

from tensorstate_callbacks.states.spectrum import Spectrum, check_alpha


def spectrum_entropy(spectrum: Spectrum, alpha: float = 1) -> float:
    """Return the Rényi entropy of order `alpha` in bits; see `entropy`."""
    check_alpha(alpha)
    n_states = spectrum.n_states
    if n_states == 0:
        raise ValueError("the entropy of no states is not defined: count some activations first")
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

    Args:
        counts: How often each distinct state was seen, shape `(distinct,)`, whole numbers; zeros
            add nothing.
        alpha: Order of the Rényi entropy: 1 is Shannon's, 0 Hartley's (the logarithm of the
            number of distinct states), `math.inf` the min-entropy.

    Returns:
        The entropy in bits, between 0 and `log2(distinct)`. It is the plug-in estimate: the
        observed shares are taken for probabilities.

    Raises:
        TypeError: The counts are not whole numbers.
        ValueError: There is no count above zero, one is negative, or `alpha` is negative or NaN.

    Source: A. Rényi, "On measures of entropy and information" (1961); C. Shannon, "A mathematical
    theory of communication" (1948).

    Example:
        >>> entropy([2, 2, 4])
        1.5
        >>> entropy([5, 5, 5, 5], alpha=0)
        2.0
    """
    return spectrum_entropy(Spectrum.from_counts(counts), alpha)
