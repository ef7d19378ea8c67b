"""What is known of each neuron of a layer: how often it fired, and which others it agrees with."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tensorstate_callbacks.states.agreement import Agreement

Group: TypeAlias = tuple[int, ...]
"""Indices of neurons, ascending."""

# Neurons and groups that a line of text names.
_MOST_NAMED = 6


@dataclasses.dataclass(frozen=True, eq=False)
class NeuronCounts:
    """What is known of each neuron of a layer.

    Attributes:
        fired: How often each fired, shape `(n_neurons,)`, uint64, read-only.
        agreement: Which of them agree and which oppose each other; None where nobody asked, or
            where only the counts were kept.
        followed: Whether they were asked for, with `neurons=True`. Only then do they outlast the
            fresh report, in checkpoints, files, copies and thinned histories.
    """

    fired: npt.NDArray[np.uint64]
    agreement: Agreement | None = None
    followed: bool = False

    def __post_init__(self) -> None:
        # Of its own and read-only: equality and hash depend on it.
        object.__setattr__(self, "fired", _read_only(self.fired, np.uint64))
        if self.agreement is not None:
            firsts, inverted = self.agreement
            found = Agreement(_read_only(firsts, np.int64), _read_only(inverted, np.bool_))
            object.__setattr__(self, "agreement", found)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, NeuronCounts)
            and np.array_equal(self.fired, other.fired)
            and (self.agreement, self.followed) == (other.agreement, other.followed)
        )

    def __hash__(self) -> int:
        return hash((self.fired.tobytes(), self.agreement, self.followed))

    def __reduce__(self) -> tuple[Any, ...]:
        # Arrays come out of a copy writable.
        return NeuronCounts, (self.fired, self.agreement, self.followed)

    def counts_alone(self) -> "NeuronCounts | None":
        """Return what is kept for lifelines: the counts; None where nobody asked for them."""
        return NeuronCounts(self.fired, None, followed=True) if self.followed else None

    def never_fired(self) -> Group:
        """Return the neurons that fired in no state."""
        return tuple(np.flatnonzero(self.fired == 0).tolist())

    def always_fired(self, n_states: int) -> Group:
        """Return the neurons that fired in all of the `n_states`."""
        return tuple(np.flatnonzero(self.fired == n_states).tolist())

    def sides(self, n_states: int) -> list[tuple[Group, Group]] | None:
        """Return which neurons agree and oppose each other; see `Agreement.pairs_of_sides`.

        Those that never or always fired are left out. None where that isn't known.
        """
        if self.agreement is None:
            return None
        varies = (self.fired != 0) & (self.fired != n_states)
        return self.agreement.pairs_of_sides(varies)

    def to_dict(self) -> dict[str, Any]:
        """Return the counts as lists; `from_dict` reads them back as those that were asked for."""
        columns = {"firsts": None, "inverted": None}
        if self.agreement is not None:
            firsts, inverted = self.agreement
            columns = {"firsts": firsts.tolist(), "inverted": inverted.astype(int).tolist()}
        return {"fired": self.fired.tolist(), **columns}

    @classmethod
    def from_dict(cls, columns: Mapping[str, Any]) -> "NeuronCounts":
        """Build what `to_dict` was called on."""
        agreement = None
        if columns["firsts"] is not None:
            firsts, inverted = columns["firsts"], columns["inverted"]
            agreement = Agreement(np.array(firsts, np.int64), np.array(inverted, np.bool_))
        return cls(np.array(columns["fired"], np.uint64), agreement, followed=True)


def agreeing_groups(sides: Sequence[tuple[Group, Group]]) -> tuple[Group, ...]:
    """Return the groups of neurons that agree, in the order of their first ones.

    Args:
        sides: See `NeuronCounts.sides`.

    Example:
        >>> agreeing_groups([((0, 4), (1, 2, 7)), ((3,), (5,))])
        ((0, 4), (1, 2, 7))
    """
    return tuple(sorted(group for pair in sides for group in pair if len(group) > 1))


def opposing_groups(sides: Sequence[tuple[Group, Group]]) -> tuple[tuple[Group, Group], ...]:
    """Return the pairs of groups of which one fires exactly where the other does not.

    Args:
        sides: See `NeuronCounts.sides`.

    Example:
        >>> opposing_groups([((0, 4), (1, 2, 7)), ((3,), (5,)), ((6, 8), ())])
        (((0, 4), (1, 2, 7)), ((3,), (5,)))
    """
    return tuple(pair for pair in sides if pair[1])


def name_some(neurons: Group) -> str:
    """Return the first few indices, and how many more there are.

    Example:
        >>> name_some((0, 3, 5)), name_some(tuple(range(10)))
        ('0, 3, 5', '0, 1, 2, 3, 4, 5 and 4 more')
    """
    return _some([str(neuron) for neuron in neurons], ", ")


def name_groups(groups: Sequence[Group]) -> str:
    """Return the first few groups of neurons that agree, and how many more there are.

    Example:
        >>> name_groups([(0, 4), (1, 2, 7)])
        '0 = 4; 1 = 2 = 7'
    """
    return _some([_equal(group) for group in groups], "; ")


def name_opposed(pairs: Sequence[tuple[Group, Group]]) -> str:
    """Return the first few pairs of groups that oppose each other, and how many more there are.

    Example:
        >>> name_opposed([((0, 4), (1, 2, 7)), ((3,), (5,))])
        '0 = 4 ≠ 1 = 2 = 7; 3 ≠ 5'
    """
    return _some([f"{_equal(one)} ≠ {_equal(other)}" for one, other in pairs], "; ")


def _equal(group: Group) -> str:
    if len(group) <= _MOST_NAMED:
        return " = ".join(map(str, group))
    return f"{' = '.join(map(str, group[:_MOST_NAMED]))} = {len(group) - _MOST_NAMED} more"


def _some(texts: Sequence[str], mark: str) -> str:
    more = len(texts) - _MOST_NAMED
    listed = mark.join(texts[:_MOST_NAMED])
    return f"{listed} and {more} more" if more > 0 else listed


def _read_only(column: Any, kind: Any) -> npt.NDArray[Any]:
    owned = np.array(column, kind)
    owned.flags.writeable = False
    return owned
