"""Models whose states are made where the activations lie, and evaluations of them.

All weights and data are whole numbers, so that activations are the same however a step is compiled.
"""

import keras
import numpy as np
from keras import layers

from tensorstate_callbacks.keras import EfficiencyCallback

N, BATCH = 37, 16
RNG = np.random.default_rng(5)
X = RNG.integers(-3, 4, size=(N, 6, 6, 2)).astype("float32")
Y = np.arange(N) % 2
NAMES = ["conv", "fc"]


def compiled(model, **options):
    """Compile a model, and give it weights that are whole numbers."""
    optimizer = keras.optimizers.SGD(0.0)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], **options)
    rng = np.random.default_rng(1)
    model.set_weights([rng.integers(-2, 3, w.shape) for w in model.get_weights()])
    return model


def head(x):
    return layers.Dense(2, activation="softmax", name="out")(x)


def plain(**options):
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(20, 3, activation="relu", name="conv")(inputs)
    x = layers.Dense(13, name="fc")(layers.Flatten()(x))
    return compiled(keras.Model(inputs, head(x)), **options)


def evaluated(model, *callbacks):
    model.evaluate(X, Y, batch_size=BATCH, verbose=0, callbacks=list(callbacks))
    return [dict(callback.last.layers) for callback in callbacks]


def in_a_loop(model, callback):
    callbacks = keras.callbacks.CallbackList([callback], model=model)
    callbacks.on_test_begin()
    for start in range(0, N, BATCH):
        part = slice(start, start + BATCH)
        logs = model.test_on_batch(X[part], Y[part], return_dict=True)
    callbacks.on_test_end(dict(logs))
    return [dict(callback.last.layers)]


def on_both(force_device, model, names, run=evaluated, **options):
    """Evaluate on the host and on the device; return what the callbacks found."""
    found = []
    for forced in (False, True):
        force_device(forced)
        callback = EfficiencyCallback(names, **options)
        found += run(model, callback)
    return found
