"""What is known of each neuron of a layer: how often it fired, and which others it agrees with."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from tensorstate_callbacks.states.agreement import Agreement

Group: TypeAlias = tuple[int, ...]
"""Indices of neurons, ascending."""

# Characters of a line that neurons are named in.
_LINE = 48


@dataclasses.dataclass(frozen=True, eq=False)
class NeuronCounts:
    """What is known of each neuron of a layer.

    Attributes:
        fired: How often each fired, shape `(n_neurons,)`, uint64, read-only.
        n_states: States seen, at least 1.
        agreement: Which of them agree and which oppose each other; None where nobody asked, or
            where only the counts were kept.
        followed: Whether they were asked for, with `neurons=True`. Only then do they outlast the
            fresh report, in checkpoints, files, copies and thinned histories.
    """

    fired: npt.NDArray[np.uint64]
    n_states: int
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
        if not isinstance(other, NeuronCounts):
            return NotImplemented
        mine, its = self._rest(), other._rest()
        return mine == its and np.array_equal(self.fired, other.fired)

    def __hash__(self) -> int:
        return hash((self.fired.tobytes(), *self._rest()))

    def __reduce__(self) -> tuple[Any, ...]:
        # Arrays come out of a copy writable.
        return NeuronCounts, (self.fired, *self._rest())

    def _rest(self) -> tuple[Any, ...]:
        return self.n_states, self.agreement, self.followed

    def counts_alone(self) -> "NeuronCounts | None":
        """Return what is kept for lifelines: the counts; None where nobody asked for them."""
        return dataclasses.replace(self, agreement=None) if self.followed else None

    @property
    def rates(self) -> npt.NDArray[np.float64]:
        """Share of the states in which each fired, 0 to 1, shape `(n_neurons,)`."""
        return self.fired / self.n_states

    @property
    def never_fired(self) -> Group:
        """The neurons that fired in no state."""
        return tuple(np.flatnonzero(self.fired == 0).tolist())

    @property
    def always_fired(self) -> Group:
        """The neurons that fired in all states."""
        return tuple(np.flatnonzero(self.fired == self.n_states).tolist())

    def sides(self) -> list[tuple[Group, Group]] | None:
        """Return which neurons agree and oppose each other; see `Agreement.pairs_of_sides`.

        Those that never or always fired are left out. None where that isn't known.
        """
        if self.agreement is None:
            return None
        return self.agreement.pairs_of_sides((self.fired != 0) & (self.fired != self.n_states))

    def describe(self) -> list[str]:
        """Return what there is to say of each neuron, in a few words; mostly nothing.

        Examples:
            >>> fired, found = np.uint64([0, 2, 2, 1]), ([0, 1, 1, 1], [0, 0, 0, 1])
            >>> NeuronCounts(fired, 3, Agreement(*map(np.array, found))).describe()
            ['never fired', 'agrees with 2, opposes 3', 'agrees with 1, opposes 3', 'opposes 1']
        """
        words = [""] * len(self.fired)
        for neuron in self.never_fired:
            words[neuron] = "never fired"
        for neuron in self.always_fired:
            words[neuron] = "always fired"
        for one, other in self.sides() or ():
            for side, opposed in ((one, other), (other, one)):
                for neuron in side:
                    # Of a group, which may be a whole layer, one is named.
                    likes = [f"agrees with {like}" for like in side[:2] if like != neuron]
                    words[neuron] = ", ".join(
                        [*likes[:1], *(f"opposes {first}" for first in opposed[:1])]
                    )
        return words

    def to_dict(self) -> dict[str, Any]:
        """Return the counts as lists; `from_dict` reads them back as those that were asked for."""
        columns: dict[str, Any] = {"firsts": None, "inverted": None}
        if self.agreement is not None:
            firsts, inverted = self.agreement
            columns = {"firsts": firsts.tolist(), "inverted": inverted.astype(int).tolist()}
        return {"fired": self.fired.tolist(), **columns}

    @classmethod
    def from_dict(cls, columns: Mapping[str, Any], n_states: int) -> "NeuronCounts":
        """Build what `to_dict` was called on."""
        agreement = None
        if columns["firsts"] is not None:
            firsts, inverted = columns["firsts"], columns["inverted"]
            agreement = Agreement(np.array(firsts, np.int64), np.array(inverted, np.bool_))
        return cls(np.array(columns["fired"], np.uint64), n_states, agreement, followed=True)


def agreeing_groups(sides: Sequence[tuple[Group, Group]]) -> tuple[Group, ...]:
    """Return the groups of neurons that agree, in the order of their first ones.

    Args:
        sides: See `NeuronCounts.sides`.

    Examples:
        >>> agreeing_groups([((0, 4), (1, 2, 7)), ((3,), (5,))])
        ((0, 4), (1, 2, 7))
    """
    return tuple(sorted(group for pair in sides for group in pair if len(group) > 1))


def opposing_groups(sides: Sequence[tuple[Group, Group]]) -> tuple[tuple[Group, Group], ...]:
    """Return the pairs of groups of which one fires exactly where the other does not.

    Args:
        sides: See `NeuronCounts.sides`.

    Examples:
        >>> opposing_groups([((0, 4), (1, 2, 7)), ((3,), (5,)), ((6, 8), ())])
        (((0, 4), (1, 2, 7)), ((3,), (5,)))
    """
    return tuple(pair for pair in sides if pair[1])


class NeuronRow(NamedTuple):
    """A line of a table: the neurons of a layer of which the same is to be said.

    Attributes:
        what: What they did.
        number: How many they are.
        which: The first of them, and how many more there are.
    """

    what: str
    number: int
    which: str


def neuron_rows(neurons: NeuronCounts) -> list[NeuronRow]:
    """Return what there is to say of a layer's neurons, as far as known.

    Examples:
        >>> fired, found = np.uint64([0, 2, 2, 1, 3]), ([0, 1, 1, 1, 0], [0, 0, 0, 1, 1])
        >>> for row in neuron_rows(NeuronCounts(fired, 3, Agreement(*map(np.array, found)))):
        ...     print(*row, sep=" | ")
        never fired | 1 | 0
        always fired | 1 | 4
        agree | 2 | 1=2
        oppose | 3 | 1=2 != 3
    """
    sides = neurons.sides() or []
    agreeing, opposing = agreeing_groups(sides), opposing_groups(sides)
    never, always = neurons.never_fired, neurons.always_fired
    rows = [
        NeuronRow("never fired", len(never), _some(map(str, never), len(never), ", ")),
        NeuronRow("always fired", len(always), _some(map(str, always), len(always), ", ")),
        NeuronRow(
            "agree",
            sum(map(len, agreeing)),
            _some((_equal(group, 6) for group in agreeing), len(agreeing), "; "),
        ),
        NeuronRow(
            "oppose",
            sum(len(group) for pair in opposing for group in pair),
            _some(
                (" != ".join(_equal(group, 3) for group in pair) for pair in opposing),
                len(opposing),
                "; ",
            ),
        ),
    ]
    return [row for row in rows if row.number]


def _equal(group: Group, most: int) -> str:
    listed = "=".join(map(str, group[:most]))
    return listed if len(group) <= most else f"{listed}=… ({len(group)})"


def _some(texts: Iterable[str], number: int, mark: str) -> str:
    """Return as many of the texts as a line has space for, at least one, and how many more."""
    listed: list[str] = []
    length = 0
    for text in texts:
        length += len(text) + len(mark)
        if listed and length > _LINE:
            return f"{mark.join(listed)} and {number - len(listed)} more"
        listed.append(text)
    return mark.join(listed)


def _read_only(column: Any, kind: Any) -> npt.NDArray[Any]:
    owned = np.array(column, kind)
    owned.flags.writeable = False
    return owned
