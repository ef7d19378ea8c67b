"""States made in the graph, and the units' states counted there, are those of the host."""

import keras
import ml_dtypes
import numpy as np
import pytest
from keras_models import only_on

from tensorstate_callbacks.keras.backends import current_backend
from tensorstate_callbacks.keras.device_states import (
    codes_of,
    firing_of,
    plan_states,
    states_of,
)
from tensorstate_callbacks.states.group_counter import GroupCounter
from tensorstate_callbacks.states.positions import PositionPacker

GRAPHS = only_on("tensorflow", "jax", because="makes states in its recorder")


def numbers_of(dtype):
    """All numbers of 16 bits or less, or those around which rounding goes wrong."""
    if dtype == "bool":
        return np.array([False, True] * 8).reshape(4, 4)
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    if kind.itemsize < 4:
        return np.arange(1 << 8 * kind.itemsize).astype(f"u{kind.itemsize}").view(kind)
    if kind.kind == "f":
        tiny, some = np.finfo(kind).smallest_subnormal, [0, 0.1, 1, 3, 1e30, np.inf]
        values = np.array([*some, tiny, np.finfo(kind).tiny, np.finfo(kind).max], kind)
        values = np.concatenate([values, np.nextafter(values, kind.type(0))])
        return np.concatenate([values, -values, np.full(4, np.nan, kind)])
    limits = np.iinfo(kind)
    return np.array([limits.min, limits.min + 1, 0, 1, 2, 3, limits.max - 1, limits.max], kind)


OTHERS = ["float16", "bfloat16", "int32", "uint8", "bool"]
OF_64_BITS = [
    pytest.param(dtype, marks=only_on("tensorflow", because="has no 64 bits by default"))
    for dtype in ("float64", "int64")
]


@GRAPHS
@pytest.mark.parametrize("dtype", ["float32", "int8", "uint32", *OF_64_BITS, *OTHERS])
def test_every_number_fires_as_on_the_host(dtype):
    backend = current_backend()
    values = numbers_of(dtype).reshape(-1, 4)
    tensor = keras.ops.convert_to_tensor(values, dtype)
    packer = PositionPacker(4)
    for threshold in (0, 0.1, 1, 2.5, 1e-50, -1e-50, -0.1, -3, 255, 70000.0, -70000.0, 1e39, -1e39):
        plan = plan_states(values.shape, dtype, (1,), threshold, group_size=None, positions=None)
        packed = backend.pack(states_of(backend, tensor, plan))
        expected = packer.pack(values, 1, threshold)
        assert np.array_equal(keras.ops.convert_to_numpy(packed), expected), threshold


def test_what_cannot_be_made_in_the_graph_has_no_plan():
    def plan(shape, axes=(-1,), dtype="float32", positions=None):
        return plan_states(shape, dtype, axes, 0.0, group_size=8, positions=positions)

    assert plan((None, None, 4)).n_read == 1
    assert plan((None, None, 4), positions=3) is None
    assert plan((None, 3, None)) is None
    assert plan((8, 4), axes=(0,)) is None
    assert plan((8, 0, 4)) is None
    assert plan((8, 4), dtype="string") is None
    # Two whole units and one of 4.
    assert plan((8, 20)).n_counts == 2 * 256 + 16
    huge = plan_states((8, 4096), "float32", (-1,), 0.0, group_size=22, positions=None)
    assert huge.n_counts is None
    assert firing_of("complex64", 0.0) is None


@GRAPHS
@pytest.mark.parametrize("n_neurons", [1, 7, 8, 9, 20, 33])
@pytest.mark.parametrize("group_size", [1, 3, 8, 9, 16])
def test_tables_are_those_of_a_counter(n_neurons, group_size):
    backend = current_backend()
    values = np.random.default_rng(5).integers(0, 2, size=(50, n_neurons)).astype("float32")
    tensor = keras.ops.convert_to_tensor(values)
    options = {"group_size": group_size, "positions": None}
    plan = plan_states(values.shape, "float32", (1,), 0.0, **options)
    tally = backend.Tally(plan.n_counts, tensor)
    for _ in range(2):
        tally.add(codes_of(backend, states_of(backend, tensor, plan), plan))
    counter = GroupCounter(n_neurons, group_size)
    counter.update(values, 1)
    assert np.array_equal(tally.read(), 2 * counter.tables())
    tally.reset()
    assert not tally.read().any()


@only_on("jax", because="counts in 64 bits")
def test_counts_of_many_states_do_not_overflow(monkeypatch):
    from tensorstate_callbacks.keras.backends import jax as backend

    monkeypatch.setattr(backend, "MOST_HELD", 100)
    tally = backend.Tally(2, None)
    for _ in range(7):
        tally.add(np.ones((40, 1), int))
        # More would not fit.
        assert np.asarray(tally._held).max() <= 100
    assert tally.read().tolist() == [0, 280]
    assert tally.read().dtype == np.int64
