"""Find layers that can't be counted in a functional model's graph, before training begins."""

from collections.abc import Mapping
from typing import Any

import keras

from tensorstate_callbacks.errors import ProbeError
from tensorstate_callbacks.recording.settings import Method


def check_specs(picked: Mapping[str, keras.layers.Layer], method: Method) -> None:
    """Raise `ProbeError` if the graph of a model says that a probed layer's tensors are complex.

    A subclassed model has no graph: what its layers give is known in its first evaluation.

    Args:
        picked: The probed layers under their paths.
        method: Whether their outputs are counted, their inputs, or both.
    """
    for name, layer in picked.items():
        for node in getattr(layer, "_inbound_nodes", ()):
            if method != "before":
                _check_real(name, "gives", node.output_tensors)
            if method != "after":
                _check_real(name, "takes", node.input_tensors)


def _check_real(name: str, does: str, tensors: list[Any]) -> None:
    # The first is the one that is counted.
    for tensor in tensors[:1]:
        dtype = str(getattr(tensor, "dtype", ""))
        if "complex" in dtype:
            raise ProbeError(
                f"layer {name!r} could not be counted: what it {does} is complex ({dtype}), and "
                "neither fires nor doesn't. Exclude it, or attach to other layers"
            )
