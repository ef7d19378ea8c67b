"""Chosen positions are packed as NumPy picks them, once per kernel."""

import math

import numpy as np
import pytest
from counter_oracle import WIDTHS, every_kernel, expected_states, native_kernels
from test_counter_layouts import BEYOND, DTYPES, SCALARS, THRESHOLDS, all_sorts_of, laid_out

from tensorstate_callbacks.states.counter import Memory, available_kernels, use_kernel
from tensorstate_callbacks.states.positions import PositionPacker, grid_of, spread_positions


def new_packer(kernel, n_neurons):
    with use_kernel(kernel):
        return PositionPacker(n_neurons)


def expected_rows(activations, channel_axis, sample_axis, places, threshold=0.0):
    """(samples * places, bytes): each sample's states, then those at the places."""
    samples = [activations] if sample_axis is None else np.moveaxis(activations, sample_axis, 0)
    axis = channel_axis % activations.ndim
    if sample_axis is not None and sample_axis % activations.ndim < axis:
        axis -= 1
    rows = [
        np.packbits(expected_states(sample, axis, threshold), axis=1, bitorder="little")
        for sample in samples
    ]
    some = [row if places is None else row[places] for row in rows]
    width = -(-activations.shape[channel_axis] // 8)
    return np.concatenate([np.empty((0, width), np.uint8), *some])


# Each: activations of n neurons, the channel axis, the sample axis.
LAYOUTS = {
    "NCHW": lambda n: (laid_out((3, n, 9, 7), 1), 1, 0),
    "NCHW of one position": lambda n: (laid_out((5, n, 1, 1), 1), 1, 0),
    "NHWC": lambda n: (laid_out((3, 5, 7, n), 3), -1, 0),
    "channels_last view": lambda n: (np.moveaxis(laid_out((3, 5, 7, n), 3), 3, 1), 1, 0),
    "tokens": lambda n: (laid_out((3, 17, n), 2), 2, 0),
    "tokens before samples": lambda n: (laid_out((17, 3, n), 2), 2, 1),
    "samples last": lambda n: (laid_out((n, 4, 6, 3), 0), 0, -1),
    "samples before neurons": lambda n: (laid_out((4, 3, n, 6), 2), 2, 1),
    "NCDHW": lambda n: (laid_out((2, n, 3, 4, 5), 1), 1, 0),
    "one sample": lambda n: (laid_out((n, 9, 7), 0), 0, None),
    "one sample of tokens": lambda n: (laid_out((40, n), 1), 1, None),
    "dense": lambda n: (laid_out((37, n), 1), 1, 0),
    "dense, transposed": lambda n: (laid_out((n, 37), 0), 0, 1),
    "neurons alone": lambda n: (laid_out((n,), 0), 0, None),
    "backwards": lambda n: (laid_out((3, n, 9, 7), 1)[::-1, ::-1, ::-1, ::-1], 1, 0),
    "backwards NHWC": lambda n: (laid_out((3, 9, 7, n), 3)[::-1, ::-1, ::-1, ::-1], 3, 0),
    "every second": lambda n: (laid_out((4, 2 * n, 9, 14), 1)[::2, ::2, :, ::2], 1, 0),
    "one position for all": lambda n: (
        np.broadcast_to(laid_out((2, n, 1, 1), 1), (2, n, 9, 7)), 1, 0),
    "many samples of few": lambda n: (laid_out((70, n, 3, 3), 1), 1, 0),
    "big-endian": lambda n: (laid_out((3, n, 5, 5), 1).astype(">f4"), 1, 0),
    "empty batch": lambda n: (np.empty((0, n, 5, 5), np.float32), 1, 0),
    "no positions": lambda n: (np.empty((3, n, 0, 4), np.float32), 1, 0),
}  # fmt: skip


@every_kernel
@pytest.mark.parametrize("layout", LAYOUTS)
def test_states_at_places_are_those_that_numpy_picks(kernel, layout):
    for width in WIDTHS if kernel != "numpy" else (1, 20, 64, 129):
        activations, axis, sample_axis = LAYOUTS[layout](width)
        packer = new_packer(kernel, width)
        grid = grid_of(activations.shape, axis, sample_axis)
        total = math.prod(grid)
        backwards = np.arange(total)[::-1]
        for places in (None, spread_positions(grid, max(1, total // 3)), backwards[:5],
                       np.repeat(backwards, 2)[:3], np.arange(0)):  # fmt: skip
            if places is not None and len(places) > total:
                continue
            expected = expected_rows(activations, axis, sample_axis, places)
            before = activations.tobytes()
            found = packer.pack(activations, axis, sample_axis=sample_axis, places=places)
            assert found.dtype == np.uint8
            assert np.array_equal(found, expected)
            assert activations.tobytes() == before


@every_kernel
@pytest.mark.parametrize("width", [4097, 70_000])
def test_very_wide_layers_are_packed_in_parts(kernel, width):
    for layout in ("NCHW of one position", "dense, transposed", "backwards NHWC", "tokens"):
        activations, axis, sample_axis = LAYOUTS[layout](width)
        places = spread_positions(grid_of(activations.shape, axis, sample_axis), 2)
        found = new_packer(kernel, width).pack(
            activations, axis, sample_axis=sample_axis, places=places
        )
        assert np.array_equal(found, expected_rows(activations, axis, sample_axis, places))


@every_kernel
@pytest.mark.parametrize("dtype", DTYPES)
def test_firing_is_an_exact_comparison_in_every_dtype(kernel, dtype):
    values = np.resize(all_sorts_of(dtype), (1, 71, 3))
    places = np.arange(3)[::2]
    for threshold in (*THRESHOLDS, *BEYOND, *SCALARS):
        plain = threshold.item() if isinstance(threshold, np.generic) else threshold
        for activations, axis in ((values, 1), (np.moveaxis(values, 1, 2).copy(), 2)):
            found = new_packer(kernel, 71).pack(activations, axis, threshold, places=places)
            assert np.array_equal(found, expected_rows(activations, axis, 0, places, plain))


@every_kernel
def test_bfloat16_is_taken_as_bits_and_as_an_array_of_its_own(kernel):
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="bfloat16 arrays come from ml_dtypes")
    activations = laid_out((3, 20, 5, 7), 1).astype(ml_dtypes.bfloat16)
    packer, places = new_packer(kernel, 20), spread_positions((5, 7), 9)
    expected = expected_rows(activations, 1, 0, places, 0.5)
    assert np.array_equal(packer.pack(activations, 1, 0.5, places=places), expected)
    bits = activations.view(np.int16)
    found = packer.pack(bits, 1, 0.5, places=places, bfloat16=True)
    assert np.array_equal(found, expected)


@every_kernel
def test_memory_is_read_where_it_lies(kernel):
    activations = laid_out((3, 20, 5, 7), 1)
    packer, places = new_packer(kernel, 20), spread_positions((5, 7), 9)
    memory = Memory(
        activations.ctypes.data, activations.shape, activations.strides, activations.dtype
    )
    for chosen in (places, None):
        found = packer.pack(memory, 1, places=chosen)
        assert np.array_equal(found, expected_rows(activations, 1, 0, chosen))
    with pytest.raises(ValueError, match="no memory"):
        packer.pack(memory._replace(address=0), 1, places=places)
    nothing = Memory(0, (0, 20, 5, 7), activations.strides, activations.dtype)
    assert packer.pack(nothing, 1, places=places).shape == (0, 3)


@native_kernels
def test_what_is_not_chosen_is_not_read(kernel):
    activations = laid_out((2, 20, 5, 7), 1)
    # Two samples' first positions; all else lies outside of the memory that there is.
    strides = (activations.strides[0], activations.strides[1], 1 << 40, 1 << 40)
    memory = Memory(activations.ctypes.data, activations.shape, strides, activations.dtype)
    found = new_packer(kernel, 20).pack(memory, 1, places=np.array([0]))
    assert np.array_equal(found, expected_rows(activations, 1, 0, [0]))


@every_kernel
def test_bad_input_is_named(kernel):
    activations = laid_out((3, 20, 5, 7), 1)
    packer = new_packer(kernel, 20)
    calls = [
        (r"axis 2 .* 5 channels.*20 neurons", (2,), {}),
        ("no axis 4", (4,), {}),
        ("no axis -5", (1,), {"sample_axis": -5}),
        ("axis 1 cannot be that of samples and of neurons", (1,), {"sample_axis": -3}),
        ("finite", (1, math.inf), {}),
        ("place 35 is none of a sample's 35 positions", (1,), {"places": np.array([3, 35])}),
        ("place -1 is none of a sample's 35 positions", (1,), {"places": np.array([-1])}),
    ]
    for message, given, named in calls:
        with pytest.raises(ValueError, match=message):
            packer.pack(activations, *given, **named)
    with pytest.raises(ValueError, match="place 0 is none of a sample's 0 positions"):
        packer.pack(activations[..., :0], 1, places=np.array([0]))
    with pytest.raises(ValueError, match="place 35"):
        packer.pack(activations[:0], 1, places=np.array([35]))
    with pytest.raises(TypeError, match="complex64"):
        packer.pack(activations.astype("c8"), 1)


@native_kernels
@pytest.mark.parametrize("shape", [(64, 50, 9), (9, 9, 50)])
def test_want_of_memory_is_an_error_and_no_crash(kernel, shape):
    from tensorstate_callbacks._native._counter import fail_allocation

    activations, axis = laid_out(shape, shape.index(50)), shape.index(50)
    packer = new_packer(kernel, 50)
    for places in (np.arange(5), None):
        failures = 0
        try:
            while True:
                fail_allocation(failures + 1)
                try:
                    found = packer.pack(activations, axis, places=places)
                    break
                except MemoryError:
                    failures += 1
        finally:
            fail_allocation(0)
        assert failures >= 1
        assert np.array_equal(found, expected_rows(activations, axis, 0, places))


def test_kernels_agree_on_a_large_batch():
    rng = np.random.default_rng(1)
    activations = rng.standard_normal((5, 96, 30, 31)).astype(np.float32)
    for places in (spread_positions((30, 31), 200), None):
        rows = [
            new_packer(kernel, 96).pack(activations, 1, places=places)
            for kernel in available_kernels()
        ]
        for other in rows[1:]:
            assert np.array_equal(other, rows[0])
