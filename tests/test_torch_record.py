"""Recording any PyTorch model: what is counted is exact, and the model doesn't notice."""

from typing import Any

import pytest
import torch
from state_oracle import counted_states, expected_states
from torch import nn
from torch_models import collect, images, small_net

from tensorstate_callbacks import NoLayerMatchedError, TensorStateWarning
from tensorstate_callbacks.torch import Recording, record
from tensorstate_callbacks.torch.channel_axis import ChannelAxes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_convolution_states_are_those_numpy_counts(
    dtype: torch.dtype, layout: torch.memory_format
) -> None:
    conv = nn.Conv2d(3, 11, 3).to(dtype=dtype, memory_format=layout)
    data = images().to(dtype=dtype, memory_format=layout)
    model = nn.Sequential(conv, nn.ReLU(inplace=True))
    seen, _ = collect(conv)
    with torch.no_grad(), record(model, "Conv2d", threshold=0.25) as recording:
        for batch in data.split(5):
            model(batch)
    assert seen[0].is_contiguous(memory_format=layout)
    assert counted_states(recording.counters["0"]) == expected_states(seen, 1, 0.25)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_linear_states_are_those_numpy_counts(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(6, 70), nn.Linear(70, 2)).to(dtype)
    seen, _ = collect(model[0])
    with record(model) as recording:
        model(torch.randn(40, 6, dtype=dtype))
    assert counted_states(recording.counters["0"]) == expected_states(seen, -1)


def test_report_does_not_depend_on_batch_size_or_order() -> None:
    model, data = small_net(), images(21)
    # Whole numbers: torch sums in another order for another batch size, which moves last bits.
    data = torch.round(data * 4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.round(parameter * 16))
    reports = []
    for samples, size in ((data, 21), (data, 1), (data, 7), (data.flip(0), 21)):
        with torch.no_grad(), record(model, exclude="Linear") as recording:
            for batch in samples.split(size):
                model(batch)
        reports.append(recording.report(accuracy=0.5))
    assert reports[0].layers["0"].n_states == 21 * 49
    assert all(report == reports[0] for report in reports)


def test_a_recording_made_by_hand_counts_in_each_of_its_blocks() -> None:
    model, data = small_net(), images(21)
    recording = Recording(model, exclude="Linear", method="both", threshold=0.25, beta=3)
    model(data)
    with torch.no_grad():
        for samples in data.split(7):
            with recording.attached():
                model(samples)
        with record(model, exclude="Linear", method="both", threshold=0.25, beta=3) as expected:
            model(data)
    assert recording.report(accuracy=0.5) == expected.report(accuracy=0.5)
    assert recording.report(accuracy=0.5).beta == 3
    with pytest.raises(NoLayerMatchedError):
        Recording(model, attach_to="LSTM")


def test_default_is_every_convolution_and_linear_but_the_last() -> None:
    model = nn.Sequential(
        small_net()[:3], nn.Flatten(), nn.Linear(125, 6), nn.Tanh(), nn.Linear(6, 2)
    )
    with record(model) as recording:
        model(images())
    assert list(recording.report().layers) == ["0.0", "0.2", "2"]


def test_attention_projection_that_is_never_called_is_no_default() -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "head": nn.Linear(8, 2)})
    with pytest.raises(NoLayerMatchedError, match="MultiheadAttention"), record(model):
        pass


def test_nothing_matched_lists_what_there_is() -> None:
    text = r"'Conv3d' matched no layer.*Conv2d \(2\)"
    with pytest.raises(NoLayerMatchedError, match=text), record(small_net(), "Conv3d"):
        pass


def test_model_of_another_kind_is_refused() -> None:
    with pytest.raises(TypeError, match="must be a torch.nn.Module; got int"), record(3):  # type: ignore[arg-type]
        pass


@pytest.mark.parametrize("argument", [{"beta": 0}, {"threshold": float("nan")}, {"alpha": -1}])
def test_arguments_out_of_range_are_refused(argument: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(argument))), record(small_net(), **argument):
        pass


def test_layer_alone_is_named_by_its_class() -> None:
    model = nn.Linear(3, 2)
    with record(model, "Linear") as recording:
        model(torch.ones(5, 3))
    assert recording.report().layers["Linear"].n_states == 5


def test_before_and_both_name_inputs() -> None:
    model, data = small_net(), images()
    inputs, _ = collect(model[2], inputs=True)
    outputs, _ = collect(model[2])
    with record(model, "2", method="both") as recording:
        model(data)
    assert list(recording.report().layers) == ["2.input", "2"]
    # The in-place ReLU before it has rewritten the first convolution's output.
    assert counted_states(recording.counters["2.input"]) == expected_states(inputs, 1)
    assert counted_states(recording.counters["2"]) == expected_states(outputs, 1)
    with record(model, "2", method="before") as recording:
        model(data)
    assert list(recording.report().layers) == ["2.input"]


