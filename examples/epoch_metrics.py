"""Reports and curves of one training in, a plain dict of metrics for each epoch out."""

from collections.abc import Sequence
from typing import Any

from tensorstate_callbacks import EfficiencyReport

_OF_A_LAYER = ("efficiency", "ceiling", "coverage", "firing_rate", "n_never", "n_always")


def collect_metrics(
    history: Sequence[EfficiencyReport],
    losses: Sequence[float],
    val_losses: Sequence[float],
    test_accuracies: Sequence[float],
) -> list[dict[str, Any]]:
    """Return what a study keeps of each epoch, ready for JSON.

    Args:
        history: The callback's reports, one per epoch.
        losses: Loss on the digits trained on, nats.
        val_losses: Loss on the validation digits, nats.
        test_accuracies: Accuracy on the test digits, share.
    """
    return [
        {
            "loss": loss,
            "val_loss": val_loss,
            "val_accuracy": report.accuracy,
            "test_accuracy": test_accuracy,
            "efficiency": report.efficiency,
            "aiq": report.aiq,
            "layers": {
                # Without the name of the module that holds the network.
                name.rpartition(".")[2]: {metric: getattr(layer, metric) for metric in _OF_A_LAYER}
                for name, layer in report.layers.items()
            },
        }
        for report, loss, val_loss, test_accuracy in zip(
            history, losses, val_losses, test_accuracies, strict=True
        )
    ]
