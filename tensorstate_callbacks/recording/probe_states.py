"""Follow the states of a fixed set of samples over a training: the first, the latest, the change.

Nothing here counts: what a run over the samples shows is kept in order, packed, and compared bit by
bit with what the first run and the one before have shown.
"""

import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from tensorstate_callbacks.errors import ProbeError, WarnOnce, list_some
from tensorstate_callbacks.metrics.turnover import (
    ProbeChange,
    Rows,
    changed_bits,
    count_ones,
    naswot,
    turnover,
)
from tensorstate_callbacks.recording.pass_counts import name_widths
from tensorstate_callbacks.recording.probe_rows import MOST_BYTES, LayerStates, RowKeeper
from tensorstate_callbacks.recording.recorder import Recorder

MOST_SAMPLES = 1024
"""How many samples probe data may have."""

# What a checkpoint is to hold of them at most.
_MOST_SAVED = 16 << 20


class TooMuchDataError(ValueError):
    """What was given as `probe_data` is no small set."""


def check_n_samples(n_samples: int) -> None:
    """Raise `TooMuchDataError` if these are too many samples."""
    if n_samples > MOST_SAMPLES:
        raise TooMuchDataError(
            f"probe_data has more than {MOST_SAMPLES:,} samples: each recording runs the model on "
            "all of them. Give fewer, some hundred show as much"
        )


def end_batch(recorder: Recorder, n_samples: int) -> None:
    """Let a recorder that keeps rows know that a batch of probe data is over.

    Raises:
        ProbeError: A layer's states can't be kept; names it.
        TooMuchDataError: They take too much memory.
    """
    # First: what lies on a device comes as late as here.
    counters = recorder.probe_counters()
    if recorder.error is not None:
        raise recorder.error
    if recorder.row_limit is not None and recorder.row_limit.is_passed:
        raise TooMuchDataError(
            f"the packed states of probe_data take more than {MOST_BYTES >> 20} MiB: give fewer "
            "samples, or read fewer positions of each (positions=16)"
        )
    for counter in counters.values():
        if isinstance(counter, RowKeeper):
            counter.end_batch(n_samples)


def states_of(recorder: Recorder) -> dict[str, LayerStates]:
    """Return the states that a recorder has kept of all batches, by the names of reports."""
    kept = {
        width: counter.states()
        for width, counter in recorder.probe_counters().items()
        if isinstance(counter, RowKeeper)
    }
    return name_widths({width: states for width, states in kept.items() if states is not None})


class _Followed(NamedTuple):
    """What is kept of one layer.

    Attributes:
        first: States in the first recording.
        previous: Packed states in the latest one.
        changed: Which bits have differed from the first in any, packed, shape `(bytes,)`.
        naswot: Score in the first; None where samples have codes of different lengths.
    """

    first: LayerStates
    previous: Rows
    changed: Rows
    naswot: float | None


