"""The trained LeNet-5 on 5,000 digits: the figures that TensorState gives on the same model."""

import pytest
import torch
from lenet5_torch import REFERENCE, digits, trained_lenet5

from tensorstate_callbacks import aIQ
from tensorstate_callbacks.tensorstate import build_efficiency_model, network_efficiency
from tensorstate_callbacks.torch import record


def test_lenet5_has_the_reference_metrics() -> None:
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


def test_efficiency_model_has_the_reference_metrics() -> None:
    model, (images, _) = build_efficiency_model(trained_lenet5(), attach_to="Conv2d"), digits()
    with torch.inference_mode():
        for batch in images.split(200):
            model(batch)
    for layer, (name, expected) in zip(
        model.efficiency_layers, REFERENCE["layers"].items(), strict=True
    ):
        assert layer.name == f"{name}_post_states"
        assert (layer.max_entropy(), layer.state_count) == (expected["neurons"], expected["states"])
        # Rounding in the convolutions tips a few activations near 0.
        assert len(layer.counts()) == pytest.approx(expected["distinct"], rel=1e-3)
        assert layer.counts().max() == pytest.approx(expected["max_count"], rel=1e-3)
        for alpha, entropy in (
            (0, expected["hartley_bits"]),
            (1, expected["entropy_bits"]),
            (2, expected["renyi2_bits"]),
        ):
            assert layer.entropy(alpha) == pytest.approx(entropy, rel=1e-3)
        assert layer.efficiency() == pytest.approx(expected["efficiency"], abs=1e-3)
    assert network_efficiency(model) == pytest.approx(REFERENCE["network_efficiency"], abs=1e-3)
