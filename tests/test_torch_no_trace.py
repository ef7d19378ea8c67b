"""A recorded PyTorch model doesn't notice, and carries nothing afterwards."""

import copy
import io

import pytest
import torch
from torch import nn
from torch_models import all_hooks, collect, images, small_net

from tensorstate_callbacks import ProbeError
from tensorstate_callbacks.torch import record


def test_outputs_gradients_and_number_of_calls_are_the_same() -> None:
    results, calls = [], []
    for recorded in (False, True):
        model, data = small_net().train(), images().requires_grad_()
        n_calls = []
        model.register_forward_hook(lambda *_, n=n_calls: n.append(1))
        if recorded:
            with record(model) as recording:
                output = model(data)
                output.square().sum().backward()
            assert recording.report().layers["0"].n_states == 12 * 49
        else:
            output = model(data)
            output.square().sum().backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        results.append([output.detach(), data.grad, *gradients])
        calls.append(len(n_calls))
    assert calls == [1, 1]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


class Stop(BaseException):
    """Like KeyboardInterrupt, but one that pytest doesn't take for its own."""


@pytest.mark.parametrize("error", [None, ValueError, Stop, KeyboardInterrupt])
@pytest.mark.parametrize("attach_to", ["Conv2d", "ReLU"])
def test_hooks_of_the_user_survive_and_ours_are_gone(
    error: type[BaseException] | None, attach_to: str
) -> None:
    model = small_net()
    collect(model[0])
    model[0].register_forward_pre_hook(lambda *_: None)
    before = all_hooks(model)
    try:
        with record(model, attach_to, method="both"):
            model(images())
            assert all_hooks(model) != before
            if error is not None:
                raise error
    except BaseException as caught:  # noqa: BLE001
        assert error is not None
        assert isinstance(caught, error)  # noqa: PT017
    assert all_hooks(model) == before


def test_hooks_hung_and_taken_off_while_recording_are_the_users() -> None:
    model = small_net()
    early = model[0].register_forward_hook(lambda *_: None)
    with record(model, "ReLU", method="both"):
        late, handle = collect(model[0])
        early.remove()
        model(images(2))
    assert list(model[0]._forward_hooks) == [handle.id]
    assert len(late) == 1
    handle.remove()
    assert not any(any(hooks) for hooks in all_hooks(model))


def test_error_in_a_probe_names_the_layer_and_leaves_the_model_clean() -> None:
    class Complex(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.fft.fft(x)

    model = nn.Sequential(nn.Linear(4, 4), Complex())
    text = r"'1'.*complex \(torch\.complex64\)"
    with pytest.raises(ProbeError, match=text), record(model, "Complex"):
        model(torch.ones(2, 4))
    assert not any(all_hooks(model))


def test_copy_made_while_recording_does_not_count() -> None:
    model = small_net()
    with record(model) as recording:
        model(images(2))
        clone = copy.deepcopy(model)
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        loaded = torch.load(buffer, weights_only=False)
        for copied in (clone, loaded):
            assert torch.equal(copied(images(3)).isfinite(), torch.ones(3, 4, dtype=torch.bool))
    assert recording.counters["0"].n_states == 2 * 49


def test_recordings_of_one_model_do_not_disturb_each_other() -> None:
    model = small_net()
    with record(model, "Conv2d") as outer:
        model(images(1))
        with record(model, "0", threshold=0.5) as inner:
            model(images(1))
        model(images(1))
    assert outer.counters["0"].n_states == 3 * 49
    assert inner.counters["0"].n_states == 49
