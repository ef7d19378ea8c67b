"""Run the fused kernel where there is no GPU: interpreted, or compiled for one and not run.

`python fused_runs.py interpret` or `compile`; the first with `TRITON_INTERPRET=1`.
"""

import itertools
import math
import sys
from typing import Any

import numpy as np
import torch
from group_oracle import expected_units, packed

from tensorstate_callbacks.states.positions import spread_positions
from tensorstate_callbacks.torch import device_states, fused

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SPECIAL = [math.nan, -math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-45, -1e-45, 6e-8, -6e-8, 0.1]
# Samples, neurons and positions in several orders and with gaps: all as (samples, *grid, neurons).
LAYOUTS: dict[str, Any] = {
    "NCHW": lambda x: x.movedim(1, -1),
    "NHWC": lambda x: x.contiguous(memory_format=torch.channels_last).movedim(1, -1),
    "positions apart": lambda x: x.repeat_interleave(2, 3)[..., ::2].movedim(1, -1),
    "neurons apart": lambda x: x.movedim(1, -1).repeat_interleave(2, -1)[..., ::2],
    "samples last": lambda x: x.permute(2, 3, 1, 0).contiguous().permute(3, 0, 1, 2),
    "rows apart": lambda x: x.repeat_interleave(3, 2)[:, :, ::3].movedim(1, -1),
    "repeated": lambda x: x[:, :, :1, :1].expand(-1, -1, 3, 2).movedim(1, -1),
    "tokens": lambda x: x.flatten(2).transpose(1, 2).contiguous(),
    "dense": lambda x: x[:, :, 0, 0].contiguous(),
}


def activations(n_neurons: int, dtype: torch.dtype) -> torch.Tensor:
    drawn = torch.randn(3, n_neurons, 5, 4, generator=torch.Generator().manual_seed(n_neurons))
    drawn.view(-1)[: len(SPECIAL)] = torch.tensor(SPECIAL)
    return drawn.to(dtype)


def tables(states: np.ndarray, unit_size: int) -> np.ndarray:
    parts = []
    for first, counts in zip(
        range(0, states.shape[1], unit_size), expected_units(states, unit_size), strict=True
    ):
        part = np.zeros(1 << min(unit_size, states.shape[1] - first), np.int64)
        part[list(counts)] = list(counts.values())
        parts.append(part)
    return np.concatenate(parts)


def check(values: torch.Tensor, threshold: float, n_places: int | None, unit_size: int) -> None:
    """Compare the kernel and torch's own operations with NumPy."""
    n_neurons = values.shape[-1]
    places = None if n_places is None else spread_positions(tuple(values.shape[1:-1]), n_places)
    by_sample = values.double().numpy().reshape(len(values), -1, n_neurons)
    fires = by_sample if places is None else by_sample[:, places]
    fires = fires.reshape(-1, n_neurons) > threshold
    for is_driven in (True, False):
        fused._is_driven = lambda device, on=is_driven: on
        states = device_states.DeviceStates(threshold)
        rows = torch.full((len(fires), -(-n_neurons // 8)), 0x55, dtype=torch.uint8)
        states.pack(values, places, rows)
        np.testing.assert_array_equal(rows.numpy(), packed(fires))
        expected = tables(fires, unit_size)
        counts = torch.full((len(expected),), 7)
        states.count(values, places, unit_size, counts)
        np.testing.assert_array_equal(counts.numpy() - 7, expected)


def interpret() -> None:
    runs: list[bool] = []
    run = fused._run

    def counted(*args: Any, **kwargs: Any) -> bool:
        runs.append(run(*args, **kwargs))
        return runs[-1]

    fused._run = counted
    n_checks = 0
    for number, (layout, dtype) in enumerate(itertools.product(LAYOUTS, DTYPES)):
        n_neurons, unit_size = ((20, 8), (10, 3), (3, 1))[number % 3]
        values = LAYOUTS[layout](activations(n_neurons, dtype))
        threshold = (0.0, 0.1, -1e-46, 1e39)[number % 4]
        for n_places in (None, 2) if layout != "dense" else (None,):
            check(values, threshold, n_places, unit_size)
            n_checks += 1
    for n_neurons, unit_size in ((19, 8), (12, 11), (24, 12), (23, 22), (5, 5), (22, 22)):
        for layout in ("NCHW", "NHWC"):
            values = LAYOUTS[layout](activations(n_neurons, torch.bfloat16))
            check(values, 0.0, None, unit_size)
            n_checks += 1
    # More rows than a program takes at a time.
    for layout in ("NCHW", "NHWC"):
        tall = torch.randn(2, 12, 41, 19, generator=torch.Generator().manual_seed(0))
        check(LAYOUTS[layout](tall), 0.0, None, 8)
        n_checks += 1
    assert runs == [True] * 2 * n_checks
    print(n_checks, "alike")


def compile_for_gpus() -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = fused._kernel()
    cases = itertools.product((16, 32), (False, True), (False, True), (8, 11))
    for n_bits, is_packing, in_words, unit_size in cases:
        if unit_size != 8 and (is_packing or in_words):
            continue
        fixed = {
            # Strides of 1 are constants of a kernel's own.
            "neuron_stride" if in_words else "position_stride": 1,
            "n_bits": n_bits,
            "per_word": 64 // n_bits if in_words else 1,
            "is_listed": in_words,
            "is_packing": is_packing,
            "unit_size": unit_size,
            "n_bins": 256 if unit_size == 8 and not is_packing else 0,
            "n_at_once": 512,
        }
        pointers = {
            "words": "*i64" if in_words else f"*i{n_bits}",
            "offsets": "*i64" if in_words else f"*i{n_bits}",
            "out": "*u8" if is_packing else "*i64",
        }
        signature = {
            name: "constexpr" if name in fixed else pointers.get(name, "i32")
            for name in kernel.arg_names
        }
        target = GPUTarget("cuda", 80, 32)
        source = ASTSource(fn=kernel, signature=signature, constexprs=fixed)
        triton.compile(source, target=target, options={"enable_fp_fusion": False})
    print("compiled")


if __name__ == "__main__":
    {"interpret": interpret, "compile": compile_for_gpus}[sys.argv[1]]()
