"""The curve of a metric over the epochs in, the epochs that early stopping picks out."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple


class Stop(NamedTuple):
    """What early stopping makes of a training; epochs count from 0.

    Attributes:
        best: The epoch whose weights are restored.
        last: The epoch after which training ends.
        early: Whether that is for want of progress, and not because the epochs are over.
    """

    best: int
    last: int
    early: bool


def stop_early(values: Sequence[float], mode: Literal["min", "max"], patience: int) -> Stop:
    """Return where `EarlyStopping(mode=mode, patience=patience)` ends a training.

    Keras's and Lightning's agree: only a value better than all before counts as progress, and
    training ends with the `patience`-th epoch in a row that brings none.

    Args:
        values: The monitored metric of each epoch.
        mode: Whether lower or higher is better.
        patience: Epochs without progress to put up with.

    Raises:
        ValueError: There is no value, or one is NaN.
    """
    if not values or any(math.isnan(value) for value in values):
        raise ValueError(f"early stopping needs a number for each epoch; got {values}")
    best = 0
    for epoch, value in enumerate(values):
        if value > values[best] if mode == "max" else value < values[best]:
            best = epoch
        if epoch - best >= max(patience, 1):
            return Stop(best, epoch, early=True)
    return Stop(best, len(values) - 1, early=False)
