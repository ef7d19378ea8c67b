"""Arguments nobody should pass: a clear error or the right count, once per kernel."""

import numpy as np
import pytest
from counter_oracle import assert_counts, every_kernel, expected_states, new_counter, recurring
from numpy.lib.stride_tricks import as_strided

from tensorstate_callbacks.states.counter import StateCounter


class Subclass(np.ndarray):
    """An array that answers indexing and comparing in its own way."""

    def __getitem__(self, key):
        raise AssertionError("the counter asks for elements one by one")

    def __gt__(self, other):
        raise AssertionError("the counter compares in Python")


@every_kernel
def test_arrays_of_subclasses_and_memory_maps_are_counted(kernel, tmp_path):
    activations = recurring(200, 20)
    mapped = np.memmap(tmp_path / "activations", np.float32, "w+", shape=activations.shape)
    mapped[...] = activations
    read_only = np.memmap(tmp_path / "activations", np.float32, "r", shape=activations.shape)
    for given in (activations.view(Subclass), mapped, read_only, activations.tolist()):
        counter = new_counter(kernel, 20)
        counter.update(given, 1)
        assert_counts(counter, activations > 0)


@every_kernel
def test_fields_of_structured_arrays_are_counted_and_whole_ones_refused(kernel):
    activations = recurring(90, 9)
    structured = np.zeros((90, 9), [("before", "i1"), ("x", "f4"), ("after", "i2")])
    structured["x"] = activations
    structured["before"] = structured["after"] = -1
    counter = new_counter(kernel, 9)
    counter.update(structured["x"], 1)
    assert_counts(counter, activations > 0)
    with pytest.raises(TypeError, match="void"):
        counter.update(structured, 1)
    assert counter.n_states == 90


@every_kernel
def test_a_repeated_array_is_counted_without_its_copies(kernel):
    row = recurring(1, 12)
    counter = new_counter(kernel, 12)
    counter.update(np.broadcast_to(row, (3, 70_000, 12)), -1)
    assert counter.counts().tolist() == [210_000]
    assert counter.states().tolist() == np.packbits(row > 0, axis=1, bitorder="little").tolist()


@every_kernel
@pytest.mark.parametrize("shape", [(0, 7), (7, 0), (0, 7, 0), (2, 0, 7, 3)])
def test_an_empty_array_of_wild_strides_adds_nothing(kernel, shape):
    counter = new_counter(kernel, 7)
    empty = as_strided(np.empty(1, np.float32), shape, [2**62] * len(shape))
    counter.update(empty, shape.index(7))
    assert counter.n_states == counter.n_distinct == 0
    assert counter.fired().tolist() == [0] * 7


@every_kernel
def test_rows_and_counts_are_read_whatever_their_memory(kernel):
    states = recurring(80, 20) > 0
    rows = np.packbits(states, axis=1, bitorder="little")
    spaced = np.zeros((160, 6), np.uint8)
    spaced[::2, 1:4] = rows
    for given in (np.asfortranarray(rows), spaced[::2, 1:4], rows[::-1], rows.view(Subclass)):
        counter = new_counter(kernel, 20)
        counter.update_packed(given)
        assert_counts(counter, states)
    frozen = rows.copy()
    frozen.flags.writeable = False
    twos = np.broadcast_to(np.uint64(2), 80)
    counter = new_counter(kernel, 20)
    counter.add_counts(frozen, twos)
    assert_counts(counter, np.concatenate([states, states]))


@every_kernel
def test_big_endian_counts_are_read_as_the_numbers_they_are(kernel):
    counter = new_counter(kernel, 8)
    counter.add_counts(np.array([[1], [2]], np.uint8), np.array([3, 4], ">u8"))
    assert counter.counts().tolist() == [3, 4]
    assert counter.n_states == 7


@every_kernel
def test_a_mask_is_not_left_out_of_sight(kernel):
    counter = new_counter(kernel, 3)
    masked = np.ma.masked_array(np.ones((4, 3), np.float32), mask=[[1, 0, 0]] * 4)
    with pytest.raises(TypeError, match="mask"):
        counter.update(masked, 1)
    rows = np.ma.masked_array(np.ones((2, 1), np.uint8), mask=[[1], [0]])
    counts = np.ma.masked_array(np.ones(2, np.uint64), mask=[1, 0])
    with pytest.raises(TypeError, match="mask"):
        counter.update_packed(rows)
    with pytest.raises(TypeError, match="mask"):
        counter.add_counts(rows.data, counts)
    assert counter.n_states == 0


@every_kernel
def test_a_broken_pickle_is_refused(kernel):
    good = new_counter(kernel, 20)
    good.update(recurring(50, 20), 1)
    state = good.__getstate__()
    for name, value, error in (
        ("n_neurons", 17, ValueError),  # bits are set beyond them
        ("states", state["states"][:, :2], ValueError),
        ("counts", state["counts"][1:], ValueError),
        ("counts", state["counts"].astype(float), TypeError),
    ):
        with pytest.raises(error):
            StateCounter.__new__(StateCounter).__setstate__({**state, name: value})


@every_kernel
def test_every_byte_order_and_stride_of_wide_types_agrees_with_numpy(kernel):
    values = recurring(60, 16).astype(np.float64)
    for dtype in (">f8", "<f8", ">f2", ">i4", ">u2"):
        array = np.abs(values * 3).astype(dtype) if "u" in dtype else (values * 3).astype(dtype)
        for given in (array[::-2], array[:, ::-1], np.asfortranarray(array)):
            counter = new_counter(kernel, 16)
            counter.update(given, 1, 1)
            assert_counts(counter, expected_states(given, 1, 1))
