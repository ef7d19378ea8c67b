"""Record one evaluation: count what a LightningModule does in its steps, and nothing else."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from tensorstate_callbacks.errors import WarnOnce
from tensorstate_callbacks.lightning.logged_metrics import FreshMetrics
from tensorstate_callbacks.lightning.ranks import Ranks
from tensorstate_callbacks.lightning.steps import CountedStep
from tensorstate_callbacks.recording.accuracy import FoundAccuracy
from tensorstate_callbacks.recording.overrides import Overrides
from tensorstate_callbacks.recording.pass_counts import PassCounts, PassInfo
from tensorstate_callbacks.recording.recorder import Recorder
from tensorstate_callbacks.torch.distributed.ranks import describe_doubts
from tensorstate_callbacks.torch.record import Recording

if TYPE_CHECKING:
    import pytorch_lightning as pl

_STEP = {"val": "validation_step", "test": "test_step"}
_LAST_HOOK = {"val": "on_validation_epoch_end", "test": "on_test_epoch_end"}


class WatchedEvaluation:
    """An evaluation that is being recorded, once it is opened until it is closed.

    What counts is what the module runs inside the step that Lightning calls: other callbacks may
    run it too, in hooks of their own, before or after ours.

    Args:
        trainer: The Trainer; the evaluation has just begun.
        module: The LightningModule.
        recording: Counts its states, but only while a step is under way.
        stage: `"val"` or `"test"`.
        dataloader_idx: The dataloader whose batches count.
        ranks: The processes that share its data, or None.
        finish: Called with this at the latest moment at which something can be logged.
        trial: Whether it is the sanity check, whose counts nobody asks for.

    Attributes:
        info: Its epoch, step and stage.
    """

    def __init__(
        self,
        trainer: "pl.Trainer",
        module: "pl.LightningModule",
        recording: Recording,
        stage: str,
        dataloader_idx: int,
        ranks: Ranks | None,
        finish: Callable[["WatchedEvaluation"], None],
        *,
        trial: bool = False,
    ) -> None:
        self._recording = recording
        self._dataloader_idx = dataloader_idx
        self._ranks = ranks
        self._step = CountedStep(recording, _find_progress(trainer))
        self._metrics = FreshMetrics(trainer)
        epoch = find_fit_epoch(trainer)
        step = None if epoch is None else int(trainer.global_step)
        self.info = PassInfo(epoch=epoch, step=step, stage=stage)
        self._module, self._finish, self._trial = module, finish, trial
        self._entries = Overrides()

    def open(self) -> None:
        """Hook the module; when an interrupt breaks this off too, `close` takes everything off."""
        self._recording.pause()
        self._recording.open(trial=self._trial)
        # The last to ask is outermost: what several callbacks do comes in their order.
        stage = self.info.stage
        for name, run in ((_STEP[stage], self._step.run), (_LAST_HOOK[stage], self._run_last_hook)):
            self._entries.wrap(self._module, name, partial(partial, run))
        self._entries.activate()

    def begin_batch(self, batch_idx: int, dataloader_idx: int) -> None:
        """Count in the step that follows, if it is of a batch of the chosen dataloader."""
        if dataloader_idx == self._dataloader_idx:
            ranks = self._ranks
            self._step.begin_batch(None if ranks is None else ranks.begin_batch(batch_idx))

    def end_batch(self, batch_idx: int, dataloader_idx: int) -> None:
        """Count no further.

        Raises:
            RankError: Another rank failed, or is gone; the message names it.
        """
        self._step.end_batch()
        if self._ranks is not None:
            self._ranks.end_batch(batch_idx, dataloader_idx)

    def _run_last_hook(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # Lightning calls the module's hooks after those of all callbacks: all that they log is
        # there afterwards.
        result = original(*args, **kwargs)
        self._finish(self)
        return result

    def check(self) -> None:
        """Raise what went wrong with a probe so far.

        Raises:
            ProbeError: A layer's activations could not be counted; names it.
        """
        # What lies on a device is counted as late as here.
        _ = self._recording.counters

    def merge(
        self, find_accuracy: Callable[[Mapping[str, Any]], FoundAccuracy], warn: WarnOnce
    ) -> tuple[Recorder | PassCounts, FoundAccuracy]:
        """Return what was recorded and its accuracy, over all ranks.

        Args:
            find_accuracy: Looks the accuracy up in what the evaluation logged.
            warn: Takes what had to be assumed.

        Raises:
            RankError: Another rank failed, records otherwise, or is gone; the message names it.
        """
        for kind, text in self._recording.conclude().items():
            warn(kind, text)

        def find() -> FoundAccuracy:
            return find_accuracy(self._metrics.read(self._dataloader_idx))

        if self._ranks is None:
            return self._recording.recorder, find()
        counts, found, doubts = self._ranks.merge(
            self._recording.recorder, self._recording.doubts, self._recording.settings, find
        )
        if self._ranks.problem:
            warn("samples", self._ranks.problem)
        if doubts:
            warn("samples", describe_doubts(doubts))
        return counts, found

    def close(self) -> None:
        """Take everything off the module; may be called again."""
        self._entries.take_off()
        self._recording.close()


def find_fit_epoch(trainer: "pl.Trainer") -> int | None:
    """Return the epoch of the fit under way, counted from 0; None outside of a fit."""
    return int(trainer.current_epoch) if trainer.state.fn == "fit" else None


def is_fast_dev_run(trainer: "pl.Trainer") -> bool:
    """Tell whether the Trainer only tries whether everything works."""
    # The Trainer's __init__ has a function set the attribute: its class declares none.
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def _find_progress(trainer: "pl.Trainer") -> Any:
    """Return how far the evaluation loop that runs has come."""
    if trainer.testing:
        return trainer.test_loop.batch_progress
    fits = trainer.state.fn == "fit"
    loop = trainer.fit_loop.epoch_loop.val_loop if fits else trainer.validate_loop
    return loop.batch_progress