class ProbeSeries:
    """The recordings of one model on one set of samples: the first and the latest are kept.

    Examples:
        >>> series = ProbeSeries()
        >>> for rows in ([[0b01], [0b10]], [[0b01], [0b00]]):
        ...     changes = series.add({"fc": LayerStates(2, np.uint8(rows), 2)})
        >>> changes["fc"].since_previous, changes["fc"].unchanged
        (0.25, 0.5)
    """

    def __init__(self) -> None:
        self._layers: dict[str, _Followed] = {}

    def __len__(self) -> int:
        return len(self._layers)

    def add(self, recording: Mapping[str, LayerStates]) -> dict[str, ProbeChange]:
        """Take a recording in, and return how each layer's states have changed."""
        layers, changes = dict(self._layers), {}
        for name, states in recording.items():
            known = layers.get(name)
            if known is None or not known.first.is_like(states):
                layers[name] = _begun(states)
                changes[name] = ProbeChange(naswot=layers[name].naswot)
            else:
                layers[name], changes[name] = _compared(known, states)
        # In one step: an interrupt leaves it as it was before, or whole.
        self._layers = layers
        return changes

    def unlike(self, recording: Mapping[str, LayerStates]) -> list[str]:
        """Return the layers that can't be compared, as they had other neurons or positions."""
        known = {name: states for name, states in recording.items() if name in self._layers}
        return [name for name, new in known.items() if not self._layers[name].first.is_like(new)]

    def state_dict(self) -> dict[str, Any]:
        """Return plain dicts, numbers and bytes for a checkpoint; empty if they are too many."""
        if sum(2 * each.previous.nbytes for each in self._layers.values()) > 4 * _MOST_SAVED:
            return {}
        packed = {name: _packed(each) for name, each in self._layers.items()}
        n_bytes = sum(len(each["first"]) + len(each["previous"]) for each in packed.values())
        return packed if n_bytes <= _MOST_SAVED else {}

    def load_state_dict(self, packed: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._layers = {name: _unpacked(each) for name, each in packed.items()}


def _begun(states: LayerStates) -> _Followed:
    score = None
    if states.n_samples:
        codes = states.rows.reshape(states.n_samples, -1)
        n_positions = len(states.rows) // states.n_samples
        score = naswot(codes, n_positions * states.n_neurons)
    return _Followed(states, states.rows, np.zeros(states.rows.shape[1], np.uint8), score)


def _compared(known: _Followed, states: LayerStates) -> tuple[_Followed, ProbeChange]:
    rows, n_neurons = states.rows, states.n_neurons
    changed = known.changed | changed_bits(known.first.rows, rows)
    change = ProbeChange(
        since_previous=turnover(known.previous, rows, n_neurons),
        since_first=turnover(known.first.rows, rows, n_neurons),
        unchanged=(n_neurons - count_ones(changed)) / n_neurons,
        naswot=known.naswot,
    )
    return known._replace(previous=rows, changed=changed), change


def _packed(followed: _Followed) -> dict[str, Any]:
    first = followed.first
    return {
        "n_neurons": first.n_neurons,
        "n_samples": first.n_samples,
        "n_states": len(first.rows),
        "first": zlib.compress(first.rows.tobytes(), 1),
        # Most bits are alike.
        "previous": zlib.compress((first.rows ^ followed.previous).tobytes(), 1),
        "changed": followed.changed.tobytes(),
        "naswot": followed.naswot,
    }


def _unpacked(packed: Mapping[str, Any]) -> _Followed:
    shape = packed["n_states"], -1
    first, differing = (
        np.frombuffer(zlib.decompress(packed[name]), np.uint8).reshape(shape)
        for name in ("first", "previous")
    )
    states = LayerStates(packed["n_neurons"], first, packed["n_samples"])
    previous: Rows = np.bitwise_xor(first, differing)
    changed = np.frombuffer(packed["changed"], np.uint8)
    return _Followed(states, previous, changed, packed["naswot"])


class Outcome(NamedTuple):
    """What one process made of a run over the probe data.

    Attributes:
        changes: How each layer's states changed; None where the run failed.
        problem: Why it failed.
    """

    changes: dict[str, ProbeChange] | None
    problem: str | None = None


class FollowedProbe:
    """Follows the probe data of one run, until something goes wrong with it.

    A training doesn't end for it: what fails is warned of once, and nothing is recorded any more.

    Args:
        warn: Takes the warnings.

    Attributes:
        data: The samples, as the framework's own part has read them; None where there are none.
        series: The recordings.
        is_off: It has failed.
    """

    def __init__(self, warn: WarnOnce) -> None:
        self._warn = warn
        self._given: Any = None
        self.data: Any = None
        self.series = ProbeSeries()
        self.is_off = False

    def take(self, given: Any, read: Callable[[Any], Any], *, begins: bool = False) -> None:
        """Take the samples of a run that begins; others than before are followed anew.

        Args:
            given: The argument `probe_data`.
            read: Makes `data` of it.
            begins: Whether the same ones are followed anew, too.
        """
        if given is not self._given:
            self.data, self._given = None if given is None else read(given), given
            begins = True
        if begins:
            self.series, self.is_off = ProbeSeries(), False

    def record(
        self,
        run: Callable[[], Recorder],
        gather: Callable[[Outcome], list[Outcome]] | None = None,
        *,
        is_beginning: bool = False,
    ) -> dict[str, ProbeChange]:
        """Run the model on the probe data, and return how each layer's states changed.

        Args:
            run: Runs it; returns the recorder that has kept the states.
            gather: Where processes share the model: returns the outcomes of all of them, in the
                same order on each. All have to call this; they get what the first of them has.
            is_beginning: Training hasn't begun, so that too much data is an error.

        Raises:
            TooMuchDataError: At the beginning: the states take too much memory.
        """
        if self.is_off:
            return {}
        try:
            outcome = self._attempt(run)
        except TooMuchDataError as error:
            if is_beginning and gather is None:
                raise
            outcome = Outcome(None, str(error))
        except Exception as error:  # noqa: BLE001 - the user's model may raise anything
            outcome = Outcome(None, _describe(error))
        outcomes = [outcome] if gather is None else gather(outcome)
        problem = next((each.problem for each in outcomes if each.problem is not None), None)
        if problem is None:
            return outcomes[0].changes or {}
        self.is_off = True
        self._warn(
            "probe_data",
            f"probe_data isn't followed any more, and its metrics are left out: {problem}. Give a "
            "few samples as the model takes them as input",
        )
        return {}

    def _attempt(self, run: Callable[[], Recorder]) -> Outcome:
        recording = states_of(run())
        if not recording:
            raise ProbeError("no probed layer was called")
        unlike = self.series.unlike(recording)
        if unlike:
            self._warn(
                "layers of probe_data",
                f"on probe_data, {list_some(unlike)} had other neurons or positions than in the "
                "first recording, so that their states can't be compared with it: they are "
                "followed anew from here on",
            )
        return Outcome(self.series.add(recording))


def _describe(error: Exception) -> str:
    return f"the run over it failed with {type(error).__name__}: {error}".rstrip(". ")
