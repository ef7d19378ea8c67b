"""Every layer of well-known architectures: the neurons that there are, the states they have."""

import keras
import numpy as np
import pytest
from keras import ops
from keras_models import count_states, only_on
from own_warnings import ours

from tensorstate_callbacks import entropy
from tensorstate_callbacks.keras import EfficiencyCallback
from tensorstate_callbacks.keras.layers import named_layers

pytestmark = only_on("tensorflow", "torch", because="compiles these models for minutes")

# All but the first run eagerly: to compile them takes most of the time.
BUILDERS = {
    "MobileNetV3Small": {},
    "MobileNetV2": {"alpha": 0.35},
    "EfficientNetB0": {},
    "DenseNet121": {},
    "NASNetMobile": {},
    "ConvNeXtTiny": {},
    "Xception": {},
}
# Sizes that all of them take, with the number of samples in a batch.
SIZES = {(64, 96): 2, (96, 96): 3}


def leaves(model):
    """Every layer of the model's own graph that has no layers inside, under its name."""
    return {
        name: layer
        for name, layer in named_layers(model).items()
        if "/" not in name and len(layer._flatten_layers(include_self=False)) == 0
    }


@pytest.mark.parametrize("name", BUILDERS)
def test_every_layer_of_an_architecture_is_counted_exactly(name, recwarn):
    keras.utils.set_random_seed(4)
    build = getattr(keras.applications, name)
    model = build(weights=None, include_top=False, input_shape=(None, None, 3), **BUILDERS[name])
    eagerly = name != next(iter(BUILDERS))
    model.compile(loss=lambda y_true, y_pred: ops.mean(y_pred), run_eagerly=eagerly)
    found = leaves(model)
    oracle = keras.Model(model.inputs, [layer.output for layer in found.values()])
    oracle.compile(run_eagerly=eagerly)
    n_neurons = []
    for size, batch in SIZES.items():
        x = np.random.default_rng(8).normal(size=(3, *size, 3)).astype(np.float32)
        callback = EfficiencyCallback(lambda name, layer: name in found, missing_accuracy="ignore")
        model.evaluate(x, np.zeros(3), batch_size=batch, verbose=0, callbacks=[callback])
        reports = callback.last.layers
        assert sorted(reports) == sorted(found)
        activations = oracle.predict(x, batch_size=batch, verbose=0)
        for layer, outputs in zip(found, activations, strict=True):
            counts = count_states(outputs)
            report = reports[layer]
            assert (report.n_neurons, report.n_states) == (outputs.shape[-1], counts.sum()), layer
            # The graphs differ, and with them the last bit of an activation near 0.
            assert report.entropy == pytest.approx(entropy(counts), rel=1e-2, abs=1e-2), layer
        n_neurons.append({layer: report.n_neurons for layer, report in reports.items()})
    assert n_neurons[0] == n_neurons[1]
    assert ours(recwarn.list) == []
