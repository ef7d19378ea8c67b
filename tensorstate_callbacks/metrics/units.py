"""Entropies of the units of a layer, all at once, and what is known of each of them.

What `metrics.entropy` computes of one spectrum is computed here of hundreds of small tables, whose
entries lie in a fixed order: so these numbers, too, don't depend on how the data was cut.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tensorstate_callbacks.errors import StatesNotAvailableError
from tensorstate_callbacks.metrics.entropy import Estimator, grassberger_number, spectrum_entropy
from tensorstate_callbacks.metrics.intervals import Interval, n_observations, normal_quantile
from tensorstate_callbacks.states.spectrum import Spectrum, check_alpha

# Entries of tables that are worked on at a time: some MiB.
_BLOCK = 1 << 18
_SMALL = 64
_SMALL_NUMBERS = np.array([0.0, *(grassberger_number(count) for count in range(1, _SMALL))])


class UnitMetrics(NamedTuple):
    """What is known of each unit of a layer, arrays of shape `(units,)`.

    Attributes:
        n_neurons: Neurons of the unit, int64.
        n_distinct: Distinct states seen, int64.
        n_singletons: States seen exactly once, int64.
        largest: How often the most frequent state was seen, uint64.
        entropy: Rényi entropy of the report's order, bits; those that follow are Shannon's.
        plug_in: Entropy as it was seen, bits.
        chao_shen: Estimate of Chao and Shen, bits.
        grassberger: Estimate of Grassberger, bits.
        jackknife: Estimate by the jackknife, bits.
        variance: Variance of what the last count adds, bits², from which the jackknife's standard
            error is made.
    """

    n_neurons: npt.NDArray[np.int64]
    n_distinct: npt.NDArray[np.int64]
    n_singletons: npt.NDArray[np.int64]
    largest: npt.NDArray[np.uint64]
    entropy: npt.NDArray[np.float64]
    plug_in: npt.NDArray[np.float64]
    chao_shen: npt.NDArray[np.float64]
    grassberger: npt.NDArray[np.float64]
    jackknife: npt.NDArray[np.float64]
    variance: npt.NDArray[np.float64]

    # What tuples do by themselves asks for the truth of an array.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnitMetrics) and self.to_dict() == other.to_dict()

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(tuple(column.tobytes() for column in self))

    @classmethod
    def of_tables(
        cls, tables: npt.NDArray[np.uint64], n_neurons: int, group_size: int, alpha: float = 1
    ) -> "UnitMetrics":
        """Compute them.

        Args:
            tables: How often each unit was in each of its states, one table after the other: 2**g
                entries of each unit of g neurons.
            n_neurons: Neurons of the layer.
            group_size: Neurons of each unit but the last, which may have fewer.
            alpha: Order of the Rényi entropy.

        Raises:
            ValueError: No state was seen, or `alpha` is negative or NaN.
        """
        check_alpha(alpha)
        sizes = unit_sizes(n_neurons, group_size)
        entries = 1 << group_size
        at_once = max(_BLOCK // entries, 1)
        parts = []
        for first in range(0, len(sizes), at_once):
            last = min(first + at_once, len(sizes))
            block = tables[first * entries : last * entries]
            parts.append(_of_block(block, entries, sizes[first:last], alpha))
        return cls(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def estimate(self, estimator: Estimator, n_states: int) -> float:
        """Return the sum of the units' entropies, each estimated as `estimate_entropy` does."""
        found = {
            "plug-in": self.plug_in,
            "chao-shen": self.chao_shen,
            "grassberger": self.grassberger,
            "jackknife": self.jackknife,
            "miller-madow": self.plug_in + (self.n_distinct - 1) / (2 * n_states * math.log(2)),
        }
        if estimator not in found:
            raise ValueError(f"there is no estimator {estimator!r}; there are {', '.join(found)}")
        return math.fsum(found[estimator].clip(0, self.n_neurons).tolist())

    def interval(self, level: float, n_states: int, n_samples: int | None) -> Interval:
        """Return the sum of the units' intervals, in bits; see `entropy_interval`.

        The units see the same samples: all their ends are taken at once, which is wide enough
        however their errors go together.
        """
        z, most = normal_quantile(level), self.n_neurons
        least, other = (x.clip(0, most) for x in (self.grassberger, self.chao_shen))
        estimate = np.maximum(least, other)
        observations = n_observations(n_states, n_samples)
        if observations < 2:
            low, high = np.zeros(len(most)), most.astype(float)
        else:
            error = z * np.sqrt(self.variance / (observations - 1))
            low, high = (least - error).clip(0), (2 * estimate - least + error).clip(None, most)
        return Interval(*(math.fsum(ends.tolist()) for ends in (estimate, low, high)))

    def effective_states(self, order: float, n_states: int, name: str) -> float:
        """Return the geometric mean of the units' effective numbers of states.

        Args:
            order: 0, 1 or infinity.
            n_states: States seen of each unit.
            name: The layer's, for the message.

        Raises:
            StatesNotAvailableError: Another order: nothing is kept that it could be made from.
        """
        if order == 1:
            bits = self.plug_in
        elif order == 0:
            bits = np.log2(self.n_distinct)
        elif math.isinf(order):
            bits = math.log2(n_states) - np.log2(self.largest.astype(np.float64))
        else:
            raise StatesNotAvailableError(
                f"the effective number of states of order {order:g} isn't known of the units of "
                f"{name!r}: what is kept of them gives the orders 0, 1 and infinity. Record with "
                f'alpha={order:g} and layer_metrics="effective_states"'
            )
        return float(2 ** (sum_of(bits) / len(bits)))

    def to_dict(self) -> dict[str, Any]:
        """Return the columns as lists; `from_dict` reads them back."""
        return {name: column.tolist() for name, column in self._asdict().items()}

    @classmethod
    def from_dict(cls, columns: Mapping[str, Any]) -> "UnitMetrics":
        """Build what `to_dict` was called on."""
        kinds = dict.fromkeys(("n_neurons", "n_distinct", "n_singletons"), np.int64)
        arrays: dict[str, npt.NDArray[Any]] = {
            name: np.array(columns[name], {**kinds, "largest": np.uint64}.get(name, np.float64))
            for name in cls._fields
        }
        return cls(**arrays)


