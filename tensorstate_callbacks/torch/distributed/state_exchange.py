"""Exchange counted states between the ranks of a process group, in rounds of bounded size."""

from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from tensorstate_callbacks.recording.pass_counts import ProbeCounts
from tensorstate_callbacks.states.counter import StateCounter
from tensorstate_callbacks.states.group_counter import GroupCounter
from tensorstate_callbacks.states.partition import join_states, n_words, partition_states
from tensorstate_callbacks.torch.distributed.process_groups import ProcessGroup


class StateExchange:
    """Exchanges counted states between the ranks of a group; a collective: all call it alike.

    A rank gets all ranks' counts of the states that hash to it, in rounds of bounded size: it needs
    memory for what it counted and for its share of all states, not for all of them.

    Args:
        group: Carries tensors in host memory.

    Attributes:
        round_bytes: About how much a rank sends at once.
        bytes_sent: What this rank has sent to others so far.
        bytes_received: What it has got from them.
    """

    round_bytes = 4 << 20

    def __init__(self, group: ProcessGroup) -> None:
        self._group = group
        self._rank, self._n_ranks = dist.get_rank(group), dist.get_world_size(group)
        self.bytes_sent = self.bytes_received = 0

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, by rank."""
        gathered: list[Any] = [None] * self._n_ranks
        dist.all_gather_object(gathered, value, group=self._group)
        return gathered

    def own_share(
        self, counter: StateCounter, most_distinct: int, key_bytes: int | None = None
    ) -> StateCounter:
        """Return all ranks' counts of the states that belong to this rank.

        Args:
            counter: What this rank counted; it stays as it is.
            most_distinct: Distinct states of the rank that has most of them.
            key_bytes: So many bytes of a state say which rank it belongs to; None: all of them.
        """
        n_neurons = counter.n_neurons
        share = StateCounter(n_neurons)
        states, counts = counter.snapshot()
        row_bytes = 8 * (n_words(n_neurons) + 1)
        step = max(1, self.round_bytes // row_bytes)
        for start in range(0, most_distinct, step):
            rows = slice(start, start + step)
            cut = partition_states(states[rows], counts[rows], self._n_ranks, key_bytes)
            share.add_counts(*join_states(self._swap(cut.table, cut.sizes), n_neurons))
        return share

    def sum_tables(self, counter: GroupCounter) -> ProbeCounts:
        """Return what all ranks' counters of groups have counted together.

        Args:
            counter: What this rank counted; it stays as it is.
        """
        # As signed numbers, which wrap alike.
        tables = torch.from_numpy(counter.tables().view(np.int64))
        n_states = torch.tensor([counter.n_states], dtype=torch.int64)
        for each in (n_states, *torch.split(tables, self.round_bytes // 8)):
            dist.all_reduce(each, group=self._group)
        self.bytes_sent += 8 * len(tables)
        self.bytes_received += 8 * len(tables)
        together = GroupCounter(counter.n_neurons, counter.group_size)
        together.add_tables(tables.numpy().view(np.uint64), int(n_states))
        return ProbeCounts.of(together)

    def _swap(
        self, table: np.ndarray[tuple[int, int], np.dtype[np.int64]], sizes: np.ndarray
    ) -> np.ndarray:
        to_send = torch.from_numpy(sizes)
        to_get = torch.empty_like(to_send)
        dist.all_to_all_single(to_get, to_send, group=self._group)
        row_bytes = 8 * table.shape[1]
        self.bytes_sent += int(to_send.sum() - to_send[self._rank]) * row_bytes
        self.bytes_received += int(to_get.sum() - to_get[self._rank]) * row_bytes
        received = torch.empty((int(to_get.sum()), table.shape[1]), dtype=torch.int64)
        dist.all_to_all_single(
            received, torch.from_numpy(table), to_get.tolist(), to_send.tolist(), group=self._group
        )
        return received.numpy()
