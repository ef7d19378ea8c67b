"""One evaluation of a LightningModule: opened as it begins, closed however it ends."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

from tensorstate_callbacks.accuracy import FoundAccuracy, find_accuracy
from tensorstate_callbacks.evaluation import conclude
from tensorstate_callbacks.lightning.after_hook import call_after
from tensorstate_callbacks.lightning.fresh_metrics import FreshMetrics, accuracy_keys
from tensorstate_callbacks.lightning.ranks import Ranks
from tensorstate_callbacks.recorder import PassFigures, Recorder
from tensorstate_callbacks.report import EfficiencyReport
from tensorstate_callbacks.settings import Accuracy, Settings
from tensorstate_callbacks.torch.rank_loops import say
from tensorstate_callbacks.torch.record import Recording
from tensorstate_callbacks.warn_once import WarnOnce

_LAST_HOOK = {"val": "on_validation_epoch_end", "test": "on_test_epoch_end"}


class Window:
    """Watches one evaluation.

    Args:
        trainer: The Trainer; the evaluation has just begun.
        module: The LightningModule.
        recording: Counts its states, but only while a batch is under way.
        stage: `"val"` or `"test"`.
        dataloader_idx: The dataloader whose batches count.
        ranks: The processes that share its data, or None.
        finish: Called with the window at the latest moment at which something can be logged.

    Attributes:
        stage: `"val"` or `"test"`.
    """

    def __init__(
        self,
        trainer: Any,
        module: Any,
        recording: Recording,
        stage: str,
        dataloader_idx: int,
        ranks: Ranks | None,
        finish: Callable[["Window"], None],
    ) -> None:
        self.stage = stage
        self._recording = recording
        self._dataloader_idx = dataloader_idx
        self._ranks = ranks
        self._metrics = FreshMetrics(trainer)
        self._epoch = fit_epoch(trainer)
        self._step = None if self._epoch is None else int(trainer.global_step)
        recording.pause()
        with ExitStack() as stack:
            stack.enter_context(recording.attached())
            stack.callback(call_after(module, _LAST_HOOK[stage], partial(finish, self)))
            self._stack = stack.pop_all()

    def begin_batch(self, batch_idx: int, dataloader_idx: int) -> None:
        """Count from here on, if it is a batch of the chosen dataloader."""
        if dataloader_idx == self._dataloader_idx:
            ranks = self._ranks
            self._recording.resume(None if ranks is None else ranks.begin_batch(batch_idx))

    def end_batch(self, batch_idx: int, dataloader_idx: int) -> None:
        """Count no further.

        Raises:
            RankError: Another rank failed, or is gone; the message names it.
        """
        self._recording.pause()
        if self._ranks is not None:
            self._ranks.end_batch(batch_idx, dataloader_idx)

    def conclude(self, settings: Settings, warn: WarnOnce) -> EfficiencyReport | None:
        """Return the report of the evaluation over all ranks; see `evaluation.conclude`.

        Raises:
            RankError: Another rank failed, or is gone; the message names it.
        """
        for kind, text in self._recording.conclude().items():
            warn(kind, text)
        figures: Recorder | PassFigures = self._recording.recorder
        find = partial(self._find_accuracy, settings.accuracy)
        if self._ranks is None:
            found = find()
        else:
            figures, found, doubts = self._ranks.merge(
                self._recording.recorder, self._recording.doubts, find
            )
            if self._ranks.problem:
                warn("samples", self._ranks.problem)
            if doubts:
                warn("samples", say(doubts))
        return conclude(
            figures,
            found,
            settings,
            warn,
            epoch=self._epoch,
            step=self._step,
            stage=self.stage,
        )

    def _find_accuracy(self, accuracy: Accuracy) -> FoundAccuracy:
        logged = self._metrics.read(self._dataloader_idx)
        keys = accuracy_keys(accuracy, self.stage)
        # Keys are tried in turn; only a callable is asked itself.
        return find_accuracy(accuracy if callable(accuracy) else None, logged, keys)

    def close(self) -> None:
        """Take everything off the module; may be called again."""
        self._stack.close()


def fit_epoch(trainer: Any) -> int | None:
    """Return the epoch of the fit under way, counted from 0; None outside of a fit."""
    return int(trainer.current_epoch) if trainer.state.fn == "fit" else None
