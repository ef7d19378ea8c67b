"""Record the validation and test passes that Lightning makes, under either of its names."""

import weakref
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import nn

from tensorstate_callbacks.errors import NoLayerMatchedError
from tensorstate_callbacks.lightning import Namespace, check_trainer
from tensorstate_callbacks.lightning.evaluation import (
    WatchedEvaluation,
    find_fit_epoch,
    is_fast_dev_run,
)
from tensorstate_callbacks.lightning.logged_metrics import MetricLog
from tensorstate_callbacks.lightning.probes import follow_module
from tensorstate_callbacks.lightning.ranks import (
    add_to_window,
    announce_failure,
    check_ranks,
    find_ranks,
)
from tensorstate_callbacks.lightning.steps import WatchedBatch, count_batches
from tensorstate_callbacks.lightning.trackers import find_trackers
from tensorstate_callbacks.loggers.tracker import Trackers
from tensorstate_callbacks.metrics.turnover import ProbeChange
from tensorstate_callbacks.recording.callback import RecordingCallback
from tensorstate_callbacks.recording.channel_axis import ChannelAxis
from tensorstate_callbacks.recording.class_labels import Classes, is_array
from tensorstate_callbacks.recording.masks import Mask, has_rows
from tensorstate_callbacks.recording.selection import Patterns
from tensorstate_callbacks.recording.settings import (
    Accuracy,
    Method,
    Settings,
    Watched,
    describe_value,
)
from tensorstate_callbacks.reports.packed_history import HistoryPacker, unpack_history
from tensorstate_callbacks.reports.report import EfficiencyReport, History
from tensorstate_callbacks.torch.activations import OutputFn
from tensorstate_callbacks.torch.channel_axis import ChannelAxes
from tensorstate_callbacks.torch.picking import PickedLayers, pick_layers
from tensorstate_callbacks.torch.probe_set import load_series, read_data, saved_series
from tensorstate_callbacks.torch.record import Recording

if TYPE_CHECKING:
    import pytorch_lightning as pl


