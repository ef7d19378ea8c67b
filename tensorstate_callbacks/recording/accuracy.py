"""The logs of an evaluation in, its accuracy out, or the reason why there is none."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tensorstate_callbacks.recording.settings import Accuracy


class FoundAccuracy(NamedTuple):
    """An accuracy, or what to tell the user instead.

    Attributes:
        value: Share 0 to 1, or None.
        problem: Why there is none, in a sentence that says what to do; None where there is one.
    """

    value: float | None
    problem: str | None = None


def find_accuracy(
    accuracy: Accuracy, logs: Mapping[str, Any], usual_keys: Iterable[str]
) -> FoundAccuracy:
    """Look the accuracy up in the logs.

    Args:
        accuracy: A key of the logs, a callable on the logs, or None to try the usual keys.
        logs: Metric names to numbers.
        usual_keys: The keys tried, in order, where `accuracy` is None.

    Returns:
        The accuracy, or the problem: no such key, not a share, not a number.
    """
    if callable(accuracy):
        source, value = "the callable given as accuracy", accuracy(logs)
    else:
        keys = list(usual_keys) if accuracy is None else [accuracy]
        key = next((key for key in keys if key in logs), None)
        if key is None:
            return FoundAccuracy(
                None,
                f"no accuracy under {' or '.join(map(repr, keys))}; the logs have "
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

    Example:
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
