"""States packed by torch's own operations, as on a device, are those that NumPy packs."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorstate_callbacks.torch import device_states

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn]
WHOLES = [torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.int64, torch.bool]
THRESHOLDS = [0.0, 0.1, -0.1, 1e-46, -1e-46, 7e4, -7e4, 1e39, -1e39, 127.5, 255.0, -128.0, -129.0]
SPECIAL = [math.nan, math.inf, -math.inf, 0.0, -0.0, 0.1, -0.1, 5e-8, 65504.0, -65504.0, 127.0, 1.0]


def pack(tensor: torch.Tensor, channel_axis: int, threshold: float) -> torch.Tensor:
    values = tensor.movedim(channel_axis, -1)
    n_rows, n_bytes = math.prod(values.shape[:-1]), -(-values.shape[-1] // 8)
    rows = torch.full((n_rows, n_bytes), 0x55, dtype=torch.uint8)
    device_states.pack(values, threshold, rows)
    return rows


@pytest.mark.parametrize("dtype", [*FLOATS, *WHOLES], ids=str)
@pytest.mark.parametrize("threshold", [*THRESHOLDS, 2.0**63, -(2.0**63)])
def test_comparison_on_a_device_is_exact(dtype: torch.dtype, threshold: float) -> None:
    if dtype in FLOATS:
        values = torch.tensor(SPECIAL).to(dtype)
    else:
        # Through int64: not all types have a conversion from float that is defined.
        values = torch.tensor([-(2**63), -129, -128, -1, 0, 1, 127, 128, 255, 2**63 - 1]).to(dtype)
    # Python compares whole numbers and fractions without rounding.
    exact = [
        value > threshold if not math.isfinite(value) else Fraction(value) > Fraction(threshold)
        for value in values.double().tolist()
    ]
    if dtype not in FLOATS:
        exact = [int(value) > Fraction(threshold) for value in values.tolist()]
    rows = pack(values, 0, threshold)
    found = np.unpackbits(rows.numpy(), axis=1, count=len(values), bitorder="little")
    assert found.astype(bool).tolist() == [exact]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 19), min_size=1, max_size=4),
    st.integers(0, 3),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_rows_are_packed_bits_of_any_shape_axis_and_strides(
    shape: list[int], axis: int, flipped: bool, seed: int
) -> None:
    axis %= len(shape)
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if flipped:
        tensor = tensor.permute(*reversed(range(tensor.ndim)))
    moved = np.moveaxis(tensor.numpy() > 0, axis, -1)
    expected = np.packbits(moved.reshape(-1, moved.shape[-1]), axis=1, bitorder="little")
    for same in (axis, axis - tensor.ndim):
        assert np.array_equal(pack(tensor, same, 0.0).numpy(), expected)


def test_unsigned_64_bit_numbers_are_refused() -> None:
    with pytest.raises(TypeError, match="uint64"):
        pack(torch.ones(3, dtype=torch.uint64), 0, 0.0)
