"""Following the neurons' axis through operations, and when it begins and ends."""

import copy
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from state_oracle import counted_states, expected_states
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from tensorstate_callbacks import ProbeError, build_efficiency_model
from tensorstate_callbacks.torch import record
from tensorstate_callbacks.torch.following import Follow
from tensorstate_callbacks.torch.places import Places, resolve

Move = Callable[[torch.Tensor], torch.Tensor]


def hooks_on(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def place_after(move: Move, tensor: torch.Tensor, axis: int | None) -> Any:
    """The axes on which `move`'s result has its neurons, counted from the end."""
    places = Places()
    places.set(tensor, None)
    if axis is not None:
        places.set_axis(tensor, axis)
    with torch.no_grad(), Follow(places):
        result = move(tensor)
    place = places.get(result)
    assert place is not None
    return None if place.parts is None else resolve(place.parts, place.shape)


def neurons_of(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    """A tensor of the same shape that holds each entry's neuron: what moves data moves it too."""
    shape = [1] * tensor.ndim
    shape[axis] = -1
    return torch.arange(tensor.shape[axis]).view(shape).expand(tensor.shape)


def random_move(data: st.DataObject, shape: tuple[int, ...]) -> tuple[Move, str]:
    n = len(shape)
    axis = data.draw(st.integers(0, n - 1))
    kinds = ["permute", "unsqueeze", "view", "flatten", "roll"]
    kinds += ["slice"] * (shape[axis] > 1) + ["split"] * (shape[axis] % 2 == 0)
    kind = data.draw(st.sampled_from(kinds))
    order = data.draw(st.permutations(range(n)))
    moves: dict[str, Move] = {
        "permute": lambda t: t.permute(*order),
        "unsqueeze": lambda t: t.unsqueeze(axis),
        # An axis becomes two.
        "view": lambda t: t.reshape(
            *shape[:axis],
            *((2, shape[axis] // 2) if shape[axis] % 2 == 0 else (1, shape[axis])),
            *shape[axis + 1 :],
        ),
        "flatten": lambda t: t.flatten(axis, min(axis + 1, n - 1)),
        "slice": lambda t: t.narrow(axis, 1, shape[axis] - 1),
        "split": lambda t: t.chunk(2, axis)[1],
        "roll": lambda t: t.roll(1, axis),
    }
    return moves[kind], kind


@given(st.data())
def test_what_moves_data_moves_the_place_of_the_neurons(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=2, max_size=4)))
    start = data.draw(st.integers(0, len(shape) - 1))
    tensor = torch.zeros(shape)
    moved, at = tensor, neurons_of(tensor, start)
    moves: list[Move] = []
    for _ in range(data.draw(st.integers(1, 5))):
        move, _ = random_move(data, tuple(moved.shape))
        moves.append(move)
        moved, at = move(moved), move(at)

    def all_of_them(t: torch.Tensor) -> torch.Tensor:
        for move in moves:
            t = move(t)
        return t

    axes = place_after(all_of_them, tensor, start)
    if axes is None:
        return  # Mixed with the samples, or cut where it was: nothing is claimed.
    axes = (axes,) if isinstance(axes, int) else axes
    rest = [axis for axis in range(at.ndim) if axis - at.ndim not in axes]
    spread = at.permute(*rest, *(axis % at.ndim for axis in axes))
    lined_up = spread.reshape(*spread.shape[: len(rest)], -1)
    # Some neurons may lie among the positions, or positions among the neurons.
    if lined_up.shape[-1] == len(set(at.flatten().tolist())):
        first = lined_up.reshape(-1, lined_up.shape[-1])[0]
        assert (lined_up == first).all()
        assert len(set(first.tolist())) == len(first)


@pytest.mark.parametrize(
    ("move", "shape", "axis", "found"),
    [
        (lambda t: torch.relu(t)[:, :, :-2], (2, 5, 7), 1, -2),
        (lambda t: t.view(2, 5, 4, 2).transpose(1, 2), (2, 5, 8), 2, (-3, -1)),
        (lambda t: t.view(2, 5, 4, 2).transpose(1, 2).transpose(1, 2).flatten(2), (2, 5, 8), 2, -1),
        (lambda t: t.view(2, 2, 4, 3, 3).transpose(1, 2).flatten(1, 2), (2, 8, 3, 3), 1, -3),
        (lambda t: t * t.mean((2, 3), keepdim=True), (2, 5, 3, 4), 1, -3),
        (lambda t: t.mean((2, 3)), (2, 5, 3, 4), 1, -1),
        (lambda t: t.flatten(2).max(-1).values, (2, 5, 3, 4), 1, -1),
        (lambda t: t[:, [0, 2, 2]], (2, 5, 3, 4), 1, -3),
        (lambda t: t[:, :, torch.tensor([0, 2])], (2, 5, 3, 4), 1, -3),
        (lambda t: t[torch.ones(2, 3, dtype=torch.bool)], (2, 3, 5), 2, -1),
        (lambda t: t[:, 0], (2, 5, 3), 1, ()),
        (lambda t: torch.stack([t, t], 1), (2, 5, 3), 1, -2),
        (lambda t: torch.cat([t, t], 2), (2, 5, 3), 1, -2),
        (lambda t: t @ torch.ones(5, 4), (2, 3, 5), None, -1),
        (lambda t: torch.einsum("oc,bct->bot", torch.ones(4, 5), t), (2, 5, 3), None, -2),
        (lambda t: t.flatten(1), (2, 5, 3), 1, -1),
        (lambda t: t.flatten(0, 1), (2, 5, 3), 1, None),
        (lambda t: nn.functional.unfold(t, 2), (2, 5, 3, 4), 1, -2),
        (lambda t: nn.functional.pixel_shuffle(t, 2), (2, 8, 3, 4), 1, -3),
        (lambda t: nn.functional.interpolate(t, 9, mode="linear"), (2, 5, 3), 1, -2),
        (lambda t: nn.functional.interpolate(t, 9, mode="bilinear"), (2, 5, 3, 4), 1, -3),
        (lambda t: nn.functional.glu(t, 1), (2, 6, 5), 1, -2),
    ],
)
def test_place_after_an_operation(move: Move, shape: Any, axis: int | None, found: Any) -> None:
    assert place_after(move, torch.randn(*shape), axis) == found


def test_what_is_written_into_a_buffer_stands_in_it() -> None:
    def fill(t: torch.Tensor) -> torch.Tensor:
        buffer = torch.zeros(2, 5, 9)
        buffer[:, :, :3] = t
        return buffer

    assert place_after(fill, torch.randn(2, 5, 3), 1) == -2


def crop() -> nn.Sequential:
    class Crop(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :, :-2]

    return nn.Sequential(nn.Conv1d(3, 8, 3, padding=2), Crop(), nn.ReLU())


def test_following_ends_once_all_is_known_and_its_hooks_are_gone() -> None:
    model, counts = crop(), []
    with torch.no_grad(), record(model, "ReLU") as recording:
        for _ in range(4):
            model(torch.randn(2, 3, 20))
            counts.append(hooks_on(model))
    # The first run finds out, the second brings nothing new; what stays are the probe, the two
    # hooks that tell runs apart, and one that looks out for samples of another shape.
    assert counts[0] > counts[1] == counts[2] == 4
    assert hooks_on(model) == 0
    assert recording.counters["2"].n_neurons == 8


def test_activation_used_with_two_layouts_is_followed_as_long_as_it_runs() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc, self.act = nn.Conv1d(3, 6, 3, padding=1), nn.Linear(6, 6), nn.GELU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act(self.fc(self.act(self.conv(x)).transpose(1, 2)))

    model, batches, seen = Both(), [torch.randn(n, 3, 6) for n in (4, 3, 5)], []
    model.act.register_forward_hook(lambda m, args, output: seen.append(output))
    with torch.no_grad(), record(model, "act") as recording:
        for batch in batches:
            model(batch)
    last = [t.transpose(1, 2) if i % 2 == 0 else t for i, t in enumerate(seen)]
    assert counted_states(recording.counters["act"]) == expected_states(last, 2)


def test_branch_that_runs_late_is_counted_on_its_axis() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.one, self.two = nn.Conv2d(3, 7, 3), nn.ReLU(), nn.ReLU()
            self.late = False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.two if self.late else self.one)(self.conv(x).permute(0, 2, 3, 1))

    model = Branch()
    with torch.no_grad(), record(model, "ReLU") as recording:
        for late in (False, False, False, True):
            model.late = late
            model(torch.randn(2, 3, 8, 6))
    assert {name: c.n_neurons for name, c in recording.counters.items()} == {"one": 7, "two": 7}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_followed_any_more_after_a_call_that_is_broken_off(error: Any) -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise error

    model = nn.Sequential(*crop(), Broken())
    with pytest.raises(error), record(model, "ReLU") as recording:
        model(torch.randn(2, 3, 20))
    assert _get_current_dispatch_mode_stack() == []
    assert hooks_on(model) == 0
    assert recording.counters["2"].n_states == 2 * 20


def test_copy_of_a_model_with_state_layers_follows_its_own_calls() -> None:
    model = build_efficiency_model(crop(), attach_to=["ReLU"])
    twin = copy.deepcopy(model)
    for run, n_batches in ((twin, 3), (model, 2)):
        for _ in range(n_batches):
            run(torch.randn(2, 3, 20))
        (layer,) = run.efficiency_layers
        assert (layer.max_entropy(), layer.state_count) == (8, n_batches * 2 * 20)


def test_flattened_features_whose_number_changes_are_an_error() -> None:
    model = nn.Sequential(nn.Conv1d(3, 8, 3), nn.Flatten(), nn.ReLU())
    with record(model, "ReLU"):
        model(torch.randn(2, 3, 16))
        with pytest.raises(ProbeError, match="layer '2'.*144 entries, and had 112.*channel_axis="):
            model(torch.randn(2, 3, 20))


def test_axis_given_wrongly_is_an_error_once_it_changes_its_size() -> None:
    model = nn.Sequential(nn.Linear(3, 4))
    with record(model, "0", channel_axis=0):
        model(torch.randn(5, 3))
        with pytest.raises(ProbeError, match="layer '0'.*2 entries, and had 5"):
            model(torch.randn(2, 3))


def test_outputs_are_the_same_to_the_bit_while_a_model_is_followed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(3, 8, 3),
        nn.GELU(),
        nn.TransformerEncoderLayer(18, 2, 16, batch_first=True),
        nn.LSTM(18, 5, batch_first=True),
    ).eval()
    data = torch.randn(4, 3, 20)
    plain, _ = model(data)
    with record(model, ["GELU", "Dropout"]):
        watched, _ = model(data)
    assert torch.equal(plain, watched)


def test_fast_path_of_encoder_layers_is_left_alone_while_a_model_is_followed() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(layer, nn.Dropout()).eval()
    data, fast = torch.randn(4, 6, 8), torch._transformer_encoder_layer_fwd
    with (
        torch.no_grad(),
        mock.patch.object(torch, "_transformer_encoder_layer_fwd", wraps=fast) as called,
    ):
        plain = model(data)
        with record(model, "1") as recording:
            assert torch.equal(model(data), plain)
    assert called.call_count == 2
    assert counted_states(recording.counters["1"]) == expected_states([plain], 2)
