"""The trained LeNet-5 on 5,000 digits: the figures that TensorState gives on the same model."""

import pytest
import torch
from lenet5_torch import REFERENCE, digits, trained_lenet5

from tensorstate_callbacks.metrics import aIQ
from tensorstate_callbacks.torch import record


def test_lenet5_has_the_reference_figures() -> None:
    model, (images, labels) = trained_lenet5(), digits()
    n_right = 0
    with torch.inference_mode(), record(model) as recording:
        for batch, truth in zip(images.split(200), labels.split(200), strict=True):
            n_right += int((model(batch).argmax(1) == truth).sum())
    assert n_right / len(labels) == pytest.approx(REFERENCE["accuracy"])
    report = recording.report(accuracy=n_right / len(labels))
    assert list(report.layers) == list(REFERENCE["layers"])
    for name, expected in REFERENCE["layers"].items():
        layer = report.layers[name]
        assert (layer.n_neurons, layer.n_states) == (expected["neurons"], expected["states"])
        assert layer.efficiency == pytest.approx(expected["efficiency"], abs=1e-3)
        assert layer.firing_rate == pytest.approx(expected["mean_firing_rate"], abs=1e-3)
        assert (layer.n_never, layer.n_always) == (0, 0)
    assert report.efficiency == pytest.approx(REFERENCE["network_efficiency"], abs=1e-3)
    for beta, expected in REFERENCE["aiq"].items():
        value = aIQ(report.efficiency, report.accuracy or 0, float(beta))
        assert value == pytest.approx(expected, abs=1e-3)
