"""Probe data in `torch.record`: planted changes to the bit, and nothing of it left behind."""

import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from interrupts import each_line
from test_torch_interrupts import our_hooks
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tensorstate_callbacks import ProbeChange, TensorStateWarning
from tensorstate_callbacks.torch import ProbeSet, record, record_training
from tensorstate_callbacks.torch.untouched import is_built

DATA = torch.randn(10, 4, generator=torch.Generator().manual_seed(1))
PROBE = torch.randn(7, 4, generator=torch.Generator().manual_seed(2))


def net() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Linear(4, 8),
        nn.BatchNorm1d(8),
        nn.Dropout(0.5),
        nn.ReLU(inplace=True),
        nn.Linear(8, 6),
        nn.Tanh(),
        nn.Linear(6, 2),
    )


def recorded(
    model: nn.Module, probe: Any, data: Any = DATA, **options: Any
) -> dict[str, ProbeChange | None]:
    with record(model, probe_data=probe, **options) as recording, torch.no_grad():
        model(data)
    return {name: layer.probe for name, layer in recording.report().layers.items()}


def change(found: dict[str, ProbeChange | None], layer: str) -> ProbeChange:
    probe = found[layer]
    assert probe is not None
    return probe


def bits(model: nn.Module, layer: int, data: torch.Tensor = PROBE) -> np.ndarray[Any, Any]:
    """What a layer fires, by running those before it one by one."""
    with torch.no_grad():
        for module in list(model.children())[: layer + 1]:
            data = module.eval()(data.clone())
    return (data > 0).numpy()


def test_planted_changes_are_told_exactly() -> None:
    model, probe = net().eval(), ProbeSet(PROBE)
    first = bits(model, 0)
    begun = change(recorded(model, probe), "0")
    flat = first.astype(float)
    kernel = flat @ flat.T + (1 - flat) @ (1 - flat).T
    sign, score = np.linalg.slogdet(kernel)
    assert sign > 0
    assert begun == ProbeChange(naswot=pytest.approx(score))
    # The same weights and data: nothing changes.
    same = recorded(model, probe)
    assert change(same, "0") == ProbeChange(0.0, 0.0, 1.0, begun.naswot)
    assert change(same, "4").since_previous == 0
    with torch.no_grad():
        model[0].weight[3] *= -1
        model[0].bias[3] *= -1
    flipped = recorded(model, probe)
    # All of one neuron's bits, of eight.
    assert change(flipped, "0") == ProbeChange(1 / 8, 1 / 8, 7 / 8, begun.naswot)
    fourth = bits(model, 4)
    with torch.no_grad():
        model[4].weight += 0.3
    moved = recorded(model, probe)
    # What comes before stands still.
    assert change(moved, "0") == ProbeChange(0.0, 1 / 8, 7 / 8, begun.naswot)
    assert change(moved, "4").since_previous == np.mean(bits(model, 4) != fourth)
    assert list(moved) == ["0", "4"]


def test_data_that_is_given_itself_has_the_score_alone() -> None:
    found = recorded(net(), PROBE)
    assert change(found, "0").since_previous is None
    assert change(found, "0").naswot is not None
    # Where nothing was asked for there is nothing.
    with record(net()) as recording:
        recording._model(DATA)
        assert recording.report().layers["0"].probe is None


class Noisy(nn.Module):
    """Draws in evaluation mode too, and counts its runs."""

    runs: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 40), nn.ReLU(), nn.Linear(40, 2))
        self.register_buffer("runs", torch.zeros(()))
        self.cache: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.runs += 1
        noise = torch.randn_like(x) + random.gauss(0, 1) + float(np.random.rand())
        if self.cache is None:
            self.cache = self.inner[0].weight.detach().mean() * 0
        return self.inner(x + noise) + self.cache


