"""Merge what several processes counted in one evaluation pass."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from tensorstate_callbacks.recording.recorder import PassFigures, Width
from tensorstate_callbacks.states.spectrum import Spectrum

Name = TypeVar("Name")


class ProbeSums(NamedTuple):
    """Figures of one probe that add up over processes.

    Attributes:
        spectrum: Frequency spectrum of the states in this process's share.
        fired: How often each neuron fired in the states that this process counted, shape
            `(n_neurons,)`, uint64.
    """

    spectrum: Spectrum
    fired: npt.NDArray[np.uint64]


def merge_orders(orders: Iterable[Iterable[Name]]) -> list[Name]:
    """Return the names of several processes in one fixed order.

    Args:
        orders: The names that each process has, in its order: that of the lowest one counts.

    Example:
        >>> merge_orders([[], ["a", "c"], ["b", "a", "c"]])
        ['a', 'c', 'b']
    """
    return list(dict.fromkeys(name for order in orders for name in order))


def merge_ranks(names: Iterable[str], shares: Mapping[Width, Iterable[ProbeSums]]) -> PassFigures:
    """Add the figures of all processes up.

    Args:
        names: All probes, seen or not.
        shares: For each probe and number of neurons that some process saw, in forward order, each
            process's figures.

    Returns:
        The pass, as one process would have recorded it: exactly, since all is integers.
    """
    figures = {}
    for width, parts in shares.items():
        parts = list(parts)
        fired = np.stack([part.fired for part in parts]).sum(axis=0, dtype=np.uint64)
        figures[width] = (add_spectra(part.spectrum for part in parts), fired)
    return PassFigures(tuple(names), figures)


def add_spectra(spectra: Iterable[Spectrum]) -> Spectrum:
    """Return the spectrum of the union of disjoint sets of states.

    Example:
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
