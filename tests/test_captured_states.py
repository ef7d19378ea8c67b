"""What a capture point says, against NumPy on the same activations."""

import copy
import pickle
import sys
import threading

import numpy as np
import pytest

from tensorstate_callbacks.errors import ProbeError, StatesNotAvailableError
from tensorstate_callbacks.metrics.entropy import entropy
from tensorstate_callbacks.tensorstate.captured_states import CapturedStates


def activations(n_neurons=20, n_samples=50, seed=0):
    """Images whose pixels repeat, some of them seen once."""
    rng = np.random.default_rng(seed)
    patterns = rng.normal(size=(6, n_neurons))
    images = patterns[rng.integers(0, 6, (n_samples, 3, 4))]
    images[:4, 0, 0] = rng.normal(size=(4, n_neurons))
    return np.moveaxis(images, -1, 1).astype(np.float32)


def packed(images):
    return np.packbits(
        np.moveaxis(images > 0, 1, -1).reshape(-1, images.shape[1]), axis=1, bitorder="little"
    )


def captured(images, cuts=(10, 10, 37), **kwargs):
    states = CapturedStates("conv/1", keep_raw=True, **kwargs)
    for batch in np.split(images, cuts):
        states.record(batch, 1)
    return states


@pytest.mark.parametrize("n_neurons", [1, 7, 8, 20, 64, 65, 512])
def test_counts_states_and_ids_are_those_of_numpy(n_neurons):
    images = activations(n_neurons)
    states = captured(images)
    rows = packed(images)
    distinct, counts = np.unique(rows, axis=0, return_counts=True)
    assert states.state_count == 600
    assert states.states_per_instance() == 12
    np.testing.assert_array_equal(states.counts(), counts)
    np.testing.assert_array_equal(states.raw_states, rows)
    assert states.state_ids() == [row.tobytes() for row in distinct]
    bits = np.unpackbits(distinct, axis=1, count=n_neurons, bitorder="little").astype(bool)
    np.testing.assert_array_equal(states.states, bits)
    assert states.states.dtype == np.bool_


@pytest.mark.parametrize("alpha", [0, 0.5, 1, 2, 7, np.inf])
def test_entropies_are_those_of_the_counts(alpha):
    images = activations()
    states = captured(images)
    shares = states.counts() / 600
    if alpha == 1:
        expected = -np.sum(shares * np.log2(shares))
    elif alpha == np.inf:
        expected = -np.log2(shares.max())
    else:
        expected = np.log2(np.sum(shares**alpha)) / (1 - alpha)
    assert states.entropy(alpha) == pytest.approx(expected, abs=1e-12)
    assert states.efficiency(alpha) == pytest.approx(expected / 20, abs=1e-12)
    assert states.max_entropy() == states.entropy(None) == 20.0


def test_efficiency_against_another_order():
    states = captured(activations())
    assert states.efficiency(2, 0) == pytest.approx(states.entropy(2) / states.entropy(0))
    with pytest.raises(ValueError, match="alpha1 must be above alpha2; got 1 and 2"):
        states.efficiency(1, 2)
    states.reset_states()
    states.record(np.ones((3, 4)), -1)
    assert states.efficiency() == 0.0
    with pytest.raises(ValueError, match="'conv/1' was in one state only"):
        states.efficiency(2, 1)


@pytest.mark.parametrize("cuts", [(), (1, 2, 49), (10, 10, 37)])
def test_counts_of_some_samples(cuts):
    images = activations()
    states = captured(images, cuts)
    for index in ([0], [3, 3, 49], range(7, 20), np.arange(50) % 3 == 0, -1, [-50, 4], []):
        chosen = images[np.atleast_1d(np.asarray(index, None if np.size(index) else int))]
        ids = [row.tobytes() for row in packed(chosen)]
        expected = [ids.count(state) for state in states.state_ids()]
        assert states.counts(index).tolist() == expected
    np.testing.assert_array_equal(states.counts(range(50)), states.counts())


def test_classes_add_up_to_all():
    images, labels = activations(), np.arange(50) % 4
    states = captured(images)
    by_class = [states.counts(labels == label) for label in range(4)]
    np.testing.assert_array_equal(sum(by_class), states.counts())
    assert entropy(by_class[0]) == pytest.approx(
        entropy(np.unique(packed(images[labels == 0]), axis=0, return_counts=True)[1])
    )


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        ([50], IndexError, "'conv/1': 50 samples were captured.*no sample 50"),
        ([-51], IndexError, "no sample -51"),
        ([True, False], IndexError, r"mask of the samples needs the shape \(50,\)"),
        ([0.5], TypeError, "sample numbers, or a mask"),
        ([[1, 2]], TypeError, "sample numbers, or a mask"),
        ("all", TypeError, "sample numbers, or a mask"),
    ],
)
def test_samples_that_are_not_there(index, error, message):
    with pytest.raises(error, match=message):
        captured(activations()).counts(index)


