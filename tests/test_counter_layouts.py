"""Every memory layout and number type counts like plain NumPy says, once per kernel."""

import math

import numpy as np
import pytest
from counter_oracle import (
    WIDTHS,
    assert_counts,
    every_kernel,
    expected_states,
    new_counter,
    recurring,
)
from numpy.lib.stride_tricks import as_strided

# Lines of up to 57 elements are packed as one and cut apart.
EDGES = (*WIDTHS, 56, 57, 58, 191, 192, 193, 511, 513, 576)


def laid_out(shape, channel_axis):
    """An array of `shape` whose states, taken along `channel_axis`, recur."""
    n_neurons = shape[channel_axis]
    rows = recurring(math.prod(shape) // n_neurons, n_neurons)
    others = [size for axis, size in enumerate(shape) if axis != channel_axis % len(shape)]
    return np.moveaxis(rows.reshape(*others, n_neurons), -1, channel_axis).copy()


def unaligned(n):
    array = laid_out((3, n, 5, 7), 1)
    memory = np.empty(array.nbytes + 1, np.uint8)
    shifted = memory[1:].view(np.float32).reshape(array.shape)
    shifted[...] = array
    assert not shifted.flags.aligned
    return shifted, 1


def read_only(n):
    array = laid_out((4, 5, n), -1)
    array.flags.writeable = False
    return array, -1


LAYOUTS = {
    "NCHW 4x3": lambda n: (laid_out((2, n, 4, 3), 1), 1),
    "NCHW 7x7": lambda n: (laid_out((3, n, 7, 7), 1), 1),
    "NCHW 24x24": lambda n: (laid_out((9 if n < 66 else 2, n, 24, 24), 1), 1),
    "NCL around 57": lambda n: (laid_out((2, n, 50 + n % 10), 1), 1),
    "NCHW 14x14": lambda n: (laid_out((2, n, 14, 14), 1), 1),
    "NCHW more than a block": lambda n: (laid_out((1, n, 65 if n < 66 else 25, 65), 1), 1),
    "NHWC": lambda n: (laid_out((3, 5, 7, n), -1), -1),
    "channels_last view": lambda n: (np.moveaxis(laid_out((3, 5, 7, n), -1), -1, 1), 1),
    "2-D": lambda n: (laid_out((37, n), 1), 1),
    "2-D transposed": lambda n: (laid_out((37, n), 1).T, 0),
    "NCL": lambda n: (laid_out((3, n, 17), 1), 1),
    "BTC": lambda n: (laid_out((3, 17, n), 2), 2),
    "NCDHW": lambda n: (laid_out((2, n, 3, 4, 5), 1), 1),
    "CNHW": lambda n: (laid_out((n, 2, 3, 9), 0), 0),
    "1-D": lambda n: (laid_out((n,), 0), 0),
    "every second position": lambda n: (laid_out((2, n, 6, 40), 1)[..., ::2], 1),
    "every second of few": lambda n: (laid_out((2, n, 5, 6), 1)[..., ::2], 1),
    "every second channel": lambda n: (laid_out((33, 2 * n), 1)[:, ::2], 1),
    "cropped": lambda n: (laid_out((2, n, 9, 19), 1)[:, :, 1:-1, 1:-2], 1),
    "backwards positions": lambda n: (laid_out((2, n, 5, 19), 1)[::-1, :, ::-1, ::-1], 1),
    "backwards channels": lambda n: (laid_out((31, n), 1)[::-1, ::-1], 1),
    "Fortran order": lambda n: (np.asfortranarray(laid_out((3, n, 4, 5), 1)), 1),
    "one position for all": lambda n: (np.broadcast_to(laid_out((n, 1), 0), (n, 50)), 0),
    "one channel for all": lambda n: (np.broadcast_to(laid_out((45, 1), 1), (45, n)), 1),
    "overlapping windows": lambda n: (as_strided(laid_out((n + 30,), 0), (31, n), (4, 4)), 1),
    "read-only": read_only,
    "unaligned": unaligned,
    "empty batch": lambda n: (np.empty((0, n, 5, 5), np.float32), 1),
    "no positions": lambda n: (np.empty((3, n, 0), np.float32), 1),
}


@every_kernel
@pytest.mark.parametrize("layout", LAYOUTS)
def test_states_are_counted_in_every_layout_and_width(kernel, layout):
    for width in EDGES:
        activations, axis = LAYOUTS[layout](width)
        before = activations.tobytes()
        counter = new_counter(kernel, width)
        counter.update(activations, axis)
        assert_counts(counter, expected_states(activations, axis))
        counter.update(activations, axis - activations.ndim if axis >= 0 else axis)
        assert counter.n_states == 2 * (activations.size // width)
        assert activations.tobytes() == before


@every_kernel
@pytest.mark.parametrize("width", [4097, 10_000])
def test_very_wide_layers_are_counted_in_parts(kernel, width):
    for layout in ("2-D", "2-D transposed", "NCHW 4x3", "backwards channels", "BTC"):
        activations, axis = LAYOUTS[layout](width)
        counter = new_counter(kernel, width)
        counter.update(activations, axis)
        assert_counts(counter, expected_states(activations, axis))


SPECIAL = (0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, 0.1, -0.1, 3.25, 100.0, -100.0)
FLOATS = (math.nan, -math.nan, math.inf, -math.inf, 5e-324, -5e-324, 1e-40, -1e-40, 6e-8, -6e-8)
BIG = (2.0**53, 2.0**53 + 2, 2.0**53 + 4)
THRESHOLDS = (0, -0.0, 0.1, -0.1, 1, -1, 0.5, 2.5, -2.5, 6e-8, -6e-8, 1e-40, -1e-40, 127, -128)
BEYOND = (255, 256, -129, 65504, 65505, 1e10, -1e10, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, 1e300)
SCALARS = (-1e300, 2**53 + 1, 2**53 + 3, np.float32(0.1), np.int8(-1), np.int64(2**53 + 3))
DTYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")


def all_sorts_of(dtype):
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        limits = np.finfo(dtype)
        with np.errstate(over="ignore", under="ignore"):
            listed = np.array(SPECIAL + FLOATS + BIG).astype(dtype)
        around = np.concatenate([listed, np.nextafter(listed, dtype.type(9))])
        ends = [limits.min, limits.max, limits.tiny, -limits.tiny, limits.smallest_subnormal]
        return np.concatenate([around, np.array(ends, dtype)])
    if dtype.kind == "b":
        return np.array([False, True])
    limits = np.iinfo(dtype)
    numbers = {0, 1, 2, 3, 99, 100, 101, -1, -2, -3, 126, 127, -127, -128}
    numbers |= {int(limits.min), int(limits.min) + 1, int(limits.max) - 1, int(limits.max)}
    return np.array([number for number in numbers if limits.min <= number <= limits.max], dtype)


@every_kernel
@pytest.mark.parametrize("dtype", DTYPES)
def test_firing_is_an_exact_comparison_in_every_dtype(kernel, dtype):
    values = np.resize(all_sorts_of(dtype), 3 * 71)
    for threshold in (*THRESHOLDS, *BEYOND, *SCALARS):
        plain = threshold.item() if isinstance(threshold, np.generic) else threshold
        for activations, axis in ((values.reshape(3, 71), 0), (values.reshape(71, 3), 1)):
            counter = new_counter(kernel, 3)
            counter.update(activations, axis, threshold)
            assert_counts(counter, expected_states(activations, axis, plain))


@every_kernel
def test_every_16_bit_float_fires_as_its_value_says(kernel):
    bits = np.arange(2**16, dtype=np.uint16)
    with np.errstate(invalid="ignore"):  # signalling NaN
        float16 = bits.view(np.float16).astype(np.float64)
        bfloat16 = (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    for threshold in (0.0, 0.1, -0.1, 1.0, -1.0, 1e-40, -1e-40, 1e-46, -1e-46, 1e39, -1e39):
        counter = new_counter(kernel, 1)
        counter.update(bits[:, None].view(np.float16), 1, threshold)
        assert counter.fired() == (float16 > threshold).sum()
        for dtype in (np.int16, np.uint16):
            counter = new_counter(kernel, 1)
            counter.update(bits[:, None].view(dtype), 1, threshold, bfloat16=True)
            assert counter.fired() == (bfloat16 > threshold).sum()


@every_kernel
def test_an_array_of_ml_dtypes_bfloat16_is_counted(kernel):
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="bfloat16 arrays come from ml_dtypes")
    activations = laid_out((3, 20, 5, 7), 1).astype(ml_dtypes.bfloat16)
    counter = new_counter(kernel, 20)
    counter.update(activations, 1, 0.5)
    assert_counts(counter, expected_states(activations, 1, 0.5))
    with pytest.raises(TypeError, match="float8_e4m3fn"):
        counter.update(activations.astype(ml_dtypes.float8_e4m3fn), 1)


@every_kernel
def test_float32_tenth_is_greater_than_the_double_tenth(kernel):
    counter = new_counter(kernel, 1)
    counter.update(np.full((4, 1), 0.1, np.float32), 1, 0.1)
    assert counter.fired().tolist() == [4]
    counter.update(np.full((4, 1), 0.3, np.float16), 1, 0.3)  # 0.30004…
    assert counter.fired().tolist() == [8]
    counter.update(np.full((4, 1), 0.1, np.float64), 1, 0.1)
    assert counter.fired().tolist() == [8]


@every_kernel
def test_big_endian_arrays_are_counted(kernel):
    for dtype in (">f4", ">i2", ">f8"):
        activations = (laid_out((3, 9, 5, 7), 1) * 3).astype(dtype)
        counter = new_counter(kernel, 9)
        counter.update(activations, 1, 1.0)
        assert_counts(counter, expected_states(activations, 1, 1.0))


@every_kernel
def test_a_bool_fires_whatever_byte_stands_for_true(kernel):
    counter = new_counter(kernel, 2)
    counter.update(np.array([[0, 2], [255, 0], [1, 128]], np.uint8).view(bool), 1)
    assert counter.fired().tolist() == [2, 2]