def trained(with_probe: bool) -> tuple[list[torch.Tensor], Any]:
    torch.manual_seed(3)
    random.seed(4)
    np.random.seed(5)
    model = nn.Sequential(Noisy(), nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    shuffled = DataLoader(
        TensorDataset(DATA), 5, shuffle=True, generator=torch.Generator().manual_seed(6)
    )
    probe = ProbeSet(shuffled) if with_probe else None
    for _ in range(3):
        model.train()
        model[3].eval()
        for (x,) in shuffled:
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
        # In the mode that it is in, and in the middle of gradients.
        loss = model(DATA).sum()
        with record(model, "Linear", probe_data=probe):
            model(DATA)
        assert [module.training for module in model] == [True, True, True, False]
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    state = [*model.state_dict().values(), *(p.grad for p in model.parameters())]
    drawn = torch.rand(3), random.gauss(0, 1), np.random.rand(2).tolist()
    return [each.clone() for each in state if each is not None], drawn


def test_training_goes_on_to_the_bit_as_without_it() -> None:
    with_it, drawn = trained(True)
    without, expected = trained(False)
    assert all(map(torch.equal, with_it, without))
    assert torch.equal(drawn[0], expected[0])
    assert drawn[1:] == expected[1:]


def test_a_model_that_draws_numbers_draws_the_same_each_time() -> None:
    model, probe = Noisy(), ProbeSet(PROBE)
    for _ in range(2):
        found = recorded(model, probe)
        torch.rand(1)
    assert change(found, "inner.0").since_previous == 0
    assert model.runs == 2


def test_hooks_of_others_stay_and_ours_are_gone() -> None:
    model, seen = net(), []
    model[0].register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    recorded(model, PROBE)
    assert seen == [False, False]
    assert our_hooks(model) == []
    assert [len(module._forward_hooks) for module in model] == [1, 0, 0, 0, 0, 0, 0]


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(4, 6)

    def forward(self, a: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
        return self.first(a), self.second(a if b is None else b)


def generated() -> Iterator[torch.Tensor]:
    yield PROBE[:3]
    yield PROBE[3:]


Y = torch.zeros(7)
FORMS: dict[str, Callable[[], Any]] = {
    "tensor": lambda: PROBE,
    "x and y": lambda: (PROBE, Y),
    "arguments": lambda: ((PROBE, PROBE), Y),
    "mapping": lambda: {"a": PROBE, "b": PROBE, "labels": Y},
    "mapping and y": lambda: ({"a": PROBE}, Y),
    "loader": lambda: DataLoader(TensorDataset(PROBE, Y), 4),
    "batch of a loader": lambda: next(iter(DataLoader(TensorDataset(PROBE, Y), 7))),
    "batches": lambda: list(DataLoader(TensorDataset(PROBE, Y), 4)),
    "mappings": lambda: [{"a": PROBE[:2]}, {"a": PROBE[2:]}],
    "generator": generated,
}


@pytest.mark.parametrize("form", FORMS)
def test_data_of_any_form_is_read_alike(form: str) -> None:
    torch.manual_seed(7)
    model, probe = Named(), ProbeSet(FORMS[form]())
    with record(model, "Linear", probe_data=probe) as recording:
        model(DATA)
    (first, second) = (layer.probe for layer in recording.report().layers.values())
    expected = {
        name: np.linalg.slogdet((2 * f - 1) @ (2 * f - 1).T / 2 + f.shape[1] / 2)[1]
        for name, f in (
            (name, (layer(PROBE) > 0).double().numpy()) for name, layer in model.named_children()
        )
    }
    assert first is not None
    assert second is not None
    assert (first.naswot, second.naswot) == pytest.approx((expected["first"], expected["second"]))


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        ("mnist", TypeError, "probe_data takes.*got 'mnist'"),
        (3, TypeError, "got 3"),
        (TensorDataset(PROBE), TypeError, "DataLoader with a few batches; got TensorDataset"),
        (object(), TypeError, "got object"),
    ],
)
def test_what_is_no_data_is_refused_at_once(data: Any, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        record(net(), probe_data=data)


def endless() -> Iterator[torch.Tensor]:
    while True:
        yield PROBE


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (torch.zeros(1025, 4), r"more than 1,024 samples"),
        (endless(), r"more than 1,024 samples"),
        (PROBE[:0], "no samples"),
        ([{"a": "b"}], "without a tensor"),
        (torch.zeros(3, 5), "failed with RuntimeError: mat1 and mat2"),
    ],
)
def test_what_cannot_be_run_is_warned_of_and_the_report_is_there(data: Any, words: str) -> None:
    model, probe = net(), ProbeSet(data)
    block = record(model, probe_data=probe)
    with pytest.warns(TensorStateWarning, match=words), block:
        model(DATA)
    assert block.report().layers["0"].probe is None
    assert block.report().layers["0"].n_states == 10
    assert recorded(model, probe) == {"0": None, "4": None}
    assert our_hooks(model) == []
    assert model.training
    # Nor does it end a report that processes merge, which compares it.
    assert block.settings["probe_data"]


def test_record_training_takes_none() -> None:
    with pytest.raises(ValueError, match="record_training takes no probe_data"):
        record_training(net(), probe_data=PROBE)


def test_lazy_models_are_not_built_by_it() -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2))
    assert not is_built(model)
    model(DATA)
    assert is_built(model)