def test_samples_of_several_sizes():
    states = CapturedStates("conv", keep_raw=True)
    small, large = activations(8, 4), activations(8, 5, seed=1)[:, :, :2, :]
    states.record(small, 1)
    states.record(large, 1)
    np.testing.assert_array_equal(states.raw_states, np.concatenate([packed(small), packed(large)]))
    ids = [row.tobytes() for row in packed(large[1:2])]
    assert states.counts([5]).tolist() == [ids.count(state) for state in states.state_ids()]
    np.testing.assert_array_equal(states.counts([-4]), states.counts([5]))
    with pytest.raises(StatesNotAvailableError, match="'conv' captured samples .*: 8, 12"):
        states.states_per_instance()


def test_an_unbatched_sample_is_one_sample():
    states = CapturedStates("conv", keep_raw=True)
    states.record(activations()[0], 0)
    states.record(activations()[1], 0)
    assert states.states_per_instance() == 12
    assert states.counts([1]).sum() == 12


@pytest.mark.parametrize(
    "read",
    [
        lambda s: s.counts(),
        lambda s: s.counts([0]),
        lambda s: s.states,
        lambda s: s.state_ids(),
        lambda s: s.raw_states,
        lambda s: s.entropy(),
        lambda s: s.efficiency(),
        lambda s: s.max_entropy(),
        lambda s: s.states_per_instance(),
    ],
)
def test_nothing_captured_is_said(read):
    states = CapturedStates("dense", keep_raw=True)
    assert states.state_count == 0
    with pytest.raises(StatesNotAvailableError, match="'dense' has captured nothing yet: run"):
        read(states)
    states.record(np.ones((0, 4)), -1)
    with pytest.raises(StatesNotAvailableError, match="captured nothing yet"):
        read(states)


def test_raw_states_are_kept_only_when_asked_for():
    states = CapturedStates("dense")
    states.record(np.ones((3, 4)), -1)
    assert states.counts().tolist() == [3]
    assert states.states_per_instance() == 1
    for read in (lambda: states.raw_states, lambda: states.counts([0])):
        with pytest.raises(StatesNotAvailableError, match="'dense' keeps counts.*keep_raw=True"):
            read()


def test_raw_states_cannot_be_written_to():
    states = captured(activations())
    with pytest.raises(ValueError, match="read-only"):
        states.raw_states[0] = 0


def test_capture_on_and_reset():
    states = captured(activations())
    states.capture_on = False
    states.record(activations(seed=9), 1)
    assert states.state_count == 600
    states.capture_on = True
    states.reset_states()
    assert states.state_count == 0
    # Another number of neurons is fine after a reset.
    states.record(np.ones((2, 5)), -1)
    assert (states.max_entropy(), states.raw_states.tolist()) == (5.0, [[31], [31]])
    assert states.states_per_instance() == 1


def test_a_batch_that_cannot_be_counted_leaves_everything():
    images = activations()
    states = captured(images)
    for batch, axis in ((images[:, :7], 1), (images.astype(complex), 1), (np.float32(1), 0)):
        with pytest.raises(ProbeError, match="layer 'conv/1' could not be counted"):
            states.record(batch, axis)
    assert states.state_count == len(states.raw_states) == 600
    assert states.counts([49]).sum() == 12


def test_the_threshold_is_the_counters():
    images = activations()
    states = captured(images, threshold=0.5)
    np.testing.assert_array_equal(states.raw_states, packed(images - np.float32(0.5)))
    with pytest.raises(ValueError, match="threshold"):
        CapturedStates("conv", threshold=np.nan)


@pytest.mark.parametrize(("threshold", "fires"), [(-200, True), (200, False)])
def test_a_threshold_that_the_type_does_not_reach(threshold, fires):
    states = CapturedStates("conv", keep_raw=True, threshold=threshold)
    states.record(np.array([[-128, 127]], np.int8), -1)
    assert states.states.tolist() == [[fires, fires]]


def test_bits_of_bfloat16():
    bits = np.array([[0x3F80, 0xBF80, 0x0000], [0x8000, 0x7FC0, 0x7F80]], np.uint16)
    kept, counted = CapturedStates("a", keep_raw=True), CapturedStates("a")
    for states in (kept, counted):
        states.record(bits, -1, bfloat16=True)
        assert states.state_ids() == [b"\x01", b"\x04"]
    assert kept.raw_states.tolist() == [[1], [4]]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])  # noqa: S301
def test_a_copy_counts_for_itself(duplicate):
    images = activations()
    states = captured(images)
    other = duplicate(states)
    other.record(images[:2], 1)
    assert (states.state_count, other.state_count) == (600, 624)
    assert (len(states.raw_states), len(other.raw_states)) == (600, 624)
    np.testing.assert_array_equal(other.counts(range(50)), states.counts())


def test_several_threads_may_record():
    images = activations(n_samples=400)
    states = CapturedStates("conv", keep_raw=True)
    together = threading.Barrier(4)

    def record(part):
        together.wait()
        for image in part:
            states.record(image[None], 1)

    threads = [threading.Thread(target=record, args=(part,)) for part in np.split(images, 4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    expected = np.unique(packed(images), axis=0, return_counts=True)[1]
    np.testing.assert_array_equal(states.counts(), expected)
    np.testing.assert_array_equal(states.counts(range(400)), expected)
