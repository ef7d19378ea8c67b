"""Collect the metrics of each epoch of a training from reports and curves."""

from collections.abc import Sequence
from typing import Any

from tensorstate_callbacks import EfficiencyReport

_OF_A_LAYER = ("efficiency", "ceiling", "coverage")
# The rate bound is of single neurons, so groups have the same.
_OF_WHOLE_LAYERS = (*_OF_A_LAYER, "rate_bound", "firing_rate", "n_never", "n_always")


def collect_metrics(
    history: Sequence[EfficiencyReport],
    grouped: Sequence[EfficiencyReport],
    losses: Sequence[float],
    val_losses: Sequence[float],
    test_accuracies: Sequence[float],
) -> list[dict[str, Any]]:
    """Return what a study keeps of each epoch, ready for JSON.

    Args:
        history: Reports of whole layers, the paper's efficiency, one per epoch.
        grouped: Reports of groups of neurons, one per epoch.
        losses: Loss on the digits trained on, nats.
        val_losses: Loss on the validation digits, nats.
        test_accuracies: Accuracy on the test digits, share.

    Returns:
        One dict per epoch: losses and accuracies, the paper's efficiency, aIQ and layers, and those
        of groups under `grouped`.
    """
    return [
        {
            "loss": loss,
            "val_loss": val_loss,
            "val_accuracy": report.accuracy,
            "test_accuracy": test_accuracy,
            **_states_of(report, _OF_WHOLE_LAYERS),
            "grouped": _states_of(groups, _OF_A_LAYER),
        }
        for report, groups, loss, val_loss, test_accuracy in zip(
            history, grouped, losses, val_losses, test_accuracies, strict=True
        )
    ]


def curve(run: dict[str, Any], metric: str) -> list[float]:
    """Return a metric of each epoch of a training.

    Args:
        run: The training, its `epochs` as `collect_metrics` returns them.
        metric: Where it stands in the dict of an epoch, such as `"grouped/efficiency"`.
    """
    values = run["epochs"]
    for key in metric.split("/"):
        values = [value[key] for value in values]
    return list(values)


def _states_of(report: EfficiencyReport, layer_metrics: Sequence[str]) -> dict[str, Any]:
    return {
        "efficiency": report.efficiency,
        "aiq": report.aiq,
        "layers": {
            # Without the name of the module that holds the network.
            name.rpartition(".")[2]: {metric: getattr(layer, metric) for metric in layer_metrics}
            for name, layer in report.layers.items()
        },
    }
