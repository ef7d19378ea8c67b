"""Report the last recorded batches of a training together, each dropped whole when it is too old.

A training batch is counted by a recorder of its own. A window holds what the last ones have
counted, and merges it for each report: to the bit what one recorder would have counted of them.
"""

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from tensorstate_callbacks.errors import WarnOnce, list_some
from tensorstate_callbacks.recording.budget import describe_thinned
from tensorstate_callbacks.recording.pass_counts import (
    PassCounts,
    PassInfo,
    ProbeCounts,
    Width,
    merge_orders,
    name_widths,
)
from tensorstate_callbacks.recording.probe_counter import Counter, thinned_to
from tensorstate_callbacks.recording.recorder import Recorder
from tensorstate_callbacks.reports.limits import describe_low_coverage
from tensorstate_callbacks.reports.report import EfficiencyReport
from tensorstate_callbacks.states.counter import StateCounter
from tensorstate_callbacks.states.group_counter import GroupCounter


class BatchCounts(NamedTuple):
    """What was counted of one training batch, with all that a merge may have to fall back on.

    Attributes:
        names: All probes.
        dropped: The probes that turned out not to be meant.
        levels: Of each probe that saw a state, and each number of neurons that it saw them with,
            in forward order, the counters at each level; None for those that were given up. See
            `recording.budget`.
        n_wanted: Positions of a sample that each was to be read at.
        neurons: Whether reports are to tell which neurons agree.
    """

    names: tuple[str, ...]
    dropped: frozenset[str]
    levels: Mapping[Width, Sequence[Counter | None]]
    n_wanted: Mapping[Width, int]
    neurons: bool

    @classmethod
    def of(cls, recorder: Recorder) -> "BatchCounts":
        """Return what a recorder has counted; it is not to count any more.

        Raises:
            ProbeError: A layer could not be counted; names it.
        """
        # First: what lies on a device is counted as late as here.
        counters = recorder.probe_counters()
        if recorder.error is not None:
            raise recorder.error
        if recorder.budget is not None:
            recorder.budget.finish()
        probes = {width: probe for width, probe in counters.items() if probe.has_seen}
        return cls(
            recorder.names,
            recorder.dropped,
            {width: probe.levels() for width, probe in probes.items()},
            {width: probe.n_wanted for width, probe in probes.items()},
            recorder.finds_neurons,
        )


class StateWindow:
    """The states of the last recorded batches of a training.

    Where memory is short, a layer is read at the positions that all batches of the window were read
    at. Each batch is to be recorded with a share of memory that doesn't depend on the others, see
    `Settings.of_train_batch`: what is reported of a window then depends on its batches alone.

    Args:
        size: How many batches it holds at most, at least 1.

    Examples:
        >>> import numpy as np
        >>> window = StateWindow(2)
        >>> for batch in (np.eye(3), np.eye(3), -np.eye(3)):
        ...     recorder = Recorder(["fc"])
        ...     recorder.observe("fc", batch, 1)
        ...     window.add(recorder)
        >>> window.counts().report(PassInfo(stage="train")).layers["fc"].n_distinct
        4
    """

    def __init__(self, size: int) -> None:
        self._batches: deque[BatchCounts] = deque(maxlen=size)

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def is_full(self) -> bool:
        """Whether a further batch takes the place of the oldest."""
        return len(self._batches) == self._batches.maxlen

    def add(self, batch: Recorder | BatchCounts) -> None:
        """Take a batch in, and drop the oldest where there are too many.

        Args:
            batch: What has recorded it, and is not to go on; or what was counted of it.

        Raises:
            ProbeError: A layer could not be counted; names it. The window stays as it was.
        """
        self._batches.append(BatchCounts.of(batch) if isinstance(batch, Recorder) else batch)

    def clear(self) -> None:
        """Drop all batches."""
        self._batches.clear()

    def counts(self) -> PassCounts:
        """Return what was counted of all batches, as if it had been one pass."""
        batches = list(self._batches)
        dropped = {name for batch in batches for name in batch.dropped}
        widths = merge_orders(batch.levels for batch in batches)
        probes: dict[Width, Counter | ProbeCounts] = {}
        thinned: dict[Width, tuple[int, int]] = {}
        for width in (width for width in widths if width.probe not in dropped):
            parts = [batch.levels[width] for batch in batches if width in batch.levels]
            level = _common_level(parts)
            merged = None if level is None else _merged(width, parts, level)
            if merged is not None:
                probes[width] = merged
            n_wanted = max(batch.n_wanted.get(width, 0) for batch in batches)
            to = thinned_to(None if merged is None else level, n_wanted)
            if to is not None:
                thinned[width] = to
        left_out = dropped | {width.probe for width in thinned if width not in probes}
        names = merge_orders(batch.names for batch in batches)
        return PassCounts(
            tuple(name for name in names if name not in left_out),
            probes,
            name_widths(thinned),
            any(batch.neurons for batch in batches),
        )


