"""Follow the training of one fit for a callback: which steps are due, and what they have shown."""

from collections.abc import Callable

import keras

from tensorstate_callbacks.errors import WarnOnce
from tensorstate_callbacks.keras.picking import ids_of_layers, pick_probes
from tensorstate_callbacks.keras.train_step import BuiltStep, EpochLogs, TrainStep, withdraw
from tensorstate_callbacks.keras.watch import Watch
from tensorstate_callbacks.recording.pass_counts import PassInfo
from tensorstate_callbacks.recording.recorder import Recorder
from tensorstate_callbacks.recording.settings import Settings
from tensorstate_callbacks.reports.report import EfficiencyReport


class WatchedTraining:
    """The training of one model in one fit.

    Args:
        model: The model.
        settings: What the callback was given.
        warn: Takes the warnings.
        conclude: Takes what a step has shown into the window; returns the report of that.

    Attributes:
        watch: The probes.
        built: The train functions that are kept for further steps.

    Raises:
        Exception: See `pick_probes`.
    """

    def __init__(
        self,
        model: keras.Model,
        settings: Settings,
        warn: WarnOnce,
        conclude: Callable[[Recorder, PassInfo], EfficiencyReport | None],
    ) -> None:
        self._model, self._settings, self._warn = model, settings, warn
        self._conclude = conclude
        self.built: list[BuiltStep] = []
        self._metrics: dict[str, float] = {}
        self._epoch_logs = EpochLogs(model, self._last_metrics)
        self._epoch = 0
        # Batches begun in this fit, and before the execution that comes or runs.
        self._n_begun = self._n_before = 0
        self._n_steps_before_fit = count_steps(model)
        self._pick()

    def begin_epoch(self, epoch: int) -> None:
        """Note the epoch, and go on after a fit within the fit."""
        self._epoch = epoch
        self._epoch_logs.put_on()
        # Keras also begins a batch to find out that there is none, and several for one that is
        # left of an execution. Optimizers count what they were given.
        n_missing = self._n_begun - self._n_trained()
        if 0 < n_missing <= self._model.steps_per_execution:
            self._n_begun -= n_missing

    def begin_batch(self) -> None:
        """Record the step that comes, if it is due: if one of the batches of its execution is."""
        self._n_before = self._n_begun
        self._n_begun += self._model.steps_per_execution
        batches = range(self._n_before + 1, self._n_begun + 1)
        if any(map(self._settings.is_step_due, batches)):
            if self._layer_ids != ids_of_layers(self._model):
                # Layers were added since, or built with their first batch.
                self._pick()
            TrainStep.join(self._model, self)

    def finish_step(self) -> dict[str, float]:
        """Take what the step has shown, and return the metrics that join the logs of its batch."""
        counting, settings = self.watch.counting, self._settings
        recorder, counting.recorder = counting.recorder, None
        if recorder is None:
            return {}
        made = (self._n_steps_before_fit or 0) + self._n_before // _n_accumulated(self._model)
        info = PassInfo(epoch=self._epoch, step=made, stage="train")
        report = self._conclude(self.watch.counted(recorder), info)
        if report is None:
            return {}
        self._metrics = report.scalars(settings.prefix, layer_metrics=settings.layer_metrics)
        return self._metrics

    def end(self) -> None:
        """Leave the model as it was."""
        self._epoch_logs.take_off()
        withdraw(self._model)
        self.built.clear()

    def _last_metrics(self) -> dict[str, float]:
        return self._metrics

    def _pick(self) -> None:
        self._layer_ids = ids_of_layers(self._model)
        settings = self._settings.of_train_batch()
        self.watch: Watch = pick_probes(
            self._model, settings, settings.channel_axis, self._warn, in_training=True
        )
        self.built.clear()

    def _n_trained(self) -> int:
        """Return how many batches the optimizer has seen in this fit, as far as it counts them."""
        n_steps = count_steps(self._model)
        if n_steps is None or self._n_steps_before_fit is None or _n_accumulated(self._model) > 1:
            return self._n_begun
        return n_steps - self._n_steps_before_fit


def count_steps(model: keras.Model) -> int | None:
    """Return how many steps the model's optimizer has made; None where it has none that counts."""
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        return None
    # A variable on several devices is none that int() takes.
    return int(keras.ops.convert_to_numpy(optimizer.iterations))


def _n_accumulated(model: keras.Model) -> int:
    """Return how many batches make a step of the optimizer."""
    return getattr(getattr(model, "optimizer", None), "gradient_accumulation_steps", None) or 1
