"""Real architectures, each layer's states against NumPy on what the layer gave."""

from collections import OrderedDict
from typing import Any
from unittest import mock

import pytest
import torch
from state_oracle import counted_states, expected_states
from torch import nn
from torch_models import collect

from tensorstate_callbacks import NoLayerMatchedError, TensorStateWarning
from tensorstate_callbacks.torch import record, tensor_recorder
from tensorstate_callbacks.torch.layers import named_layers


def check(model: nn.Module, axes: dict[str, int], *batches: torch.Tensor) -> None:
    """Record the layers of `axes`, whose values tell where NumPy finds the neurons.

    Once as they lie in memory, and once as if they lay on an accelerator.
    """
    layers = named_layers(model)
    for on_device in (False, True):
        seen = {name: collect(layers[name]) for name in axes}
        with (
            mock.patch.object(tensor_recorder, "lies_on_device", return_value=on_device),
            record(model, list(axes)) as recording,
        ):
            for batch in batches:
                model(batch)
        for outputs, handle in seen.values():
            handle.remove()
            assert outputs
        found = {name: counted_states(counter) for name, counter in recording.counters.items()}
        assert found == {name: expected_states(seen[name][0], axis) for name, axis in axes.items()}


class Residual(nn.Module):
    """A ResNet block with all that rewrites tensors in place."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(n_in, n_out, 3, 2, 1, bias=False)
        self.norm_1 = nn.BatchNorm2d(n_out)
        self.relu = nn.ReLU(inplace=True)
        self.conv_2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.norm_2 = nn.BatchNorm2d(n_out)
        self.short = nn.Sequential(nn.Conv2d(n_in, n_out, 1, 2), nn.BatchNorm2d(n_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm_2(self.conv_2(self.relu(self.norm_1(self.conv_1(x)))))
        y += self.short(x)
        return self.relu(y)


def resnet() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        OrderedDict(
            stem=nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True)),
            block_1=Residual(6, 9),
            block_2=Residual(9, 12),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            head=nn.Linear(12, 4),
        )
    )


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_resnet_with_in_place_sums_and_activations(
    training: bool, layout: torch.memory_format
) -> None:
    model = resnet().train(training).to(memory_format=layout)
    spatial = ["stem.0", "stem.1", "stem", "block_1.conv_1", "block_1.norm_2", "block_1.relu"]
    spatial += ["block_1", "block_2.conv_2", "block_2.short", "pool"]
    axes = {**dict.fromkeys(spatial, 1), "flat": 1, "head": 1}
    data = torch.randn(5, 3, 15, 13).to(memory_format=layout)
    check(model, axes, *data.split(2))


class ModelOutput(OrderedDict[str, Any]):
    """A dict whose entries are attributes too, as Hugging Face's models give it."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(30, 6), nn.Linear(6, 7)

    def forward(self, ids: torch.Tensor) -> ModelOutput:
        hidden = self.mix(self.embed(ids))
        return ModelOutput(pooler_output=hidden.mean(1), last_hidden_state=hidden)


def test_hugging_face_style_output() -> None:
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.head = Encoder(), nn.Linear(7, 3)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.encoder(ids).last_hidden_state[:, 0])

    model, ids = Classifier(), torch.arange(20).reshape(4, 5)
    hidden = model.encoder(ids).last_hidden_state
    with record(model, ["encoder", "encoder.mix", "encoder.embed", "head"]) as recording:
        model(ids)
    expected = expected_states([hidden], 2)
    assert counted_states(recording.counters["encoder"]) == expected
    assert counted_states(recording.counters["encoder.mix"]) == expected
    assert recording.counters["head"].n_states == 4


