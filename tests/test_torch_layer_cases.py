"""Which layers are probed: by what they compute and by the order of calls, not by their names."""

import re
import warnings
from typing import Any

import pytest
import torch
import torchmetrics
from axis_oracle import collect_calls, unit_states
from case_modules import Conv1D
from own_warnings import ours
from state_oracle import counted_states
from torch import nn

from tensorstate_callbacks.torch import record


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def probed(model: nn.Module, *inputs: torch.Tensor, **options: Any) -> list[str]:
    with torch.no_grad(), record(model, **options) as recording:
        model(*inputs)
    return list(recording.counters)


class Bottleneck(nn.Module):
    """One activation at two widths, as in torchvision's ResNet-50."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.conv_1, self.conv_2 = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 12, 1)
        self.relu = nn.ReLU(inplace)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.conv_2(self.relu(self.conv_1(x))))


@pytest.mark.parametrize("inplace", [False, True])
def test_activation_used_at_two_widths_is_a_probe_of_each(inplace: bool) -> None:
    model = Bottleneck(inplace)
    kept = collect_calls(model, ["relu"])["relu"]
    batches = [torch.randn(4, 3, 9, 8), torch.randn(2, 3, 9, 8)]
    with torch.no_grad(), record(model, "ReLU") as recording:
        for batch in batches:
            model(batch)
    found = {name: counted_states(counter) for name, counter in recording.counters.items()}
    assert found == {"relu@6": unit_states(kept[::2], 1), "relu@12": unit_states(kept[1::2], 1)}
    report = recording.report()
    assert {name: layer.n_neurons for name, layer in report.layers.items()} == {
        "relu@6": 6,
        "relu@12": 12,
    }


def test_activation_used_at_two_widths_is_two_probes_of_its_inputs_too() -> None:
    model = Bottleneck()
    with torch.no_grad(), record(model, "relu", method="both") as recording:
        model(torch.randn(4, 3, 9, 8))
    widths = {name: counter.n_neurons for name, counter in recording.counters.items()}
    assert sorted(widths.values()) == [6, 6, 12, 12]
    assert all(re.search(rf"@{width}\b", name) for name, width in widths.items())


class OneWidth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_1, self.conv_2 = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.conv_2(self.relu(self.conv_1(x))))


def test_activation_used_twice_at_one_width_is_one_probe_with_its_plain_name() -> None:
    model = OneWidth()
    kept = collect_calls(model, ["relu"])["relu"]
    with torch.no_grad(), record(model, "ReLU") as recording:
        model(torch.randn(4, 3, 9, 8))
    assert list(recording.counters) == ["relu"]
    assert counted_states(recording.counters["relu"]) == unit_states(kept, 1)


class BothLayouts(nn.Module):
    """One activation on channels-first data and then on channels-last data."""

    def __init__(self, n_tokens: int) -> None:
        super().__init__()
        self.conv, self.dense = nn.Conv1d(3, 7, 3, padding=1), nn.Linear(7, n_tokens)
        self.activation = nn.GELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.dense(self.activation(self.conv(x)).transpose(1, 2)))


@pytest.mark.parametrize("n_places", [10, 7])
def test_activation_shared_by_both_layouts_is_summed_where_its_widths_agree(n_places: int) -> None:
    model = BothLayouts(7)
    kept = collect_calls(model, ["activation"])["activation"]
    with torch.no_grad(), record(model, "GELU") as recording:
        model(torch.randn(4, 3, n_places))
        model(torch.randn(3, 3, n_places))
    last = [batch.transpose(1, 2) for batch in kept[1::2]]
    assert list(recording.counters) == ["activation"]
    found = counted_states(recording.counters["activation"])
    assert found == unit_states([*kept[::2], *last], 1)


def test_activation_shared_by_both_layouts_at_two_widths_is_two_probes() -> None:
    model = BothLayouts(5)
    kept = collect_calls(model, ["activation"])["activation"]
    with torch.no_grad(), record(model, "GELU") as recording:
        model(torch.randn(4, 3, 10))
    found = {name: counted_states(counter) for name, counter in recording.counters.items()}
    assert found == {
        "activation@7": unit_states(kept[:1], 1),
        "activation@5": unit_states(kept[1:], 2),
    }


class OutputFirst(nn.Module):
    """An output layer that is defined before the others."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Conv2d(5, 2, 1)
        self.body = nn.Sequential(nn.Conv2d(3, 7, 3), nn.ReLU(), nn.Conv2d(7, 5, 3))
        self.unused = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.body(x).relu())


