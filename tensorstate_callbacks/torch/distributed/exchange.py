"""Each rank's counter in; the spectrum of the states that hash to this rank, over all ranks, out.

Ranks send each other states in rounds of bounded size, so a rank needs memory for what it counted
and for its share of all states, not for all of them.
"""

import numpy as np
import torch
import torch.distributed as dist

from tensorstate_callbacks.states.counter import StateCounter
from tensorstate_callbacks.states.partition import join_states, n_words, partition_states
from tensorstate_callbacks.torch.distributed.process_groups import ProcessGroup


class StateExchange:
    """Exchanges counted states between the ranks of a group; a collective: all call it alike.

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

    def own_share(self, counter: StateCounter, most_distinct: int) -> StateCounter:
        """Return all ranks' counts of the states that belong to this rank.

        Args:
            counter: What this rank counted; it stays as it is.
            most_distinct: Distinct states of the rank that has most of them.
        """
        n_neurons = counter.n_neurons
        share = StateCounter(n_neurons)
        states, counts = counter.snapshot()
        row_bytes = 8 * (n_words(n_neurons) + 1)
        step = max(1, self.round_bytes // row_bytes)
        for start in range(0, most_distinct, step):
            cut = partition_states(
                states[start : start + step], counts[start : start + step], self._n_ranks
            )
            share.add_counts(*join_states(self._swap(cut.table, cut.sizes), n_neurons))
        return share

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
