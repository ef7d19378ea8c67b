"""The snippets of docs/how_to/insight.md run as they stand there, and what they say is so."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tensorstate_callbacks import History, plot_classes, plot_neurons
from tensorstate_callbacks.torch import ProbeSet, record

PAGE = (Path(__file__).parent.parent / "docs" / "how_to" / "insight.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
N_SAMPLES = 300


class Net(nn.Module):
    """A hidden layer of which neuron 3 never fires, and 5 and 7 are copies of 2, once inverted."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc_1, self.pred = nn.Linear(6, 10), nn.Linear(10, 3)
        self.plant()

    @torch.no_grad()
    def plant(self) -> None:
        self.fc_1.bias[3] = -1e3
        for neuron, sign in ((5, 1), (7, -1)):
            self.fc_1.weight[neuron] = sign * self.fc_1.weight[2]
            self.fc_1.bias[neuron] = sign * self.fc_1.bias[2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.pred(torch.relu(self.fc_1(x)))
        return logits


def given() -> dict[str, Any]:
    """Return what the snippets take for granted."""
    data = torch.randn(N_SAMPLES, 6, generator=torch.Generator().manual_seed(1))
    labels = (data[:, 0] > 0.5).long() + (data[:, 0] > -0.5).long()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(data, labels), 64)
    epochs = []

    def train(model: Net) -> None:
        epochs.append(0)
        with torch.no_grad():
            # From the second epoch on neuron 0 is dead, and 1 is inverted.
            if len(epochs) == 2:
                model.fc_1.bias[0] = -1e3
                model.fc_1.weight[1] *= -1
                model.fc_1.bias[1] *= -1

    def validate(model: Net) -> None:
        with torch.no_grad():
            for x, _ in loader:
                model(x)

    names = {"History": History, "ProbeSet": ProbeSet, "record": record, "model": Net()}
    names |= {"plot_classes": plot_classes, "plot_neurons": plot_neurons, "x_val": data}
    return names | {"train": train, "validate": validate, "loader": loader}


def run(section: str) -> dict[str, Any]:
    (code,) = re.findall(r"```python\n(.*?)```", SECTIONS[section], re.DOTALL)
    names = given()
    exec(code, names)  # noqa: S102
    return names


def bits_of(names: dict[str, Any]) -> Any:
    """Return the states of the hidden layer on all data, shape `(samples, neurons)`."""
    with torch.no_grad():
        return (names["model"].fc_1(names["x_val"]) > 0).numpy()


def test_neurons_are_what_the_page_says():
    names = run("Neurons")
    layer, bits = names["layer"], bits_of(names)
    assert layer.firing_rates == pytest.approx(bits.mean(axis=0))
    assert layer.never_fired == (0, 3)
    assert layer.always_fired == tuple(np.flatnonzero(bits.all(axis=0)))
    assert (2, 5) in layer.agreeing
    assert ((2, 5), (7,)) in layer.opposing
    assert names["lines"].died == {0: 2, 3: 1}
    assert names["lines"].came_back == {}
    assert "2 of 10 dead in the end" in names["figure"].axes[0].get_title()


@pytest.mark.filterwarnings("ignore:Coverage is below")
def test_classes_are_what_the_page_says():
    names = run("Classes")
    classes, labels = names["classes"], names["loader"].dataset.tensors[1].numpy()
    assert classes.n_states.tolist() == np.bincount(labels).tolist()
    units = [np.packbits(part, axis=1) for part in np.split(bits_of(names), [8], axis=1)]

    def entropy(rows: Any) -> float:
        shares = np.unique(rows, axis=0, return_counts=True)[1] / len(rows)
        return float(-(shares * np.log2(shares)).sum())

    for label, efficiency in enumerate(classes.efficiency):
        expected = sum(entropy(unit[labels == label]) for unit in units) / 10
        assert efficiency == pytest.approx(expected)
    told = [
        entropy(unit) + entropy(labels) - entropy(np.column_stack([unit, labels])) for unit in units
    ]
    assert classes.information == pytest.approx(np.mean(told))
    assert classes.information > 3 * classes.shuffled_information
    assert len(names["figure"].axes) >= 2


def test_change_is_what_the_page_says():
    names = run("Since when")
    change = names["change"]
    # The third recording is like the second, in which two neurons had changed.
    assert change.since_previous == 0
    model, first = names["model"], Net()
    with torch.no_grad():
        now, then = (net.fc_1(names["x_val"][:64]).numpy() > 0 for net in (model, first))
    assert change.since_first == pytest.approx((now != then).mean())
    assert change.unchanged == pytest.approx((now == then).all(axis=0).mean())
    # Ten neurons can't tell 64 samples apart.
    assert np.linalg.matrix_rank([[np.sum(a == b) for b in then] for a in then]) < 64
    assert change.naswot == -np.inf


def test_pictures_of_the_page_are_there():
    names = re.findall(r"!\[[^]]+\]\(\.\./images/([\w.]+)\)", PAGE)
    assert len(names) == 3
    images = Path(__file__).parent.parent / "docs" / "images"
    for name in names:
        assert (images / name).read_bytes().startswith(b"\x89PNG")
