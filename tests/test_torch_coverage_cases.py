"""What the probes don't cover is said once: weights, experts without tokens, outputs of no use."""

import re
import warnings
from typing import Any

import pytest
import torch
from own_warnings import ours
from torch import nn

from tensorstate_callbacks import TensorStateError
from tensorstate_callbacks.torch import record


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def recorded(model: nn.Module, data: torch.Tensor, **options: Any) -> tuple[list[str], list[str]]:
    """The probes, and what was warned of, over two batches."""
    with (
        warnings.catch_warnings(record=True) as caught,
        torch.no_grad(),
        record(model, **options) as recording,
    ):
        warnings.simplefilter("always")
        model(data)
        model(data[:2])
    # The block's end may speak too.
    return list(recording.counters), ours(caught)


class Experts(nn.Module):
    """A mixture of experts whose weights are one parameter, as in transformers' Mixtral."""

    def __init__(self, n: int, n_experts: int = 8) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.randn(n_experts, n, 4 * n))
        self.down = nn.Parameter(torch.randn(n_experts, 4 * n, n))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum(
            "btei,eio->bto", torch.einsum("bti,eio->bteo", x, self.gate_up), self.down
        )


class Recurrent(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(n, 6 * n, batch_first=True)
        self.shrink = nn.Linear(6 * n, n)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shrink(self.lstm(x)[0])


def share(model: nn.Module, names: list[str]) -> float:
    weights = sum(p.numel() for name in names for p in model.get_submodule(name).parameters())
    return 100 * weights / sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("block", "owner", "layers"),
    [(Experts, "2", ["0"]), (Recurrent, "2.lstm", ["0", "2.shrink"])],
)
def test_default_names_the_weights_that_it_does_not_cover(
    block: Any, owner: str, layers: list[str]
) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), block(8), nn.Linear(8, 2))
    probes, (text,) = recorded(model, torch.randn(4, 5, 6))
    assert probes == layers
    assert re.search(rf"\b{re.escape(owner)}\b", text)
    # The share with the output layer counted as covered, or not: the two are close by.
    told = [float(number) for number in re.findall(r"(\d+(?:\.\d+)?) ?%", text)]
    assert any(abs(number - share(model, layers)) < 3 for number in told), text


def test_what_was_asked_for_is_not_said_to_cover_too_little() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), Recurrent(8), nn.Linear(8, 2))
    assert recorded(model, torch.randn(4, 5, 6), attach_to="0") == (["0"], [])


def test_default_that_covers_nearly_all_weights_is_not_warned_of() -> None:
    model = nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.LayerNorm(30), nn.Linear(30, 2))
    assert recorded(model, torch.randn(4, 5, 6)) == (["0"], [])


class Gives(nn.Module):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: torch.Tensor) -> Any:
        return self.value


class Chatty(nn.Module):
    """A model with a part that gives no tensor."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.first, self.part, self.last = nn.Linear(6, 8), Gives(value), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.part(x)
        return self.last(self.first(x))


@pytest.mark.parametrize("value", ["text", None, (), {"loss": None}])
def test_part_without_a_tensor_is_left_out_among_many(value: Any) -> None:
    probes, told = recorded(Chatty(value), torch.randn(4, 6), attach_to="*")
    assert probes == ["first", "last"]
    assert len(told) == 1
    assert "part" in told[0]


@pytest.mark.parametrize("value", ["text", None])
def test_part_without_a_tensor_is_refused_alone(value: Any) -> None:
    model = Chatty(value)
    with pytest.raises(TensorStateError, match="part"), record(model, "part"):
        model(torch.randn(4, 6))


def test_identity_on_none_is_left_out_among_many() -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.mask = nn.Linear(6, 8), nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.mask(None)
            return self.first(x)

    probes, told = recorded(Optional(), torch.randn(4, 6), attach_to=lambda *_: True)
    assert probes == ["first"]
    assert len(told) == 1
    assert "mask" in told[0]


class Routed(nn.Module):
    """Experts of which one gets no token."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.out = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        half = len(x) // 2
        parts = [(self.experts[0], x[:half]), (self.experts[1], x[half:])]
        return self.out(torch.cat([expert(part) for expert, part in parts]))


def test_expert_without_tokens_is_named_once() -> None:
    probes, told = recorded(Routed(), torch.randn(8, 6))
    assert probes == ["experts.0", "experts.1"]
    assert len(told) == 1
    assert "experts.2" in told[0]
