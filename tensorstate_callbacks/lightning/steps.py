"""Count what a LightningModule runs inside a step that Lightning calls, and nothing else."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from tensorstate_callbacks.recording.overrides import Overrides
from tensorstate_callbacks.recording.pass_counts import PassInfo
from tensorstate_callbacks.torch.activations import count_samples
from tensorstate_callbacks.torch.distributed.own_samples import BatchSamples
from tensorstate_callbacks.torch.record import Recording

if TYPE_CHECKING:
    import pytorch_lightning as pl


class CountedStep:
    """Stands in for a module's step, and counts while Lightning runs it.

    Other callbacks may run the step, or the module, in hooks of their own, before or after ours.

    Args:
        recording: Counts the module's states, but only while a step is under way.
        progress: How far the loop that runs has come.
    """

    def __init__(self, recording: Recording, progress: Any) -> None:
        self._recording, self._progress = recording, progress
        # The batch whose step is to be counted.
        self._batch: _Batch | None = None

    def begin_batch(self, samples: BatchSamples | None = None) -> None:
        """Count in the step that follows.

        Args:
            samples: What of the batch is to be counted; None counts all.
        """
        self._batch = _Batch(samples)

    def end_batch(self) -> None:
        """Count no further."""
        self._batch = None

    def run(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the step."""
        batch = self._batch
        # A callback may call the step in a hook of its own.
        if batch is None or not self._in_step():
            return original(*args, **kwargs)
        # Taken, so that a step that calls itself is counted as a whole, and one that an optimizer
        # repeats to search along a line is counted once.
        self._batch = None
        given = args[0] if args else kwargs
        self._recording.resume(batch.samples, count_samples(args, kwargs), given)
        try:
            return original(*args, **kwargs)
        finally:
            self._recording.pause()

    def _in_step(self) -> bool:
        # Lightning counts a batch as started right before its step, as processed right after.
        current = self._progress.current
        return bool(current.started > current.processed)


class _Batch(NamedTuple):
    samples: BatchSamples | None


class WatchedBatch:
    """A training batch whose step is being recorded, once it is opened until it is closed.

    Args:
        trainer: The Trainer; the batch is about to begin.
        module: The LightningModule.
        recording: Counts its states.

    Attributes:
        recording: Has counted them.
        info: Epoch of the batch, and the training steps made before.
    """

    def __init__(
        self, trainer: "pl.Trainer", module: "pl.LightningModule", recording: Recording
    ) -> None:
        self.recording = recording
        self.info = PassInfo(
            epoch=int(trainer.current_epoch), step=int(trainer.global_step), stage="train"
        )
        self._module = module
        self._step = CountedStep(recording, trainer.fit_loop.epoch_loop.batch_progress)
        self._entries = Overrides()

    def open(self) -> None:
        """Hook the module; when an interrupt breaks this off too, `close` takes everything off."""
        self.recording.pause()
        self.recording.open()
        self._entries.wrap(self._module, "training_step", partial(partial, self._step.run))
        self._entries.activate()
        self._step.begin_batch()

    def close(self) -> None:
        """Take everything off the module; may be called again."""
        self._entries.take_off()
        self.recording.close()


def count_batches(trainer: "pl.Trainer") -> int:
    """Return how many training batches there were, with the one that begins.

    They are counted over epochs and, where a fit goes on from a checkpoint, from its beginning.
    """
    return int(trainer.fit_loop.epoch_loop.batch_progress.total.ready)