def test_conv1d_with_lstm_and_unbatched_input() -> None:
    class Speech(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.lstm = nn.Conv1d(3, 5, 2), nn.LSTM(5, 6, batch_first=True)
            self.head = nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.lstm(self.conv(x).transpose(-2, -1))[0])

    torch.manual_seed(0)
    model = Speech()
    for data in (torch.randn(4, 3, 9), torch.randn(3, 9)):
        check(model, {"conv": -2, "head": -1}, data)
        hidden, _ = model.lstm(model.conv(data).transpose(-2, -1))
        with record(model, "lstm") as recording:
            model(data)
        assert counted_states(recording.counters["lstm"]) == expected_states([hidden], -1)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_transformer_encoder_on_its_fast_path_too(mode: Any) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    model, data = nn.Sequential(OrderedDict(encoder=encoder)), torch.randn(3, 5, 6)
    with mode():
        parts = ["linear1", "linear2", "norm1", "dropout2"]
        axes = {f"encoder.layers.{i}.{part}": 2 for i in (0, 1) for part in parts}
        check(model, {**axes, "encoder.layers.0": 2, "encoder": 2}, data)


def test_attention_is_probed_itself_and_its_projection_is_named() -> None:
    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.attention(x, x, x)[0]

    model, data = Attend().eval(), torch.randn(3, 5, 6)
    text = "left out attention.out_proj: .*Attach to the MultiheadAttention itself"
    with (
        torch.no_grad(),
        pytest.warns(TensorStateWarning, match=text),
        record(model, ["MultiheadAttention", "Linear"]) as recording,
    ):
        output = model(data)
    assert list(recording.counters) == ["attention"]
    assert counted_states(recording.counters["attention"]) == expected_states([output], 2)
    with pytest.raises(NoLayerMatchedError, match="attention.out_proj: "), record(model, "Linear"):
        pass


def test_projection_that_an_attention_of_ones_own_calls_is_probed() -> None:
    class Attend(nn.MultiheadAttention):
        def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return self.out_proj(x)

    check(nn.Sequential(Attend(6, 2)), {"0.out_proj": 2, "0": 2}, torch.randn(3, 5, 6))


@pytest.mark.parametrize("wrap", ["weight_norm", "spectral_norm", "orthogonal"])
def test_parametrized_layers(wrap: str) -> None:
    torch.manual_seed(0)
    parametrize = getattr(nn.utils.parametrizations, wrap)
    model = nn.Sequential(parametrize(nn.Conv2d(3, 5, 3)), nn.Flatten(), nn.Linear(180, 2)).eval()
    check(model, {"0": 1, "2": 1}, torch.randn(4, 3, 8, 8))
    with record(model) as recording:
        model(torch.randn(4, 3, 8, 8))
    assert list(recording.counters) == ["0"]


def test_layers_that_share_a_weight_are_two_and_a_layer_used_twice_is_one() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh())
    model[2].weight = model[0].weight
    check(model, {"0": 1, "2": 1, "3": 1}, torch.randn(7, 6))
    shared = nn.Linear(6, 6)
    check(nn.Sequential(shared, nn.Tanh(), shared), {"0": 1}, torch.randn(7, 6), torch.randn(2, 6))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_activations_are_those_of_its_type(dtype: torch.dtype) -> None:
    model, data = resnet().eval(), torch.randn(5, 3, 15, 13)
    kept, handle = collect(model.block_1.conv_1)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        model(data)
        handle.remove()
        assert kept[0].dtype == dtype
        check(model, {"stem.0": 1, "block_1": 1, "head": 1}, *data.split(3))


def test_double_precision() -> None:
    check(resnet().double().eval(), {"stem.0": 1, "head": 1}, torch.randn(5, 3, 15, 13).double())


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_dynamically_quantized_linear_is_a_linear() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4)).eval()
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
    assert "quantized" in type(quantized[0]).__module__
    data = torch.randn(4, 3, 6)
    check(quantized, {"0": 2, "1": 2}, data)
    with record(quantized) as recording:
        quantized(data)
    assert list(recording.counters) == ["0"]


def test_data_parallel_is_named_and_counted_as_its_model() -> None:
    check(nn.DataParallel(resnet().eval()), {"stem.0": 1, "head": 1}, torch.randn(5, 3, 15, 13))


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
def test_lazy_layers_are_picked_before_they_have_shapes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.LazyConv2d(5, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(7), nn.Linear(7, 2)
    )
    data = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        with record(model) as recording:
            model(data)
        expected = {"0": expected_states([model[0](data)], 1)}
        expected["3"] = expected_states([model[:4](data)], 1)
    found = {name: counted_states(counter) for name, counter in recording.counters.items()}
    assert found == expected
