"""A report in; its metrics in everything that follows what a LightningModule logs, out."""

from typing import Any

from tensorstate_callbacks.recording.settings import Settings
from tensorstate_callbacks.reports.report import EfficiencyReport


class MetricLog:
    """Logs the metrics of one evaluation after the other.

    Args:
        settings: Tells prefix and layer metrics.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._keys: dict[str, frozenset[str]] = {}

    def write(self, trainer: Any, module: Any, stage: str, report: EfficiencyReport | None) -> None:
        """Log a report, from within a hook of the module that may log; or None: nothing is known.

        Keys that were logged before and aren't now are withdrawn.
        """
        scalars, headline = {}, frozenset[str]()
        if report is not None:
            prefix = self._settings.prefix
            scalars = report.scalars(prefix, layer_metrics=self._settings.layer_metrics)
            headline = frozenset(report.scalars(prefix, layer_metrics=False))
        _withdraw(trainer, self._keys.get(stage, frozenset()) - scalars.keys())
        self._keys[stage] = frozenset(scalars)
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


def _withdraw(trainer: Any, keys: frozenset[str]) -> None:
    # Lightning keeps values until they are overwritten.
    for metrics in (
        trainer.callback_metrics,
        trainer.progress_bar_metrics,
        trainer.logged_metrics,
    ):
        for key in keys:
            metrics.pop(key, None)
