"""Tell the labels of the samples that the host is given to count."""

from typing import Any

import numpy as np
import numpy.typing as npt

from tensorstate_callbacks.errors import ProbeError
from tensorstate_callbacks.recording.class_labels import (
    BatchLabels,
    Classes,
    Labels,
    as_labels,
    is_array,
    is_on,
)


class HostLabels:
    """The labels of one evaluation.

    Args:
        classes: The callback's argument of that name. An array is held here, and its labels are
            taken in turn; others come with what they are of.

    Attributes:
        are_wanted: Whether classes are told apart at all.
        has_rows: Whether it is an array, with a label for each sample.
    """

    def __init__(self, classes: Classes) -> None:
        self.are_wanted, self.has_rows = is_on(classes), is_array(classes)
        self._rows = BatchLabels(classes) if self.has_rows else None
        self._of_batch: Labels | None = None
        self._problem = (
            "classes is an array, and how many samples a batch has isn't known, since the model's "
            "test function doesn't call its test_step. Let it call test_step, or leave classes out"
        )
        # What came last, and its labels.
        self._last: tuple[npt.NDArray[Any], Labels] | None = None

    def begin_batch(self, n_samples: int) -> None:
        """Take the labels of the samples that come."""
        if self._rows is not None:
            try:
                self._of_batch = self._rows.of_batch(None, n_samples)
            except ProbeError as error:
                self._of_batch, self._problem = None, str(error)

    def of(self, given: Any) -> Labels | None:
        """Return the labels of samples that are to be counted, shape `(N,)`; None: none are wanted.

        Args:
            given: The labels that came with them; None where none came.

        Raises:
            ProbeError: There are none, or these are none; says what there is.
        """
        if not self.are_wanted:
            return None
        if self.has_rows:
            if self._of_batch is None:
                raise ProbeError(self._problem)
            return self._of_batch
        array = np.asarray(given)
        # They come with each layer, and rows of many classes take long to read.
        last = self._last
        if last is None or not _is_the_same(last[0], array):
            try:
                last = self._last = array.copy(), as_labels(array)
            except (TypeError, ValueError) as error:
                raise ProbeError(f"classes: {error}") from error
        return last[1]

    def warnings(self) -> dict[str, str]:
        """Return what is to be warned of at the end of an evaluation: kinds to texts."""
        return {} if self._rows is None else self._rows.warnings()


def _is_the_same(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())
