"""Find the labels of a batch's samples, and check that they are classes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tensorstate_callbacks.errors import ProbeError, list_some

# An array may be anything that NumPy takes. LightningCLI writes lists down only before callables.
Classes: TypeAlias = bool | str | Sequence[int] | Callable[[Any], Any] | Any | None
Labels: TypeAlias = npt.NDArray[np.int64]

MOST_CLASSES = 1000
"""More are no classes, but numbers of something else."""

# Where the labels of a batch that is a mapping usually are.
LABEL_KEYS = ("labels", "label", "y", "target", "targets")

_WAYS_OUT = (
    "give classes= the key of labels in the batch, a callable batch -> labels, or an array with a "
    "label for each sample"
)


class BatchLabels:
    """Finds the labels of batch after batch by the argument `classes`.

    Args:
        classes: The argument; see `check_classes`.
        advice: What else to do where a batch holds no labels, a clause.

    Examples:
        >>> labels = BatchLabels(True)
        >>> labels.of_batch(([[0.1], [0.2]], [3, 5]))
        array([3, 5])
    """

    def __init__(self, classes: Classes, advice: str = "") -> None:
        self._classes = check_classes(classes)
        self._rows = as_labels(classes) if is_array(classes) else None
        self._advice = f"{advice}, or " if advice else ""
        self._n_seen = 0

    @property
    def is_on(self) -> bool:
        """Whether states are to be counted by class."""
        return is_on(self._classes)

    def of_batch(self, batch: Any, n_samples: int | None = None) -> Labels:
        """Return a batch's labels, shape `(N,)`, int64.

        Args:
            batch: The batch.
            n_samples: How many samples it has; needed where `classes` is an array.

        Raises:
            ProbeError: They are not there, or no classes; says what there is, and the ways out.
        """
        if self._rows is not None:
            return self._next_rows(self._rows, n_samples)
        try:
            found = as_labels(self._find(batch))
        except (TypeError, ValueError) as error:
            raise ProbeError(f"classes={_named(self._classes)}: {error}") from error
        self._n_seen += len(found)
        return found

    def warnings(self) -> dict[str, str]:
        """Return what is to be warned of at the end of a pass: kinds to texts."""
        n_all = None if self._rows is None else len(self._rows)
        if n_all is None or self._n_seen == n_all:
            return {}
        return {
            "class samples": (
                f"classes has {n_all} labels, and {self._n_seen} samples came: it has one for each "
                "sample of the evaluation, in their order. Give a callable batch -> labels "
                "otherwise"
            )
        }

    def _find(self, batch: Any) -> Any:
        classes = self._classes
        if isinstance(classes, str):
            for part in _mappings(batch):
                if classes in part:
                    return part[classes]
            raise ValueError(f"the batch has no such key: {_described(batch)}. {self._ways_out}")
        if callable(classes):
            return classes(batch)
        if isinstance(batch, Mapping):
            key = next((key for key in LABEL_KEYS if key in batch), None)
            if key is None:
                raise ValueError(
                    f"labels are looked for under {', '.join(LABEL_KEYS)}, and there are none: "
                    f"{_described(batch)}. {self._ways_out}"
                )
            found = batch[key]
        elif isinstance(batch, (tuple, list)) and len(batch) > 1:
            found = batch[1]
        else:
            raise ValueError(
                "labels are the second element of a batch, and there is none: "
                f"{_described(batch)}. {self._ways_out}"
            )
        if found is None or isinstance(found, Mapping):
            raise ValueError(f"no labels are there: {_described(batch)}. {self._ways_out}")
        return found

    @property
    def _ways_out(self) -> str:
        text = f"{self._advice}{_WAYS_OUT}"
        return text[0].upper() + text[1:]

    def _next_rows(self, rows: Labels, n_samples: int | None) -> Labels:
        if n_samples is None:
            raise ProbeError(
                "classes is an array, and how many samples a batch has isn't known: "
                f"{self._advice}give a callable batch -> labels"
            )
        start, self._n_seen = self._n_seen, self._n_seen + n_samples
        if self._n_seen > len(rows):
            raise ProbeError(
                f"classes has {len(rows)} labels, and {self._n_seen} samples came so far: it has "
                "one for each sample of the evaluation, in their order. Give a callable batch -> "
                "labels otherwise"
            )
        return rows[start : self._n_seen]


def check_classes(classes: Classes) -> Classes:
    """Return the argument `classes`, or say what is wrong with it.

    Args:
        classes: None; True, which takes the second element of a batch, or what a mapping has under
            `labels`, `label`, `y`, `target` or `targets`; a key of the batch; a callable
            `batch -> labels`; or an array with a label for each sample, in their order.

    Raises:
        TypeError: It is none of these, or an array of no labels.
        ValueError: It is an empty key, or an array of another form; see `as_labels`.
    """
    if isinstance(classes, str):
        if not classes:
            raise ValueError("classes is an empty key: name a key of the batch, or leave it out")
    elif is_array(classes):
        if isinstance(classes, Mapping) or not hasattr(classes, "__len__"):
            raise TypeError(
                "classes takes True, the key of labels in the batch, a callable batch -> labels, "
                f"an array with a label for each sample, or None; got {classes!r}"
            )
        try:
            found = as_labels(classes)
        except (TypeError, ValueError) as error:
            raise type(error)(f"classes: {error}") from error
        check_number_of_classes(len(np.unique(found)))
    return classes


def is_on(classes: Classes) -> bool:
    """Tell whether states are to be counted by class."""
    return classes is not None and classes is not False


def is_array(classes: Classes) -> bool:
    """Tell whether `classes` holds a label for each sample, which only their order tells."""
    return not (classes is None or isinstance(classes, (bool, str)) or callable(classes))


def check_number_of_classes(number: int) -> None:
    """Raise `ValueError` if there are too many classes."""
    if number > MOST_CLASSES:
        raise ValueError(
            f"labels have {number:,} different values, and states are counted by at most "
            f"{MOST_CLASSES:,} classes: give a callable batch -> labels that puts several of them "
            "together"
        )


def as_labels(given: Any) -> Labels:
    """Return a label for each sample, shape `(N,)`, int64.

    Args:
        given: An array or tensor of any framework: whole numbers, also as floats, or bool, of shape
            `(N,)` or `(N, 1)`; or one-hot, `(N, C)` with one 1 in each row, which gives its place.

    Raises:
        TypeError: It holds no numbers, or fractions.
        ValueError: It has another shape, such as `(N, T)` with a label for each token.

    Examples:
        >>> as_labels([[0, 0, 1], [1, 0, 0]]), as_labels([2.0, 7.0])
        (array([2, 0]), array([2, 7]))
    """
    tensor = given.detach().cpu() if hasattr(given, "detach") else given
    if str(getattr(tensor, "dtype", "")).endswith("bfloat16"):
        # NumPy has none.
        tensor = tensor.float() if hasattr(tensor, "float") else np.asarray(tensor, np.float32)
    try:
        array: npt.NDArray[Any] = np.asarray(tensor)
    except (TypeError, ValueError) as error:
        raise TypeError(f"labels must be an array; got {type(given).__name__} ({error})") from error
    if array.size == 0 and array.ndim == 1:
        return np.zeros(0, np.int64)
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"labels must be whole numbers; got {type(given).__name__} of {array.dtype.name}. Give "
            "a callable batch -> labels that numbers the classes"
        )
    if array.ndim == 2 and array.shape[1] > 1:
        return _place_of_one(array)
    if array.ndim not in (1, 2):
        raise ValueError(
            f"labels have the shape (samples,), (samples, 1), or one-hot (samples, classes); got "
            f"{array.shape}. Give a callable batch -> labels, with one label for each sample"
        )
    flat = array.reshape(-1)
    fractions = flat[~(np.isfinite(flat) & (flat == np.rint(flat)))]
    if len(fractions):
        raise TypeError(
            f"labels must be whole numbers; got {fractions[0]:g}. Give a callable batch -> labels "
            "that makes classes of such targets"
        )
    limits = np.iinfo(np.int32)
    if len(flat) and not (limits.min <= int(flat.min()) <= int(flat.max()) <= limits.max):
        raise ValueError(
            f"labels must be whole numbers of 32 bits; got {flat.min()} to {flat.max()}. Give a "
            "callable batch -> labels that numbers the classes"
        )
    return np.asarray(flat, np.int64)


def _place_of_one(array: npt.NDArray[Any]) -> Labels:
    ones = array == 1
    if bool((ones.sum(axis=1) == 1).all()) and bool(((array == 0) | ones).all()):
        return np.asarray(ones.argmax(axis=1), np.int64)
    if array.dtype.kind in "iu":
        raise ValueError(
            f"labels of shape {array.shape} are no one-hot rows, but several labels of each "
            "sample, as those of its tokens: classes are of samples. Give a callable batch -> "
            "labels, with one label for each sample"
        )
    raise ValueError(
        f"labels of shape {array.shape} are no one-hot rows: some have several ones, none, or "
        "fractions. Give a callable batch -> labels, with one label for each sample"
    )


def _mappings(batch: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the mappings among what a batch is, or is made of."""
    for part in (batch, *(batch if isinstance(batch, (tuple, list)) else ())):
        if isinstance(part, Mapping):
            yield part


def _described(batch: Any) -> str:
    keys = [str(key) for part in _mappings(batch) for key in part]
    if keys:
        return f"there are {list_some(keys)}"
    if isinstance(batch, (tuple, list)):
        return f"the batch is a {type(batch).__name__} of {len(batch)}"
    return f"the batch is a {type(batch).__name__}"


def _named(classes: Classes) -> str:
    return getattr(classes, "__qualname__", repr(classes))
