"""Find the accuracy of an evaluation in its logs, or say why there is none."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tensorstate_callbacks.recording.settings import Accuracy

# The usual names of accuracy, without a stage, the likeliest first.
ACCURACY_NAMES = (
    "accuracy",
    "acc",
    "sparse_categorical_accuracy",
    "categorical_accuracy",
    "binary_accuracy",
)
_STAGES = {"val": ("val", "valid"), "test": ("test",)}
# A message lists no more of the keys that were tried.
_MOST_KEYS = 5


class FoundAccuracy(NamedTuple):
    """An accuracy, or what to tell the user instead.

    Attributes:
        value: Share 0 to 1, or None.
        problem: Why there is none, in a sentence that says what to do; None where there is one.
    """

    value: float | None
    problem: str | None = None


def accuracy_keys(accuracy: str | None, stage: str | None = None) -> list[str]:
    """Return the keys under which the accuracy may have been logged, the likeliest first.

    Args:
        accuracy: The key that the user gave; None for the usual names.
        stage: `"val"` or `"test"`: a key given for the one stands for the other's too, and models
            that share a step between both log one's name in the other. None where keys have no
            stage before them: then the key may have been given with `val_` all the same.

    Examples:
        >>> accuracy_keys("val_acc", "test")
        ['val_acc', 'test_acc']
        >>> accuracy_keys("val_acc")
        ['val_acc', 'acc']
        >>> accuracy_keys(None, "val")[:2]
        ['val_accuracy', 'val_acc']
    """
    if accuracy is not None:
        if stage is None:
            return list(dict.fromkeys([accuracy, accuracy.removeprefix("val_")]))
        others = [s for s in _STAGES if s != stage and accuracy.startswith(s)]
        return [accuracy, *(stage + accuracy[len(s) :] for s in others)]
    stages = [] if stage is None else sorted(_STAGES, key=lambda s: s != stage)
    leads = [f"{name}{mark}" for s in stages for name in _STAGES[s] for mark in "_/"]
    return [lead + name for lead in (*leads, "") for name in ACCURACY_NAMES]


def find_accuracy(
    accuracy: Accuracy, logs: Mapping[str, Any], stage: str | None = None
) -> FoundAccuracy:
    """Look the accuracy up in the logs.

    Args:
        accuracy: A key of the logs, a callable on the logs, or None to try the usual keys.
        logs: Metric names to numbers.
        stage: Which evaluation the logs are of; see `accuracy_keys`.

    Returns:
        The accuracy, or the problem: no such key, not a share, not a number.
    """
    if callable(accuracy):
        source, value = "the callable given as accuracy", accuracy(logs)
    else:
        keys = accuracy_keys(accuracy, stage)
        key = next((key for key in keys if key in logs), None)
        if key is None:
            return FoundAccuracy(
                None,
                f"no accuracy under {' or '.join(map(repr, keys[:_MOST_KEYS]))}"
                f"{' or another usual name' * (len(keys) > _MOST_KEYS)}; the logs have "
                f"{', '.join(map(repr, logs)) or 'no keys'}. Compile or log an accuracy, or name "
                "its key with accuracy=",
            )
        source, value = f"the log {key!r}", logs[key]
    try:
        share = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return FoundAccuracy(None, f"{source} gave {value!r}, which is no number")
    if math.isnan(share) or not 0 <= share <= 1:
        hint = " (divide a percentage by 100)" if 1 < share <= 100 else ""
        return FoundAccuracy(None, f"{source} gave {share}, which is no share from 0 to 1{hint}")
    return FoundAccuracy(share)


def merge_accuracies(found: Sequence[FoundAccuracy], weights: Sequence[float]) -> FoundAccuracy:
    """Return the accuracy over the data of several processes.

    Args:
        found: What each process found: the accuracy on its own data, or one that was averaged
            over all of them already and so is the same everywhere.
        weights: How much data each accuracy is of, if it is of its own.

    Returns:
        The mean by weight of the accuracies there are; the first problem where there is none.

    Examples:
        >>> merge_accuracies([FoundAccuracy(0.5), FoundAccuracy(1.0)], [30, 10]).value
        0.625
    """
    there = [(f.value, w) for f, w in zip(found, weights, strict=True) if f.value is not None]
    if not there:
        return found[0]
    values = {value for value, _ in there}
    if len(values) == 1:
        return FoundAccuracy(values.pop())
    total = math.fsum(weight for _, weight in there)
    if not total:
        return FoundAccuracy(None, "the accuracies differ over processes that counted no data")
    # Rounding must not take the mean of shares out of them.
    mean = math.fsum(value * weight for value, weight in there) / total
    return FoundAccuracy(min(max(mean, min(values)), max(values)))
