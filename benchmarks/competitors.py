"""Public ways to count keys, each with the counts of the distinct ones as its result.

Keys of up to 64 bits are `(m,)` int64, wider ones `(m,)` void.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[Any]


class Way(NamedTuple):
    """A way to count.

    Attributes:
        library: What has to be installed.
        prepare: Puts the keys into the form that the library has its data in; isn't measured.
        count: Takes what `prepare` gave, returns the counts, in any order.
    """

    library: str
    prepare: Callable[[Keys], Any]
    count: Callable[[Any], NDArray[Any]]

    @property
    def installed(self) -> bool:
        """Whether it can run here."""
        return find_spec(self.library) is not None


def _as_they_are(keys: Keys) -> Keys:
    return keys


def _sort(keys: Keys) -> NDArray[Any]:
    ordered = np.sort(keys)
    ends = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    return np.diff(ends, prepend=0, append=len(ordered))


def _unique(keys: Keys) -> NDArray[Any]:
    return np.unique(keys, return_counts=True)[1]


def _tensor(keys: Keys) -> Any:
    import torch

    return torch.from_numpy(keys)


def _torch_unique(tensor: Any) -> NDArray[Any]:
    found: NDArray[Any] = tensor.unique(return_counts=True)[1].numpy()
    return found


def _pandas_series(keys: Keys) -> Any:
    import pandas as pd

    return pd.Series(keys)


def _pandas(series: Any) -> NDArray[Any]:
    found: NDArray[Any] = series.value_counts(sort=False).to_numpy()
    return found


def _polars_series(keys: Keys) -> Any:
    import polars as pl

    if keys.dtype.kind == "V":
        return pl.Series("key", keys.tolist(), dtype=pl.Binary)
    return pl.Series("key", keys)


def _polars(series: Any) -> NDArray[Any]:
    found: NDArray[Any] = series.value_counts(sort=False)["count"].to_numpy()
    return found


WAYS = {
    "np.bincount": Way("numpy", _as_they_are, np.bincount),
    "np.sort and diff": Way("numpy", _as_they_are, _sort),
    "np.unique": Way("numpy", _as_they_are, _unique),
    "torch.unique": Way("torch", _tensor, _torch_unique),
    "pandas value_counts": Way("pandas", _pandas_series, _pandas),
    "polars value_counts": Way("polars", _polars_series, _polars),
}


def as_keys(rows: NDArray[np.uint8]) -> Keys:
    """Return packed states, `(m, bytes)` uint8, as keys: int64 up to 8 bytes, else void."""
    if rows.shape[1] > 8:
        return np.ascontiguousarray(rows).view(f"V{rows.shape[1]}").ravel()
    padded = np.zeros((len(rows), 8), np.uint8)
    padded[:, : rows.shape[1]] = rows
    return padded.view(np.int64).ravel()