def test_inputs_given_by_keyword_are_seen() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    with record(model, "0", method="before") as recording:
        model[0](input=torch.ones(6, 4))
    assert recording.report().layers["0.input"].n_states == 6


def test_module_called_several_times_sums_its_states() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.again = self.body = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.again(self.body(x))

    model = Twice()
    seen, _ = collect(model.body)
    with record(model, "Linear") as recording:
        model(torch.randn(9, 4))
    assert list(recording.counters) == ["again"]
    assert recording.counters["again"].n_states == 18
    assert counted_states(recording.counters["again"]) == expected_states(seen, -1)


def test_layers_are_reported_in_forward_order() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.second, self.first = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x))

    model = Backwards()
    with record(model, "Linear") as recording:
        model(torch.randn(3, 4))
    assert list(recording.report().layers) == ["first", "second"]


def test_paused_recording_counts_nothing() -> None:
    model = small_net()
    with record(model) as recording:
        model(images(2))
        recording.pause()
        model(images(3))
        recording.resume()
        model(images(4))
    model(images(5))
    assert recording.report().layers["0"].n_states == 6 * 49


def test_probe_that_saw_nothing_is_named() -> None:
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "idle": nn.Linear(2, 2)})
    text = "no activations came from idle: "
    with pytest.warns(TensorStateWarning, match=text), record(model, "Linear") as recording:
        model["used"](torch.ones(3, 2))
    assert list(recording.report().layers) == ["used"]


@pytest.mark.filterwarnings("error:Coverage is below")
def test_low_coverage_is_told_once_and_names_its_layers() -> None:
    model = small_net()
    with torch.no_grad(), record(model, "Conv2d", group_size=1) as recording:
        model(images(40))
    assert recording.report().layers["2"].coverage > 0.5
    with torch.no_grad(), record(model, "Linear") as recording:
        for _ in range(2):
            model(images(1))
    assert recording.report().layers["4"].coverage == 1
    wide = nn.Linear(5, 70)
    with torch.no_grad(), record(wide, "Linear") as recording:
        wide(torch.randn(9, 5))
    with pytest.warns(TensorStateWarning, match=r"below 0\.5 in Linear \(0\.00\).*=8\)"):
        recording.report()
    # Once.
    assert recording.report().layers["Linear"].coverage == 0


def test_checkpointed_forward_pass_is_counted_once() -> None:
    from torch.utils.checkpoint import checkpoint

    model = small_net()
    for use_reentrant in (False, True):
        with record(model) as recording:
            data = images(2).requires_grad_()
            checkpoint(model, data, use_reentrant=use_reentrant).sum().backward()
        assert data.grad is not None
        assert recording.counters["0"].n_states == 2 * 49


def test_parametrized_layer_is_found_by_its_class_and_its_parametrizations_are_not() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), nn.Linear(3, 2))
    with record(model, "0*") as recording:
        model(torch.randn(5, 4))
    assert list(recording.counters) == ["0"]
    with record(model) as recording:
        model(torch.randn(5, 4))
    assert list(recording.counters) == ["0"]


def test_inference_mode_and_functional_call_are_seen() -> None:
    model, data = small_net(), images(2)
    with torch.inference_mode(), record(model) as recording:
        model(data)
        torch.func.functional_call(model, dict(model.named_parameters()), (data,))
    assert recording.counters["0"].n_states == 2 * 2 * 49


def test_tensors_of_one_shape_are_counted_as_they_lie_in_memory() -> None:
    model = nn.Sequential(nn.Identity())
    wide = images(3).repeat(1, 2, 1, 1)
    given = [
        wide,
        wide.contiguous(memory_format=torch.channels_last),
        wide.double(),
        wide.flip(0).to(torch.bfloat16),
        # Of these torch keeps the sign beside the memory.
        torch.complex(torch.zeros_like(wide), wide).conj().imag,
        wide.clone().requires_grad_(),
        wide[:, :, :1].expand_as(wide),
    ]
    assert given[4].is_neg()
    with record(model, "Identity", channel_axis=1) as recording:
        for _ in range(2):
            for tensor in given:
                model(tensor)
    seen = [tensor.detach().resolve_neg().float() for tensor in given] * 2
    assert counted_states(recording.counters["0"]) == expected_states(seen, 1)


@pytest.mark.parametrize("kind", ["Conv2d", "ReLU"])
def test_what_is_known_of_a_layer_is_found_out_once(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    find = ChannelAxes.find

    def noted(self: ChannelAxes, probe: str, *rest: Any) -> Any:
        asked.append(probe)
        return find(self, probe, *rest)

    monkeypatch.setattr(ChannelAxes, "find", noted)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU())
    seen, _ = collect(model[2] if kind == "Conv2d" else model[3])
    with torch.no_grad(), record(model, kind) as recording:
        for _ in range(3):
            model(images())
        asked.clear()
        for _ in range(5):
            model(images())
        assert asked == []
        model(images(7))
        assert len(asked) == 2
    last = list(recording.counters.values())[-1]
    assert counted_states(last) == expected_states(seen, 1)