def _common_level(parts: Sequence[Sequence[Counter | None]]) -> int | None:
    """Return the first level that no batch has given up; None where there is none."""
    for level in range(max(map(len, parts))):
        if None not in [_at(levels, level) for levels in parts]:
            return level
    return None


def _at(levels: Sequence[Counter | None], level: int) -> Counter | None:
    # Of one position, a further level would read the same.
    return levels[min(level, len(levels) - 1)]


def _merged(width: Width, parts: Sequence[Sequence[Counter | None]], level: int) -> Counter | None:
    """Return a counter of all that was counted at a level; None where there is no memory."""
    counters = [_at(levels, level) for levels in parts]
    if len(counters) == 1:
        return counters[0]
    try:
        groups = [each for each in counters if isinstance(each, GroupCounter)]
        if groups:
            tables = GroupCounter(width.n_neurons, groups[0].group_size)
            for group in groups:
                tables.merge(group)
            return tables
        states = StateCounter(width.n_neurons)
        for each in counters:
            if isinstance(each, StateCounter):
                states.merge(each)
        return states
    except MemoryError:
        return None


def conclude_window(
    counts: PassCounts,
    warn: WarnOnce,
    info: PassInfo,
    *,
    is_full: bool,
    before: Collection[str] | None = None,
) -> EfficiencyReport | None:
    """Turn a window into its report.

    A window has no accuracy, since nobody measures one on just these batches, and so no aIQ.

    Args:
        counts: What was counted in it.
        warn: Takes the warnings, each once a fit: layers that saw nothing, that are read at fewer
            positions for lack of memory, of which too little was seen, that are others than before.
        info: Its epoch and step, and the orders of entropy and aIQ.
        is_full: Whether it holds as many batches as it can, and so can't show more.
        before: Layers of the window before, of the same fit; None where there is none.

    Returns:
        The report; None where no probe saw anything.
    """
    if counts.thinned:
        warn("memory of windows", f"{describe_thinned(counts.thinned)}, or a smaller window")
    unseen = [name for name in counts.unseen() if before is None or name not in before]
    if unseen:
        warn(
            "unseen in windows",
            f"no activations came from {', '.join(unseen)} in the training batches that were "
            "recorded: the training step doesn't call these layers, or they run where a probe "
            "can't see them (a compiled function of their own). They are left out; attach to other "
            "layers, or exclude them",
        )
    if not counts.probes:
        return None
    report = counts.report(info)
    if before is not None and {*before} != {*report.layers}:
        changed = [name for name in report.layers if name not in before]
        changed += [name for name in before if name not in report.layers]
        warn(
            "layers of windows",
            f"the window of training batches at step {info.step} saw other layers than the one "
            f"before ({list_some(changed)}): train_efficiency is of the layers that the latest "
            "batches have called. Compare layer by layer, or attach to layers that every batch "
            "calls",
        )
    if is_full:
        warn_of_low_coverage(report, warn)
    return report


def warn_of_low_coverage(report: EfficiencyReport, warn: WarnOnce) -> None:
    """Warn once of layers of which a window that holds all that it can has seen too little."""
    limited = describe_low_coverage(report.layers, report.alpha, "a larger window")
    if limited is not None:
        warn("coverage of windows", f"In windows of training batches: {limited}")
