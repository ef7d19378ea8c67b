"""Every leaf of a few dozen real networks: neurons don't depend on size, counts are NumPy's."""

import fnmatch
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from own_warnings import ours
from state_oracle import counted_states
from sweep_images import IMAGE_NETWORKS, declare_operators
from sweep_oracle import Network, call, explains, first_tensor, known_widths, observe
from torch import nn

from tensorstate_callbacks.torch import record


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


Found = dict[str, dict[int, dict[bytes, int]]]


def recorded(model: nn.Module, names: Any, *batches: Any) -> tuple[list[Any], Found, list[str]]:
    """What a model gives while it is recorded; layer to number of neurons to states; warnings."""
    attach_to = names if names is None else lambda name, _: name in names
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with record(model, attach_to) as recording:
            outputs = [call(model, batch) for batch in batches]
    found: Found = {}
    for probe, counter in recording.counters.items():
        layer = probe.partition("@")[0]
        found.setdefault(layer, {})[counter.n_neurons] = counted_states(counter)
    return outputs, found, ours(caught)


def check(network: Network) -> None:
    small, large = network.sizes
    model = network.build(small).eval()
    other = network.build(large).eval()
    two, three, wide = (
        network.inputs(2, small),
        network.inputs(3, small),
        network.inputs(2, large),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain, seen = zip(
            *(observe(m, x) for m, x in ((model, two), (model, three), (other, wide)))
        )
    outputs, found, told = recorded(model, seen[0], two, three)
    [output], at_size, told_at_size = recorded(other, seen[2], wide)
    for ours_, theirs in zip([*outputs, output], plain, strict=True):
        assert torch.equal(first_tensor(ours_), first_tensor(theirs))

    def may_vary(name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, glob) for glob in network.varying)

    assert found.keys() == seen[0].keys()
    widths = {name: set(groups) for name, groups in found.items() if not may_vary(name)}
    assert widths == {name: set(at_size[name]) for name in widths}
    layers = dict(model.named_modules())
    known = known_widths(model)
    wrong = []
    for name, calls in seen[0].items():
        runs = [calls, seen[1][name], seen[2][name]]
        if len({len(run) for run in runs}) > 1 or may_vary(name):
            continue
        if explains(layers[name], list(zip(*runs, strict=True)), found[name], known) is False:
            shapes = [tuple(tensor.shape) for tensor, *_ in runs]
            wrong.append(f"{name} {type(layers[name]).__name__} {shapes}: {set(found[name])}")
    assert not wrong, "\n".join([*wrong, *told])
    assert len(told) <= 1, told
    assert len(told_at_size) <= 1, told_at_size


@pytest.mark.parametrize("name", IMAGE_NETWORKS)
def test_image_network(name: str) -> None:
    declare_operators()
    pytest.importorskip("timm")
    check(IMAGE_NETWORKS[name])
