"""A StateCaptureHook hung on a module by hand captures what the module gives or takes."""

import copy
import io
from typing import Any

import pytest
import torch
from state_oracle import expected_states
from torch import nn
from torch_models import collect, images, small_net

from tensorstate_callbacks import ProbeError, TensorStateWarning
from tensorstate_callbacks.torch import StateCaptureHook


def captured(hook: StateCaptureHook) -> dict[bytes, int]:
    return dict(zip(hook.state_ids(), map(int, hook.counts()), strict=True))


@pytest.mark.parametrize("with_kwargs", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_forward_hook_captures_outputs(with_kwargs: bool, training: bool) -> None:
    model, hook = small_net().train(training), StateCaptureHook("conv", threshold=0.25)
    seen, _ = collect(model[0])
    handle = model[0].register_forward_hook(hook, with_kwargs=with_kwargs)
    for batch in images().split(5):
        model(batch)
    assert captured(hook) == expected_states(seen, 1, 0.25)
    handle.remove()
    model(images())
    assert hook.state_count == 12 * 49


@pytest.mark.parametrize("with_kwargs", [False, True])
def test_forward_pre_hook_captures_inputs(with_kwargs: bool) -> None:
    model, hook = small_net(), StateCaptureHook("conv")
    seen, _ = collect(model[2], inputs=True)
    model[2].register_forward_pre_hook(hook, with_kwargs=with_kwargs)
    model(images())
    assert captured(hook) == expected_states(seen, 1)


def test_arguments_given_by_keyword_need_a_hook_that_sees_them() -> None:
    layer, data = nn.Linear(4, 3), torch.randn(6, 4)
    blind, seeing = StateCaptureHook("blind"), StateCaptureHook("seeing")
    layer.register_forward_pre_hook(seeing, with_kwargs=True)
    layer(input=data)
    assert captured(seeing) == expected_states([data], 1)
    layer.register_forward_pre_hook(blind)
    with pytest.raises(ProbeError, match="'blind' was called without a tensor.*with_kwargs=True"):
        layer(input=data)


@pytest.mark.parametrize("with_kwargs", [False, True])
def test_output_that_is_a_dict_is_not_taken_for_arguments(with_kwargs: bool) -> None:
    class Gives(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"pooled": -x, "last_hidden_state": x - 0.5}

    layer, data, hook = Gives(), torch.randn(2, 5, 3), StateCaptureHook("layer")
    layer.register_forward_hook(hook, with_kwargs=with_kwargs)
    with pytest.warns(TensorStateWarning, match=r"layer \(shape \(2, 5, 3\), axis -1 taken\)"):
        layer(data)
    layer(data[:0])  # Said once.
    assert captured(hook) == expected_states([data - 0.5], 2)


def test_axis_and_tensor_can_be_given() -> None:
    layer, data = nn.LSTM(3, 5), torch.randn(4, 2, 3)
    axis, output = StateCaptureHook("a", channel_axis=1), None
    cells = StateCaptureHook("b", output_fn=lambda name, output: output[1][1])
    chosen = StateCaptureHook("c", channel_axis=lambda name, module, tensor: {"c": 0}[name])
    for hook in (axis, cells, chosen):
        layer.register_forward_hook(hook)
    output, (_, cell) = layer(data)
    assert captured(axis) == expected_states([output], 1)
    assert captured(cells) == expected_states([cell], 2)
    assert captured(chosen) == expected_states([output], 0)


def test_nothing_is_captured_while_it_is_off() -> None:
    layer, hook = nn.Linear(4, 3), StateCaptureHook("layer")
    layer.register_forward_hook(hook)
    layer(torch.ones(2, 4))
    hook.capture_on = False
    layer(torch.ones(3, 4))
    hook.capture_on = True
    layer(torch.ones(4, 4))
    assert hook.state_count == 6


def test_error_names_the_hook() -> None:
    layer, hook = nn.Linear(4, 3, dtype=torch.complex64), StateCaptureHook("wave")
    layer.register_forward_hook(hook)
    with pytest.raises(ProbeError, match=r"'wave'.*complex \(torch.complex64\)"):
        layer(torch.ones(2, 4, dtype=torch.complex64))


def test_copies_have_counts_of_their_own() -> None:
    model, hook = small_net(), StateCaptureHook("conv")
    model[0].register_forward_hook(hook)
    model(images(2))
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        (own,) = twin[0]._forward_hooks.values()
        assert captured(own) == captured(hook)
        twin(images(3))
        assert own.state_count == 5 * 49
    assert hook.state_count == 2 * 49


def test_checkpointing_captures_a_pass_once() -> None:
    from torch.utils.checkpoint import checkpoint

    for use_reentrant in (False, True):
        model, hook = small_net(), StateCaptureHook("conv")
        model[0].register_forward_hook(hook)
        data = images(2).requires_grad_()
        checkpoint(model, data, use_reentrant=use_reentrant).sum().backward()
        assert hook.state_count == 2 * 49


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).relu())


@pytest.mark.parametrize("in_place", [False, True])
def test_model_compiled_afterwards_is_captured_in_full(in_place: bool) -> None:
    torch.compiler.reset()
    model, hook, data = Net().eval(), StateCaptureHook("first"), torch.randn(7, 6)
    expected = expected_states([model.first(data)] * 3, 1)
    model.first.register_forward_hook(hook)
    model(data)
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled: Any = torch.compile(model, backend=backend)
    if in_place:
        model.compile(backend=backend)
        compiled = model
    # Breaking a graph of tensors with gradients, torch's compiler warns of its own doing.
    with torch.no_grad():
        for _ in range(2):
            compiled(data)
    assert captured(hook) == expected
    # Broken at the hook, and nothing of ours is in them.
    calls = [[n for n in g.graph.nodes if n.op.startswith("call")] for g in graphs]
    assert [len(nodes) for nodes in calls] == [1, 2]


def test_exported_program_captures_nothing() -> None:
    model, hook = Net().eval(), StateCaptureHook("first")
    model.first.register_forward_hook(hook)
    data = torch.randn(7, 6)
    program = torch.export.export(model, (data,), strict=False)
    model(data)
    assert hook.state_count == 7
    program.module()(data)
    assert hook.state_count == 7
