"""The frequency spectrum of a layer's states: all that their entropy depends on.

It says how many distinct states were seen once, twice, three times... It has few entries, is the
same whatever order the states came in, and spectra of disjoint sets of states add up. So what is
computed from it is the same to the last bit however the data was cut.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Spectrum(NamedTuple):
    """Frequency spectrum of a layer's states: how many were seen once, twice, three times...

    Entropies and their estimates depend on nothing else.

    Attributes:
        values: The distinct counts, ascending, shape `(k,)`, uint64, all above zero.
        multiplicities: How many distinct states have each of these counts, shape `(k,)`, uint64.
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
        """Build a spectrum from the counts of the distinct states.

        Args:
            counts: One count per distinct state, whole numbers; zeros are passed over.

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
        """Return the sum of `count**alpha` over the distinct states.

        For `alpha=1` it is the sum of `count * log2(count)` instead, for `alpha=inf` the largest
        count. It is infinite where it passes the largest float.

        Args:
            alpha: Order, 0 to infinity.

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


def add_spectra(spectra: Iterable[Spectrum]) -> Spectrum:
    """Return the spectrum of the union of disjoint sets of states.

    Examples:
        >>> one, other = Spectrum.from_counts([1, 1, 5]), Spectrum.from_counts([1, 2])
        >>> values, multiplicities = add_spectra([one, other])
        >>> values, multiplicities
        (array([1, 2, 5], dtype=uint64), array([3, 1, 1], dtype=uint64))
    """
    parts = list(spectra)
    values, places = np.unique(np.concatenate([p.values for p in parts]), return_inverse=True)
    multiplicities = np.zeros(len(values), np.uint64)
    np.add.at(multiplicities, places, np.concatenate([p.multiplicities for p in parts]))
    return Spectrum(values, multiplicities)
