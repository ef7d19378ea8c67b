"""What carries counted states between ranks: a framework's own."""

from typing import Any, Protocol

from tensorstate_callbacks.recording.pass_counts import ProbeCounts
from tensorstate_callbacks.states.counter import StateCounter
from tensorstate_callbacks.states.group_counter import GroupCounter


class Exchange(Protocol):
    """What carries counted states between ranks; all of them call it alike."""

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, by rank."""

    def own_share(
        self, counter: StateCounter, most_distinct: int, key_bytes: int | None = None
    ) -> StateCounter:
        """Return all ranks' counts of the states that belong to this rank.

        Args:
            counter: What this rank counted; it stays as it is.
            most_distinct: Distinct states of the rank that has most of them.
            key_bytes: So many bytes of a state say which rank it belongs to; None: all of them.
        """

    def sum_tables(self, counter: GroupCounter) -> ProbeCounts:
        """Return what all ranks' counters of groups have counted together.

        Args:
            counter: What this rank counted; it stays as it is.
        """
