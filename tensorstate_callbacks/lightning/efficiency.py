"""The Lightning callback's logic: rides on validation and test passes; knows no namespace."""

import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal

from torch import nn

from tensorstate_callbacks.errors import NoLayerMatchedError, WarnOnce
from tensorstate_callbacks.lightning.metric_log import MetricLog
from tensorstate_callbacks.lightning.namespace import Namespace, check_trainer
from tensorstate_callbacks.lightning.ranks import announce_failure, find_ranks
from tensorstate_callbacks.lightning.trackers import find_trackers
from tensorstate_callbacks.lightning.window import Window, fit_epoch
from tensorstate_callbacks.loggers.tracker import Trackers
from tensorstate_callbacks.recording.channel_axis import ChannelAxis
from tensorstate_callbacks.recording.selection import Patterns
from tensorstate_callbacks.recording.settings import Accuracy, Method, Settings
from tensorstate_callbacks.reports.history import History
from tensorstate_callbacks.reports.report import EfficiencyReport
from tensorstate_callbacks.torch.calls import OutputFn
from tensorstate_callbacks.torch.channel_axis import ChannelAxes
from tensorstate_callbacks.torch.layers import PickedLayers, pick_layers
from tensorstate_callbacks.torch.record import Recording


class EfficiencyMixin:
    """Logs the network's efficiency and aIQ with each validation and test pass.

    It counts the firing states of the probed layers while Lightning evaluates the model, and logs
    `val_aiq`, `val_efficiency` and `val_efficiency/<layer>` (`test_...` in a test) through the
    LightningModule's own `log`, after everything else of that pass has been logged: loggers,
    EarlyStopping, ModelCheckpoint, learning rate schedulers and progress bars see them, wherever
    this callback stands in the list. Training isn't touched, no pass is added, and the model
    carries nothing of it when the pass is over. Only what the model runs within `validation_step`
    or `test_step` is counted. In the sanity check the probes are tried, so that a layer that can't
    be counted ends the run there, but nothing is logged.

    A value that this pass doesn't have is taken out of `trainer.callback_metrics`, so that nobody
    acts on an old one: `val_aiq` where the accuracy is missing, all keys in the epochs that
    `every_n_epochs` passes over. EarlyStopping with its default `strict=True` and ModelCheckpoint
    then end the training with an error that names the key. With `every_n_epochs`, give
    EarlyStopping `strict=False` (its patience then counts recorded epochs) and ModelCheckpoint the
    same `every_n_epochs`.

    Processes of one Trainer (DDP, FSDP) merge their states, and all get the figures that one
    process would have of the data: samples that DistributedSampler repeats are left out. The
    accuracy is the one that is logged, in which Lightning counts them; `torch.own_samples` tells
    how many of a batch to count instead. Where it differs over the processes, being logged without
    `sync_dist`, the mean by their samples is taken.

    Args:
        attach_to: Which layers to probe: a class name (`"Conv2d"`), a layer name or glob
            (`"net.blocks.*.conv"`), a type, a predicate `(name, module) -> bool`, or a sequence of
            these. None takes every convolution and dense layer except the one that makes the
            output: the one that the first evaluation calls last.
        exclude: Which of them to leave out, in the same forms.
        method: `"after"` probes the layers' outputs, `"before"` their inputs (named
            `<layer>.input`), `"both"` both.
        beta: Weight of accuracy in aIQ, above 0.
        accuracy: Key under which the accuracy is logged (`"val_acc"`), in a step, at the end of the
            epoch or by another callback; or a callable that takes what the pass has logged and
            returns it; None looks for the usual names (`val_accuracy`, `val_acc`, `val/acc`...).
        threshold: A neuron fires where its activation is above it; finite.
        alpha: Order of the Rényi entropy, 0 to infinity; 1 is Shannon's.
        every_n_epochs: Record every n-th epoch's validation only.
        prefix: Put before the metrics' names: `"x_"` gives `val_x_aiq`. Several callbacks of one
            Trainer need different ones.
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
        channel_axis: Axis of the neurons where the rules are wrong; see `torch.record`.
        output_fn: `(name, output)` to the tensor to count; see `torch.record`.
        dataloader_idx: The dataloader to record, with its accuracy, where there are several.

    Attributes:
        history: One `EfficiencyReport` per recorded pass, over all runs; kept in checkpoints.

    Raises:
        NoLayerMatchedError: As the run begins: nothing matched; says what the model has.
        ProbeError: From the evaluation: a layer's activations can't be counted; names the layer.
        TypeError: An argument is of the wrong kind, or the Trainer of another namespace.
        ValueError: An argument is out of its range, or the accuracy is missing and
            `missing_accuracy` is `"raise"`.
        RankError: From the evaluation: another process failed, or is gone; names its rank.

    Example:
        callback = tensorstate_callbacks.lightning.EfficiencyCallback()
        stop = EarlyStopping("val_aiq", mode="max", patience=5)
        Trainer(callbacks=[callback, stop]).fit(model, train_loader, val_loader)
        print(callback.last.table())
    """

    namespace: ClassVar[Namespace]

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
        channel_axis: ChannelAxis = None,
        output_fn: OutputFn | None = None,
        dataloader_idx: int = 0,
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
        if dataloader_idx < 0:
            raise ValueError(f"dataloader_idx must be 0 or more; got {dataloader_idx}")
        self._channel_axis = channel_axis
        self._output_fn = output_fn
        self._dataloader_idx = dataloader_idx
        self.history = History()
        self._warn = WarnOnce()
        self._layers: PickedLayers | None = None
        self._axes = ChannelAxes(channel_axis, {})
        # The modules that these were picked from, and the layers of this run's latest report.
        self._modules: dict[str, weakref.ref[nn.Module]] = {}
        self._reported: tuple[str, ...] | None = None
        self._window: Window | None = None
        self._log = MetricLog(self._settings)
        self._recorded = False
        self._trackers = Trackers()

    @property
    def last(self) -> EfficiencyReport | None:
        """The latest report, or None before the first evaluation."""
        return self.history[-1] if self.history else None

    @property
    def state_key(self) -> str:
        """Under which its state is kept in checkpoints; unique for each prefix."""
        return f"EfficiencyCallback{{'prefix': {self._settings.prefix!r}}}"

    def state_dict(self) -> dict[str, Any]:
        """Return the history as plain lists, dicts and numbers."""
        return {"history": [report.to_dict() for report in self.history]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the history of a checkpoint."""
        self.history = History(map(EfficiencyReport.from_dict, state_dict["history"]))

    def __getstate__(self) -> dict[str, Any]:
        # A copy, or a spawned process, begins between two evaluations.
        ended: dict[str, Any] = {
            "_window": None,
            "_layers": None,
            "_modules": {},
            "_trackers": Trackers(),
        }
        return {**vars(self), **ended}

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Begin a run."""
        check_trainer(trainer, self.namespace)
        self.teardown(trainer, pl_module, stage)
        # All processes have the same to say.
        self._warn.reset(silent=not trainer.is_global_zero)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """End a run; also what was left open by one that ended in an error."""
        self._close()
        self._trackers.end()
        self._layers, self._modules, self._reported = None, {}, None

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave the model as it was, and the other processes not waiting for this one."""
        self.teardown(trainer, pl_module, "")
        announce_failure(trainer, exception)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Pick the layers, so that a mistake shows before the first epoch."""
        self._pick_layers(pl_module)
        self._recorded = False
        self._trackers = find_trackers(trainer, self._settings)
        if not trainer.enable_validation:
            self._warn(
                "validation",
                "fit has no validation, so there is no evaluation to record and no efficiency is "
                "logged: give it a validation dataloader and the model a validation_step, and "
                "leave limit_val_batches above 0",
            )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Tell the trackers of the layers, now that the sanity check has shown which they are."""
        layers = self._pick_layers(pl_module).expected()
        self._trackers.begin(
            self._settings,
            [name for layer in layers for name in self._settings.probe_names(layer) if name],
        )

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Tell the trackers of the epoch, now that its training is logged too."""
        # Read by all ranks, also where there is no tracker: reducing metrics may take them all.
        self._trackers.epoch(trainer.current_epoch, trainer.callback_metrics)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Say so if there was nothing to record."""
        if not self._recorded:
            self._warn(
                "validation",
                "no validation pass was recorded in this fit, so no efficiency was logged: it had "
                "no data, or the fit was shorter than check_val_every_n_epoch, val_check_interval "
                "or every_n_epochs ask for",
            )

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to record, if this validation is to be."""
        self._open(trainer, pl_module, "val")

    def on_test_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to record."""
        self._open(trainer, pl_module, "test")

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count from here on."""
        if self._window is not None:
            self._window.begin_batch(batch_idx, dataloader_idx)

    def on_validation_batch_end(
        self,
        trainer: Any,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count no further."""
        if self._window is not None:
            self._window.end_batch(batch_idx, dataloader_idx)

    on_test_batch_start = on_validation_batch_start
    on_test_batch_end = on_validation_batch_end

    def _pick_layers(self, module: nn.Module) -> PickedLayers:
        """Return the layers to probe, picked anew where the model has other modules than before."""
        modules = {name: weakref.ref(part) for name, part in module.named_modules()}
        if self._layers is None or modules != self._modules:
            try:
                self._layers = pick_layers(module, self._settings.attach_to, self._settings.exclude)
                self._axes = ChannelAxes(self._channel_axis, self._layers)
            except NoLayerMatchedError as error:
                if self._layers is None:
                    raise
                # In the middle of a fit: it goes on, and the old layers will have seen nothing.
                self._warn("layers", str(error))
            self._modules = modules
        return self._layers

    def _open(self, trainer: Any, module: Any, stage: str) -> None:
        self._close()
        trial, epoch = trainer.sanity_checking, fit_epoch(trainer)
        due = epoch is None or trainer.fast_dev_run or self._settings.is_due(epoch)
        if not (due or trial):
            self._log.write(trainer, module, stage, None)
            return
        finish = self._end_trial if trial else partial(self._finish, trainer, module)
        index = self._dataloader_idx
        ranks = find_ranks(trainer, index, self._warn)
        self._window = Window(
            trainer, module, self._new_recording(module), stage, index, ranks, finish, trial=trial
        )

    def _new_recording(self, module: Any) -> Recording:
        layers = self._pick_layers(module)
        return Recording.of_layers(module, layers, self._settings, self._axes, self._output_fn)

    def _end_trial(self, window: Window) -> None:
        self._close()
        window.check()

    def _finish(self, trainer: Any, module: Any, window: Window) -> None:
        self._close()
        self._recorded = True
        report = window.conclude(self._settings, self._warn, self._reported)
        self._log.write(trainer, module, window.stage, report)
        if report is not None:
            self._reported = tuple(report.layers)
            self.history.append(report)
            if trainer.state.fn == "fit":
                self._trackers.add(report)

    def _close(self) -> None:
        window, self._window = self._window, None
        if window is not None:
            window.close()
