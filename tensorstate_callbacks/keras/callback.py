"""The Keras callback: rides on the validation passes that fit makes, or on an evaluate."""

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import keras

from tensorstate_callbacks.errors import WarnOnce
from tensorstate_callbacks.keras.accuracy_key import accuracy_keys
from tensorstate_callbacks.keras.backends import current_backend
from tensorstate_callbacks.keras.fit_frame import find_caller
from tensorstate_callbacks.keras.legacy import check_not_keras_2
from tensorstate_callbacks.keras.picking import ids_of_layers, pick_probes
from tensorstate_callbacks.keras.processes import check_not_a_worker
from tensorstate_callbacks.keras.trackers import find_trackers
from tensorstate_callbacks.keras.watch import Watch
from tensorstate_callbacks.keras.window import BuiltFunction, EvaluateGuard, Window
from tensorstate_callbacks.loggers.tracker import Trackers
from tensorstate_callbacks.recording.accuracy import FoundAccuracy, find_accuracy
from tensorstate_callbacks.recording.channel_axis import ChannelAxis, check_channel_axis
from tensorstate_callbacks.recording.conclusion import conclude
from tensorstate_callbacks.recording.recorder import Recorder
from tensorstate_callbacks.recording.selection import Patterns
from tensorstate_callbacks.recording.settings import Accuracy, Method, Settings
from tensorstate_callbacks.reports.history import History
from tensorstate_callbacks.reports.report import EfficiencyReport


