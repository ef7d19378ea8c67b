"""Read probe data for Keras: a few samples, once, in their order."""

import random
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np

from tensorstate_callbacks.keras.axis_flow import shape_of
from tensorstate_callbacks.recording.probe_states import check_n_samples

# As `predict` cuts arrays.
_BATCH_SIZE = 32


class ProbeBatch(NamedTuple):
    """A batch of probe data.

    Attributes:
        x: What the model takes.
        given: As a test step gets it: `(x,)`, `(x, y)` or `(x, y, sample_weight)`.
        n_samples: How many samples it has.
    """

    x: Any
    given: tuple[Any, ...]
    n_samples: int


class ProbeData:
    """The samples, read at the first use and held.

    Args:
        data: What `fit` takes as data: an array, a list or dict of arrays as the model takes them,
            a tuple `(x, y)` or `(x, y, sample_weight)`; or an iterable of such batches, as a
            `tf.data.Dataset`, a `PyDataset` or a data loader is.

    Raises:
        TypeError: It is neither.
    """

    def __init__(self, data: Any) -> None:
        self._data = data
        self._batches: list[ProbeBatch] | None = None
        is_read = _is_arrays(data) or isinstance(data, (Iterable, keras.utils.PyDataset))
        if isinstance(data, (str, bytes)) or not is_read:
            raise TypeError(
                "probe_data takes what fit takes as data: arrays as the model takes them, (x, y), "
                f"a Dataset or PyDataset of a few batches; got {type(data).__name__}"
            )

    @property
    def batches(self) -> list[ProbeBatch]:
        """The batches.

        Raises:
            TooMuchDataError: There are more samples than probe data may have.
            ValueError: There are no samples.
        """
        if self._batches is None:
            generators = _Generators(self._data)
            with generators, generators:
                self._batches = list(_read(self._data))
            # What was read is held, what it was read from isn't.
            self._data = None
        return self._batches


class _Generators:
    """Puts back the generators that reading data may draw from; may end twice."""

    def __init__(self, data: Any) -> None:
        self._python, self._numpy = random.getstate(), np.random.get_state()
        # A loader of torch's may feed any backend.
        self._library: Any = sys.modules.get("torch")
        self._torch = None if self._library is None else self._library.get_rng_state()
        owners = (data, getattr(data, "sampler", None))
        own: list[Any] = [getattr(owner, "generator", None) for owner in owners]
        self._own = [(each, each.get_state()) for each in own if hasattr(each, "get_state")]

    def __enter__(self) -> "_Generators":
        return self

    def __exit__(self, *_: object) -> None:
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        if self._torch is not None:
            self._library.set_rng_state(self._torch)
        for generator, state in self._own:
            generator.set_state(state)


def _is_arrays(data: Any) -> bool:
    """Tell arrays of all samples from an iterable of batches."""
    return (
        isinstance(data, (tuple, list, Mapping))
        or hasattr(data, "__array__")
        or keras.ops.is_tensor(data)
    )


def _read(data: Any) -> Iterator[ProbeBatch]:
    n_samples = 0
    for given in _cut(data) if _is_arrays(data) else _batches_of(data):
        # As Keras takes the batches of data loaders.
        parts = tuple(given) if isinstance(given, (tuple, list)) else (given,)
        held = tuple(keras.tree.map_structure(_held, part) for part in parts)
        n_batch = _count(held[0])
        n_samples += n_batch
        check_n_samples(n_samples)
        if n_batch:
            yield ProbeBatch(held[0], held, n_batch)
    if not n_samples:
        raise ValueError("probe_data has no samples")


def _batches_of(data: Any) -> Iterator[Any]:
    if isinstance(data, keras.utils.PyDataset):
        number = getattr(data, "num_batches", None)
        for index in range(len(data) if number is None else number):
            yield data[index]
    else:
        yield from data


def _cut(data: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the batches of arrays."""
    x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
    parts = [keras.tree.map_structure(_held, part) for part in (x, y, weights) if part is not None]
    n_samples = _count(parts[0])
    check_n_samples(n_samples)
    for start in range(0, n_samples, _BATCH_SIZE):
        rows = slice(start, start + _BATCH_SIZE)
        yield tuple(keras.tree.map_structure(lambda leaf: leaf[rows], part) for part in parts)  # noqa: B023


def _count(x: Any) -> int:
    shapes = map(shape_of, keras.tree.flatten(x))
    first = next((shape for shape in shapes if shape), None)
    if first is None:
        raise ValueError("probe_data: a batch has no array to give to the model")
    return int(first[0] or 0)


def _held(leaf: Any) -> Any:
    """Return what stays as it is, whatever becomes of what was given."""
    if keras.ops.is_tensor(leaf):
        # Tensors of torch may be overwritten.
        return leaf.detach().clone() if hasattr(leaf, "detach") else leaf
    return np.array(leaf) if hasattr(leaf, "__array__") else leaf
