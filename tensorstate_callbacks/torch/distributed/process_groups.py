"""A process group in; what can carry tensors of the host between its ranks, and its timeout out."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

ProcessGroup = Any
"""A `torch.distributed.ProcessGroup`; torch built without `distributed` doesn't have it."""


def ranks_of(group: ProcessGroup) -> list[int]:
    """Return the global ranks of a group, this process among them.

    Raises:
        ValueError: This process isn't in the group.
    """
    if dist.get_rank(group) < 0:
        raise ValueError(
            f"rank {dist.get_rank()} is not in the process group it was to merge its counts with: "
            "call this on the ranks of the group only"
        )
    return list(dist.get_process_group_ranks(group))


@contextmanager
def host_group(group: ProcessGroup) -> Iterator[ProcessGroup]:
    """Give a group of the same ranks that carries tensors in host memory.

    That is the group itself, or one of gloo that lasts as long as the block: NCCL carries tensors
    in its devices' memory only.
    """
    if _carries_host_tensors(group):
        yield group
        return
    side = dist.new_group(
        ranks_of(group), timeout_of(group), backend="gloo", use_local_synchronization=True
    )
    try:
        yield side
    finally:
        dist.destroy_process_group(side)


def timeout_of(group: ProcessGroup) -> timedelta:
    """Return how long the group's ranks wait for each other."""
    device = torch.device("cpu" if _carries_host_tensors(group) else "cuda")
    try:
        timeout: timedelta = group._get_backend(device).options._timeout
    except (AttributeError, RuntimeError):
        # A backend that isn't torch's own.
        return default_store().timeout  # type: ignore[no-any-return]
    return timeout


def default_store() -> Any:
    """Return the store that torch's own groups are made with; it has no public name."""
    return dist.distributed_c10d._get_default_store()


def _carries_host_tensors(group: ProcessGroup) -> bool:
    return "cpu:" in dist.get_backend_config(group)
