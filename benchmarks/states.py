"""States to count: those of LeNet-5's layers on real digits, and ones that are all distinct."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.uint8]
_ODD = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def lenet5_states(layer: str) -> tuple[int, Rows]:
    """Return the number of neurons, and each state in the order seen, of one layer.

    The states are `(m, ceil(neurons / 8))` uint8, packed by NumPy.
    """
    import torch
    from lenet5_torch import digits, trained_lenet5

    model, (images, _) = trained_lenet5(), digits()
    packed: list[Rows] = []

    def keep(module: object, args: object, output: torch.Tensor) -> None:
        fires = (output > 0).movedim(1, -1).flatten(0, -2).numpy()
        packed.append(np.packbits(fires, axis=1, bitorder="little"))

    hook = model.get_submodule(layer).register_forward_hook(keep)
    with torch.inference_mode():
        for batch in images.split(200):
            model(batch)
    hook.remove()
    return model.get_submodule(layer).out_channels, np.concatenate(packed)


def distinct_states(neurons: int, size: int, start: int = 0) -> Rows:
    """Return states that are all distinct, in no order: `(size, neurons / 8 rounded up)` uint8.

    Args:
        neurons: Bits per state.
        size: How many; at most `2**neurons`.
        start: Number of the first: other numbers give other states.
    """
    words = -(-neurons // 64)
    bits = min(neurons, 64)
    rows = np.empty((size, words), np.uint64)
    rows[:, 0] = _shuffled(np.arange(start, start + size, dtype=np.uint64), bits)
    for word in range(1, words):
        rows[:, word] = _shuffled(rows[:, word - 1] + np.uint64(word), 64)
    if neurons % 64:
        rows[:, -1] &= np.uint64((1 << neurons % 64) - 1)
    return np.ascontiguousarray(rows.view(np.uint8)[:, : -(-neurons // 8)])


def batches(rows: Rows, size: int) -> Iterator[Rows]:
    """Yield the rows in batches, as layers give them."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _shuffled(numbers: NDArray[np.uint64], bits: int) -> NDArray[np.uint64]:
    # Odd factors and shifted exclusive-ors map the numbers of `bits` bits one to one.
    mask = np.uint64((1 << bits) - 1)
    shift = np.uint64((bits + 1) // 2)
    for factor in _ODD:
        numbers = (numbers * factor) & mask
        numbers ^= numbers >> shift
    return numbers
