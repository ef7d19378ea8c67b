"""Every leaf of a few dozen real networks: neurons don't depend on size, counts are NumPy's."""

import fnmatch
import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from own_warnings import ours
from state_oracle import counted_states
from sweep_images import IMAGE_NETWORKS
from sweep_oracle import Network, call, explains, first_tensor, known_widths, observe
from sweep_sequences import SEQUENCE_NETWORKS
from torch import nn
from torch.nn.modules.conv import _ConvNd

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
    """Compare all that is counted of a network's leaves, and what is picked by default."""
    small, large = network.sizes
    model = network.build(small).eval()
    other = network.build(large).eval() if network.is_sized else model
    inputs = [network.inputs(2, small), network.inputs(3, small), network.inputs(2, large)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runs = [observe(m, x) for m, x in zip((model, model, other), inputs, strict=True)]
    seen = [leaves for _, leaves in runs]
    # Where it takes both sizes, in one pass, as an evaluation has them.
    outputs, found, told = recorded(model, seen[0], *(inputs[:2] if network.is_sized else inputs))
    at_size = found
    if network.is_sized:
        more, at_size, also_told = recorded(other, seen[2], inputs[2])
        outputs, told = [*outputs, *more], [*told, *also_told[1:]]
    for (plain, _), watched in zip(runs, outputs, strict=True):
        assert torch.equal(first_tensor(plain), first_tensor(watched))
    problems = differences(model, network, seen, found, at_size)
    assert not problems, "\n".join([*problems, *told])
    assert len(told) <= 1, told
    check_default(model, inputs[0], seen[0])


def differences(
    model: nn.Module,
    network: Network,
    seen: Sequence[dict[str, list[torch.Tensor]]],
    found: Found,
    at_size: Found,
) -> list[str]:
    """What was counted wrong, layer by layer."""
    layers, known = dict(model.named_modules()), known_widths(model)
    wrong = [f"{name} was not counted" for name in seen[0].keys() - found.keys()]
    for name, groups in found.items():
        runs = [leaves.get(name, []) for leaves in seen]
        shapes = [[tuple(tensor.shape) for tensor in run] for run in runs]
        what = f"{name} ({type(layers[name]).__name__}), shapes {shapes}, neurons {[*groups]}"
        if any(fnmatch.fnmatchcase(name, glob) for glob in network.varying):
            continue
        if groups.keys() != at_size.get(name, {}).keys():
            wrong.append(f"{what}, at another size {[*at_size.get(name, {})]}")
        elif len({len(run) for run in runs}) == 1:
            calls = list(zip(*runs, strict=True))
            n_counted = 2 if network.is_sized else 3
            if explains(layers[name], calls, n_counted, groups, known) is False:
                wrong.append(what)
    return wrong


def check_default(model: nn.Module, inputs: Any, seen: dict[str, list[torch.Tensor]]) -> None:
    """The default's layers are all that are dense or convolutions, but for the last one called."""
    _, found, _ = recorded(model, None, inputs)
    layers = dict(model.named_modules())
    torchs = [name for name in seen if isinstance(layers[name], (nn.Linear, _ConvNd))]
    inside = {f"{name}." for name in found}
    missed = [
        name
        for name in torchs
        if name not in found and not any(name.startswith(outer) for outer in inside)
    ]
    # The one that makes the output; in which order layers are called, `seen` tells.
    assert len(missed) <= 1, missed
    assert missed in ([], torchs[-1:]), missed
    for name in found:
        weights = [p.shape for p in layers[name].parameters() if p.ndim > 1]
        sizes = {size for shape in weights for size in shape} | known_widths(layers[name])
        assert weights, name
        assert found[name].keys() <= sizes, name


@pytest.mark.parametrize("name", IMAGE_NETWORKS)
def test_image_network(name: str) -> None:
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    check(IMAGE_NETWORKS[name])


@pytest.mark.parametrize("name", SEQUENCE_NETWORKS)
def test_sequence_network(name: str) -> None:
    pytest.importorskip("transformers")
    check(SEQUENCE_NETWORKS[name])
