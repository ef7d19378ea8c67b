"""compress_states, decompress_states and sort_states against NumPy and hand calculations."""

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
import torch

from tensorstate_callbacks.states.packed_states import (
    compress_states,
    decompress_states,
    row_keys,
    sort_states,
)

WIDTHS = [1, 2, 7, 8, 9, 15, 16, 20, 63, 64, 65, 100, 127, 128, 512, 1000, 4095, 4096]


def outputs(n_neurons, n_states=40, seed=0):
    values = np.random.default_rng(seed).normal(size=(n_states, n_neurons))
    values[::3] = values[0]
    values[1, ::2] = 0.0
    return values


def test_neuron_0_is_bit_0_of_byte_0():
    fires = np.zeros((3, 10), bool)
    fires[0, 0] = fires[1, 9] = fires[2, 7] = True
    assert compress_states(fires).tolist() == [[1, 0], [0, 2], [128, 0]]


@pytest.mark.parametrize("n_neurons", WIDTHS)
def test_what_was_compressed_comes_back(n_neurons):
    values = outputs(n_neurons)
    packed = compress_states(values)
    assert packed.shape == (40, -(-n_neurons // 8))
    assert packed.dtype == np.uint8
    back = decompress_states(packed, n_neurons)
    assert back.dtype == np.bool_
    np.testing.assert_array_equal(back, values > 0)


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x.astype(np.float16),
        lambda x: x.astype(np.float32),
        lambda x: x.astype(ml_dtypes.bfloat16),
        lambda x: np.asfortranarray(x),
        lambda x: x > 0,
        lambda x: (x > 0).astype(np.int8),
        lambda x: x.tolist(),
        lambda x: torch.tensor(x),
        lambda x: torch.tensor(x, dtype=torch.bfloat16, requires_grad=True),
        lambda x: torch.tensor(x).T.contiguous().T,
        lambda x: torch.tensor(x > 0),
        lambda x: tf.constant(x),
        lambda x: tf.constant(x, tf.bfloat16),
        lambda x: tf.constant(x > 0),
    ],
)
def test_arrays_and_tensors_of_all_kinds_compress_alike(convert):
    values = outputs(21)
    np.testing.assert_array_equal(
        compress_states(convert(values)), np.packbits(values > 0, axis=1, bitorder="little")
    )


def test_what_is_not_a_number_does_not_fire():
    values = np.array([[np.nan, -0.0, 0.0, 5e-324, np.inf, -np.inf, 1.0, -1.0, 2.0]])
    assert compress_states(values).tolist() == [[0b01011000, 1]]


@pytest.mark.parametrize(
    "states",
    [np.ones((2, 3), complex), torch.ones(2, 3, dtype=torch.complex64), "101", None],
)
def test_what_cannot_fire_is_refused(states):
    with pytest.raises(TypeError, match="real numbers or bool; got"):
        compress_states(states)


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (2, 0), ()])
def test_states_have_two_axes(shape):
    with pytest.raises(ValueError, match=r"\(states, neurons\)"):
        compress_states(np.ones(shape))


@pytest.mark.parametrize("num_neurons", [0, -3, 8, 17])
def test_a_number_of_neurons_that_does_not_fit_is_refused(num_neurons):
    with pytest.raises(ValueError, match="2 bytes"):
        decompress_states(np.zeros((4, 2), np.uint8), num_neurons)


def test_packed_states_are_bytes_in_two_axes():
    with pytest.raises(TypeError, match="uint8.*got int64"):
        decompress_states(np.zeros((4, 2), np.int64), 16)
    with pytest.raises(ValueError, match=r"\(states, bytes\); got \(4,\)"):
        sort_states(np.zeros(4, np.uint8))


@pytest.mark.parametrize("n_neurons", [1, 8, 20, 64, 65, 512])
def test_equal_states_are_found(n_neurons):
    packed = compress_states(outputs(n_neurons, 300)[np.random.default_rng(1).integers(0, 40, 300)])
    edges, index = sort_states(packed)
    distinct, first, counts = np.unique(packed, axis=0, return_index=True, return_counts=True)
    np.testing.assert_array_equal(np.diff(edges), counts)
    np.testing.assert_array_equal(packed[index[edges[:-1]]], distinct)
    # Stable: the first of equal states comes first.
    np.testing.assert_array_equal(index[edges[:-1]], first)
    assert edges.dtype == index.dtype == np.int64
    assert (edges[0], edges[-1]) == (0, 300)


def test_only_the_first_states_are_sorted():
    edges, index = sort_states(np.array([[7], [2], [7], [1]], np.uint8), 2)
    assert (edges.tolist(), index.tolist()) == ([0, 1, 2], [1, 0])
    edges, index = sort_states(np.zeros((0, 3), np.uint8))
    assert (edges.tolist(), index.tolist()) == ([0], [])
    with pytest.raises(ValueError, match="between 0 and the 4 states; got 5"):
        sort_states(np.zeros((4, 1), np.uint8), 5)


@pytest.mark.parametrize("width", [1, 3, 8, 9, 64])
def test_keys_are_in_the_order_of_bytes(width):
    rows = np.random.default_rng(2).integers(0, 256, (50, width), dtype=np.uint8)
    order = sorted(range(50), key=lambda i: rows[i].tobytes())
    assert np.argsort(row_keys(rows), kind="stable").tolist() == order
