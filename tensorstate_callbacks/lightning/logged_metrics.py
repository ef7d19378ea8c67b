"""Read what an evaluation logs in Lightning, and log its efficiency beside it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tensorstate_callbacks.errors import WarnOnce
from tensorstate_callbacks.loggers.tracker import describe_error
from tensorstate_callbacks.recording.settings import Settings
from tensorstate_callbacks.reports.report import EfficiencyReport

if TYPE_CHECKING:
    import pytorch_lightning as pl


class FreshMetrics:
    """Separates what an evaluation logs from what an earlier one or the training left behind.

    Lightning keeps old values in `callback_metrics`; a key of this evaluation has another object
    than it had before.

    Args:
        trainer: The Trainer; the evaluation has just begun.
    """

    def __init__(self, trainer: "pl.Trainer") -> None:
        self._trainer = trainer
        # Held, so that no new object gets an old one's identity.
        self._before = dict(trainer.callback_metrics)

    def read(self, dataloader_idx: int) -> dict[str, Any]:
        """Return what was logged since, as numbers where it is one.

        Reading `callback_metrics` computes metrics that are still open, once and for all: Lightning
        takes the same values after the evaluation.

        Args:
            dataloader_idx: The dataloader whose metrics are given under their plain names too,
                without `/dataloader_idx_...`, unless such a name is logged itself.
        """
        fresh = {
            key: _as_number(value)
            for key, value in self._trainer.callback_metrics.items()
            if self._before.get(key) is not value
        }
        return {**_plain_names(fresh, f"/dataloader_idx_{dataloader_idx}"), **fresh}


class MetricLog:
    """Logs the metrics of each evaluation, and withdraws those that the next one lacks."""

    def __init__(self) -> None:
        self._keys: dict[str, frozenset[str]] = {}

    def write(
        self,
        trainer: "pl.Trainer",
        module: "pl.LightningModule",
        stage: str,
        report: EfficiencyReport | None,
        settings: Settings,
    ) -> None:
        """Log a report, and withdraw the keys that were logged before and aren't now.

        Args:
            trainer: The Trainer.
            module: The LightningModule, in a hook that may log.
            stage: `"val"` or `"test"`.
            report: The report; None where nothing is known of this evaluation.
            settings: Tells prefix and layer metrics.
        """
        scalars, headline = _scalars(report, settings)
        self._withdraw_others(trainer, stage, scalars)
        for key, value in scalars.items():
            module.log(
                key,
                value,
                prog_bar=key in headline,
                on_step=False,
                on_epoch=True,
                # One value per pass: without a size Lightning looks for one in the last batch.
                batch_size=1,
                add_dataloader_idx=False,
                # All ranks have the same value, and the mean of three of it may be another.
                reduce_fx="max",
                sync_dist=True,
            )

    def write_step(
        self,
        trainer: "pl.Trainer",
        module: "pl.LightningModule",
        report: EfficiencyReport,
        settings: Settings,
        warn: WarnOnce,
    ) -> None:
        """Log the report of a window of training batches, at the step of the latest.

        Lightning itself would write it at the steps that `log_every_n_steps` asks for, so loggers
        get it here, at the step that Lightning gives what this batch logs.

        Args:
            trainer: The Trainer.
            module: The LightningModule, in a hook of the batch that may log.
            report: The report.
            settings: Tells prefix and layer metrics.
            warn: Takes the warning of a logger that fails.
        """
        scalars, headline = _scalars(report, settings)
        self._withdraw_others(trainer, report.stage, scalars)
        for key, value in scalars.items():
            module.log(
                key,
                value,
                prog_bar=key in headline,
                logger=False,
                on_step=True,
                on_epoch=False,
                batch_size=1,
            )
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        for logger in trainer.loggers:
            try:
                logger.log_metrics(scalars, step)
                logger.save()
            except Exception as error:  # noqa: BLE001 - a logger of any make, and no reason to end
                warn(
                    "logger",
                    f"{type(logger).__name__} got no {next(iter(scalars))} at step {step}: "
                    f"{describe_error(error)}. callback.train_history has it",
                )

    def _withdraw_others(
        self, trainer: "pl.Trainer", stage: str, scalars: Mapping[str, float]
    ) -> None:
        _withdraw(trainer, self._keys.get(stage, frozenset()) - scalars.keys())
        self._keys[stage] = frozenset(scalars)


def _scalars(
    report: EfficiencyReport | None, settings: Settings
) -> tuple[dict[str, float], frozenset[str]]:
    """Return what is logged of a report, and the keys of it that are of the whole network."""
    if report is None:
        return {}, frozenset()
    scalars = report.scalars(settings.prefix, layer_metrics=settings.layer_metrics)
    return scalars, frozenset(report.scalars(settings.prefix, layer_metrics=False))


def _plain_names(metrics: Mapping[str, Any], suffix: str) -> dict[str, Any]:
    return {key[: -len(suffix)]: v for key, v in metrics.items() if key.endswith(suffix)}


def _as_number(value: Any) -> Any:
    return value.item() if getattr(value, "numel", lambda: 0)() == 1 else value


def _withdraw(trainer: "pl.Trainer", keys: frozenset[str]) -> None:
    # Lightning keeps values until they are overwritten.
    for metrics in (
        trainer.callback_metrics,
        trainer.progress_bar_metrics,
        trainer.logged_metrics,
    ):
        for key in keys:
            metrics.pop(key, None)
