"""Record the validation passes that Keras's fit makes, or an evaluate."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras

from tensorstate_callbacks.errors import WarnOnce
from tensorstate_callbacks.keras.backends import Ranks, current_backend
from tensorstate_callbacks.keras.evaluation import BuiltFunction, Evaluation
from tensorstate_callbacks.keras.fit_bracket import FitBracket
from tensorstate_callbacks.keras.picking import (
    check_not_a_worker,
    check_not_keras_2,
    ids_of_layers,
    pick_probes,
)
from tensorstate_callbacks.keras.probe_data import ProbeData
from tensorstate_callbacks.keras.probe_run import is_built, run_probe
from tensorstate_callbacks.keras.trackers import find_trackers
from tensorstate_callbacks.keras.training import WatchedTraining, count_steps
from tensorstate_callbacks.keras.watch import Watch
from tensorstate_callbacks.loggers.tensorboard import check_drawing
from tensorstate_callbacks.loggers.tracker import Trackers
from tensorstate_callbacks.metrics.turnover import ProbeChange
from tensorstate_callbacks.recording.accuracy import FoundAccuracy
from tensorstate_callbacks.recording.callback import RecordingCallback
from tensorstate_callbacks.recording.pass_counts import PassCounts, PassInfo
from tensorstate_callbacks.recording.recorder import Recorder
from tensorstate_callbacks.reports.report import EfficiencyReport


class EfficiencyCallback(RecordingCallback, keras.callbacks.Callback):
    """Logs the network's efficiency and aIQ with each validation pass.

    It counts the firing states of the probed layers while Keras evaluates the model, and adds
    `val_aiq`, `val_efficiency` and `val_efficiency/<layer>` to the logs of the epoch. Every other
    callback finds them there, wherever it stands in the list. Training isn't touched, no pass is
    added, and when the evaluation is over nothing of it has any effect on the model.

    **Outside of fit.** `model.evaluate(..., callbacks=[callback])` is recorded too. The keys are
    `aiq`, `efficiency` and `efficiency/<layer>` then, in `return_dict=True` results and in
    `callback.last`.

    **Layers.** A layer inside another model is found by its path (`"inner/conv"`), and by its own
    name where no other layer has it. In a subclassed model, the layer that makes the output is the
    one that is called last.

    **Accuracy.** A key given as `accuracy` may stand with or without `val_`. A callable gets the
    logs without it.

    **Training.** `on=("val", "train")` also records every `every_n_train_steps`-th training step,
    in a train function beside the model's own. `train_efficiency` and `train_efficiency/<layer>` of
    the last `window` recorded steps join the logs of their batch and of the epoch. With
    `steps_per_execution`, an execution counts as one batch, and is recorded if one of its batches
    is due. The weights are those of a training without the callback, to the bit; except that
    recorded steps may round the last bits differently in the graphs of TensorFlow without XLA, and
    on PyTorch with `jit_compile=True`.

    **Masks.** What Keras's own masks hide (`Masking`, `Embedding(mask_zero=True)`, `mask=` and
    `padding_mask=` of a layer's call) isn't counted, so a padded batch gives the counts of its
    samples without padding. `mask` takes the place of these masks. A key is looked for in x or y,
    where they are dicts. A callable gets the layer's name and the batch as `test_step` gets it,
    `(x, y)`; where the step is compiled these are symbolic, and it returns a tensor made by
    `keras.ops`, or None to count everything. An array has a row for each sample of the validation
    data, in their order; a single row stands for all samples.

    **Classes.** `classes=True` takes y of the evaluation's batches as the labels, if y is a single
    array. A key is looked for in y, then in x, where they are dicts. A callable gets the batch,
    `(x, y)` or `(x, y, sample_weight)`, and returns labels. An array has a label for each sample of
    the validation data, in their order. Labels are whole numbers or bool, of shape `(N,)` or
    `(N, 1)`, or one-hot `(N, C)`. Where a layer gets several rows of each sample, such as one for
    each token, the rows of a sample are taken to lie together. Recorded training steps have no
    classes.

    **Probe data.** `probe_data` is what `fit` takes as data: arrays, which are run in batches of
    32; `(x, y)`, of which x is run; or a `tf.data.Dataset`, a `PyDataset` or another iterable of
    batches. The model is called on it by itself, `model(x, training=False)`, uncompiled, and its
    variables are put back afterwards. A subclassed model that isn't built yet is followed from its
    first recorded evaluation on. Each fit begins anew with it.

    **Several processes.** On JAX, all processes that `keras.distribution` connects log the metrics
    that one process has of the same data. Give each of them the callback, and as many samples as
    the others. What goes wrong in one of them is raised as the evaluation ends, since the others
    would wait for its next batch.

    **CSVLogger.** Keras's `CSVLogger` fixes its columns in the first epoch. With `every_n_epochs`
    above 1 our keys are missing there and never get a column: use another logger then, or write
    `callback.history.to_frame()`.

    Attributes:
        history: One `EfficiencyReport` per recorded evaluation, over all fits.
        train_history: One `EfficiencyReport` for each recorded training batch, of the window that
            it is the last of, without an accuracy. It keeps the latest 1,000, the last one whole
            and the others with their metrics only.

    Raises:
        NoLayerMatchedError: As training begins: `attach_to` and `exclude` leave no layer. The
            message says what the model has.
        ProbeError: A layer's activations can't be counted; the message names the layer. Raised as
            training begins where the model's graph shows it, else in or after the evaluation. Also
            if a batch doesn't have the key given as `mask` or `classes`, if its labels are no
            labels, or if an array has fewer rows than there are samples.
        TypeError: An argument is of the wrong kind, or the model is one of Keras 2.
        ValueError: An argument is out of its range, the Keras backend is not supported, or
            `TF_CONFIG` names several TensorFlow workers. As training begins: a layer is the cell of
            a recurrent one; a key of `channel_axis` matches no probed layer; TensorFlow's workers
            share the model; JAX runs in several processes that `keras.distribution` doesn't
            connect; replicas or processes share the model and `mask` or `classes` is an array of
            all samples; JAX's processes share it and `probe_data` is given; or `probe_data` has too
            many samples.
        RankError: JAX's processes share the evaluations, and another one failed, has other
            arguments, or didn't come within five minutes. The message names it.

    Warns:
        TensorStateWarning: Once a fit each: nothing tells which axis holds a layer's neurons; the
            layers that were probed by default hold less than nine tenths of the weights; a mask of
            padding can't be applied to a layer; layers have nothing to count, or can't be seen in
            training steps; `torch.distributed` connects processes, which Keras doesn't know of.

    Examples:
        ```python
        callback = tensorstate_callbacks.keras.EfficiencyCallback()
        stop = keras.callbacks.EarlyStopping("val_aiq", mode="max", patience=5)
        model.fit(x, y, validation_data=(x_val, y_val), callbacks=[callback, stop])
        print(callback.last.table())
        ```
    """

    _NOT_COPIED = (
        *("watch", "built", "_warn", "evaluation", "_epoch", "_trained", "_in_fit", "_seen"),
        *("_finished", "_trackers", "_layer_ids", "_reported", "_settings", "_ranks"),
        *("_model", "params"),
        *("_window", "_window_report", "training"),
        "_probe",
    )

    def _check_framework(self) -> None:
        # Says that there is no such backend before a model is trained.
        current_backend()
        check_not_a_worker()

    def _forget_the_run(self) -> None:
        super()._forget_the_run()
        self.watch = Watch({}, {}, self._settings, None, WarnOnce())
        self.built: BuiltFunction | None = None
        self.evaluation: Evaluation | None = None
        self._epoch = 0
        # What is recorded of the fit's training, None where nothing is.
        self.training: WatchedTraining | None = None
        # The model of the fit under way, None outside of one.
        self._trained: keras.Model | None = None
        # Whether the evaluation under way is the fit's, and whether the fit has made one.
        self._in_fit = self._seen = False
        # Whether the last evaluation came to its end, so that what was found out in it holds.
        self._finished = False
        self._trackers = Trackers()
        # The processes that share the evaluations, None where there is but this one.
        self._ranks: Ranks | None = None
        self._layer_ids: list[int] = []
        # Keras's own.
        self._model: Any = None
        self.params: Any = None

    def set_model(self, model: keras.Model) -> None:
        """Take the model that is to be watched."""
        check_not_keras_2(model)
        super().set_model(model)

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Pick the layers, and see to it that validation passes are left clean."""
        with self._begun():
            check_drawing(self._settings)
            self._reported = None
            self._begin_windows()
            self._end_training()
            if self._settings.records("val"):
                self._pick_probes()
                self._take_probe_data(begins=True)
            if self._settings.records("train"):
                self._begin_training()
        if self._ranks is not None:
            self._ranks.check_settings(self._settings.comparable())
        self._seen, self._trackers = False, Trackers()
        FitBracket.put_on(self.model)
        # Last, as it is the first to go: an evaluation outside of fit has a bracket, or no fit.
        self._trained = self.model

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Note the epoch."""
        self._epoch = epoch
        if self._trained is not None:
            # A fit within this one, or an evaluation of another model, may have ended that.
            self._model = self._trained
            FitBracket.keep_on(self.model)
            if self.training is not None:
                self.training.begin_epoch(epoch)

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Record the step of this batch, if it is to be."""
        # A loop of the user's own has told of no epoch.
        if self.training is not None:
            self.training.begin_batch()

    def on_test_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Begin to record, if this evaluation is to be."""
        call = FitBracket.running(self.model)
        self._in_fit = self.model is self._trained and (call is None or call.is_of_fit)
        if not self._settings.records("val"):
            return
        finished, self._finished = self._finished, False
        if not self._in_fit:
            with self._begun():
                self._pick_probes(keep=finished)
                self._take_probe_data()
        elif self._layer_ids != ids_of_layers(self.model):
            # Layers were added since, or built with their first batch.
            self._pick_probes()
        if self._in_fit and not self._seen:
            self._seen = True
            if self._ranks is None or self._ranks.rank == 0:
                self._trackers = find_trackers(call and call.callbacks, self._settings)
            self._trackers.begin(self._settings, self.watch.expected_names())
        if self._in_fit and not self._settings.is_due(self._epoch):
            return
        if self.evaluation is not None:
            # Broken off: it isn't to be put back.
            self.evaluation.close()
        self.watch.start_recording()
        Evaluation.join(self.model, self, in_evaluate=call is not None)

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Finish an evaluation that wasn't made by Keras's own `evaluate`."""
        evaluation = self.evaluation
        if self.watch.counting.recorder is not None and evaluation is not None:
            added = evaluation.conclude(logs or {})
            evaluation.close()
            if logs is not None:
                logs.update(added)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Tell the trackers of the epoch."""
        self._trackers.epoch(epoch, logs or {})

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Leave the model as it was, and say so if there was nothing to record."""
        # First: with warnings as errors, what follows may raise.
        self._end_training()
        FitBracket.take_off(self.model)
        self._trained = self.built = None
        if self._settings.records("train"):
            self._end_windows()
        if self._settings.records("val") and not self._seen:
            self._warn(
                "validation",
                "fit has no validation data, or none is due in its epochs (validation_freq): there "
                "was no evaluation to record, and no efficiency was logged. Give fit "
                "validation_data or validation_split",
            )
        self._trackers.end()

    def finish(self, logs: Mapping[str, Any]) -> dict[str, float]:
        """Turn what was recorded into a report, and return the metrics that join the logs.

        Args:
            logs: Results of the evaluation, under their names without `val_`.
        """
        counting = self.watch.counting
        recorder, counting.recorder, self.evaluation = counting.recorder, None, None
        if not (self._in_fit or (self.built and self.built.is_bound)):
            self.built = None
        if recorder is None:
            return {}
        info = PassInfo(
            epoch=self._epoch if self._in_fit else None,
            step=count_steps(self.model),
            stage="val" if self._in_fit else "test",
        )
        counted, found = self._counted(recorder, logs)
        changes = self._record_probe()
        report = self._conclude(counted, found, info, compare=self._in_fit, changes=changes)
        self._finished = True
        if report is None:
            return {}
        if self._in_fit:
            self._trackers.add(report)
        settings = self._settings
        return report.scalars(
            settings.prefix, layer_metrics=settings.layer_metrics, with_stage=False
        )

    def fail(self, failure: BaseException) -> None:
        """Let other processes know that this one has broken off an evaluation that they share."""
        if self._ranks is not None and self.watch.counting.recorder is not None:
            self._ranks.send_failure(failure)

    @contextmanager
    def _begun(self) -> Iterator[None]:
        """Find the processes, and let them know if this one fails in what begins a run."""
        self._ranks = current_backend().find_ranks()
        # The others give the same warnings as the first.
        self._warn.reset(silent=self._ranks is not None and self._ranks.rank > 0)
        try:
            self._take_settings()
            yield
        except Exception as error:
            if self._ranks is not None:
                self._ranks.send_failure(error)
            raise

    def _counted(
        self, recorder: Recorder, logs: Mapping[str, Any]
    ) -> tuple[Recorder | PassCounts, FoundAccuracy]:
        """Return what was counted, by all processes that share the evaluation, and its accuracy."""
        if self._ranks is None:
            return self.watch.counted(recorder), self._find_accuracy(logs)
        failure = None
        try:
            self.watch.counted(recorder)
        except Exception as error:  # noqa: BLE001 - raised once the other processes know of it
            failure = error
        merged = self._ranks.merge(
            recorder, lambda: self._find_accuracy(logs), failure, self._settings.comparable()
        )
        return merged.sums, merged.accuracy

    def _pick_probes(self, *, keep: bool = False) -> None:
        """Pick the layers to watch.

        Args:
            keep: Go on with the probes that are there, and the test function built with them, where
                the same ones would be made.
        """
        settings, layer_ids = self._settings, ids_of_layers(self.model)
        watch = pick_probes(self.model, settings, settings.channel_axis, self._warn)
        if keep and layer_ids == self._layer_ids and self.watch.stands_for(watch):
            self.watch.begin_again(settings)
        else:
            self.watch, self.built = watch, None
        self.watch.defers = self._ranks is not None
        self._layer_ids = layer_ids

    def _take_probe_data(self, *, begins: bool = False) -> None:
        """Read the samples that are to be followed.

        Args:
            begins: Whether a fit begins, and with it what is compared.

        Raises:
            TypeError: They are of the wrong kind.
            ValueError: They are too many, or none, or JAX's processes share the model.
        """
        self._probe.take(self.probe_data, ProbeData, begins=begins)
        if self._probe.data is None:
            return
        if self._ranks is not None:
            raise ValueError(
                "probe_data can't be followed in a model that several processes of JAX share: "
                "leave it out, or train in one process"
            )
        _ = self._probe.data.batches
        if begins and is_built(self.model):
            self._record_probe(is_beginning=True)

    def _record_probe(self, *, is_beginning: bool = False) -> dict[str, ProbeChange]:
        """Run the model on the probe data, and return how its layers' states have changed."""
        data = self._probe.data
        if data is None:
            return {}
        return self._probe.record(
            lambda: run_probe(self.model, data.batches, self._settings), is_beginning=is_beginning
        )

    def _conclude_step(self, recorder: Recorder, info: PassInfo) -> EfficiencyReport | None:
        self._window.add(recorder)
        return self._conclude_window(self._window.counts(), info)

    def _begin_training(self) -> None:
        if self._ranks is not None:
            raise ValueError(
                "training steps that several processes of JAX share can't be recorded: leave "
                '"train" out of on, so that evaluations are, or train in one process'
            )
        self.training = WatchedTraining(self.model, self._settings, self._warn, self._conclude_step)

    def _end_training(self) -> None:
        if self.training is not None:
            # Known until it has ended: an interrupt may break this off too.
            self.training.end()
            self.training = None
