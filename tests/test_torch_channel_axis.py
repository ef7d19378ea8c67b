"""Which axis holds the neurons: by the module's type, by what produced its input, by the user."""

from typing import Any

import pytest
import torch
from state_oracle import counted_states, expected_states
from torch import nn

from tensorstate_callbacks import ProbeError, TensorStateWarning
from tensorstate_callbacks.torch import record
from tensorstate_callbacks.torch.module_axis import rule_axis


def neurons(model: nn.Module, attach_to: Any, *inputs: torch.Tensor, **options: Any) -> list[int]:
    """Numbers of neurons that the probes see; all axes of the tensors here differ in length."""
    with torch.no_grad(), record(model, attach_to, **options) as recording:
        model(*inputs)
    return [counter.n_neurons for counter in recording.counters.values()]


@pytest.mark.parametrize(
    ("module", "shape", "channels"),
    [
        (nn.Conv1d(3, 5, 2), (2, 3, 9), 5),
        (nn.Conv1d(3, 5, 2), (3, 9), 5),
        (nn.Conv2d(3, 5, 2), (2, 3, 9, 8), 5),
        (nn.Conv2d(3, 5, 2), (3, 9, 8), 5),
        (nn.Conv3d(3, 5, 2), (2, 3, 9, 8, 7), 5),
        (nn.ConvTranspose2d(3, 5, 2), (2, 3, 9, 8), 5),
        (nn.MaxPool2d(2), (3, 8, 12), 3),
        (nn.AdaptiveAvgPool1d(4), (2, 3, 9), 3),
        (nn.ZeroPad2d(1), (3, 8, 7), 3),
        (nn.BatchNorm1d(3), (2, 3, 9), 3),
        (nn.BatchNorm2d(3), (2, 3, 9, 8), 3),
        (nn.InstanceNorm2d(3), (3, 9, 8), 3),
        (nn.GroupNorm(1, 3), (2, 3, 9), 3),
        (nn.LayerNorm(9), (2, 3, 9), 9),
        (nn.LayerNorm([3, 9, 8]), (2, 3, 9, 8), 3),
        (nn.Linear(9, 5), (9,), 5),
        (nn.Linear(9, 5), (2, 3, 7, 9), 5),
        (nn.LSTM(9, 5), (2, 3, 9), 5),
        (nn.GRU(9, 5), (3, 9), 5),
        (nn.LSTMCell(9, 5), (2, 9), 5),
        (nn.TransformerEncoderLayer(6, 2, 4), (2, 3, 6), 6),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_axis_by_type_of_module(module: nn.Module, shape: tuple[int, ...], channels: int) -> None:
    model = nn.ModuleDict({"layer": module.eval()})
    with torch.no_grad(), record(model, "layer") as recording:
        module(torch.randn(*shape))
    assert recording.counters["layer"].n_neurons == channels


def test_embedding_and_attention_have_neurons_last() -> None:
    assert neurons(nn.Sequential(nn.Embedding(50, 7)), "0", torch.ones(2, 3, dtype=torch.long)) == [
        7
    ]
    attention = nn.ModuleDict({"layer": nn.MultiheadAttention(6, 2)})
    with record(attention, "layer", method="both") as recording:
        attention["layer"](*[torch.randn(4, 3, 6)] * 3)
    assert [c.n_neurons for c in recording.counters.values()] == [6, 6]
    assert recording.counters["layer"].n_states == 12


def test_a_class_that_only_bears_the_name_of_torchs_has_no_rule() -> None:
    class Linear(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    assert rule_axis(Linear(), (2, 3, 4, 5)) is None
    assert rule_axis(nn.Linear(3, 5), (2, 3, 4, 5)) == -1


class ConvNeXtBlock(nn.Module):
    """(N, C, H, W) to the same, with its middle in (N, H, W, C)."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(n, n, 3, padding=1, groups=n)
        self.norm = nn.LayerNorm(n)
        self.expand = nn.Linear(n, 4 * n)
        self.activation = nn.GELU()
        self.reduce = nn.Linear(4 * n, n)
        self.dropout = nn.Dropout()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.dropout(self.reduce(self.activation(self.expand(y))))
        return x + y.permute(0, 3, 1, 2)


def test_convnext_block_changes_axes_within() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 2), ConvNeXtBlock(5), nn.Flatten(), nn.Linear(210, 2))
    model.eval()
    kept: list[torch.Tensor] = []
    model[1].activation.register_forward_hook(lambda m, i, output: kept.append(output.clone()))
    with torch.no_grad(), record(model, "1*") as recording:
        model(torch.randn(4, 3, 8, 7))
    found = {name: counter.n_neurons for name, counter in recording.counters.items()}
    assert found == {
        "1.depthwise": 5,
        "1.norm": 5,
        "1.expand": 20,
        "1.activation": 20,
        "1.reduce": 5,
        "1.dropout": 5,
        "1": 5,
    }
    assert counted_states(recording.counters["1.activation"]) == expected_states(kept, 3)


@pytest.mark.parametrize(
    "activation", [nn.ReLU(inplace=True), nn.ELU(), nn.Dropout(), nn.Identity()]
)
@pytest.mark.parametrize("method", ["before", "after"])
def test_activation_has_the_axis_of_what_produced_its_input(
    activation: nn.Module, method: str
) -> None:
    after_conv = nn.Sequential(nn.Conv1d(3, 5, 2), activation).eval()
    assert neurons(after_conv, "1", torch.randn(2, 3, 9), method=method) == [5]
    after_linear = nn.Sequential(nn.Linear(9, 5), activation).eval()
    assert neurons(after_linear, "1", torch.randn(2, 3, 9), method=method) == [5]
    assert neurons(after_linear, "1", torch.randn(2, 3, 7, 9), method=method) == [5]


def test_container_has_the_axis_of_what_produced_its_output() -> None:
    block = nn.Sequential(nn.Conv1d(3, 5, 2), nn.BatchNorm1d(5), nn.ReLU())
    assert neurons(nn.Sequential(block).eval(), "0", torch.randn(2, 3, 9)) == [5]


def test_residual_block_keeps_the_axis_of_its_input() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Conv1d(5, 5, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.body(x)
            y += x
            return torch.relu(y)

    model = nn.Sequential(nn.Conv1d(3, 5, 2), Residual())
    assert neurons(model, "Residual", torch.randn(2, 3, 9)) == [5]


def test_unknown_origin_takes_the_last_of_three_axes_else_the_second_and_says_so() -> None:
    model = nn.Sequential(nn.Tanh())
    with pytest.warns(
        TensorStateWarning, match=r"0 \(shape \(2, 3, 9\), axis -1 taken\).*channel_a"
    ):
        assert neurons(model, "0", torch.randn(2, 3, 9)) == [9]
    with pytest.warns(TensorStateWarning, match=r"0 \(shape \(2, 3, 9, 8\), axis -3 taken\)"):
        assert neurons(model, "0", torch.randn(2, 3, 9, 8)) == [3]
    assert neurons(model, "0", torch.randn(2, 3)) == [3]
    assert neurons(model, "0", torch.randn(3)) == [3]


def test_conv1d_with_lstm() -> None:
    class Speech(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.lstm = nn.Conv1d(3, 5, 2), nn.LSTM(5, 6, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            output, _ = self.lstm(self.conv(x).transpose(1, 2))
            return output

    model = Speech()
    with record(model, ["conv", "lstm"], method="both") as recording:
        model(torch.randn(2, 3, 9))
    found = {name: counter.n_neurons for name, counter in recording.counters.items()}
    assert found == {"conv.input": 3, "conv": 5, "lstm.input": 5, "lstm": 6}
    assert all(recording.counters[name].n_states == 16 for name in ("conv", "lstm.input", "lstm"))


@pytest.mark.parametrize(
    "given",
    [2, -2, {"0": 2}, {"Conv2d": 2}, {nn.Conv2d: -2}, lambda name, module, tensor: tensor.ndim - 2],
)
def test_channel_axis_given_by_the_user_comes_first(given: Any) -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 2), nn.ReLU())
    assert neurons(model, "Conv2d", torch.randn(2, 3, 9, 8), channel_axis=given) == [8]


def test_callable_may_leave_it_to_the_rules_and_activations_follow_what_was_given() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 2), nn.ReLU())
    axis = lambda name, module, tensor: 3 if name == "0" else None  # noqa: E731
    assert neurons(model, "*", torch.randn(2, 3, 9, 6), channel_axis=axis) == [5, 5]
    model = nn.Sequential(nn.Conv2d(3, 4, 2), nn.ReLU())
    assert neurons(model, "*", torch.randn(2, 3, 9, 8), channel_axis=axis) == [7, 7]


def test_axis_that_is_not_there_is_an_error_that_names_the_layer() -> None:
    with pytest.raises(ProbeError, match="'0'"):
        neurons(nn.Sequential(nn.Linear(3, 2)), "0", torch.ones(4, 3), channel_axis=2)
    with pytest.raises(ProbeError, match=r"'0'.*channel_axis gave 'C'"):
        neurons(nn.Sequential(nn.Linear(3, 2)), "0", torch.ones(4, 3), channel_axis=lambda *_: "C")


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ("last", TypeError, "got 'last'"),
        ({"0": "last"}, TypeError, "'last', given for '0'"),
        ({"conv": 1}, ValueError, "'conv' matches no layer that is probed"),
    ],
)
def test_channel_axis_of_the_wrong_kind_is_refused(
    given: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        neurons(nn.Sequential(nn.Linear(3, 2)), "0", torch.ones(4, 3), channel_axis=given)


def test_convolution_of_another_class_has_its_channels_where_its_kernel_says() -> None:
    class Mixed(nn.Module):
        """Holds its weights as rows of one parameter, as CondConv does."""

        def __init__(self) -> None:
            super().__init__()
            self.in_channels, self.out_channels, self.kernel_size = 3, 6, (3, 3)
            self.weight = nn.Parameter(torch.randn(2, 6 * 3 * 3 * 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.conv2d(x, self.weight.mean(0).view(6, 3, 3, 3))

    model = nn.Sequential(Mixed(), nn.Conv2d(6, 4, 1), nn.Conv2d(4, 2, 1))
    assert neurons(model, None, torch.randn(2, 3, 8, 8)) == [6, 4]
    # As many rows as channels: the kernel tells all the same.
    assert neurons(model, None, torch.randn(2, 3, 8, 9)) == [6, 4]
