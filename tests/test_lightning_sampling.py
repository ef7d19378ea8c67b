"""Groups, positions and a memory budget in Lightning, against NumPy on the layers' outputs."""

from typing import Any

import numpy as np
import pytest
import torch
from lightning_models import QUIET, Classifier, Curves, loader, pl, trainer
from sampling_oracle import fail_to_count, sampled_efficiency
from torch import nn
from torch.utils.data import TensorDataset

from tensorstate_callbacks import TensorStateWarning
from tensorstate_callbacks.lightning import EfficiencyCallback

pytestmark = [pytest.mark.filterwarnings(text) for text in QUIET]

CONVOLUTIONS = {"net.0": 0, "net.2": 2}


def pictures(n: int, seed: int) -> TensorDataset:
    x = torch.randn(n, 3, 11, 9, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, (x.mean((1, 2, 3)) > 0).long())


TRAIN, VAL = pictures(20, 1), pictures(23, 2)


class Convolutions(Classifier):
    """Convolutions of 20 and 33 neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 20, 3), nn.ReLU(), nn.Conv2d(20, 33, 3), nn.Flatten(), nn.Linear(1155, 3)
        )


def expected(
    weights: dict[str, torch.Tensor], group_size: int | None, positions: int | None
) -> dict[str, tuple[float, int]]:
    model = Convolutions()
    model.load_state_dict(weights)
    found = {}
    for name, last in CONVOLUTIONS.items():
        with torch.no_grad():
            values = model.net[: last + 1](VAL.tensors[0]).movedim(1, -1).numpy()
        found[name] = sampled_efficiency(values, values.shape[1:-1], group_size, positions)
    return found


@pytest.mark.parametrize(
    ("group_size", "positions"), [(None, 10), (8, None), (8, 10), (1, 3), (22, 1000)]
)
def test_each_epoch_is_that_of_numpy(group_size: int | None, positions: int | None) -> None:
    curves = Curves()
    callback = EfficiencyCallback("Conv2d", group_size=group_size, positions=positions, prefix="s_")
    trainer(callback, curves, max_epochs=2).fit(Convolutions(), loader(TRAIN), loader(VAL, 6))
    assert len(callback.history) == 2
    for epoch, report in enumerate(callback.history):
        oracle = expected(curves.weights[epoch], group_size, positions)
        assert {name: x.n_states for name, x in report.layers.items()} == {
            name: n_states for name, (_, n_states) in oracle.items()
        }
        # A batch of another size may be rounded another way, where an activation is near 0.
        for name, (efficiency, _) in oracle.items():
            assert curves.of(f"val_s_efficiency/{name}")[epoch] == pytest.approx(
                efficiency, rel=2e-3
            )


def test_batches_and_order_change_nothing() -> None:
    model, found = Convolutions(), []
    for batch_size, order in ((23, slice(None)), (4, slice(None)), (7, torch.arange(22, -1, -1))):
        callback = EfficiencyCallback("Conv2d", group_size=8, positions=10)
        data = TensorDataset(*(tensor[order] for tensor in VAL.tensors))
        trainer(callback).validate(model, loader(data, batch_size), verbose=False)
        found.append(callback.last.layers)
    for layers in found[1:]:
        for name, layer in layers.items():
            assert layer.n_states == found[0][name].n_states == 230
            assert layer.efficiency == pytest.approx(found[0][name].efficiency, rel=2e-3)


def test_a_fit_stops_on_groups_beside_the_paper() -> None:
    """Both stand in the same logs, and early stopping finds that of groups."""
    paper = EfficiencyCallback("Conv2d")
    groups = EfficiencyCallback("Conv2d", group_size=8, prefix="g8_")
    stop = pl.callbacks.EarlyStopping("val_g8_aiq", mode="max", patience=1, min_delta=1)
    curves = Curves()
    trained = trainer(paper, groups, stop, curves, max_epochs=9)
    trained.fit(Convolutions(), loader(TRAIN), loader(VAL))
    assert trained.current_epoch == len(groups.history) == 2
    for name in CONVOLUTIONS:
        below, above = curves.of(f"val_efficiency/{name}"), curves.of(f"val_g8_efficiency/{name}")
        assert np.all(np.array(below) < np.array(above))
        assert above[-1] <= groups.last.layers[name].rate_bound
        assert paper.last.layers[name].rate_bound == groups.last.layers[name].rate_bound


def test_a_budget_thins_layers_and_says_so() -> None:
    def evaluated(**options: Any) -> EfficiencyCallback:
        callback = EfficiencyCallback("Conv2d", **options)
        trainer(callback).validate(model, loader(VAL, 5), verbose=False)
        return callback

    model = Convolutions()
    text = r"max_memory .*: fewer positions .* net\.0 \(4 of 63\), net\.2 \(3 of 35\)"
    with pytest.warns(TensorStateWarning, match=text):
        short = evaluated(max_memory=60_000).last.layers
    assert short["net.0"] == evaluated(positions=4).last.layers["net.0"]
    assert short["net.2"] == evaluated(positions=3).last.layers["net.2"]


@pytest.mark.parametrize("group_size", [None, 8])
def test_a_counter_that_finds_no_memory_costs_the_layer(
    group_size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_to_count(monkeypatch, 20)
    callback, curves = EfficiencyCallback("Conv2d", group_size=group_size), Curves()
    with pytest.warns(TensorStateWarning, match=r"memory.*net\.0 could not be counted at all"):
        trainer(callback, curves, max_epochs=2).fit(Convolutions(), loader(TRAIN), loader(VAL, 6))
    assert [list(report.layers) for report in callback.history] == [["net.2"]] * 2
    for epoch, weights in enumerate(curves.weights):
        efficiency, _ = expected(weights, group_size, None)["net.2"]
        assert curves.of("val_efficiency")[epoch] == pytest.approx(efficiency, rel=2e-3)