def test_output_layer_is_the_last_one_called() -> None:
    model = OutputFirst()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert probed(model, torch.randn(4, 3, 9, 8)) == ["body.0", "body.2"]
    # `unused` is no layer of this pass; that may be said, once.
    assert len(ours(caught)) <= 1


def test_output_layer_is_counted_where_it_is_asked_for() -> None:
    assert probed(OutputFirst(), torch.randn(4, 3, 9, 8), attach_to="out") == ["out"]


class LoraLinear(nn.Module):
    """A dense layer with a low-rank change beside it, as peft wraps it."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, base.out_features, bias=False)})
        self.lora_dropout = nn.ModuleDict({"default": nn.Identity()})
        nn.init.zeros_(self.lora_B["default"].weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        change = self.lora_A["default"](self.lora_dropout["default"](x))
        return self.base_layer(x) + self.lora_B["default"](change)


class PlainLora(nn.Module):
    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.lora_B(self.lora_A(x))


@pytest.mark.parametrize("wrapper", [LoraLinear, PlainLora])
def test_adapted_dense_layer_is_one_layer_with_the_numbers_of_before(wrapper: Any) -> None:
    model = nn.Sequential(
        *(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 9), nn.Tanh(), nn.Linear(9, 4)),
    )
    data = torch.randn(40, 6)
    with torch.no_grad(), record(model) as plain:
        model(data)
    for i in (0, 2, 4):
        model[i] = wrapper(model[i])
    with torch.no_grad(), record(model) as adapted:
        model(data)
    assert list(plain.counters) == list(adapted.counters) == ["0", "2"]
    before, after = plain.report(0.5), adapted.report(0.5)
    assert (before.efficiency, before.aiq) == (after.efficiency, after.aiq)
    assert before.efficiency > 0


def test_parts_of_an_adapted_layer_are_probed_where_they_are_asked_for() -> None:
    model = nn.Sequential(PlainLora(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 3))
    found = probed(model, torch.randn(4, 6), attach_to=["0.base", "0.lora_A"])
    assert found == ["0.base", "0.lora_A"]


class Gpt(nn.Module):
    """Dense layers by another name, and an output layer of torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 6)
        self.c_fc, self.c_proj = Conv1D(12, 6), Conv1D(6, 12)
        self.head = nn.Linear(6, 30, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        return self.head(x + self.c_proj(torch.relu(self.c_fc(x))))


def test_dense_layers_by_another_name_are_found() -> None:
    model = Gpt()
    kept = collect_calls(model, ["c_fc", "c_proj"])
    with torch.no_grad(), record(model) as recording:
        model(torch.arange(20).reshape(4, 5))
    found = {name: counted_states(counter) for name, counter in recording.counters.items()}
    assert found == {name: unit_states(kept[name], 2) for name in ("c_fc", "c_proj")}


class PerceptualMetric(torchmetrics.Metric):
    """A metric that judges by a network of its own."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1))
        self.add_state("total", default=torch.zeros(()), dist_reduce_fx="sum")

    def update(self, output: torch.Tensor) -> None:
        self.total += self.net(output).sum()

    def compute(self) -> torch.Tensor:
        return self.total


class PerceptualLoss(nn.modules.loss._Loss):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1))

    def forward(self, output: torch.Tensor) -> torch.Tensor:
        return self.net(output).sum()


class Judged(nn.Module):
    def __init__(self, judge: nn.Module) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(6, 8), nn.Linear(8, 3)
        self.judge = judge

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output = self.out(self.hidden(x).relu())
        self.judge(output)
        return output


@pytest.mark.parametrize("judge", [PerceptualMetric, PerceptualLoss])
def test_networks_of_metrics_and_losses_are_no_part_of_the_model(judge: Any) -> None:
    assert probed(Judged(judge()), torch.randn(4, 6)) == ["hidden"]


def test_network_of_a_loss_is_probed_where_it_is_asked_for() -> None:
    found = probed(Judged(PerceptualLoss()), torch.randn(4, 6), attach_to="judge.net.0")
    assert found == ["judge.net.0"]