class EfficiencyHooks(RecordingCallback):
    """Logs the network's efficiency and aIQ with each validation and test pass.

    It counts the firing states of the probed layers while Lightning evaluates the model, and logs
    `val_aiq`, `val_efficiency` and `val_efficiency/<layer>` (`test_...` in a test) through the
    LightningModule's own `log`, after everything else of that pass has been logged. Loggers,
    EarlyStopping, ModelCheckpoint, learning rate schedulers and progress bars see them, wherever
    this callback stands in the list. No pass is added, training isn't touched unless `on` asks for
    it, and the model carries nothing of it when the pass is over.

    Only what the model runs within `validation_step` or `test_step` is counted. The sanity check
    tries the probes and logs nothing, so that a layer that can't be counted ends the run there.

    **Layers.** The layer that makes the output is the one that the first evaluation calls last.

    **Accuracy.** A key given as `accuracy` may be logged in a step, at the end of the epoch or by
    another callback. A callable gets what the pass has logged.

    **Missing values.** A value that this pass doesn't have is taken out of
    `trainer.callback_metrics`, so that nobody acts on an old one: `val_aiq` where the accuracy is
    missing, all keys in the epochs that `every_n_epochs` passes over. EarlyStopping with its
    default `strict=True` and ModelCheckpoint then end the training with an error that names the
    key. With `every_n_epochs`, give EarlyStopping `strict=False` (its patience then counts recorded
    epochs) and ModelCheckpoint the same `every_n_epochs`.

    **Training.** `on=("val", "train")` or `on="train"` also records the training step of every
    `every_n_train_steps`-th batch, and logs `train_efficiency` and `train_efficiency/<layer>` of
    the last `window` recorded ones: to loggers at that step, whatever `log_every_n_steps` says, to
    the progress bar and to callbacks that come later in the list, as checkpoints do. Batches are
    counted from the fit's beginning, over epochs and checkpoints, whether or not the optimizer
    steps after each. A recorded step runs uncompiled where the model is compiled, which may round
    the last bits differently; otherwise training is the same to the bit. What the backward pass
    runs once more (gradient checkpointing) isn't counted, and where an optimizer repeats the step
    its first run is. There is no `train_aiq`: nobody measures an accuracy on just these batches. On
    several processes a recorded batch is all of theirs; samples that a sampler repeats are trained
    on, and count.

    **Several processes.** The processes of one Trainer (DDP, FSDP) merge their states, and all get
    the metrics that one process would have of the data: samples that DistributedSampler repeats are
    left out. The accuracy is the one that is logged, in which Lightning counts them;
    `torch.own_samples` tells how many of a batch to count instead. Where the accuracy differs over
    the processes, because it is logged without `sync_dist`, their mean is taken, weighted by
    samples.

    **Probe data.** `probe_data` is a batch as a dataloader gives it, or a dataloader of a few
    batches; see `torch.ProbeSet`. The module's own `forward` is called on it, at the beginning of
    the training and with each recorded pass, also by each of several processes; what it logs is
    passed over. Checkpoints keep what is needed to compare with, up to 16 MiB: a fit that goes on
    from one goes on with the same probe data as if it hadn't been interrupted, and begins anew with
    other data.

    Args:
        output_fn: `(name, output)` to the tensor to count; see `torch.record`.
        dataloader_idx: The dataloader to record, with its accuracy, where there are several.

    Attributes:
        history: One `EfficiencyReport` per recorded pass, over all runs. Checkpoints keep the last
            one whole, and all but the spectra of the others.
        train_history: One `EfficiencyReport` for each recorded training batch, of the window that
            it is the last of, without an accuracy. It keeps the latest 1,000, the last one whole
            and the others with their metrics only. Checkpoints don't keep it: the window of a fit
            that goes on from one begins anew.

    Raises:
        NoLayerMatchedError: As the run begins: `attach_to` and `exclude` leave no layer. The
            message says what the model has.
        ProbeError: From the evaluation: a layer's activations can't be counted; names the layer.
        TypeError: An argument is of the wrong kind, or the Trainer is of the other namespace.
        ValueError: An argument is out of its range, or the accuracy is missing and
            `missing_accuracy` is `"raise"`.
        RankError: Another process failed, is gone, or has a callback of other arguments; names its
            rank.

    Examples:
        ```python
        callback = tensorstate_callbacks.lightning.EfficiencyCallback()
        stop = EarlyStopping("val_aiq", mode="max", patience=5)
        Trainer(callbacks=[callback, stop]).fit(model, train_loader, val_loader)
        print(callback.last.table())
        ```
    """

    namespace: ClassVar[Namespace]

    _NOT_COPIED = (
        *("_settings", "_warn", "_reported", "_layers", "_axes", "_modules"),
        *("_evaluation", "_batch", "_log", "_recorded", "_trackers", "_packer"),
        *("_window", "_window_report"),
        *("_probe", "_saved_probe", "_stage"),
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
        group_size: int | None = None,
        positions: int | None = None,
        max_memory: float | None = None,
        channel_axis: ChannelAxis = None,
        mask: Mask = None,
        neurons: bool = False,
        classes: Classes = None,
        probe_data: Any = None,
        every_n_epochs: int = 1,
        on: Watched | Sequence[Watched] = ("val",),
        every_n_train_steps: int = 50,
        window: int = 20,
        prefix: str = "",
        layer_metrics: bool | Sequence[str] = True,
        missing_accuracy: Literal["warn", "ignore", "raise"] = "warn",
        log_extras: Literal["charts", "figures"] | None = "charts",
        output_fn: OutputFn | None = None,
        dataloader_idx: int = 0,
    ) -> None:
        super().__init__(
            attach_to,
            exclude=exclude,
            method=method,
            beta=beta,
            accuracy=accuracy,
            threshold=threshold,
            alpha=alpha,
            group_size=group_size,
            positions=positions,
            max_memory=max_memory,
            channel_axis=channel_axis,
            mask=mask,
            neurons=neurons,
            classes=classes,
            probe_data=probe_data,
            every_n_epochs=every_n_epochs,
            on=on,
            every_n_train_steps=every_n_train_steps,
            window=window,
            prefix=prefix,
            layer_metrics=layer_metrics,
            missing_accuracy=missing_accuracy,
            log_extras=log_extras,
        )
        if dataloader_idx < 0:
            raise ValueError(f"dataloader_idx must be 0 or more; got {dataloader_idx}")
        self.output_fn = output_fn
        self.dataloader_idx = dataloader_idx

    # LightningCLI takes the help on the arguments from here.
    __init__.__doc__ = RecordingCallback.__init__.__doc__

    def _forget_the_run(self) -> None:
        super()._forget_the_run()
        self._layers: PickedLayers | None = None
        self._axes = ChannelAxes(None, {})
        # The modules that these were picked from.
        self._modules: dict[str, weakref.ref[nn.Module]] = {}
        self._evaluation: WatchedEvaluation | None = None
        # The training batch that is being recorded.
        self._batch: WatchedBatch | None = None
        self._log = MetricLog()
        self._recorded = False
        self._trackers = Trackers()
        self._packer = HistoryPacker()
        # What the Trainer is running: "fit", "validate", "test", "predict".
        self._stage: str | None = None
        # What a checkpoint has of the probe data.
        self._saved_probe: dict[str, Any] | None = None

    @property
    def state_key(self) -> str:
        """Under which its state is kept in checkpoints; unique for each prefix."""
        return f"EfficiencyCallback{{'prefix': {self.prefix!r}}}"

    def state_dict(self) -> dict[str, Any]:
        """Return the metrics of all evaluations and the last one's report; see `HistoryPacker`."""
        packed = self._packer.pack(self.history)
        if self._probe.data is not None:
            packed["probe"] = saved_series(self._probe)
        return packed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the history of a checkpoint: its last report whole, others without spectra.

        `trainer.test(ckpt_path="best")` and the like take back no epochs that this one has seen.
        """
        if self.history and self._stage not in (None, "fit"):
            return
        if "history" in state_dict:
            # Of a version that kept all reports whole.
            self.history = History(map(EfficiencyReport.from_dict, state_dict["history"]))
        else:
            self.history = unpack_history(state_dict)
        self._saved_probe = state_dict.get("probe")

    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """Begin a run."""
        check_trainer(trainer, self.namespace)
        self.teardown(trainer, pl_module, stage)
        self._stage = stage
        self._take_settings()
        _check_arrays(self.mask, self.classes, trainer.world_size)
        # All processes have the same to say.
        self._warn.reset(silent=not trainer.is_global_zero)
        own = {
            name: describe_value(getattr(self, name)) for name in ("output_fn", "dataloader_idx")
        }
        self._probe.take(self.probe_data, read_data, begins=stage == "fit")
        # Lightning loads a checkpoint after this.
        self._saved_probe = None
        if self._probe.data is not None and stage != "predict":
            own["probe_data"] = self._probe.data.digest
        check_ranks(trainer, {**self._settings.comparable(), **own})

    def teardown(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """End a run; also what was left open by one that ended in an error."""
        self._close_evaluation()
        self._close_batch()
        self._begin_windows()
        self._trackers.end()
        self._layers, self._modules, self._reported = None, {}, None
        self._stage = None

    def on_exception(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", exception: BaseException
    ) -> None:
        """Leave the model as it was, and the other processes not waiting for this one."""
        self.teardown(trainer, pl_module, "")
        announce_failure(trainer, exception)

    def on_fit_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Pick the layers, so that a mistake shows before the first epoch."""
        self._pick_layers(pl_module)
        self._recorded = False
        if not self._settings.records("val"):
            return
        self._trackers = find_trackers(trainer, self._settings)
        if not trainer.enable_validation:
            self._warn(
                "validation",
                "fit has no validation, so there is no evaluation to record and no efficiency is "
                "logged: give it a validation dataloader and the model a validation_step, and "
                "leave limit_val_batches above 0",
            )

    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Begin to track, now that the sanity check has shown which layers are probed."""
        self._begin_windows()
        self._load_probe()
        if self._settings.records("val") and not len(self._probe.series):
            self._record_probe(trainer, pl_module, is_beginning=True)
        layers = self._pick_layers(pl_module).expected()
        self._trackers.begin(
            self._settings,
            [name for layer in layers for name in self._settings.probe_names(layer) if name],
        )

    def on_train_epoch_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Track the epoch, now that its training is logged too."""
        # Of a batch at which the module ended the epoch.
        self._close_batch()
        # Read by all ranks, also where there is no tracker: reducing metrics may take them all.
        self._trackers.epoch(trainer.current_epoch, trainer.callback_metrics)

    def on_train_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Say so if there was nothing to record."""
        if self._settings.records("train"):
            self._end_windows()
        if self._settings.records("val") and not self._recorded:
            self._warn(
                "validation",
                "no validation pass was recorded in this fit, so no efficiency was logged: it had "
                "no data, or the fit was shorter than check_val_every_n_epoch, val_check_interval "
                "or every_n_epochs ask for",
            )

    def on_train_batch_start(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", batch: Any, batch_idx: int
    ) -> None:
        """Record the step of this training batch, if it is to be."""
        if self._settings.records("train") and (
            self._settings.is_step_due(count_batches(trainer)) or is_fast_dev_run(trainer)
        ):
            self._begin_batch(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: "pl.Trainer",
        pl_module: "pl.LightningModule",
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Report the window that this training batch is the last of, if it was recorded."""
        if self._batch is not None:
            self._finish_batch(trainer, pl_module, self._batch)

    def on_validation_epoch_start(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule"
    ) -> None:
        """Begin to record, if this validation is to be."""
        self._begin_evaluation(trainer, pl_module, "val")

    def on_test_epoch_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Begin to record."""
        self._begin_evaluation(trainer, pl_module, "test")

    def on_validation_batch_start(
        self,
        trainer: "pl.Trainer",
        pl_module: "pl.LightningModule",
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count from here on."""
        if self._evaluation is not None:
            self._evaluation.begin_batch(batch_idx, dataloader_idx)

    def on_validation_batch_end(
        self,
        trainer: "pl.Trainer",
        pl_module: "pl.LightningModule",
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count no further."""
        if self._evaluation is not None:
            self._evaluation.end_batch(batch_idx, dataloader_idx)

    on_test_batch_start = on_validation_batch_start
    on_test_batch_end = on_validation_batch_end

    def _pick_layers(self, module: nn.Module) -> PickedLayers:
        """Return the layers to probe, picked anew where the model has other modules than before."""
        modules = {name: weakref.ref(part) for name, part in module.named_modules()}
        if self._layers is None or modules != self._modules:
            try:
                settings = self._settings
                self._layers = pick_layers(module, settings.attach_to, settings.exclude)
                self._axes = ChannelAxes(settings.channel_axis, self._layers)
            except NoLayerMatchedError as error:
                if self._layers is None:
                    raise
                # In the middle of a fit: it goes on, and the old layers will have seen nothing.
                self._warn("layers", str(error))
            self._modules = modules
        return self._layers

    def _begin_evaluation(
        self, trainer: "pl.Trainer", module: "pl.LightningModule", stage: str
    ) -> None:
        self._close_evaluation()
        trial, epoch = trainer.sanity_checking, find_fit_epoch(trainer)
        due = epoch is None or is_fast_dev_run(trainer) or self._settings.is_due(epoch)
        due = due and self._settings.records("val")
        if not (due or trial):
            self._log.write(trainer, module, stage, None, self._settings)
            return
        finish = (
            self._end_sanity_check if trial else partial(self._finish_evaluation, trainer, module)
        )
        index = self.dataloader_idx
        ranks = find_ranks(trainer, index, self._warn)
        recording = self._new_recording(module, self._settings)
        self._evaluation = WatchedEvaluation(
            trainer, module, recording, stage, index, ranks, finish, trial=trial
        )
        # Not before it is known here, and so closed if an interrupt breaks this off.
        self._evaluation.open()

    def _end_sanity_check(self, evaluation: WatchedEvaluation) -> None:
        self._close_evaluation()
        evaluation.check()

    def _finish_evaluation(
        self,
        trainer: "pl.Trainer",
        module: "pl.LightningModule",
        evaluation: WatchedEvaluation,
    ) -> None:
        self._close_evaluation()
        self._recorded = True
        stage = evaluation.info.stage
        find_accuracy = partial(self._find_accuracy, stage=stage)
        counts, found = evaluation.merge(find_accuracy, self._warn)
        self._load_probe()
        changes = self._record_probe(trainer, module)
        report = self._conclude(counts, found, evaluation.info, changes=changes)
        self._log.write(trainer, module, stage, report, self._settings)
        if report is not None and trainer.state.fn == "fit":
            self._trackers.add(report)

    def _load_probe(self) -> None:
        """Go on from what a checkpoint has of the probe data, if there is one."""
        saved, self._saved_probe = self._saved_probe, None
        if self._probe.data is not None and saved and not load_series(self._probe, saved):
            self._warn(
                "saved probe_data",
                "the checkpoint has the states of other samples than probe_data: they are followed "
                "anew from here on. Give the same samples to go on with them",
            )

    def _record_probe(
        self, trainer: "pl.Trainer", module: "pl.LightningModule", *, is_beginning: bool = False
    ) -> dict[str, ProbeChange]:
        return follow_module(
            self._probe,
            trainer,
            module,
            lambda: self._new_recording(module, self._settings),
            is_beginning=is_beginning,
        )

    def _new_recording(self, module: nn.Module, settings: Settings) -> Recording:
        layers = self._pick_layers(module)
        return Recording.of_layers(module, layers, settings, self._axes, self.output_fn)

    def _begin_batch(self, trainer: "pl.Trainer", module: "pl.LightningModule") -> None:
        self._close_batch()
        recording = self._new_recording(module, self._settings.of_train_batch())
        self._batch = WatchedBatch(trainer, module, recording)
        # Not before it is known here, and so closed if an interrupt breaks this off.
        self._batch.open()

    def _finish_batch(
        self, trainer: "pl.Trainer", module: "pl.LightningModule", batch: WatchedBatch
    ) -> None:
        self._close_batch()
        recording = batch.recording
        for kind, text in recording.conclude().items():
            self._warn(kind, text)
        counts = add_to_window(
            self._window, recording.recorder, recording.settings, trainer, self._warn
        )
        report = self._conclude_window(counts, batch.info)
        if report is not None:
            self._log.write_step(trainer, module, report, self._settings, self._warn)

    def _close_batch(self) -> None:
        if self._batch is not None:
            # Known until it is closed: an interrupt may break this off too.
            self._batch.close()
            self._batch = None

    def _close_evaluation(self) -> None:
        if self._evaluation is not None:
            # Known until it is closed: an interrupt may break this off too.
            self._evaluation.close()
            self._evaluation = None


def _check_arrays(mask: Mask, classes: Classes, n_ranks: int) -> None:
    if n_ranks > 1 and has_rows(mask):
        raise ValueError(
            f"mask is an array of all samples, of which each of the {n_ranks} processes has some: "
            "give the key of a mask in the batch, or (name, batch) -> mask"
        )
    if n_ranks > 1 and is_array(classes):
        raise ValueError(
            f"classes is an array of all samples, of which each of the {n_ranks} processes has "
            "some: give the key of labels in the batch, or a callable batch -> labels"
        )
