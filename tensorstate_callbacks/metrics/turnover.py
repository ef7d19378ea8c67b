"""How the states of a fixed set of samples change over a training, and how they differ at first."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Rows: TypeAlias = npt.NDArray[np.uint8]

# Bits that are unpacked at once: 32 MiB of float32, in which their sums are exact.
_MOST_UNPACKED = 1 << 23
_MOST_SUMMED = 1 << 24
_ONES = np.array([number.bit_count() for number in range(256)], np.uint8)


@dataclasses.dataclass(frozen=True)
class ProbeChange:
    """How one layer's states of `probe_data` changed up to one evaluation.

    A recording is one run over the probe data: at the beginning of a fit, and with each evaluation
    that is recorded.

    Read it with care. Where activations are close to the threshold, a neuron's bit may flip back
    and forth though its weights hardly move; and weights may change much and flip none. A layer's
    states also change where only the layers before it have learned. A bit that changed and came
    back between two recordings counts as unchanged. And all of this is about these samples and
    positions: a neuron that stands still on them may change on others.

    Attributes:
        since_previous: Share of the bits (samples x positions x neurons) that differ from those of
            the recording before, 0 to 1; None in the first recording.
        since_first: As `since_previous`, against the first recording.
        unchanged: Share of the neurons of which no bit has differed from the first recording in any
            recording so far, 0 to 1; None in the first.
        naswot: Score of "Neural Architecture Search without Training" (Mellor, Turner, Storkey and
            Crowley, arXiv 2006.04647) in the first recording: the natural logarithm of the
            determinant of the Hamming kernel of the samples' codes. It is high where a network that
            isn't trained tells the samples apart. Compare it on the same samples only. Minus
            infinity where the determinant is 0; None where samples have codes of different lengths,
            such as sentences without padding.
    """

    since_previous: float | None = None
    since_first: float | None = None
    unchanged: float | None = None
    naswot: float | None = None

    def to_dict(self) -> dict[str, float | str | None]:
        """Return all fields, for `from_dict`; minus infinity, which JSON lacks, as `"-inf"`."""
        score = "-inf" if self.naswot == -math.inf else self.naswot
        return {**dataclasses.asdict(self), "naswot": score}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "ProbeChange":
        """Build again what `to_dict` was called on."""
        score = fields["naswot"]
        return cls(**{**fields, "naswot": -math.inf if score == "-inf" else score})


def count_ones(packed: Rows) -> int:
    """Return how many bits are set."""
    counts = np.bitwise_count(packed) if hasattr(np, "bitwise_count") else _ONES[packed]
    return int(counts.sum(dtype=np.int64))


def changed_bits(first: Rows, second: Rows) -> Rows:
    """Return which bits of a state differ in any row, packed, shape `(bytes,)`.

    Args:
        first: Packed states, shape `(rows, bytes)`.
        second: As many.
    """
    found: Rows = np.bitwise_or.reduce(first ^ second, axis=0)
    return found


def turnover(first: Rows, second: Rows, n_neurons: int) -> float:
    """Return the share of bits that differ, 0 to 1.

    Args:
        first: Packed states, shape `(rows, bytes)`; bits beyond the neurons are 0.
        second: As many, in the same order.
        n_neurons: Bits of a state.

    Examples:
        >>> turnover(np.uint8([[0b011], [0b111]]), np.uint8([[0b010], [0b101]]), 3)
        0.3333333333333333
    """
    return count_ones(first ^ second) / (len(first) * n_neurons)


def hamming_kernel(codes: Rows, n_bits: int) -> npt.NDArray[np.float64]:
    """Return how many bits each two samples have alike, shape `(samples, samples)`; exact.

    Args:
        codes: Packed bits of each sample, shape `(samples, bytes)`; what is no bit of it is 0.
        n_bits: Bits of a sample.
    """
    n_samples = len(codes)
    both = np.zeros((n_samples, n_samples))
    step = max(1, min(_MOST_UNPACKED // max(n_samples, 1), _MOST_SUMMED) // 8)
    for start in range(0, codes.shape[1], step):
        bits = np.unpackbits(codes[:, start : start + step], axis=1).astype(np.float32)
        both += bits @ bits.T
    fired = np.diagonal(both)
    return n_bits - fired[:, None] - fired[None, :] + 2 * both


def naswot(codes: Rows, n_bits: int) -> float:
    """Return the score of "Neural Architecture Search without Training", natural logarithm.

    Mellor, Turner, Storkey and Crowley (ICML 2021, arXiv 2006.04647): the logarithm of the
    determinant of the kernel `K[i, j] = bits - Hamming distance` of the codes of samples i and j.
    It is high where a network that isn't trained tells the samples apart. They take the codes of
    all ReLUs together, here a code is that of one layer: scores of layers don't add up to theirs.
    It depends on the number and choice of samples and on the number of neurons, so compare it on
    the same samples only; and it says nothing about whether what a network tells apart is of use.

    The determinant is 0, and the score minus infinity, where two samples have the same code, and
    always where there are more samples than bits and one.

    Args:
        codes: Packed bits of each sample, shape `(samples, bytes)`; what is no bit of it is 0.
        n_bits: Bits of a sample.

    Examples:
        >>> round(naswot(np.uint8([[0b00], [0b01], [0b11]]), 2), 4)  # log of the determinant 4
        1.3863
    """
    n_samples = len(codes)
    if n_samples > n_bits + 1 or len(np.unique(codes, axis=0)) < n_samples:
        return -math.inf
    values = np.linalg.eigvalsh(hamming_kernel(codes, n_bits))
    # The smallest that rounding can't have made of 0.
    if values[0] <= n_samples * np.finfo(np.float64).eps * values[-1]:
        return -math.inf
    return float(np.log(values).sum())
