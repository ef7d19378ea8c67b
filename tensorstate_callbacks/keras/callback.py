"""The Keras callback: rides on the validation passes that fit makes, or on an evaluate."""

import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import keras
import numpy.typing as npt

from tensorstate_callbacks.accuracy import FoundAccuracy, find_accuracy
from tensorstate_callbacks.evaluation import conclude
from tensorstate_callbacks.history import History
from tensorstate_callbacks.keras.accuracy_key import accuracy_keys
from tensorstate_callbacks.keras.backends import current_backend
from tensorstate_callbacks.keras.fit_frame import find_caller
from tensorstate_callbacks.keras.layers import channel_axis, default_names, named_layers
from tensorstate_callbacks.keras.legacy import check_not_keras_2
from tensorstate_callbacks.keras.probes import Probe
from tensorstate_callbacks.keras.processes import check_not_a_worker, check_one_process
from tensorstate_callbacks.keras.recurrent import check_outside_loops
from tensorstate_callbacks.keras.trackers import find_trackers
from tensorstate_callbacks.keras.window import BuiltFunction, EvaluateGuard, Window
from tensorstate_callbacks.recorder import Recorder
from tensorstate_callbacks.report import EfficiencyReport
from tensorstate_callbacks.selection import Patterns, select_layers
from tensorstate_callbacks.settings import Accuracy, Method, Settings
from tensorstate_callbacks.tracking.tracker import Trackers
from tensorstate_callbacks.warn_once import WarnOnce


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
            None takes every convolution and dense layer except the one that makes the output.
        exclude: Which of them to leave out, in the same forms.
        method: `"after"` probes the layers' outputs, `"before"` their inputs (named
            `<layer>.input`), `"both"` both.
        beta: Weight of accuracy in aIQ, above 0.
        accuracy: Key of the accuracy in the logs (`"val_acc"` or `"acc"`), or a callable that takes
            the evaluation's logs, without `val_`, and returns it; None looks for the usual names.
        threshold: A neuron fires where its activation is above it; finite.
        alpha: Order of the Rényi entropy, 0 to infinity; 1 is Shannon's.
        every_n_epochs: Record every n-th epoch's evaluation only.
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
        ProbeError: After the evaluation: a layer's activations can't be counted; names the layer.
        TypeError: An argument is of the wrong kind, or the model is one of Keras 2.
        ValueError: An argument is out of its range, the Keras backend is not supported, or
            TF_CONFIG names several TensorFlow workers. As training begins: a layer is the cell of a
            recurrent one, or processes share the model.

    Example:
        callback = tensorstate_callbacks.keras.EfficiencyCallback()
        stop = keras.callbacks.EarlyStopping("val_aiq", mode="max", patience=5)
        model.fit(x, y, validation_data=(x_val, y_val), callbacks=[callback, stop])
        print(callback.last.table())
    """

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
        self._backend = current_backend()
        check_not_a_worker()
        self.history = History()
        self.probes: list[Probe] = []
        self.built: BuiltFunction | None = None
        self._warn = WarnOnce()
        self._recorder: Recorder | None = None
        self._window: Window | None = None
        self._guard: EvaluateGuard | None = None
        self._epoch = 0
        # The callback list of the fit under way: it tells fit's evaluations from others.
        self._fit: weakref.ref[Any] | None = None
        self._in_fit = False
        # Layers of the fit's latest report.
        self._reported: tuple[str, ...] | None = None
        self._trackers = Trackers()

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
        self.probes = self._pick_probes()
        self._fit = None if caller.callback_list is None else weakref.ref(caller.callback_list)
        self._guard = EvaluateGuard.share(self.model, caller.callback_list)
        if caller.has_validation is False:
            self._warn(
                "validation",
                "fit has no validation data, so there is no evaluation to record and no efficiency "
                "is logged: give fit validation_data or validation_split",
            )
        self._trackers = find_trackers(caller.callback_list, self._settings)
        self._trackers.begin(self._settings, self._probe_names())

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
            self.probes = self._pick_probes()
        elif not self._settings.is_due(self._epoch):
            return
        self._recorder = Recorder(self._probe_names(), threshold=self._settings.threshold)
        self._window = Window.join(self.model, self, caller.callback_list)

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Finish an evaluation that wasn't made by Keras's own `evaluate`."""
        window = self._window
        if self._recorder is not None and window is not None:
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
        recorder, self._recorder, self._window = self._recorder, None, None
        if not self._in_fit:
            self.built = None
        if recorder is None:
            return {}
        report = conclude(
            recorder,
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

    def _pick_probes(self) -> list[Probe]:
        check_one_process(self.model)
        layers = named_layers(self.model)
        default = default_names(self.model, layers)
        picked = select_layers(
            layers, self._settings.attach_to, self._settings.exclude, default=default
        )
        check_outside_loops(picked, layers)
        return [
            Probe(layer, *self._settings.probe_names(name), partial(self._tap, channel_axis(layer)))
            for name, layer in picked.items()
        ]

    def _probe_names(self) -> list[str]:
        return [name for probe in self.probes for name in (probe.before, probe.after) if name]

    def _tap(self, axis: int, name: str, tensor: Any) -> Any:
        if tensor is None:
            return None
        return self._backend.tap(tensor, partial(self._observe, axis, name))

    def _observe(self, axis: int, name: str, activations: npt.ArrayLike) -> None:
        if self._recorder is not None:
            self._recorder.observe_later(name, activations, axis)

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
