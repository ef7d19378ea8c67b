"""Record the evaluations that Hugging Face's Trainer makes."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch.distributed as dist

from tensorstate_callbacks.metrics.turnover import ProbeChange
from tensorstate_callbacks.recording.accuracy import FoundAccuracy, find_accuracy
from tensorstate_callbacks.recording.callback import RecordingCallback
from tensorstate_callbacks.recording.class_labels import is_array
from tensorstate_callbacks.recording.masks import AUTO, Mask, has_rows
from tensorstate_callbacks.recording.overrides import Overrides
from tensorstate_callbacks.recording.pass_counts import PassCounts, PassInfo
from tensorstate_callbacks.recording.recorder import Recorder
from tensorstate_callbacks.recording.selection import Patterns
from tensorstate_callbacks.torch.activations import OutputFn, count_samples
from tensorstate_callbacks.torch.distributed.process_groups import send_failure, wait_for_ranks
from tensorstate_callbacks.torch.distributed.ranks import (
    describe_doubts,
    gather_outcomes,
    merge_passes,
)
from tensorstate_callbacks.torch.masks import NO_MASKS
from tensorstate_callbacks.torch.probe_set import read_data, run_probe
from tensorstate_callbacks.torch.record import Recording
from tensorstate_callbacks.torch.untouched import is_built

# Arguments of the callbacks that are for fits of other frameworks.
_NOT_TAKEN = frozenset({"every_n_epochs", "every_n_train_steps", "log_extras", "on", "window"})


class EvaluationRecording(RecordingCallback):
    """What `EfficiencyTrainerMixin` records, and with which arguments.

    A Trainer makes one of its `efficiency` mapping. Make it yourself to keep one history over
    several Trainers.

    Args:
        attach_to: Which layers to probe: a class name (`"Linear"`), a layer name or glob
            (`"*.query"`), a type, a predicate `(name, module) -> bool`, or a sequence of these.
            None takes every convolution and dense layer except the one that makes the output.
        mask: Which positions (tokens) count. The default, `"auto"`, takes the masks that the
            Trainer gives the model; None counts padding too.
        output_fn: `(name, output)` to the tensor to count; see `torch.record`.
        **options: More arguments of the callbacks, with the same meaning and default: `exclude`,
            `method`, `beta`, `accuracy`, `threshold`, `alpha`, `group_size`, `positions`,
            `max_memory`, `channel_axis`, `neurons`, `classes`, `probe_data`, `prefix`,
            `layer_metrics` and `missing_accuracy`. `accuracy` is a key with or without `eval_`, or
            a callable that gets the metrics of the evaluation. `probe_data` is a mapping of input
            tensors, or a loader of a few such batches, and each training begins anew with it. When
            to evaluate, and what to report to, the Trainer's own arguments say.

    Attributes:
        history: One `EfficiencyReport` per evaluation and prediction.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: An argument is out of its range.
    """

    _NOT_COPIED = (
        *("_settings", "_warn", "_reported", "_stage", "_window", "_window_report"),
        "_probe",
    )

    def __init__(
        self,
        attach_to: Patterns | None = None,
        *,
        mask: Mask = AUTO,
        output_fn: OutputFn | None = None,
        **options: Any,
    ) -> None:
        for name in _NOT_TAKEN & options.keys():
            raise TypeError(
                f"efficiency takes no {name}: the Trainer's own arguments say when it evaluates "
                "and which reporters it has"
            )
        super().__init__(attach_to, mask=mask, log_extras=None, **options)
        self.output_fn = output_fn

    def _forget_the_run(self) -> None:
        super()._forget_the_run()
        self._stage: str | None = None

    def begin_training(self, trainer: Any) -> None:
        """Follow the probe data from the weights that a training begins with.

        Args:
            trainer: The Trainer, whose model is ready to be trained.

        Raises:
            TypeError: `probe_data` is of the wrong kind.
            ValueError: It has too many samples, or none.
        """
        self._take_settings()
        self._warn.reset(silent=not trainer.is_world_process_zero())
        self._probe.take(self.probe_data, read_data, begins=True)
        if self._probe.data is not None and is_built(trainer.model):
            _ = self._probe.data.batches
            self._record_probe(trainer, is_beginning=True)

    def _record_probe(self, trainer: Any, *, is_beginning: bool = False) -> dict[str, ProbeChange]:
        """Run the model on the probe data, and return how its layers' states have changed."""
        data, group = self._probe.data, _find_group(trainer)
        if data is None:
            return {}

        def run() -> Recorder:
            model = trainer.model
            recording = Recording.of_model(model, self._settings, self.output_fn).of_probe()
            context = trainer.compute_loss_context_manager
            return run_probe(model, data.batches, recording, context=context)

        gather = None if group is None else partial(gather_outcomes, group=group)
        return self._probe.record(run, gather, is_beginning=is_beginning)

    def watch(self, trainer: Any, stage: str, evaluate: Callable[[], Any]) -> Any:
        """Run an evaluation, and add what it shows to its metrics.

        Args:
            trainer: The Trainer.
            stage: First part of the metric keys.
            evaluate: Runs the evaluation; returns an object that has `metrics`.

        Returns:
            What `evaluate` returns.

        Raises:
            NoLayerMatchedError: Nothing matched; says what the model has.
            ProbeError: A layer's activations can't be counted; names the layer.
            RankError: Another process failed, is gone, or records otherwise; names its rank.
            ValueError: The accuracy is missing, and `missing_accuracy` is `"raise"`; or `mask` or
                `classes` is an array, and several processes evaluate.
        """
        self._take_settings()
        if not trainer.is_in_train or self._stage is None:
            self._warn.reset(silent=not trainer.is_world_process_zero())
        self._probe.take(self.probe_data, read_data)
        model, group = trainer.model, _find_group(trainer)
        if group is not None and has_rows(self.mask):
            raise ValueError(
                "mask is an array of all samples, of which each process has some: give the key of "
                "a mask in the batch, or (name, batch) -> mask"
            )
        if group is not None and is_array(self.classes):
            raise ValueError(
                "classes is an array of all samples, of which each process has some: give the key "
                "of labels in the batch, or a callable batch -> labels"
            )
        recording = Recording.of_model(model, self._settings, self.output_fn)
        entries = Overrides()
        try:
            try:
                recording.pause()
                recording.open()
                entries.wrap(trainer, "prediction_step", partial(partial, _count, recording))
                if hasattr(model, "generate"):
                    entries.wrap(model, "generate", partial(partial, _count_nothing, recording))
                entries.activate()
                result = evaluate()
            finally:
                entries.take_off()
                recording.close()
        except BaseException as error:
            if group is not None:
                send_failure(error, group)
            raise
        finally:
            # Again, should an interrupt have arrived in the lines above.
            entries.take_off()
            recording.close()
        result.metrics.update(self._finish(trainer, stage, recording, group, result.metrics))
        return result

    def _finish(
        self,
        trainer: Any,
        stage: str,
        recording: Recording,
        group: Any,
        metrics: Mapping[str, Any],
    ) -> dict[str, float]:
        for kind, text in recording.conclude().items():
            # A model that is given no masks needs none, unless the user asks for them.
            if kind != NO_MASKS:
                self._warn(kind, text)
        found, failure = FoundAccuracy(None), None
        try:
            found = self._find_accuracy(metrics, stage)
        except Exception as error:  # raised once the other ranks know of it
            if group is None:
                raise
            failure = error
        counts: Recorder | PassCounts = recording.recorder
        if group is not None:
            wait_for_ranks(group)
            given = recording.settings
            if self._probe.data is not None:
                given = {**given, "probe_data": self._probe.data.described}
            merged = merge_passes(
                recording.recorder, group, found, None, failure, recording.doubts, given
            )
            counts, found = merged.sums, merged.accuracy
            if merged.doubts:
                self._warn("samples", describe_doubts(merged.doubts))
        state = trainer.state
        in_fit = bool(trainer.is_in_train)
        info = PassInfo(
            epoch=max(0, math.ceil(state.epoch or 0) - 1) if in_fit else None,
            step=int(state.global_step),
            stage=stage,
        )
        changes = self._record_probe(trainer)
        report = self._conclude(counts, found, info, compare=stage == self._stage, changes=changes)
        self._stage = stage
        if report is None:
            return {}
        return report.scalars(self.prefix, layer_metrics=self.layer_metrics)

    def _find_accuracy(self, logs: Mapping[str, Any], stage: str | None = None) -> FoundAccuracy:
        if callable(self.accuracy):
            return find_accuracy(self.accuracy, logs)
        lead = f"{stage}_"
        both = {key.removeprefix(lead): value for key, value in logs.items()} | dict(logs)
        key = self.accuracy
        if key is not None and key not in both:
            key = key.removeprefix("eval_").removeprefix(lead)
        return find_accuracy(key, both)


def _count(
    recording: Recording,
    original: Callable[..., Any],
    model: Any,
    inputs: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    recording.resume(None, count_samples((inputs,), {}), inputs)
    try:
        return original(model, inputs, *args, **kwargs)
    finally:
        recording.pause()


def _count_nothing(
    recording: Recording, original: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    # As many calls as the longest text needs, which is not the data's but the batch's.
    with recording.paused():
        return original(*args, **kwargs)


def _find_group(trainer: Any) -> Any:
    if dist.is_available() and dist.is_initialized() and trainer.args.world_size > 1:
        return dist.group.WORLD
    return None
