"""Find the processes that share an evaluation, and merge what they counted."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from tensorstate_callbacks.errors import WarnOnce
from tensorstate_callbacks.recording.accuracy import FoundAccuracy
from tensorstate_callbacks.recording.pass_counts import PassCounts
from tensorstate_callbacks.recording.recorder import Recorder
from tensorstate_callbacks.recording.windows import StateWindow
from tensorstate_callbacks.torch.distributed.own_samples import BatchSamples, OwnSamples
from tensorstate_callbacks.torch.distributed.process_groups import (
    ProcessGroup,
    send_failure,
    wait_for_ranks,
)
from tensorstate_callbacks.torch.distributed.rank_windows import add_over_ranks
from tensorstate_callbacks.torch.distributed.ranks import (
    MergedPass,
    check_settings,
    merge_passes,
)

if TYPE_CHECKING:
    import pytorch_lightning as pl


class Ranks:
    """The processes that share one evaluation's data.

    Args:
        group: Their process group.
        loader: What this one's batches come from.
        n_batches: How many batches each dataloader of the evaluation has.

    Attributes:
        problem: Why repeated samples can't be told from others, or None.
    """

    def __init__(self, group: ProcessGroup, loader: Any, n_batches: Sequence[float]) -> None:
        self._group = group
        self._n_batches = n_batches
        self._own = OwnSamples(loader, dist.get_world_size(group))
        self._n_own = 0
        self.problem = self._own.problem

    def begin_batch(self, index: int) -> BatchSamples | None:
        """Return what the batch that begins has of this rank's own; None where it isn't known."""
        samples = self._own.of_batch(index)
        self._n_own += 0 if samples is None else samples.n_own
        return samples

    def end_batch(self, index: int, dataloader_idx: int) -> None:
        """After a dataloader's last batch, check that all ranks are there.

        Right afterwards Lightning computes its metrics from all ranks, in collectives that would
        wait for a missing one and not say so.
        """
        if index + 1 == self._n_batches[dataloader_idx]:
            wait_for_ranks(self._group)

    def merge(
        self,
        recorder: Recorder,
        doubts: Mapping[str, str],
        settings: Mapping[str, str],
        find_accuracy: Callable[[], FoundAccuracy],
    ) -> MergedPass:
        """Merge what all ranks recorded; see `merge_passes`.

        Args:
            recorder: What this rank recorded.
            doubts: What was assumed of its samples.
            settings: What it records with.
            find_accuracy: Looks the accuracy up, for which Lightning may need all ranks.

        Raises:
            RankError: A rank failed, records otherwise, or is gone; the message names it.
        """
        wait_for_ranks(self._group)
        found, failure = FoundAccuracy(None), None
        try:
            found = find_accuracy()
        except Exception as error:  # noqa: BLE001 - raised once the other ranks know of it
            failure = error
        weight = None if self.problem else self._n_own
        return merge_passes(recorder, self._group, found, weight, failure, doubts, settings)


def find_group(trainer: "pl.Trainer", warn: WarnOnce | None = None) -> ProcessGroup | None:
    """Return the process group that shares the Trainer's data.

    None where there is only one process, or no `torch.distributed` between them.

    Args:
        trainer: The Trainer.
        warn: Takes the warning that the processes' states can't be merged.
    """
    if not (dist.is_available() and dist.is_initialized()):
        if warn is not None and trainer.world_size > 1:
            warn(
                "processes",
                f"the states of the {trainer.world_size} processes are not merged, since "
                f"{type(trainer.strategy).__name__} doesn't connect them by torch.distributed: "
                "each has the metrics of its own share of the data",
            )
        return None
    if trainer.world_size < 2:
        return None
    mesh = getattr(trainer.strategy, "_device_mesh", None)
    # ModelParallelStrategy: the processes of one tensor-parallel group see the same data.
    if mesh is not None and "data_parallel" in (mesh.mesh_dim_names or ()):
        return mesh.get_group("data_parallel")
    return dist.group.WORLD


def find_ranks(trainer: "pl.Trainer", dataloader_idx: int, warn: WarnOnce) -> Ranks | None:
    """Return the processes of the evaluation that has just begun; None where there is only one.

    Args:
        trainer: The Trainer.
        dataloader_idx: The dataloader whose batches count.
        warn: Takes the warning that the processes' states can't be merged.
    """
    group = find_group(trainer, warn)
    if group is None:
        return None
    return Ranks(group, _find_loader(trainer, dataloader_idx), _n_batches(trainer))


def add_to_window(
    window: StateWindow,
    recorder: Recorder,
    settings: Mapping[str, str],
    trainer: "pl.Trainer",
    warn: WarnOnce,
) -> PassCounts:
    """Add a training batch to a window, and return what it holds, over all processes.

    Args:
        window: What this process has of the batches so far.
        recorder: What it recorded of the one that was trained on last.
        settings: What it records with.
        trainer: The Trainer.
        warn: Takes the warning that the processes' states can't be merged.

    Raises:
        ProbeError: A layer could not be counted; names it.
        RankError: A rank failed, records otherwise, or is gone; the message names it.
    """
    group = find_group(trainer, warn)
    if group is not None:
        return add_over_ranks(window, recorder, group, settings)
    window.add(recorder)
    return window.counts()


def check_ranks(trainer: "pl.Trainer", settings: Mapping[str, str]) -> None:
    """Check, as a run begins, that all processes record alike; see `check_settings`.

    Where one records every epoch and another every second one, they would wait for each other.

    Raises:
        RankError: They don't, or one failed; the message names it.
    """
    group = find_group(trainer)
    if group is not None:
        check_settings(settings, group)


def announce_failure(trainer: "pl.Trainer", failure: BaseException) -> None:
    """Let the other processes know that this one ends with an error."""
    group = find_group(trainer)
    if group is not None:
        send_failure(failure, group)


def _n_batches(trainer: "pl.Trainer") -> Sequence[float]:
    kind = "sanity_val" if trainer.sanity_checking else "test" if trainer.testing else "val"
    numbers: Sequence[float] = getattr(trainer, f"num_{kind}_batches")
    return numbers


def _find_loader(trainer: "pl.Trainer", dataloader_idx: int) -> Any:
    loaders = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
    flat = list(_flatten(loaders))
    return flat[dataloader_idx] if dataloader_idx < len(flat) else None


def _flatten(loaders: Any) -> Iterator[Any]:
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    if isinstance(loaders, (list, tuple)):
        for loader in loaders:
            yield from _flatten(loader)
    else:
        yield loaders