def test_states_of_positions_masks_and_shared_layers() -> None:
    torch.manual_seed(1)
    conv, images = nn.Conv2d(2, 9, 3), torch.randn(5, 2, 6, 6)
    model, probe = nn.Sequential(conv, nn.ReLU(), conv.__class__(9, 3, 1)), ProbeSet(images)
    for _ in range(2):
        found = recorded(model, probe, images, attach_to="*", positions=4, method="both")
        with torch.no_grad():
            conv.weight[1] *= -1
            conv.bias[1] *= -1  # type: ignore[index]
    assert change(found, "0").since_previous == 1 / 9
    assert change(found, "0.input").since_previous == 0
    tokens, keep = torch.randn(3, 4, 6), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]])
    dense = nn.Linear(6, 5)
    masked = ProbeSet({"x": tokens, "attention_mask": keep})
    wide = nn.ModuleDict({"dense": dense})
    wide.forward = lambda x, attention_mask: dense(x)  # type: ignore[method-assign, assignment]
    for other in (0, 1):
        with (
            record(wide, "dense", probe_data=masked, mask="attention_mask") as recording,
            torch.no_grad(),
        ):
            wide(x=tokens, attention_mask=keep)
        found = {n: layer.probe for n, layer in recording.report().layers.items()}
        with torch.no_grad():
            # Only positions that don't count.
            masked.data.batches[0].given["x"][0, 2:] += 5 * (1 - other)
    assert change(found, "dense") == ProbeChange(0.0, 0.0, 1.0, None)


def test_a_mask_is_asked_for_with_the_batch_as_it_was_given() -> None:
    tokens, keep = torch.randn(3, 4, 6), torch.ones(3, 4)
    keep[0, 1:] = 0
    model, seen = nn.Sequential(nn.Linear(6, 5), nn.ReLU()), []

    def mask(name: str, batch: Any) -> Any:
        seen.append(batch)
        return batch[1]

    batches = DataLoader(TensorDataset(tokens, keep), 2)
    recording = record(model, "0", probe_data=batches, mask=mask)
    with recording, torch.no_grad():
        for batch in recording.batches(batches):
            model(batch[0])
    assert recording.report().layers["0"].n_states == 9
    assert recording.report().layers["0"].probe == ProbeChange()
    assert len(seen) == 4
    assert torch.equal(seen[2][1], keep[:2])


def test_a_set_goes_on_from_its_state() -> None:
    model, probe = net().eval(), ProbeSet(PROBE)
    recorded(model, probe)
    saved = probe.state_dict()
    other = ProbeSet(DATA)
    again = ProbeSet(PROBE.clone())
    for each in (other, again):
        each.load_state_dict(saved)
    with torch.no_grad():
        model[0].weight *= -1
    assert change(recorded(model, again), "0") == change(recorded(model, probe), "0")
    # Of other samples it begins anew.
    assert change(recorded(model, other), "0").since_first is None


def test_compiled_models_are_followed_and_stay_compiled() -> None:
    model = torch.compile(net().eval(), backend="eager")
    model(DATA)
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert change(recorded(model, ProbeSet(PROBE)), "0").naswot is not None
    model(DATA)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled


def test_inference_mode_around_it_leaves_nothing_that_cannot_be_trained_with() -> None:
    model = Noisy()
    with torch.inference_mode(), record(model, probe_data=PROBE) as recording:
        recording._model.inner(DATA)
    assert model.cache is not None
    assert not model.cache.is_inference()
    model(DATA).sum().backward()


# All lines: `make soak`.
MOST = None if os.environ.get("TENSORSTATE_SOAK") else 150
FILES = [
    *(f"torch/{name}.py" for name in ("probe_set", "probe_data", "untouched", "record")),
    *(f"recording/{name}.py" for name in ("probe_states", "probe_rows")),
]


def test_an_interrupt_at_any_line_leaves_no_trace() -> None:
    model = Noisy()
    model.inner[1].eval()
    modes = [module.training for module in model.modules()]
    drawn = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    probes: list[ProbeSet] = []

    def follow() -> dict[str, ProbeChange | None]:
        with record(model, "Linear", probe_data=probes[-1]) as recording, torch.no_grad():
            model.inner(DATA)
        return {name: layer.probe for name, layer in recording.report().layers.items()}

    def go() -> None:
        probes.append(ProbeSet(PROBE))
        follow()
        follow()

    n_lines = 0
    for where in each_line(FILES, go, most=MOST):
        n_lines += 1
        assert torch.is_grad_enabled(), where
        assert not torch.is_inference_mode_enabled(), where
        assert torch.is_autocast_cache_enabled(), where
        assert [module.training for module in model.modules()] == modes, where
        assert torch.equal(torch.get_rng_state(), drawn[0]), where
        assert random.getstate() == drawn[1], where
        assert np.random.get_state()[1].tolist() == drawn[2], where
        assert model.runs == 0, where
        assert our_hooks(model) == [], where
        # The samples are followed further: the weights are the same.
        if probes:
            found = [change(follow(), name) for name in ("inner.0", "inner.2")]
            assert {each.since_previous for each in found} <= {0.0, None}, where
            assert all(each.naswot is not None for each in found), where
    assert n_lines >= 100
