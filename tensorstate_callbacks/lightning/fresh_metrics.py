"""A trainer's metrics before and after an evaluation in; what that evaluation logged out."""

from collections.abc import Mapping
from typing import Any

from tensorstate_callbacks.recording.settings import Accuracy

_STAGES = {"val": ("val", "valid"), "test": ("test",)}
_NAMES = ("accuracy", "acc")


def accuracy_keys(accuracy: Accuracy, stage: str) -> list[str]:
    """Return the names under which the accuracy may have been logged, the likeliest first.

    Args:
        accuracy: The key that the user gave; otherwise the usual names are returned.
        stage: `"val"` or `"test"`: a key given for the one stands for the other's too, and models
            that share a step between both log one's name in the other.

    Example:
        >>> accuracy_keys("val_acc", "test")
        ['val_acc', 'test_acc']
        >>> accuracy_keys(None, "val")[:4]
        ['val_accuracy', 'val_acc', 'val/accuracy', 'val/acc']
    """
    if isinstance(accuracy, str):
        others = [s for s in _STAGES if s != stage and accuracy.startswith(s)]
        return [accuracy, *(stage + accuracy[len(s) :] for s in others)]
    stages = sorted(_STAGES, key=lambda s: s != stage)
    lead = [f"{name}{mark}" for s in stages for name in _STAGES[s] for mark in "_/"]
    return [f"{start}{name}" for start in (*lead, "") for name in _NAMES]


class FreshMetrics:
    """Tells what an evaluation logged from what an earlier one or the training left behind.

    Lightning keeps old values in `callback_metrics`; a key of this evaluation has another object
    than it had before.

    Args:
        trainer: The Trainer; the evaluation has just begun.
    """

    def __init__(self, trainer: Any) -> None:
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


def _plain_names(metrics: Mapping[str, Any], suffix: str) -> dict[str, Any]:
    return {key[: -len(suffix)]: v for key, v in metrics.items() if key.endswith(suffix)}


def _as_number(value: Any) -> Any:
    return value.item() if getattr(value, "numel", lambda: 0)() == 1 else value