class EfficiencyCallback(keras.callbacks.Callback):
    """Logs the network's efficiency and aIQ with each validation pass.

    It counts the firing states of the probed layers while Keras evaluates the model, and adds
    `val_aiq`, `val_efficiency` and `val_efficiency/<layer>` to the logs of the epoch, where every
    other callback finds them, wherever it stands in the list. Training isn't touched, no pass is
    added, and the model carries nothing of it when the evaluation is over.

    With `model.evaluate(..., callbacks=[callback])` outside of fit, the keys are `aiq`,
    `efficiency` and `efficiency/<layer>`, in `return_dict=True` results and in `callback.last`.

    Args:
        attach_to: Which layers to probe: a class name (`"Conv2D"`), a layer name or glob
            (`"block_*/conv"`), a type, a predicate `(name, layer) -> bool`, or a sequence of these.
            A layer inside another model is found by its path (`"inner/conv"`), and by its own name
            where no other has it. None takes every convolution and dense layer except the one that
            makes the output: in a subclassed model, the one that is called last.
        exclude: Which of them to leave out, in the same forms.
        method: `"after"` probes the layers' outputs, `"before"` their inputs (named
            `<layer>.input`), `"both"` both.
        beta: Weight of accuracy in aIQ, above 0.
        accuracy: Key of the accuracy in the logs (`"val_acc"` or `"acc"`), or a callable that takes
            the evaluation's logs, without `val_`, and returns it; None looks for the usual names.
        threshold: A neuron fires where its activation is above it; finite.
        alpha: Order of the Rényi entropy, 0 to infinity; 1 is Shannon's.
        channel_axis: Axis of the neurons in the layers' tensors, batch axis included, where it
            isn't the one that layers and the way of the data tell: an axis; a tuple of axes that
            are one unit together, as heads and their size `(-2, -1)`; a mapping of layer names,
            globs, class names or types to these; or a callable `(name, layer, tensor)` that
            returns one, or None. Axes may be negative.
        every_n_epochs: Record every n-th epoch's evaluation only. Keras's `CSVLogger` fixes its
            columns in the first epoch, in which keys are missing if n is above 1: they never get a
            column. Log with another callback then, or write `callback.history.to_frame()`.
        prefix: Put before the metrics' names: `"x_"` gives `val_x_aiq`.
        layer_metrics: True logs each layer's efficiency, False nothing of the layers; or names of
            figures: `"efficiency"`, `"entropy"`, `"coverage"`, `"dead"`, `"distinct"`.
        missing_accuracy: `"warn"` once, `"ignore"` or `"raise"` where no accuracy is found.
            Efficiency is logged all the same.
        figures: Where there is a TensorBoard run, draw into it, with each recorded epoch, a heat
            map of the layers' efficiencies over the epochs, and how often each layer's states
            occur. Needs the extra `plot`.
        tracking: Write what scalars can't say: a TensorBoard run gets charts that lay efficiency,
            aIQ and accuracy over each other, an MLflow run parameters, table and figure. False
            leaves both to their scalars.

    Attributes:
        history: One `EfficiencyReport` per recorded evaluation, over all fits.

    Raises:
        NoLayerMatchedError: As training begins: nothing matched; says what the model has.
        ProbeError: A layer's activations can't be counted; names the layer. As training begins
            where the model's graph shows it, else in or after the evaluation.
        TypeError: An argument is of the wrong kind, or the model is one of Keras 2.
        ValueError: An argument is out of its range, the Keras backend is not supported, or
            TF_CONFIG names several TensorFlow workers. As training begins: a layer is the cell of a
            recurrent one, a key of `channel_axis` matches no probed layer, or processes share the
            model.

    Warns:
        TensorStateWarning: Once a fit each: nothing tells which axis holds a layer's neurons; the
            probed layers hold less than nine tenths of the weights, though none were chosen; masks
            say that padding is counted; layers have nothing to count.

    Example:
        callback = tensorstate_callbacks.keras.EfficiencyCallback()
        stop = keras.callbacks.EarlyStopping("val_aiq", mode="max", patience=5)
        model.fit(x, y, validation_data=(x_val, y_val), callbacks=[callback, stop])
        print(callback.last.table())
    """

    # What a copy goes without.
    _PASSING = (
        *("watch", "built", "_warn", "_window", "_guard", "_epoch", "_fit", "_in_fit"),
        *("_trackers", "_layer_ids", "_reported", "_model", "params"),
    )

    def __init__(
        self,
        attach_to: Patterns | None = None,
        *,
        exclude: Patterns = (),
        method: Method = "after",
        beta: float = 2,
        accuracy: Accuracy = None,
        threshold: float = 0.0,
        alpha: float = 1,
        channel_axis: ChannelAxis = None,
        every_n_epochs: int = 1,
        prefix: str = "",
        layer_metrics: bool | Sequence[str] = True,
        missing_accuracy: Literal["warn", "ignore", "raise"] = "warn",
        figures: bool = False,
        tracking: bool = True,
    ) -> None:
        super().__init__()
        self._settings = Settings(
            attach_to=attach_to,
            exclude=exclude,
            method=method,
            beta=beta,
            accuracy=accuracy,
            threshold=threshold,
            alpha=alpha,
            every_n_epochs=every_n_epochs,
            prefix=prefix,
            layer_metrics=layer_metrics,
            missing_accuracy=missing_accuracy,
            figures=figures,
            tracking=tracking,
        )
        self.channel_axis = check_channel_axis(channel_axis)
        # Says that there is no such backend before a model is trained.
        current_backend()
        check_not_a_worker()
        self.history = History()
        self._forget_the_run()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy keeps: settings and history, nothing of a model or a fit under way."""
        kept = dict(vars(self))
        for name in self._PASSING:
            kept.pop(name, None)
        # Also of a shallow copy: each callback goes on by itself.
        kept["history"] = History(self.history)
        return kept

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget_the_run()

    def _forget_the_run(self) -> None:
        self.watch = Watch({}, {}, self._settings, None, WarnOnce())
        self.built: BuiltFunction | None = None
        self._warn = WarnOnce()
        self._window: Window | None = None
        self._guard: EvaluateGuard | None = None
        self._epoch = 0
        # The callback list of the fit under way: it tells fit's evaluations from others.
        self._fit: weakref.ref[Any] | None = None
        self._in_fit = False
        # Layers of the fit's latest report.
        self._reported: tuple[str, ...] | None = None
        self._trackers = Trackers()
        self._layer_ids: list[int] = []
        # Keras's own.
        self._model: Any = None
        self.params: Any = None

    @property
    def last(self) -> EfficiencyReport | None:
        """The latest report, or None before the first evaluation."""
        return self.history[-1] if self.history else None

    def set_model(self, model: keras.Model) -> None:
        """Take the model that is to be watched."""
        check_not_keras_2(model)
        super().set_model(model)

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Pick the layers, and see to it that validation passes are left clean."""
        caller = find_caller()
        self._warn.reset()
        self._reported = None
        self._pick_probes()
        self._fit = None if caller.callback_list is None else weakref.ref(caller.callback_list)
        self._guard = EvaluateGuard.share(self.model, caller.callback_list)
        if caller.has_validation is False:
            self._warn(
                "validation",
                "fit has no validation data, so there is no evaluation to record and no efficiency "
                "is logged: give fit validation_data or validation_split",
            )
        self._trackers = find_trackers(caller.callback_list, self._settings)
        self._trackers.begin(self._settings, self.watch.expected_names())

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Note the epoch."""
        self._epoch = epoch

    def on_test_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Begin to record, if this evaluation is to be."""
        caller = find_caller()
        fit = None if self._fit is None else self._fit()
        self._in_fit = fit is not None and fit is caller.callback_list
        if not self._in_fit:
            self._warn.reset()
            self._pick_probes()
        elif not self._settings.is_due(self._epoch):
            return
        elif self._layer_ids != ids_of_layers(self.model):
            # Layers were added since, or built with their first batch.
            self._pick_probes()
        self.watch.recorder = Recorder(self.watch.names(), threshold=self._settings.threshold)
        self._window = Window.join(self.model, self, caller.callback_list, caller.method)

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Finish an evaluation that wasn't made by Keras's own `evaluate`."""
        window = self._window
        if self.watch.recorder is not None and window is not None:
            added = window.conclude(logs or {})
            window.close()
            if logs is not None:
                logs.update(added)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Tell the trackers of the epoch."""
        self._trackers.epoch(epoch, logs or {})

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Leave the model as it was."""
        self._trackers.end()
        if self._guard is not None:
            self._guard.remove()
        self._guard = self._fit = self.built = None

    def finish(self, logs: Mapping[str, Any]) -> dict[str, float]:
        """Turn what was recorded into a report, and return the metrics that join the logs.

        Args:
            logs: Results of the evaluation, under their names without `val_`.
        """
        recorder, self.watch.recorder, self._window = self.watch.recorder, None, None
        if not self._in_fit:
            self.built = None
        if recorder is None:
            return {}
        report = conclude(
            self.watch.counted(recorder),
            self._find_accuracy(logs),
            self._settings,
            self._warn,
            epoch=self._epoch if self._in_fit else None,
            step=self._steps_made(),
            stage="val" if self._in_fit else "test",
            before=self._reported if self._in_fit else None,
        )
        if report is None:
            return {}
        self._reported = tuple(report.layers) if self._in_fit else self._reported
        self.history.append(report)
        if self._in_fit:
            self._trackers.add(report)
        return report.scalars(
            self._settings.prefix, layer_metrics=self._settings.layer_metrics, with_stage=False
        )

    def _pick_probes(self) -> None:
        self.watch = pick_probes(self.model, self._settings, self.channel_axis, self._warn)
        self._layer_ids = ids_of_layers(self.model)

    def _find_accuracy(self, logs: Mapping[str, Any]) -> FoundAccuracy:
        accuracy = self._settings.accuracy
        # Keys are tried in turn; only a callable is asked itself.
        asked = accuracy if callable(accuracy) else None
        return find_accuracy(asked, logs, accuracy_keys(accuracy, logs))

    def _steps_made(self) -> int | None:
        optimizer = getattr(self.model, "optimizer", None)
        if optimizer is None:
            return None
        # A variable on several devices is none that int() takes.
        return int(keras.ops.convert_to_numpy(optimizer.iterations))
