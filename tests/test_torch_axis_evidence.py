"""The axis of neurons by a module's parameters, by what a user gave, or said to be a guess."""

import warnings
from typing import Any

import pytest
import torch
from axis_oracle import check_axes, collect_calls, unit_states
from case_modules import Attention, FirstLayerNorm, Fn, LayerNorm2d, RMSNorm
from own_warnings import ours
from state_oracle import counted_states
from torch import nn

from tensorstate_callbacks import ProbeError
from tensorstate_callbacks.torch import record


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("norm", "shape", "axis"),
    [
        (RMSNorm((8,), -1), (5, 6, 8), 2),
        (RMSNorm((8,), -1), (5, 6, 3, 8), 3),
        (RMSNorm((8, 1), -2), (5, 8, 6), 1),
        (RMSNorm((1, 8, 1, 1), 1), (5, 8, 6, 7), 1),
        (RMSNorm((8, 1, 1), 1), (5, 8, 6, 7), 1),
        (nn.RMSNorm(8), (5, 6, 3, 8), 3),
        (nn.LayerNorm(8), (5, 6, 3, 8), 3),
        (LayerNorm2d(8), (5, 8, 6, 7), 1),
        (FirstLayerNorm(8), (5, 8, 6), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
@pytest.mark.parametrize("behind", ["the data", "a convolution"])
def test_norm_has_the_axis_that_its_weight_lies_on(
    norm: nn.Module, shape: tuple[int, ...], axis: int, behind: str
) -> None:
    layers: list[nn.Module] = [norm, nn.GELU()]
    if behind == "a convolution":
        # It gives the norm what is of `shape`, with the convolution's channels on the norm's axis.
        n = shape[axis]
        convolution = (nn.Conv1d if len(shape) == 3 else nn.Conv2d)(n, n, 1)
        layers = [convolution, Fn(lambda x: x.movedim(1, axis).contiguous()), *layers]
        shape = (shape[0], n, *(size for i, size in enumerate(shape) if i not in (0, axis)))
    at = len(layers) - 2
    with torch.no_grad():
        batches = torch.randn(*shape), torch.randn(2, *shape[1:])
        check_axes(nn.Sequential(*layers), {str(at): axis, str(at + 1): axis}, *batches)


@pytest.mark.parametrize(
    ("norm", "axis"),
    [
        (RMSNorm((8,), -1), 2),
        (RMSNorm((8, 1), -2), 1),
        (nn.LayerNorm(8), 2),
        (FirstLayerNorm(8), 1),
    ],
    ids=["last", "second", "LayerNorm", "FirstLayerNorm"],
)
def test_norm_of_as_many_places_as_neurons_is_told_by_how_its_weight_broadcasts(
    norm: nn.Module, axis: int
) -> None:
    with torch.no_grad():
        check_axes(nn.Sequential(norm, nn.Tanh()), {"0": axis, "1": axis}, torch.randn(5, 8, 8))


def test_norm_of_heads_has_the_neurons_of_one_head() -> None:
    model = nn.Sequential(
        nn.Linear(6, 12), Fn(lambda x: x.unflatten(-1, (3, 4))), RMSNorm((4,), -1), nn.Dropout()
    ).eval()
    found = check_axes(model, {"0": 2, "2": 3}, torch.randn(5, 7, 6), torch.randn(5, 9, 6))
    assert found["2"] == 4


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Unfold(2), (4, 3, 6, 8)),
        (nn.Fold((6, 8), 2), (4, 12, 35)),
        (nn.PixelShuffle(2), (4, 12, 3, 5)),
        (nn.PixelUnshuffle(2), (4, 3, 6, 8)),
        (nn.Upsample(scale_factor=2), (4, 3, 7)),
        (nn.ChannelShuffle(2), (4, 6, 7, 5)),
        (nn.Dropout2d(), (4, 3, 6, 8)),
        (nn.Softmax2d(), (4, 3, 6, 8)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_layer_that_torch_documents_for_channels_needs_no_other_before_it(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    check_axes(nn.Sequential(layer, nn.Tanh()).eval(), {"0": 1, "1": 1}, torch.randn(*shape))


class Gate(nn.Module):
    """A norm by hand whose weight is used by a function of the module's."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.norm = nn.Parameter(torch.ones(7)), nn.Identity()
        self.activation = nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.norm(x) * self.scale)


def test_activation_of_a_model_with_a_norm_by_hand_is_counted() -> None:
    model = nn.Sequential(nn.Linear(6, 7), Gate(), RMSNorm((7,), -1), nn.ReLU())
    axes = {"0": 2, "1.activation": 2, "1": 2, "2": 2, "3": 2}
    check_axes(model, axes, torch.randn(4, 5, 6))


def test_unbatched_data_is_followed() -> None:
    model = nn.Sequential(nn.Conv1d(3, 8, 3, padding=1), Fn(lambda x: x[..., 1:]), nn.ReLU())
    check_axes(model, {"0": 0, "2": 0}, torch.randn(3, 13), torch.randn(3, 9))
    check_axes(model, {"0": -2, "2": -2}, torch.randn(5, 3, 13), torch.randn(3, 9))


def test_unbatched_image_is_followed() -> None:
    centre = Fn(lambda x: x - x.mean((-2, -1), keepdim=True))
    model = nn.Sequential(nn.Conv2d(3, 7, 3), centre, nn.ReLU(), nn.MaxPool2d(2))
    check_axes(model, {"0": 0, "2": 0, "3": 0}, torch.randn(3, 9, 9))


def test_unknown_origin_is_one_warning_that_says_what_was_taken() -> None:
    model = nn.Sequential(nn.Tanh())
    kept = collect_calls(model, ["0"])
    with warnings.catch_warnings(record=True) as caught, record(model, "0") as recording:
        warnings.simplefilter("always")
        for n_batch in (2, 2, 3):
            model(torch.randn(n_batch, 3, 9, 8))
    (text,) = ours(caught)
    assert "'0'" in text or " 0 " in text
    assert "(2, 3, 9, 8)" in text
    assert "axis 1" in text or "axis -3" in text
    assert "channel_axis=" in text
    assert counted_states(recording.counters["0"]) == unit_states(kept["0"], 1)


def test_given_axis_is_no_guess() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_axes(nn.Sequential(nn.Tanh()), {"0": 2}, torch.randn(2, 3, 9, 8), channel_axis=2)


def test_guess_that_changes_its_size_is_an_error_that_names_the_way_out() -> None:
    model = nn.Sequential(nn.Tanh())

    def run() -> None:
        with warnings.catch_warnings(), record(model, "0"):
            warnings.simplefilter("ignore")
            for n_places in (9, 7):
                model(torch.randn(4, 3, n_places))

    with pytest.raises(ProbeError, match=r"'0'[\s\S]*channel_axis"):
        run()


@pytest.mark.parametrize("given", [(-2, -1), (2, 3), {"1": (-2, -1)}, lambda *_: (2, 3)])
def test_several_axes_are_one_unit(given: Any) -> None:
    model = nn.Sequential(nn.Linear(6, 12), Fn(lambda x: x.unflatten(-1, (3, 4))))
    data = torch.randn(5, 7, 6), torch.randn(2, 9, 6)
    assert check_axes(model, {"1": (2, 3)}, *data, channel_axis=given) == {"1": 12}


def test_several_axes_need_not_be_neighbours() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3))
    found = check_axes(model, {"0": (1, 3)}, torch.randn(4, 3, 9, 8), channel_axis=(1, -1))
    assert found == {"0": 30}


@pytest.mark.parametrize(("given", "axis"), [(1, 1), (-3, 1), (2, 2), (-1, 3), (3, 3)])
def test_given_axis_counts_from_either_end(given: int, axis: int) -> None:
    check_axes(nn.Sequential(nn.ReLU()), {"0": axis}, torch.randn(4, 3, 9, 8), channel_axis=given)


def jagged(*lengths: int, heads: int | None = None, width: int = 5) -> torch.Tensor:
    """(B, j, D), or (B, H, j, D) where the number of heads is given."""
    if heads is None:
        parts = [torch.randn(n, width) for n in lengths]
        return torch.nested.nested_tensor(parts, layout=torch.jagged)
    parts = [torch.randn(n, heads, width) for n in lengths]
    return torch.nested.nested_tensor(parts, layout=torch.jagged).transpose(1, 2)


@pytest.mark.parametrize("given", [2, -1, None])
def test_jagged_tensor_has_its_neurons_last(given: int | None) -> None:
    model, data = nn.Sequential(nn.Linear(5, 6)), jagged(3, 4, 2)
    rows = model(data).unbind()
    with record(model, "0", channel_axis=given) as recording:
        model(data)
    expected = unit_states([torch.cat([*rows])], 1)
    assert counted_states(recording.counters["0"]) == expected


def test_jagged_tensor_of_heads_is_counted_over_the_axis_that_was_asked_for() -> None:
    model, data = nn.Sequential(nn.Identity()), jagged(3, 4, 2, heads=3)
    parts = data.unbind()
    for given in (1, -3):
        with record(model, "0", channel_axis=given) as recording:
            model(data)
        expected = unit_states([torch.cat([part.flatten(1).T for part in parts])], 1)
        assert counted_states(recording.counters["0"]) == expected
    for given in (3, -1):
        with record(model, "0", channel_axis=given) as recording:
            model(data)
        expected = unit_states([torch.cat([part.flatten(0, 1) for part in parts])], 1)
        assert counted_states(recording.counters["0"]) == expected
    with record(model, "0", channel_axis=(1, 3)) as recording:
        model(data)
    expected = unit_states([torch.cat([part.transpose(0, 1).flatten(1) for part in parts])], 1)
    assert counted_states(recording.counters["0"]) == expected


def test_scripted_part_between_is_followed() -> None:
    class Crop(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :, 1:]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        crop = torch.jit.script(Crop())
    model = nn.Sequential(nn.Conv1d(3, 8, 3, padding=1), crop, nn.ReLU())
    check_axes(model, {"0": 1, "2": 1}, torch.randn(5, 3, 13), torch.randn(5, 3, 9))


class EarlyPath(nn.Module):
    """One activation on channels-first or on channels-last data, as its input tells."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.activation = nn.Conv2d(3, 7, 3, padding=1), nn.GELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.activation(y if x.shape[2] > 9 else y.permute(0, 2, 3, 1))


@pytest.mark.parametrize("n_before", [1, 3])
@pytest.mark.parametrize("shape", [(4, 3, 8, 9), (4, 3, 7, 9), (4, 3, 7, 7)])
def test_batch_that_takes_another_path_is_followed_too(n_before: int, shape: Any) -> None:
    model = EarlyPath()
    batches = [torch.randn(4, 3, 12, 10) for _ in range(n_before)] + [torch.randn(*shape)]
    kept = [model(batch) for batch in batches]
    kept[-1] = kept[-1].permute(0, 3, 1, 2)
    with record(model, "GELU") as recording:
        for batch in batches:
            model(batch)
    found = {name: counted_states(counter) for name, counter in recording.counters.items()}
    assert found == {"activation": unit_states(kept, 1)}


class Parts(nn.Module):
    """A model whose parts a training step calls one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Conv1d(3, 8, 3, padding=1), nn.ReLU())
        self.decode = nn.Sequential(nn.Tanh(), nn.Conv1d(8, 2, 1))


def test_parts_that_are_called_alone_are_right_or_said_to_be_guessed() -> None:
    model = Parts()
    kept = collect_calls(model, ["encode.1", "decode.0"])
    with warnings.catch_warnings(record=True) as caught, record(model, "*.*") as recording:
        warnings.simplefilter("always")
        for n_batch in (5, 5, 3):
            model.decode(model.encode(torch.randn(n_batch, 3, 13))[:, :, 1:])
    found = {name: counted_states(counter) for name, counter in recording.counters.items()}
    assert found["encode.1"] == unit_states(kept["encode.1"], 1)
    if found["decode.0"] != unit_states(kept["decode.0"], 1):
        (text,) = ours(caught)
        assert "decode.0" in text
        assert "encode.1" not in text


def test_attention_of_many_lengths_has_one_number_of_neurons() -> None:
    model = nn.Sequential(Attention(8, 2), nn.Dropout()).eval()
    batches = [torch.randn(5, n, 8) for n in (8, 5, 11)]
    check_axes(model, {"0.qkv": 2, "0.drop": 2, "1": 2}, *batches)
