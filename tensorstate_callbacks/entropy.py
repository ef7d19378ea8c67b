"""State counts in, entropy in bits out.

Everything is computed from the *frequency spectrum* of a layer's states: how many distinct states
were seen once, twice, three times... A spectrum has few entries, is the same whatever order the
states came in, and spectra of disjoint sets of states add up. So the figures are the same to the
last bit however the data was cut.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Spectrum(NamedTuple):
    """Frequency spectrum of a layer's states.

    Attributes:
        values: The distinct counts, ascending, shape `(k,)`, uint64, all above zero.
        multiplicities: For each of them, how many distinct states have it, shape `(k,)`, uint64.
    """

    values: npt.NDArray[np.uint64]
    multiplicities: npt.NDArray[np.uint64]

    # What tuples do by themselves asks for the truth of an array.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spectrum) and list(self.pairs()) == list(other.pairs())

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(tuple(self.pairs()))

    @classmethod
    def from_counts(cls, counts: npt.ArrayLike) -> "Spectrum":
        """Build the spectrum of one count per distinct state; zeros are passed over.

        Raises:
            TypeError: The counts are not whole numbers.
            ValueError: A count is negative, or the counts are not one-dimensional.
        """
        array = np.asarray(counts)
        if array.size == 0:
            array = array.astype(np.uint64)
        if array.ndim != 1:
            raise ValueError(f"counts must be one-dimensional, one per state; got {array.shape}")
        if array.dtype.kind not in "iu":
            raise TypeError(f"counts must be whole numbers; got an array of {array.dtype}")
        if array.size and int(array.min()) < 0:
            raise ValueError(f"counts must not be negative; got {int(array.min())}")
        values, multiplicities = np.unique(array[array > 0], return_counts=True)
        return cls(values.astype(np.uint64), multiplicities.astype(np.uint64))

    @property
    def n_states(self) -> int:
        """Number of states seen, repetitions included."""
        return sum(c * m for c, m in self.pairs())

    @property
    def n_distinct(self) -> int:
        """Number of distinct states."""
        return sum(m for _, m in self.pairs())

    @property
    def n_singletons(self) -> int:
        """Number of states seen exactly once."""
        return sum(m for c, m in self.pairs() if c == 1)

    @property
    def largest(self) -> int:
        """How often the most frequent state was seen; 0 where there is none."""
        return max(self.values.tolist(), default=0)

    def pairs(self) -> Iterable[tuple[int, int]]:
        """Return pairs of a distinct count and the number of states with it, counts ascending."""
        # Python integers: products of two uint64 may pass 2**64.
        return zip(self.values.tolist(), self.multiplicities.tolist(), strict=True)

    def moment(self, alpha: float) -> float:
        """Return the sum over distinct states of `count**alpha`.

        For `alpha=1`, where that sum says nothing, it is the sum of `count * log2(count)`; for
        `alpha=inf` it is the largest count. Infinite where it passes the largest float.

        Raises:
            ValueError: `alpha` is negative or NaN.
        """
        check_alpha(alpha)
        if alpha == 1:
            return math.fsum(m * (c * math.log2(c)) for c, m in self.pairs())
        if math.isinf(alpha):
            return float(self.largest)
        try:
            return math.fsum(m * float(c) ** alpha for c, m in self.pairs())
        except OverflowError:
            return math.inf


def check_alpha(alpha: float) -> float:
    """Return the Rényi order `alpha`, or raise `ValueError` if it is negative or NaN."""
    if math.isnan(alpha) or alpha < 0:
        raise ValueError(f"alpha, the order of the entropy, must be 0 or more; got {alpha}")
    return alpha


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
