"""Record one evaluation: count what a LightningModule does in its steps, and nothing else."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from tensorstate_callbacks.errors import WarnOnce
from tensorstate_callbacks.lightning.logged_metrics import FreshMetrics
from tensorstate_callbacks.lightning.ranks import Ranks
from tensorstate_callbacks.recording.accuracy import FoundAccuracy
from tensorstate_callbacks.recording.callback import InstanceOverride
from tensorstate_callbacks.recording.recorder import PassCounts, PassInfo, Recorder
from tensorstate_callbacks.torch.distributed.own_samples import BatchSamples
from tensorstate_callbacks.torch.distributed.ranks import describe_doubts
from tensorstate_callbacks.torch.record import Recording

if TYPE_CHECKING:
    import pytorch_lightning as pl

Around: TypeAlias = Callable[[], AbstractContextManager[Any]]

_STEP = {"val": "validation_step", "test": "test_step"}
_LAST_HOOK = {"val": "on_validation_epoch_end", "test": "on_test_epoch_end"}


class WatchedEvaluation:
    """An evaluation that is being recorded, until it is closed.

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
        self._progress = _find_progress(trainer)
        # The batch whose step is to be counted.
        self._batch: _Batch | None = None
        self._metrics = FreshMetrics(trainer)
        epoch = find_fit_epoch(trainer)
        step = None if epoch is None else int(trainer.global_step)
        self.info = PassInfo(epoch=epoch, step=step, stage=stage)
        recording.pause()
        with ExitStack() as stack:
            stack.enter_context(recording.attached(trial=trial))
            stack.callback(surround(module, _STEP[stage], self._count_step))
            stack.callback(call_after(module, _LAST_HOOK[stage], partial(finish, self)))
            self._stack = stack.pop_all()

    def begin_batch(self, batch_idx: int, dataloader_idx: int) -> None:
        """Count in the step that follows, if it is of a batch of the chosen dataloader."""
        if dataloader_idx == self._dataloader_idx:
            ranks = self._ranks
            self._batch = _Batch(None if ranks is None else ranks.begin_batch(batch_idx))

    def end_batch(self, batch_idx: int, dataloader_idx: int) -> None:
        """Count no further.

        Raises:
            RankError: Another rank failed, or is gone; the message names it.
        """
        self._batch = None
        if self._ranks is not None:
            self._ranks.end_batch(batch_idx, dataloader_idx)

    @contextmanager
    def _count_step(self) -> Iterator[None]:
        batch = self._batch
        # A callback may call the step in a hook of its own.
        if batch is None or not self._in_step():
            yield
            return
        # Taken, so that a step that calls itself is counted as a whole.
        self._batch = None
        self._recording.resume(batch.samples)
        try:
            yield
        finally:
            self._recording.pause()

    def _in_step(self) -> bool:
        # Lightning counts a batch as started right before its step, as processed right after.
        current = self._progress.current
        return bool(current.started > current.processed)

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
        self._stack.close()


class _Batch(NamedTuple):
    samples: BatchSamples | None


class MethodStandIn:
    """Stands in for a module's method, and runs it inside the contexts that were asked for.

    It lies in the module's `__dict__`, where Lightning finds it as it finds a method, also behind
    the wrapper of a strategy such as DDP.

    Args:
        module: The LightningModule.
        method: Name of the method.
    """

    def __init__(self, module: Any, method: str) -> None:
        self._original: Callable[..., Any] = getattr(module, method)
        # Lightning reads a method's parameters past one decorator: those of ours are the method's.
        self.__wrapped__ = getattr(self._original, "__wrapped__", self._original)
        self._around: list[Around] = []
        self._override = InstanceOverride(module, method, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the method."""
        with ExitStack() as stack:
            # The last to ask is outermost, so that those who asked first are done first.
            for around in reversed(self._around):
                stack.enter_context(around())
            return self._original(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of the module takes its own method along, not this.
        return _itself, (self._original,)

    def add(self, around: Around) -> None:
        """Have a context opened around the method."""
        self._around.append(around)

    def remove(self, around: Around) -> None:
        """Have it opened no more; without any, the module has its own method again."""
        self._around.remove(around)
        if not self._around:
            self._override.restore()


def surround(module: Any, method: str, around: Around) -> Callable[[], None]:
    """Have a context opened around each call of a module's method.

    Several callbacks share one stand-in, so they may end in any order.

    Args:
        module: The LightningModule.
        method: Name of the method, for example `"validation_step"`.
        around: Makes a context manager for each call.

    Returns:
        A function that ends it.
    """
    stand_in = vars(module).get(method)
    if not isinstance(stand_in, MethodStandIn):
        stand_in = MethodStandIn(module, method)
    stand_in.add(around)
    return partial(stand_in.remove, around)


def call_after(module: Any, hook: str, afterwards: Callable[[], None]) -> Callable[[], None]:
    """Have a function called after each run of a module's hook; returns one that ends it.

    Lightning calls the module's hooks after those of all callbacks, so what is logged in them is
    all there when the function is called.
    """

    @contextmanager
    def around() -> Iterator[None]:
        yield
        afterwards()

    return surround(module, hook, around)


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


def _itself(method: Callable[..., Any]) -> Callable[..., Any]:
    return method
