"""What a Keras model's layers give, counted by NumPy: the oracle for the callback's figures."""

import keras
import numpy as np
from keras import layers
from keras_models import compiled, count_states

from tensorstate_callbacks import entropy
from tensorstate_callbacks.keras import EfficiencyCallback

N, BATCH = 70, 32
RNG = np.random.default_rng(8)
Y = np.arange(N) % 2


def normal(*shape):
    return RNG.normal(size=(N, *shape)).astype(np.float32)


def watch(model, x, attach_to=None, y=Y, **options):
    """Evaluate in batches; return the layers' reports."""
    callback = EfficiencyCallback(attach_to, missing_accuracy="ignore", **options)
    model.evaluate(x, y, batch_size=BATCH, verbose=0, callbacks=[callback])
    return callback.last.layers


def check(report, *activations):
    """Compare a layer's report with the activations of its calls, neurons last."""
    arrays = [keras.ops.convert_to_numpy(a).astype(np.float64) for a in activations]
    rows = [a.reshape(-1, a.shape[-1]) for a in arrays]
    counts = count_states(np.concatenate(rows))
    assert (report.n_states, report.n_distinct) == (counts.sum(), len(counts))
    assert report.entropy == entropy(counts)


def outputs(model, tensors, x):
    """What an intermediate-output model predicts for the tensors, as a list."""
    inputs = model.inputs[0] if len(model.inputs) == 1 else model.inputs
    found = keras.Model(inputs, list(tensors)).predict(x, batch_size=BATCH, verbose=0)
    return found if isinstance(found, list) else [found]


def head(x):
    return layers.Dense(2, activation="softmax", name="out")(x)


def check_functional(inputs, names, x, last):
    """Build and watch the model; compare what the named layers give."""
    model = compiled(keras.Model(inputs, head(last)))
    reports = watch(model, x, names)
    found = outputs(model, [model.get_layer(name).output for name in names], x)
    assert sorted(reports) == sorted(names)
    for name, activations in zip(names, found, strict=True):
        check(reports[name], activations)
    return model
