"""Read of an array that processes share what this one is to count, so that all count it once."""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import jax
import keras
import numpy as np
import numpy.typing as npt


class EachPart:
    """Has the part of an array observed that is this process's to count.

    Args:
        observe: Takes the samples, all or some of them, and what goes with them.
    """

    def __init__(self, observe: Callable[..., None]) -> None:
        self._observe = observe

    def __call__(self, array: Any, *others: Any) -> None:
        """Hand the parts on."""
        for parts in own_parts(array, *others):
            self._observe(*parts)


def own_parts(array: Any, *others: Any) -> Iterator[tuple[Any, ...]]:
    """Yield what this process is to count of an array, so that all processes count all of it once.

    Args:
        array: Samples along axis 0. All processes call it, in the same order.
        others: Arrays of the same samples, such as masks, or of one that holds for all: of each the
            part that goes with the first one's.
    """
    if not isinstance(array, jax.Array) or array.is_fully_addressable:
        yield array, *others
        return
    whole = [_whole(other) for other in others]
    if array.sharding.shard_shape(array.shape)[1:] != array.shape[1:]:
        # Several devices hold the neurons or the positions of a sample.
        array = _moved(array, only_samples_split=True)
    for shard in array.addressable_shards:
        if shard.replica_id == 0:
            yield shard.data, *(_rows_beside(each, shard.index[0], len(array)) for each in whole)


def own_counts(array: Any) -> npt.NDArray[Any]:
    """Return counts where they are this process's to read, zeros elsewhere."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable:
        return np.asarray(array)
    if not array.is_fully_replicated:
        array = _moved(array, only_samples_split=False)
    for shard in array.addressable_shards:
        if shard.replica_id == 0:
            return np.asarray(shard.data)
    return np.zeros(array.shape, array.dtype)


def _rows_beside(other: npt.NDArray[Any], rows: slice, n_rows: int) -> npt.NDArray[Any]:
    """Return what of another array goes with some rows of an array.

    Args:
        other: An entry for each sample, or one for all.
        rows: Of the array, which may have several of each sample, one after the other.
        n_rows: How many it has.
    """
    if len(other) in (0, 1, n_rows) or n_rows % len(other):
        return other if len(other) == 1 else other[rows]
    n_of_sample = n_rows // len(other)
    start, stop, _ = rows.indices(n_rows)
    if start % n_of_sample or stop % n_of_sample:
        # Devices share a sample.
        return np.repeat(other, n_of_sample, axis=0)[rows]
    return other[start // n_of_sample : stop // n_of_sample]


def _whole(array: Any) -> npt.NDArray[Any]:
    """Return all of an array, on each process."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        if not array.is_fully_replicated:
            array = _moved(array, only_samples_split=False)
        array = array.addressable_shards[0].data
    return np.asarray(array)


def _moved(array: jax.Array, *, only_samples_split: bool) -> jax.Array:
    """Return an array as it is, on devices that each hold whole samples, or all of it."""
    mesh, axes = keras.distribution.distribution().device_mesh.backend_mesh, ()
    if only_samples_split and isinstance(array.sharding, jax.sharding.NamedSharding):
        mesh, axes = array.sharding.mesh, array.sharding.spec[:1]
    spec = jax.sharding.PartitionSpec(*axes)  # type: ignore[no-untyped-call]
    return _mover(jax.sharding.NamedSharding(mesh, spec))(array)


@lru_cache(maxsize=64)
def _mover(sharding: jax.sharding.Sharding) -> Callable[[jax.Array], jax.Array]:
    # A step of its own: in the test step it might change how that is computed.
    return jax.jit(lambda array: array, out_shardings=sharding)
