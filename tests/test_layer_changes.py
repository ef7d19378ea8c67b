"""Which layers a report is of may change from one evaluation to the next: each change is told."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from lightning_models import QUIET, TRAIN, VAL, Classifier, loader, trainer
from own_warnings import ours
from torch import nn

from tensorstate_callbacks.errors import WarnOnce
from tensorstate_callbacks.lightning import EfficiencyCallback
from tensorstate_callbacks.recording.accuracy import FoundAccuracy
from tensorstate_callbacks.recording.callback import conclude
from tensorstate_callbacks.recording.pass_counts import PassInfo
from tensorstate_callbacks.recording.recorder import Recorder
from tensorstate_callbacks.recording.settings import Settings

pytestmark = [pytest.mark.filterwarnings(text) for text in QUIET]


def told(passes: Sequence[str]) -> list[list[str]]:
    """What is said after each of several evaluations, of which each saw some of the layers abc."""
    warn, before, texts = WarnOnce(), None, []
    for epoch, seen in enumerate(passes):
        recorder = Recorder("abc")
        for name in seen:
            recorder.observe(name, np.eye(4), -1)
            recorder.observe(name, np.eye(4), -1)
        with warnings.catch_warnings(record=True) as caught:
            # As Python does by itself: the same text once only.
            warnings.simplefilter("default")
            report = conclude(
                recorder, FoundAccuracy(0.5), Settings(), warn, PassInfo(epoch=epoch), before=before
            )
        if report is not None:
            before = tuple(report.layers)
        texts.append(ours(caught))
    return texts


def test_each_change_is_told_and_names_the_layers() -> None:
    first, second, third, fourth, fifth = told(["ab", "abc", "ab", "ab", "c"])
    assert len(first) == 1
    assert first[0].startswith("no activations came from c: ")
    (text,) = second
    assert "in epoch 1 saw other layers than the one before (added: c): " in text
    assert "efficiency and aIQ of the network are of these layers now" in text
    (text,) = third
    assert "in epoch 2 saw other layers than the one before (missing: c): " in text
    assert fourth == []
    (text,) = fifth
    assert "(added: c; missing: a, b): " in text


def test_evaluation_without_data_is_told_as_such_and_is_no_change() -> None:
    first, second, third = told(["abc", "", "abc"])
    assert first == third == []
    (text,) = second
    assert text.startswith("no activations came from a, b, c: ")


def test_same_layers_in_another_order_are_no_change() -> None:
    assert told(["abc", "cba"]) == [[], []]


class Growing(Classifier):
    """Gets a layer in its second epoch, and another after it."""

    def __init__(self) -> None:
        super().__init__()
        self.grown = nn.Sequential()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.grown(x))

    def on_train_epoch_start(self) -> None:
        if self.current_epoch in (1, 2):
            self.grown.append(nn.Linear(6, 6))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.0)


def run(model: Classifier, callback: EfficiencyCallback, epochs: int = 4) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(callback, max_epochs=epochs).fit(model, loader(TRAIN), loader(VAL))
    return ours(caught)


def test_layers_added_in_the_middle_of_a_fit_are_probed_and_told() -> None:
    callback = EfficiencyCallback("Linear", exclude="net.4")
    second, third = run(Growing(), callback)
    layers = [list(report.layers) for report in callback.history]
    assert layers[0] == ["net.0", "net.2"]
    assert layers[1] == ["grown.0", "net.0", "net.2"]
    assert layers[2] == layers[3] == ["grown.0", "grown.1", "net.0", "net.2"]
    assert "in epoch 1 after 8 steps saw other layers" in second
    assert "(added: grown.0)" in second
    assert "(added: grown.1)" in third
    for report in callback.history:
        mean = math.exp(np.mean([math.log(r.efficiency) for r in report.layers.values()]))
        assert report.efficiency == pytest.approx(mean)


def test_new_fit_begins_without_a_report_before() -> None:
    callback = EfficiencyCallback("Linear", exclude="net.4")
    run(Growing(), callback)
    assert run(Classifier(), callback, epochs=1) == []


class Mixture(Classifier):
    """The second of its experts gets samples in every second epoch only."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = len(x) // 2 if self.current_epoch % 2 else len(x)
        parts = [expert(part) for expert, part in zip(self.experts, (x[:n], x[n:]), strict=True)]
        return super().forward(torch.cat(parts))


def test_expert_without_samples_is_told_whenever_that_changes() -> None:
    callback = EfficiencyCallback("experts.*")
    first, *changes = run(Mixture(), callback)
    assert first.startswith("no activations came from experts.1: ")
    assert [text.partition("(")[2].partition(")")[0] for text in changes] == [
        "added: experts.1",
        "missing: experts.1",
        "added: experts.1",
    ]


def test_fit_goes_on_where_no_layer_is_left() -> None:
    class Replaced(Classifier):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1:
                self.net[0] = nn.Identity()
                self.net[2], self.net[4] = nn.Conv1d(6, 5, 1), nn.Linear(5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if isinstance(self.net[0], nn.Identity):
                return self.net[4](self.net[2](x.unsqueeze(-1)).squeeze(-1))
            return super().forward(x)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.0)

    callback = EfficiencyCallback("net.[02]", exclude=lambda _, layer: not is_linear(layer))
    texts = run(Replaced(), callback, epochs=3)
    assert len(callback.history) == 1
    assert any("leaves out every layer" in text for text in texts)
    assert any("no activations came from net.0, net.2" in text for text in texts)


def is_linear(layer: Any) -> bool:
    return isinstance(layer, nn.Linear)
