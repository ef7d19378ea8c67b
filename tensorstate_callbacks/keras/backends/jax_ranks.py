"""Find the processes of JAX that share an evaluation, and merge what they counted."""

import pickle
from collections.abc import Callable, Mapping
from typing import Any

import jax
import keras
import numpy as np

from tensorstate_callbacks.keras.backends.jax_processes import ProcessStore, mark_known
from tensorstate_callbacks.recording.accuracy import FoundAccuracy
from tensorstate_callbacks.recording.pass_counts import ProbeCounts
from tensorstate_callbacks.recording.rank_passes import (
    MergedPass,
    check_alike,
    check_passes,
    merge_gathered,
    pass_of,
)
from tensorstate_callbacks.recording.recorder import Recorder
from tensorstate_callbacks.states.counter import StateCounter
from tensorstate_callbacks.states.group_counter import GroupCounter
from tensorstate_callbacks.states.partition import join_states, n_words, partition_states


class ProcessExchange:
    """Exchanges counted states between processes; see `recording.rank_exchange.Exchange`.

    A process gets all processes' counts of the states that hash to it, in rounds of bounded size.

    Args:
        store: Carries bytes.
    """

    round_bytes = 4 << 20

    def __init__(self, store: ProcessStore) -> None:
        self._store = store

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, by rank."""
        gathered = self._store.gather(pickle.dumps(value))
        # Of processes that run the very same program.
        return [pickle.loads(text) for text in gathered]  # noqa: S301

    def own_share(
        self, counter: StateCounter, most_distinct: int, key_bytes: int | None = None
    ) -> StateCounter:
        """Return all processes' counts of the states that belong to this one."""
        n_neurons = counter.n_neurons
        share = StateCounter(n_neurons)
        states, counts = counter.snapshot()
        n_columns = n_words(n_neurons) + 1
        step = max(1, self.round_bytes // (8 * n_columns))
        for start in range(0, most_distinct, step):
            rows = slice(start, start + step)
            table, sizes = partition_states(
                states[rows], counts[rows], self._store.n_ranks, key_bytes
            )
            parts = np.split(table, np.cumsum(sizes)[:-1])
            received = self._store.swap([part.tobytes() for part in parts])
            mine = np.frombuffer(b"".join(received), np.int64).reshape(-1, n_columns)
            share.add_counts(*join_states(mine, n_neurons))
        return share

    def sum_tables(self, counter: GroupCounter) -> ProbeCounts:
        """Return what all processes' counters of groups have counted together."""
        tables = counter.tables()
        numbers = self.gather(counter.n_states)
        step = self.round_bytes // 8
        summed = np.zeros_like(tables)
        for start in range(0, len(tables), step):
            for part in self._store.gather(tables[start : start + step].tobytes()):
                summed[start : start + step] += np.frombuffer(part, np.uint64)
        together = GroupCounter(counter.n_neurons, counter.group_size)
        together.add_tables(summed, sum(numbers))
        return ProbeCounts.of(together)


class JaxRanks:
    """The processes that share an evaluation's data.

    Attributes:
        rank: The number of this one.
    """

    def __init__(self) -> None:
        self._store = ProcessStore()
        self.rank = self._store.rank

    def check_settings(self, settings: Mapping[str, str]) -> None:
        """Check that all processes record alike: all call it, as a fit begins.

        Args:
            settings: What this one records with; see `Settings.comparable`.

        Raises:
            RankError: On each of them: some record otherwise; names them, and what differs. Or a
                process failed, or didn't come in time.
        """
        gathered = ProcessExchange(self._store).gather(dict(settings))
        check_alike(range(self._store.n_ranks), gathered)

    def merge(
        self,
        recorder: Recorder,
        find_accuracy: Callable[[], FoundAccuracy],
        failure: Exception | None,
        settings: Mapping[str, str],
    ) -> MergedPass:
        """Merge what all processes recorded: all call it.

        Args:
            recorder: What this one recorded.
            find_accuracy: Looks the accuracy up.
            failure: What went wrong here, if it can't go on.
            settings: What it records with; see `Settings.comparable`.

        Raises:
            RankError: A process failed, records otherwise, or is gone; the message names it.
            Exception: `failure`, or the recorder's error.
        """
        found = FoundAccuracy(None)
        try:
            found = find_accuracy()
        except Exception as error:  # noqa: BLE001 - raised once the others know of it
            failure = failure or error
        own = pass_of(recorder, found, None, failure, {}, settings)
        exchange = ProcessExchange(self._store)
        try:
            passes = exchange.gather(own.told)
            if own.failure is not None:
                mark_known(own.failure)
                raise own.failure
            check_passes(range(self._store.n_ranks), passes)
            return merge_gathered(own, passes, exchange)
        except BaseException as error:
            self.send_failure(error)
            raise

    def send_failure(self, failure: BaseException) -> None:
        """Let the other processes know, where they wait next, that this one won't come and why."""
        self._store.send_failure(failure)


def find_ranks() -> JaxRanks | None:
    """Return the processes that share the model's evaluations; None where it is this one's alone.

    Raises:
        ValueError: There are several processes, and `keras.distribution` doesn't connect all.
    """
    n_processes = jax.process_count()
    if n_processes == 1:
        return None
    distribution = keras.distribution.distribution()
    owners = None if distribution is None else _owners(distribution.device_mesh)
    if owners == {jax.process_index()}:
        return None
    if owners == {*range(n_processes)}:
        return JaxRanks()
    what = "no distribution is set" if owners is None else f"{distribution} spreads over some only"
    raise ValueError(
        f"JAX runs in {n_processes} processes, of which keras.distribution doesn't connect all "
        f"({what}), so that their states can't be merged. Before the model is made, call "
        "keras.distribution.set_distribution(keras.distribution.DataParallel()), which takes the "
        "devices of all processes; or evaluate in one process"
    )


def _owners(mesh: Any) -> set[int | None]:
    """Return the processes that the devices of a mesh belong to; None for those of none."""
    known = {device.platform: jax.devices(device.platform) for device in jax.devices()}
    known.setdefault("cpu", jax.devices("cpu"))
    by_name = {
        f"{device.platform}:{device.id}": device.process_index
        for devices in known.values()
        for device in devices
    }
    return {
        device.process_index if isinstance(device, jax.Device) else by_name.get(str(device).lower())
        for device in mesh.devices.flat
    }
