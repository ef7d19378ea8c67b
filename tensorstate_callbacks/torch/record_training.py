"""Record every n-th batch of a training loop of one's own, and report windows of them."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import nn

from tensorstate_callbacks.errors import ProbeError, WarnOnce
from tensorstate_callbacks.recording.class_labels import is_on
from tensorstate_callbacks.recording.pass_counts import PassCounts, PassInfo
from tensorstate_callbacks.recording.selection import Patterns
from tensorstate_callbacks.recording.windows import StateWindow, conclude_window
from tensorstate_callbacks.reports.report import EfficiencyReport
from tensorstate_callbacks.torch.distributed.process_groups import send_failure
from tensorstate_callbacks.torch.distributed.rank_windows import add_over_ranks
from tensorstate_callbacks.torch.record import Recording


class TrainingRecording:
    """Records every n-th batch that a model is trained on, and reports the latest ones together.

    `record_training` is a short name for this class.

    The other batches run as without it: no hook is on the model, and what `torch.compile` made runs
    compiled. In a recorded batch it runs uncompiled, which may round the last bits differently;
    otherwise training is the same to the bit. What the backward pass runs once more (gradient
    checkpointing) isn't counted, nor what runs outside of the blocks: take `record` for the
    evaluations in between.

    Args:
        model: Any module; see `record`.
        attach_to: Which layers to probe; see `record`.
        every_n_train_steps: Record every n-th batch, at least 1.
        window: How many recorded batches are reported together, at least 1; all of them share
            `max_memory`.
        process_group: Ranks that train together, each on its part of every batch, for example
            `torch.distributed.group.WORLD`. Their states are merged at the end of each recorded
            batch, to which all of them have to come. None: this process alone.
        **options: More arguments of `record`, with the same meaning and default: `exclude`,
            `method`, `threshold`, `alpha`, `beta`, `group_size`, `positions`, `max_memory`,
            `channel_axis`, `mask`, `neurons` and `output_fn`.

    Attributes:
        n_batches: Batches so far; set it where a training goes on from a checkpoint.

    Raises:
        NoLayerMatchedError: `attach_to` and `exclude` leave no layer. The message says what the
            model has.
        TypeError: An argument is of the wrong kind, or `classes` is given.
        ValueError: An argument is out of its range, or `probe_data` is given.

    Examples:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
        >>> training = record_training(model, "Linear", every_n_train_steps=2, window=3)
        >>> for _ in range(8):
        ...     with training.batch() as recorded:
        ...         loss = model(torch.ones(10, 4)).sum()
        ...     loss.backward()
        ...     if recorded:
        ...         report = training.report(step=training.n_batches)
        >>> report.step, report.layers["0"].n_states
        (8, 30)
    """

    def __init__(
        self,
        model: nn.Module,
        attach_to: Patterns | None = None,
        *,
        every_n_train_steps: int = 50,
        window: int = 20,
        process_group: Any = None,
        **options: Any,
    ) -> None:
        if options.get("probe_data") is not None:
            raise ValueError(
                "record_training takes no probe_data: its states are followed from one evaluation "
                "to the next. Give it to the record of the evaluations"
            )
        if is_on(options.get("classes")):
            raise TypeError(
                "record_training takes no classes: a window has batches of several moments of the "
                "network. Count states by class in an evaluation, with record(model, classes=...)"
            )
        self._recording = Recording(model, attach_to, **options)
        self._settings = dataclasses.replace(
            self._recording.given,
            on="train",
            every_n_train_steps=every_n_train_steps,
            window=window,
        )
        self._group = process_group
        self._window = StateWindow(window)
        self._counts: PassCounts | None = None
        self._last: EfficiencyReport | None = None
        self._warn = WarnOnce()
        # All ranks have the same to say.
        self._warn.reset(silent=process_group is not None and dist.get_rank(process_group) > 0)
        self.n_batches = 0

    @contextmanager
    def batch(self, batch: Any = None) -> Iterator[bool]:
        """Open the block in which a training batch runs through the model, and record it if due.

        Args:
            batch: What the loader gave, where `mask` is a key of it or a callable that takes it.
                None stands for what the model is called with.

        Returns:
            A context that gives True where the batch is recorded, so that `report` has news.

        Raises:
            ProbeError: A layer's activations can't be counted; names it.
            RankError: At the end of a recorded batch: another rank failed, records otherwise, or
                didn't come within the group's timeout; names it.

        Warns:
            TensorStateWarning: Once each, at the end of a recorded batch: what `record` warns of
                when its block ends.
        """
        self.n_batches += 1
        if not self._settings.is_step_due(self.n_batches):
            yield False
            return
        recording = self._recording.anew(self._settings.of_train_batch())
        try:
            with recording.attached():
                if batch is not None:
                    recording.resume(batch=batch)
                yield True
        except BaseException as error:
            if self._group is not None:
                send_failure(error, self._group)
            raise
        self._add(recording)

    def report(self, epoch: int | None = None, step: int | None = None) -> EfficiencyReport:
        """Return the efficiency of the recorded batches that the window holds.

        There is no aIQ, since nobody measures an accuracy on just these batches. The keys are
        `train_efficiency` and `train_efficiency/<layer>`.

        Args:
            epoch: Epoch of the latest batch, counted from 0.
            step: Training steps made before it.

        Raises:
            ProbeError: No batch has been recorded yet, or no probe saw any activations.

        Warns:
            TensorStateWarning: Once each: a layer saw nothing, too little was seen of it, or it is
                read at fewer positions for lack of memory.
        """
        if not len(self._window):
            raise ProbeError(
                f"no training batch has been recorded yet: {self.n_batches} were run, and of every "
                f"{self._settings.every_n_train_steps} one is recorded. Run each batch inside "
                "`with training.batch()`, or give a smaller every_n_train_steps"
            )
        settings = self._settings
        counts = self._window.counts() if self._counts is None else self._counts
        report = conclude_window(
            counts,
            self._warn,
            PassInfo(
                alpha=settings.alpha, beta=settings.beta, epoch=epoch, step=step, stage="train"
            ),
            is_full=self._window.is_full,
            before=None if self._last is None else tuple(self._last.layers),
        )
        if report is None:
            raise ProbeError(
                f"no probe saw any activations: {', '.join(counts.names)}. Run the model "
                "inside `with training.batch()`, and attach to layers that it calls"
            )
        self._last = report
        return report

    def _add(self, recording: Recording) -> None:
        for kind, text in recording.conclude().items():
            self._warn(kind, text)
        if self._group is None:
            self._window.add(recording.recorder)
            # Merged only for a report: that takes time, and nobody may ask.
            self._counts = None
        else:
            self._counts = add_over_ranks(
                self._window, recording.recorder, self._group, recording.settings
            )


record_training = TrainingRecording
"""Short name of `TrainingRecording`, as loops use it."""
