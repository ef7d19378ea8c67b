"""Batches of padded samples, and what their samples give one by one."""

import warnings

import keras
import numpy as np
from keras import layers
from keras_models import compiled
from own_warnings import ours

from tensorstate_callbacks.keras import EfficiencyCallback

LENGTHS = (4, 2, 4, 4, 1, 2, 4)
RNG = np.random.default_rng(11)
TOKENS = [RNG.integers(1, 9, size=length) for length in LENGTHS]
VALUES = [RNG.normal(size=(length, 3)).astype(np.float32) for length in LENGTHS]
Y = np.arange(len(LENGTHS)) % 2


def padded(samples, width=6):
    """One array of all samples, filled up with zeros behind."""
    behind = [(0, 0)] * (samples[0].ndim - 1)
    return np.stack([np.pad(each, [(0, width - len(each)), *behind]) for each in samples])


def mask_of(samples, width=6):
    return np.arange(width) < np.array([len(each) for each in samples])[:, None]


def batches(x, size, y=Y):
    for start in range(0, len(y), size):
        part = slice(start, start + size)
        yield (
            {key: each[part] for key, each in x.items()} if isinstance(x, dict) else x[part],
            y[part],
        )


def evaluated(model, data, n_batches, names, **options):
    """Evaluate on batches; return the layers' reports and what was warned of."""
    callback = EfficiencyCallback(names, missing_accuracy="ignore", **options)
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        model.evaluate(data, steps=n_batches, verbose=0, callbacks=[callback])
    return dict(callback.last.layers), ours(given)


def alone(model, samples, names, **options):
    """What the samples give one by one, without padding."""
    data = ((each[None], Y[:1]) for each in samples)
    return evaluated(model, data, len(samples), names, **options)[0]


def together(model, samples, names, width=6, size=3, **options):
    """What batches of padded samples give, and what was warned of."""
    n_batches = -(-len(samples) // size)
    return evaluated(model, batches(padded(samples, width), size), n_batches, names, **options)


def classifier(inputs, x):
    return compiled(keras.Model(inputs, layers.Dense(2, activation="softmax", name="out")(x)))


def embed(mask_zero=True, width=6):
    inputs = keras.Input((None,), dtype="int32")
    return inputs, layers.Embedding(9, width, mask_zero=mask_zero, name="embedding")(inputs)
