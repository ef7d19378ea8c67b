"""Find the neurons of a layer that fired in exactly the same states, or in exactly the others.

A neuron's column holds its bit in each distinct state. Two neurons agree where their columns are
equal and oppose each other where one is the other's inverse: where both are equal once each column
is inverted whose first bit is set. How often a state was seen doesn't matter.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

# States that are looked at first: most neurons differ from all others in these already.
_SAMPLE = 1024
# Bits that are looked at at a time: some MiB.
_CELLS = 1 << 22
# Entries of tables that are looked at at a time.
_ENTRIES = 1 << 18


class Agreement(NamedTuple):
    """Which neurons of a layer agree, and which oppose each other, in all states of a counter.

    Neurons any two of which agree or oppose each other are a class. Those that never or always
    fired are one too: in states that another process has counted they may differ.

    Attributes:
        firsts: Of each neuron the first one of its class, itself where it is alone or the first,
            shape `(n_neurons,)`, int64.
        inverted: Whether it fires exactly where that one does not, shape `(n_neurons,)`, bool.
    """

    firsts: npt.NDArray[np.int64]
    inverted: npt.NDArray[np.bool_]

    # What tuples do by themselves asks for the truth of an array.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Agreement) and all(map(np.array_equal, self, other))

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(tuple(column.tobytes() for column in self))

    @classmethod
    def of_states(
        cls, states: npt.NDArray[np.uint8], fired: npt.NDArray[np.uint64], n_states: int
    ) -> "Agreement":
        """Find it in the distinct states of a layer, exactly.

        Classes are split state by state, and neurons that are alone in theirs are not looked at
        any more: after some thousand states hardly any are.

        Args:
            states: Shape `(m, ceil(n_neurons / 8))`, uint8; see `StateCounter.states`.
            fired: How often each neuron fired, shape `(n_neurons,)`, uint64.
            n_states: States that were seen, repetitions included.

        Examples:
            >>> import numpy as np
            >>> states = np.array([[0b0101], [0b0110], [0b1001]], np.uint8)
            >>> Agreement.of_states(states, np.uint64([2, 1, 2, 1]), 3)
            Agreement(firsts=array([0, 0, 2, 2]), inverted=array([False,  True, False,  True]))
        """
        constant = (fired == 0) | (fired == n_states)
        # The first of all others, and the first of the constant ones.
        firsts = np.where(constant, np.argmax(constant), np.argmin(constant))
        if not len(states):
            return cls(firsts, np.zeros(len(fired), np.bool_))
        signs = np.unpackbits(states[0], count=len(fired), bitorder="little")
        active = np.flatnonzero(~constant)
        # Spread evenly: states are sorted, and neighbours have most bits in common.
        active = _split(firsts, signs, active, states[:: -(-len(states) // _SAMPLE)])
        start = 0
        while start < len(states) and len(active):
            end = start + max(_CELLS // len(active), 8)
            active = _split(firsts, signs, active, states[start:end])
            start = end
        return cls(firsts, signs != signs[firsts])

    @classmethod
    def of_tables(
        cls, tables: npt.NDArray[np.uint64], n_neurons: int, group_size: int
    ) -> "Agreement":
        """Find it within the units of a layer; neurons of two units are never of one class.

        Args:
            tables: How often each unit was in each of its states; see `GroupCounter.tables`.
            n_neurons: Neurons of the layer.
            group_size: Neurons of each unit but the last, which may have fewer.

        Examples:
            >>> import numpy as np
            >>> tables = np.array([0, 2, 1, 0, 3, 0, 0, 2], np.uint64)
            >>> Agreement.of_tables(tables, 4, 2)
            Agreement(firsts=array([0, 0, 2, 2]), inverted=array([False,  True, False, False]))
        """
        width = min(group_size, n_neurons)
        whole, rest = divmod(n_neurons, width)
        at_once = max(_ENTRIES >> width, 1)
        parts = [
            _of_units(tables[first << width : min(first + at_once, whole) << width], width)
            for first in range(0, whole, at_once)
        ]
        if rest:
            parts.append(_of_units(tables[whole << width :], rest))
        firsts, inverted = (
            np.concatenate([column.ravel() for column in columns])
            for columns in zip(*parts, strict=True)
        )
        return cls(firsts + np.arange(n_neurons) // width * width, inverted)

    @classmethod
    def of_parts(cls, parts: Sequence["Agreement"]) -> "Agreement":
        """Find it in all states, of which each part has some: what holds in all parts holds.

        Args:
            parts: At least one; each of at least one state.

        Examples:
            >>> import numpy as np
            >>> one = Agreement(np.array([0, 0, 0]), np.array([False, True, True]))
            >>> other = Agreement(np.array([0, 0, 0]), np.array([False, True, False]))
            >>> Agreement.of_parts([one, other])
            Agreement(firsts=array([0, 0, 2]), inverted=array([False,  True, False]))
        """
        signs = np.stack([part.inverted for part in parts])
        keys = np.concatenate([np.stack([part.firsts for part in parts]), signs ^ signs[0]])
        _, index, inverse = np.unique(keys, axis=1, return_index=True, return_inverse=True)
        firsts = index[inverse.reshape(-1)]
        return cls(firsts, signs[0] != signs[0][firsts])

    def pairs_of_sides(
        self, among: npt.NDArray[np.bool_]
    ) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Return the classes of more than one neuron, each by its two sides.

        Args:
            among: Which neurons count, shape `(n_neurons,)`.

        Returns:
            Of each class the neurons that agree with its first one, and those that oppose it,
            ascending; the second may be empty. Classes are in the order of their first neurons.
        """
        often = np.bincount(self.firsts[among], minlength=len(self.firsts))
        members = np.flatnonzero(among & (often[self.firsts] > 1))
        members = members[np.argsort(self.firsts[members], kind="stable")]
        cuts = np.flatnonzero(np.diff(self.firsts[members])) + 1
        found = []
        for neurons in np.split(members, cuts) if len(members) else ():
            inverted = self.inverted[neurons] != self.inverted[neurons[0]]
            sides = (neurons[~inverted], neurons[inverted])
            found.append((tuple(sides[0].tolist()), tuple(sides[1].tolist())))
        return sorted(found)


