"""Batches that differ from the one before, and activations of which only the place is known."""

import numpy as np
import pytest
from counter_oracle import assert_counts, every_kernel, expected_states, new_counter

from tensorstate_callbacks.states.counter import Memory


def memory_of(array):
    return Memory(array.ctypes.data, array.shape, array.strides, array.dtype)


def states_of(*batches):
    """Plainly compared states of (activations, axis, threshold, bfloat16)."""
    return np.concatenate([
        expected_states(bfloat16_values(given) if bits else given, axis, threshold)
        for given, axis, threshold, bits in batches
    ])  # fmt: skip


def bfloat16_values(bits):
    return (bits.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def activations(*shape, dtype=np.float32, seed=0):
    return (np.random.default_rng(seed).standard_normal(shape) * 3).astype(dtype)


@every_kernel
def test_each_batch_is_read_as_it_is_whatever_came_before(kernel):
    # Every two that follow each other differ in one thing alone.
    images = activations(4, 10, 5, 10)
    batches = [
        (images, 1, 0.0, False),
        (images, 3, 0.0, False),
        (images, -1, 0.0, False),
        (images, -1, 1.5, False),
        (images, -1, -1.5, False),
        (images[0], -1, -1.5, False),
        (images, -1, -1.5, False),
        (images.astype(np.float64), -1, -1.5, False),
        (images.astype(">f8"), -1, -1.5, False),
        (images[0], -1, -1.5, False),
        (images[0].astype(np.int16), -1, -1.5, False),
        (images[0].astype(np.int16), -1, -1.5, True),
        (images[0].astype(np.int16), -1, 1e9, False),  # nothing fires
        (images[0].astype(np.int16), -1, -1e9, False),  # everything does
        (images, 1, 0.0, False),
    ]
    counter = new_counter(kernel, 10)
    for given, axis, threshold, bfloat16 in batches:
        counter.update(given, axis, threshold, bfloat16=bfloat16)
    assert_counts(counter, states_of(*batches))


@every_kernel
@pytest.mark.parametrize(
    ("given", "axis", "threshold", "error", "message"),
    [
        (activations(4, 9, 5, 5), 1, 0.0, ValueError, "9 channels, but .* 10 neurons"),
        (activations(4, 10, 5, 5), 4, 0.0, ValueError, "have no axis 4"),
        (activations(4, 10, 5, 5), 1.0, 0.0, TypeError, "float"),
        (activations(4, 10, 5, 5), 1, float("nan"), ValueError, "finite"),
        (activations(4, 10, 5, 5), 1, "0", TypeError, "real number"),
        (activations(4, 10, 5, 5), 1, np.zeros(2), TypeError, "real number"),
        (activations(4, 10, 5, 5, dtype=np.complex64), 1, 0.0, TypeError, "complex64"),
        (np.ma.masked_less(activations(4, 10, 5, 5), 0), 1, 0.0, TypeError, "masked"),
    ],
)
def test_what_is_wrong_is_refused_after_a_batch_that_was_right(
    kernel, given, axis, threshold, error, message
):
    counter = new_counter(kernel, 10)
    right = activations(4, 10, 5, 5)
    counter.update(right, 1)
    with pytest.raises(error, match=message):
        counter.update(given, axis, threshold)
    counter.update(right, 1)
    assert_counts(counter, states_of((right, 1, 0.0, False), (right, 1, 0.0, False)))


@every_kernel
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "u2", "i8", "?"])
@pytest.mark.parametrize("threshold", [0.0, 0.5, -1.0, 10**400])
def test_memory_counts_as_an_array_over_it_does(kernel, dtype, threshold):
    array = activations(6, 8, 12, 4, dtype=np.dtype(dtype))
    views = [
        (array, 1),
        (array, -1),
        (array[:, ::2, 1::3], 3),
        (array.transpose(3, 0, 2, 1)[1:], 2),
        (np.broadcast_to(array[:1], (5, 8, 12, 4)), 1),
        (array[:0], 1),
        (array[0, 0, 0], 0),
    ]
    for view, axis in views:
        counter = new_counter(kernel, view.shape[axis])
        before = array.copy()
        counter.update(memory_of(view), axis, threshold)
        assert_counts(counter, states_of((view, axis, threshold, False)))
        assert np.array_equal(array, before)


@every_kernel
def test_memory_of_another_number_of_neurons_is_refused(kernel):
    array = activations(4, 10, 5)
    counter = new_counter(kernel, 10)
    counter.update(memory_of(array), 1)
    with pytest.raises(ValueError, match=r"axis 2 of activations of shape \(4, 10, 5\) has 5"):
        counter.update(memory_of(array), 2)
    bits = (activations(4, 10).view(np.uint32) >> 16).astype(np.int16)
    counter.update(memory_of(bits), 1, bfloat16=True)
    assert_counts(counter, states_of((array, 1, 0.0, False), (bits, 1, 0.0, True)))


@every_kernel
def test_memory_that_was_freed_is_refused(kernel):
    counter = new_counter(kernel, 10)
    empty = Memory(0, (0, 10), (40, 4), np.dtype(np.float32))
    counter.update(empty, 1)
    with pytest.raises(ValueError, match="no memory: it was freed"):
        counter.update(empty._replace(shape=(1, 10)), 1)
    assert counter.n_states == 0
