"""Wait for the ranks of a process group, or learn which one is missing and why.

Collectives alone don't say: where one rank is missing, the others wait for the whole timeout, and
most then hear of a closed connection to a neighbour. So ranks first leave a note in the store that
the process group was made with.
"""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from tensorstate_callbacks.errors import RankError, TensorStateWarning

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


Failure = TypeVar("Failure", bound=BaseException)

_HERE = b"here"
_LONGEST = 500
_KNOWN = "_tensorstate_known"


def wait_for_ranks(group: ProcessGroup) -> None:
    """Wait until all ranks of the group have come here, each for the same time.

    Raises:
        RankError: A rank has failed instead, or didn't come within the group's timeout.
        ValueError: This process isn't in the group.
    """
    ranks, timeout = ranks_of(group), timeout_of(group)
    store = _store(ranks)
    try:
        turn = _leave(store, _HERE)
        keys = {rank: f"{turn}/{rank}" for rank in ranks}
        try:
            store.wait(list(keys.values()), timeout)
        except RuntimeError:
            # The others learn it at once: their wait may have begun later.
            for key in keys.values():
                if not store.check([key]):
                    store.set(key, _absent(timeout))
        notes = {rank: store.get(key) for rank, key in keys.items()}
        # All have read what was left for the turn before.
        store.delete_key(f"{turn - 1}/{dist.get_rank()}")
    except RuntimeError as error:
        raise RankError(
            "rank 0, or the launcher that holds the process group's store in its place, does not "
            f"answer any more, so the counts of states can't be merged: {_first_line(error)}"
        ) from error
    why = {rank: note.decode(errors="replace") for rank, note in notes.items() if note != _HERE}
    if why:
        named = ("rank " if len(why) == 1 else "ranks ") + ", ".join(map(str, why))
        raise RankError(
            f"the counts of states can't be merged without {named}: {next(iter(why.values()))}"
        )


def send_failure(failure: BaseException, group: ProcessGroup) -> None:
    """Let the other ranks know, where they wait next, that this one won't come and why.

    Does not wait for them. A failure that itself says that another rank failed is no news.
    """
    if isinstance(failure, RankError) or getattr(failure, _KNOWN, False):
        return
    text = f"it failed with {type(failure).__name__}: {failure}"[:_LONGEST]
    try:
        ranks = ranks_of(group)
        store = _store(ranks)
        turn = _leave(store, text.encode())
        mark_known(failure)
        for rank in ranks:
            key = f"{turn}/{rank}"
            if rank != dist.get_rank() and store.check([key]) and store.get(key) != _HERE:
                # Likely the cause: a collective of the user's, in which that one was missing.
                _add_note(failure, f"rank {rank}: {store.get(key).decode(errors='replace')}")
    except RuntimeError:
        # The store is gone with rank 0, which the others see themselves. The failure goes on.
        return


def _add_note(failure: BaseException, note: str) -> None:
    if sys.version_info >= (3, 11):
        failure.add_note(note)
    else:
        warnings.warn(note, TensorStateWarning, stacklevel=3)


def mark_known(failure: Failure) -> Failure:
    """Mark a failure as known to the other ranks, and return it."""
    setattr(failure, _KNOWN, True)
    return failure


def _store(ranks: list[int]) -> Any:
    name = f"tensorstate_callbacks/{'-'.join(map(str, ranks))}"
    return dist.distributed_c10d.PrefixStore(name, default_store())


def _leave(store: Any, note: bytes) -> int:
    rank = dist.get_rank()
    turn = int(store.add(f"turns/{rank}", 1))
    # Who comes late finds that the others have gone on without it.
    if not store.check([f"{turn}/{rank}"]):
        store.set(f"{turn}/{rank}", note)
    return turn


def _absent(timeout: timedelta) -> bytes:
    return (
        f"it did not come within the process group's timeout ({timeout}): it died, hangs, or goes "
        "another way through the evaluation than the others. Its own output may say which; where "
        "it was only slow, make the process group with a longer timeout"
    ).encode()


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
