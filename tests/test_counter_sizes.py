"""Sizes that 32 bits do not hold: elements of one batch, bytes between them, positions, neurons."""

import sys

import numpy as np
import pytest
from counter_oracle import assert_counts, every_kernel, native_kernels, new_counter


@native_kernels
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_batch_of_more_elements_than_32_bits_number_is_counted(kernel, channels_last):
    # Two images whose positions are all alike: a kilobyte of memory, 4,303,355,904 elements.
    states = np.random.default_rng(0).random((2, 512)) < 0.5
    shape = (2, 512, 2050, 2050)
    activations = np.broadcast_to(states.astype(np.int8)[:, :, None, None], shape)
    counter = new_counter(kernel, 512)
    if channels_last:
        counter.update(np.moveaxis(activations, 1, -1), -1)
    else:
        counter.update(activations, 1)
    assert activations.size > 2**32
    rows = np.packbits(states, axis=1, bitorder="little")
    assert counter.states().tolist() == sorted(rows.tolist())
    assert counter.counts().tolist() == [2050 * 2050] * 2
    assert counter.fired().tolist() == (2050 * 2050 * states.sum(axis=0)).tolist()


@native_kernels
@pytest.mark.parametrize("shape", [(2**40, 3), (2**20, 3, 2**20), (2**33, 3, 2**27)])
def test_positions_of_a_batch_are_counted_in_64_bits(kernel, shape):
    # A batch too large to run: what tells its size is that the sum does not fit, which is seen
    # before the first position is read.
    positions = shape[0] * (shape[2] if len(shape) == 3 else 1)
    counter = new_counter(kernel, 3)
    counter.add_counts(np.array([[5]], np.uint8), np.array([2**64 - positions], np.uint64))
    with pytest.raises(OverflowError, match=r"2\*\*64"):
        counter.update(np.broadcast_to(np.int8(1), shape), 1)
    assert counter.counts().tolist() == [2**64 - positions]
    assert counter.states().tolist() == [[5]]


@pytest.mark.skipif(sys.platform == "win32", reason="a file with holes takes all of its space")
@every_kernel
@pytest.mark.parametrize("inner", ["positions", "channels"])
@pytest.mark.parametrize("backwards", [False, True])
def test_elements_further_apart_than_32_bits_reach_are_read(kernel, inner, backwards, tmp_path):
    # Three lines, 2,415,919,104 bytes apart, in a file of holes: few of its pages ever exist.
    pitch, length = 2**31 + 2**28, 70
    memory = np.memmap(tmp_path / "sparse", np.int8, "w+", shape=(3, pitch))
    states = np.random.default_rng(1).random((3, length)) < 0.5
    memory[:, :length] = states
    view = memory[:, :length]
    if backwards:
        view, states = view[::-1], states[::-1]
    counter = new_counter(kernel, 3 if inner == "positions" else length)
    if inner == "positions":
        counter.update(view, 0)
        assert_counts(counter, states.T)
    else:
        counter.update(view, 1)
        assert_counts(counter, states)


@every_kernel
@pytest.mark.parametrize("width", [524_300, 2_100_000])
def test_layers_of_millions_of_neurons_are_counted(kernel, width):
    # From 524,225 neurons on a state fills a chunk of its own, from 2,097,153 on more than a block.
    states = np.random.default_rng(2).random((3, width)) < 0.5
    counter = new_counter(kernel, width)
    counter.update(states, 1)
    counter.update(states[1:].T, 0)
    rows = np.packbits(states, axis=1, bitorder="little")
    order = np.lexsort(rows[:, :8].T[::-1])
    assert np.array_equal(counter.states(), rows[order])
    assert counter.counts().tolist() == [[1, 2, 2][i] for i in order]
    assert np.array_equal(counter.fired(), states.sum(axis=0) + states[1:].sum(axis=0))
