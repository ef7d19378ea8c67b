"""Models run by torch.func, traced or scripted: the right numbers, or a warning."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from state_oracle import counted_states, expected_states
from torch import nn
from torch.func import functional_call, grad, hessian, jvp, vmap
from torch_models import all_hooks

from tensorstate_callbacks import ProbeError, TensorStateWarning
from tensorstate_callbacks.tensorstate import build_efficiency_model
from tensorstate_callbacks.torch import StateCaptureHook, record


def convolutional() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(3, 5, 2), nn.Flatten(-2), nn.Linear(40, 2))


def states(model: nn.Module, run: Callable[[], Any], **options: Any) -> dict[bytes, int]:
    """What a recording counts at the layer "0", which a hook by hand must count too."""
    hook = StateCaptureHook("0", channel_axis=options.get("channel_axis"))
    handle = model[0].register_forward_hook(hook)  # type: ignore[index]
    with record(model, "0", **options) as recording:
        run()
    handle.remove()
    found = counted_states(recording.counters["0"])
    assert found == dict(zip(hook.state_ids(), map(int, hook.counts()), strict=True))
    return found


@pytest.mark.parametrize("axis", [None, 0, -2])
@pytest.mark.parametrize("mapped", [0, 1])
def test_vmap_is_counted_as_the_batch_it_stands_for(axis: int | None, mapped: int) -> None:
    model, data = convolutional(), torch.randn(7, 3, 9)
    expected = expected_states([model[0](data)], 1)
    over = vmap(model, in_dims=mapped)
    assert states(model, lambda: over(data.movedim(0, mapped)), channel_axis=axis) == expected


def test_vmap_over_models_counts_each() -> None:
    models, data = [nn.Sequential(nn.Linear(6, 5)) for _ in range(3)], torch.randn(4, 6)
    stacked, _ = torch.func.stack_module_state(models)
    expected = expected_states([model(data) for model in models], 1)
    run = vmap(lambda parameters: functional_call(models[0], parameters, (data,)))
    assert states(models[0], lambda: run(stacked)) == expected


def test_gradients_of_each_sample_count_it_once() -> None:
    model, data = convolutional(), torch.randn(7, 3, 9)
    parameters = dict(model.named_parameters())

    def loss(parameters: Any, sample: torch.Tensor) -> torch.Tensor:
        return functional_call(model, parameters, (sample,)).square().sum()

    expected = expected_states([model[0](data)], 1)
    assert states(model, lambda: grad(loss)(parameters, data)) == expected
    assert states(model, lambda: vmap(grad(loss), (None, 0))(parameters, data)) == expected
    # Of a layer that the gradient doesn't reach, the output is no wrapped tensor.
    last = {key: value for key, value in parameters.items() if key.startswith("2")}
    assert states(model, lambda: grad(loss)(last, data)) == expected


# What jvp's rules are made with.
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_derivatives_forward_and_of_second_order() -> None:
    model, sample = convolutional(), torch.randn(3, 9)
    expected = expected_states([model[0](sample)], 0)
    assert states(model, lambda: jvp(model, (sample,), (sample,))) == expected
    assert states(model, lambda: hessian(lambda x: model(x).square().sum())(sample)) == expected


def test_axis_that_a_sample_of_vmap_does_not_have_is_an_error() -> None:
    model = convolutional()
    with pytest.raises(ProbeError, match=r"'0'.*shape \(5, 8\) has no axis 2"):
        states(model, lambda: vmap(model)(torch.randn(7, 3, 9)), channel_axis=2)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("make", ["trace", "script"])
def test_scripted_part_is_named_and_the_rest_is_counted(make: str) -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x).relu()

    traced = make == "trace"
    part = torch.jit.trace(Inner(), torch.ones(1, 5)) if traced else torch.jit.script(Inner())
    model, data = nn.Sequential(nn.Linear(6, 5), part), torch.randn(7, 6)
    expected = expected_states([model[0](data)], 1)
    text = "no activations came from 1.layer: .*scripted"
    with (
        pytest.warns(TensorStateWarning, match=text),
        record(model, ["0", "1.layer"]) as recording,
    ):
        model(data)
    assert {k: counted_states(c) for k, c in recording.counters.items()} == {"0": expected}
    if traced:
        with record(model, "1") as recording:
            output = model(data)
        assert counted_states(recording.counters["1"]) == expected_states([output], 1)
    else:
        with pytest.warns(TensorStateWarning, match="came from 1: "), record(model, "1"):
            model(data)
        with pytest.raises(ValueError, match="layer '1' is TorchScript.*exclude it"):
            build_efficiency_model(model, ["0", "1"])
        assert not any(any(hooks) for hooks in all_hooks(model))