def unit_sizes(n_neurons: int, group_size: int) -> npt.NDArray[np.int64]:
    """Return the number of neurons of each unit of a layer: `group_size`, the rest in the last.

    Examples:
        >>> unit_sizes(20, 8)
        array([8, 8, 4])
    """
    starts = np.arange(0, n_neurons, group_size)
    return np.minimum(group_size, n_neurons - starts)


def independent_entropy(fired: npt.NDArray[np.uint64], n_states: int, alpha: float = 1) -> float:
    """Return the entropy that the states would have if the neurons fired independently, in bits.

    Args:
        fired: How often each neuron fired, shape `(n_neurons,)`.
        n_states: States seen.
        alpha: Order of the Rényi entropy.
    """
    tables = np.stack([np.uint64(n_states) - fired, fired], axis=1).reshape(-1)
    return sum_of(_entropies(_Counts.of_tables(tables, 2, len(fired)), alpha))


def sum_of(values: npt.NDArray[np.float64]) -> float:
    """Return the sum of the units' bits, rounded once."""
    return math.fsum(values.tolist())


class _Counts(NamedTuple):
    """The counts of all units' states that were seen.

    Attributes:
        whole: Unit after unit.
        units: Which unit each is of.
        starts: Where each unit begins.
        n_states: What the counts of each unit add up to.
    """

    whole: npt.NDArray[np.uint64]
    units: npt.NDArray[np.intp]
    starts: npt.NDArray[np.intp]
    n_states: int

    @classmethod
    def of_tables(cls, tables: npt.NDArray[np.uint64], entries: int, n_units: int) -> "_Counts":
        places = np.flatnonzero(tables != 0)
        if not len(places):
            raise ValueError(
                "the entropy of no states is not defined: count some activations first"
            )
        units = places // entries
        starts = np.searchsorted(units, np.arange(n_units))
        whole = tables[places]
        n_states = int(whole[: starts[1] if len(starts) > 1 else None].sum())
        return cls(whole, units, starts, n_states)

    def total(self, terms: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the sum of the terms of each unit's counts."""
        return np.add.reduceat(terms, self.starts)


def _entropies(seen: _Counts, alpha: float) -> npt.NDArray[np.float64]:
    """Return each unit's entropy in bits."""
    if alpha != 1:
        parts = np.split(seen.whole, seen.starts[1:])
        return np.array([spectrum_entropy(Spectrum.from_counts(part), alpha) for part in parts])
    counts = seen.whole.astype(np.float64)
    bits = math.log2(seen.n_states) - seen.total(counts * np.log2(counts)) / seen.n_states
    return np.maximum(bits, 0.0)


def _of_block(
    tables: npt.NDArray[np.uint64], entries: int, sizes: npt.NDArray[np.int64], alpha: float
) -> tuple[npt.NDArray[Any], ...]:
    seen = _Counts.of_tables(tables, entries, len(sizes))
    whole, units, starts, n_states = seen
    counts = whole.astype(np.float64)
    n_distinct = np.diff(starts, append=len(whole))
    n_singletons = seen.total((whole == 1).astype(np.int64))
    shares = counts / n_states

    plug_in = _entropies(seen, 1)
    last = _last_count_bits(counts, np.log2(counts))
    log_n = math.log2(n_states)
    differences = _last_count_bits(np.array([float(n_states)]), np.array([log_n])) - last
    mean = seen.total(shares * last)
    covered = 1 - np.minimum(n_singletons / n_states, 1 - 1 / n_states)
    covered_shares = covered[units] * shares
    drawn = -np.expm1(n_states * np.log1p(-np.minimum(covered_shares, 1 - 2**-53)))
    return (
        sizes,
        n_distinct,
        n_singletons,
        np.maximum.reduceat(whole, starts),
        plug_in if alpha == 1 else _entropies(seen, alpha),
        plug_in,
        seen.total(covered_shares * -np.log2(covered_shares) / drawn),
        seen.total(shares * (math.log(n_states) - _grassberger_numbers(whole))) / math.log(2),
        seen.total(shares * differences),
        seen.total(shares * (last - mean[units]) ** 2),
    )


def _last_count_bits(
    counts: npt.NDArray[np.float64], logs: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """`entropy.last_count_bits` of many."""
    safe = np.maximum(counts, 2.0)
    bits = logs - (counts - 1) * np.log1p(-1 / safe) / math.log(2)
    return np.where(counts == 1, 0.0, bits)


def _grassberger_numbers(counts: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """`entropy.grassberger_number` of many."""
    start = np.maximum(counts // np.uint64(2), np.uint64(_SMALL // 2)).astype(np.float64)
    inverse = 1 / start**2
    series = inverse * (
        1 / 24 - inverse * (7 / 960 - inverse * (31 / 8064 - inverse * 127 / 30720))
    )
    small = np.minimum(counts, np.uint64(_SMALL - 1)).astype(np.intp)
    return np.where(counts < _SMALL, _SMALL_NUMBERS[small], np.log(start) + series + math.log(2))