def _split(
    firsts: npt.NDArray[np.int64],
    signs: npt.NDArray[np.uint8],
    active: npt.NDArray[np.intp],
    states: npt.NDArray[np.uint8],
) -> npt.NDArray[np.intp]:
    """Split classes by some states.

    Args:
        firsts: See `Agreement`; changed in place.
        signs: Each neuron's bit in the first of all states.
        active: The neurons whose classes are to be split, ascending.
        states: The states.

    Returns:
        Those of the neurons that aren't alone.
    """
    bits = (states[:, active >> 3] >> (active & 7).astype(np.uint8)) & 1
    columns = np.packbits(bits ^ signs[active], axis=0).T
    keys = np.concatenate([firsts[active].reshape(-1, 1).view(np.uint8), columns], axis=1)
    rows: npt.NDArray[Any] = np.ascontiguousarray(keys).view(f"V{keys.shape[1]}").reshape(-1)
    _, index, inverse, often = np.unique(
        rows, return_index=True, return_inverse=True, return_counts=True
    )
    firsts[active] = active[index[inverse]]
    return active[often[inverse] > 1]


def _of_units(
    tables: npt.NDArray[np.uint64], width: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return `firsts`, counted from each unit's first neuron, and `inverted`: `(units, width)`."""
    seen = np.flatnonzero(tables)
    units, states = seen >> width, seen & ((1 << width) - 1)
    starts = np.searchsorted(units, np.arange(len(tables) >> width))
    signs = states[starts]
    columns = states ^ signs[units]
    places = np.arange(width)
    firsts = np.empty((len(starts), width), np.int64)
    for neuron in reversed(range(width)):
        # Each bit tells whether that neuron's column differs here from this one's.
        differ = columns ^ -((columns >> neuron) & 1)
        ever = np.bitwise_or.reduceat(differ, starts)
        firsts[((ever[:, None] >> places) & 1) == 0] = neuron
    bits = (signs[:, None] >> places) & 1
    return firsts, bits != np.take_along_axis(bits, firsts, axis=1)
