"""Wait for the processes of JAX that share an evaluation, and carry bytes between them.

All goes through the key-value store of `jax.distributed`, from host to host. A collective of XLA's
would wait for a process that is missing, and not say which.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, ClassVar

import jax

from tensorstate_callbacks.errors import RankError

WAIT_SECONDS = 300.0
"""How long processes wait for each other: as long as `jax.distributed.initialize` does."""

# Between two looks at whether the user wants to stop.
_LOOK_SECONDS = 1.0
_LONGEST = 500
_VALUE, _FAILURE = b"+", b"-"
_KNOWN = "_tensorstate_known"


class ProcessStore:
    """What the processes leave for each other, turn by turn: each of them takes the same turns.

    Raises:
        ValueError: This release of JAX has no store.
    """

    # The turn that all have come to, for as long as `jax.distributed` stays initialized.
    _client: ClassVar[Any] = None
    _turn: ClassVar[int] = 0

    def __init__(self) -> None:
        self.rank, self.n_ranks = jax.process_index(), jax.process_count()
        client = _find_client()
        if client is None:
            raise ValueError(
                f"JAX {jax.__version__} has no key-value store for the states of its "
                f"{self.n_ranks} processes to be merged by: start them with "
                "jax.distributed.initialize or keras.distribution.initialize, or evaluate in one "
                "process"
            )
        if client is not ProcessStore._client:
            ProcessStore._client, ProcessStore._turn = client, 0
        # What all have read by the end of the next turn.
        self._left: list[str] = []

    def gather(self, value: bytes) -> list[bytes]:
        """Return what all processes give, by rank: all call it.

        Raises:
            RankError: A process failed instead, or didn't come in time; names it.
        """
        turn = self._next_turn()
        keys = [f"{turn}/{rank}" for rank in range(self.n_ranks)]
        self._leave(keys[self.rank], value)
        values = self._wait({rank: key for rank, key in enumerate(keys) if rank != self.rank})
        for key in self._left:
            self._delete(key)
        self._left = [keys[self.rank]]
        return [values.get(rank, value) for rank in range(self.n_ranks)]

    def swap(self, parts: Sequence[bytes]) -> list[bytes]:
        """Give each process a part, and return what all give to this one, by rank: all call it.

        Args:
            parts: What each gets, by rank.

        Raises:
            RankError: A process failed instead, or didn't come in time; names it.
        """
        turn = self._next_turn()
        others = [rank for rank in range(self.n_ranks) if rank != self.rank]
        for rank in others:
            self._leave(f"{turn}/{self.rank}/{rank}", parts[rank])
        keys = {rank: f"{turn}/{rank}/{self.rank}" for rank in others}
        values = self._wait(keys)
        for key in keys.values():
            self._delete(key)
        return [values.get(rank, parts[self.rank]) for rank in range(self.n_ranks)]

    def send_failure(self, failure: BaseException) -> None:
        """Let the others know, where they wait next, that this one won't come and why.

        A failure that itself says that another process failed is no news.
        """
        if isinstance(failure, RankError) or getattr(failure, _KNOWN, False):
            return
        text = f"it failed with {type(failure).__name__}: {failure}"[:_LONGEST].encode()
        turn = self._next_turn()
        # The store may be gone with process 0, which the others see themselves.
        with suppress(RuntimeError):
            self._set(f"{turn}/{self.rank}", _FAILURE + text)
            for rank in range(self.n_ranks):
                self._set(f"{turn}/{self.rank}/{rank}", _FAILURE + text)
            mark_known(failure)

    def _next_turn(self) -> int:
        ProcessStore._turn += 1
        return ProcessStore._turn

    def _set(self, key: str, value: bytes) -> None:
        ProcessStore._client.key_value_set_bytes(_path(key), value)

    def _delete(self, key: str) -> None:
        with suppress(RuntimeError):
            ProcessStore._client.key_value_delete(_path(key))

    def _leave(self, key: str, value: bytes) -> None:
        try:
            self._set(key, _VALUE + value)
        except RuntimeError as error:
            if "ALREADY_EXISTS" not in str(error):
                raise _no_answer(error) from error
            # The others have gone on without this one, and left a note that says so.
            note = self._get(key, _LOOK_SECONDS) or b"-it was late"
            raise _missing(self.rank, note) from error

    def _wait(self, keys: dict[int, str]) -> dict[int, bytes]:
        end, values = time.monotonic() + WAIT_SECONDS, {}
        for rank, key in keys.items():
            while (note := self._get(key, _LOOK_SECONDS)) is None:
                if time.monotonic() > end:
                    note = _FAILURE + _absent()
                    # It learns of it when it comes.
                    with suppress(RuntimeError):
                        self._set(key, note)
                    break
            if not note.startswith(_VALUE):
                raise _missing(rank, note)
            values[rank] = note[1:]
        return values

    def _get(self, key: str, seconds: float) -> bytes | None:
        try:
            note: bytes = ProcessStore._client.blocking_key_value_get_bytes(
                _path(key), int(1000 * seconds)
            )
        except RuntimeError as error:
            if "DEADLINE_EXCEEDED" in str(error):
                return None
            raise _no_answer(error) from error
        return note


def mark_known(failure: BaseException) -> None:
    """Mark a failure as known to the other processes."""
    setattr(failure, _KNOWN, True)


def _find_client() -> Any:
    # It has no public name.
    state = getattr(getattr(jax, "_src", None), "distributed", None)
    client = getattr(getattr(state, "global_state", None), "client", None)
    return client if hasattr(client, "blocking_key_value_get_bytes") else None


def _path(key: str) -> str:
    return f"tensorstate_callbacks/{key}"


def _missing(rank: int, note: bytes) -> RankError:
    return RankError(
        f"the counts of states can't be merged without rank {rank}: "
        f"{note[1:].decode(errors='replace')}"
    )


def _absent() -> bytes:
    return (
        f"it did not come within {WAIT_SECONDS:g} seconds: it died, hangs, has more or fewer "
        "batches than the others, or no callback. Give the callback to all processes, and all of "
        "them the same number of samples"
    ).encode()


def _no_answer(error: BaseException) -> RankError:
    return RankError(
        "rank 0, which holds the store of jax.distributed, does not answer any more, so the counts "
        f"of states can't be merged: {str(error).strip().partition(chr(10))[0]}"
    )
