"""What a Keras model's layers give, counted by NumPy: the oracle for the callback's figures."""

import warnings

import keras
import numpy as np
from keras import layers
from keras_models import compiled, count_states, only_on
from own_warnings import ours

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


CONVOLVES_FIRST = only_on("jax", "torch", because="no channels_first convolution on a CPU")


def watched(model, x, attach_to, *, warn="", y=Y, **options):
    """Evaluate; return the layers' reports. Of axes nothing is said but what is expected."""
    callback = EfficiencyCallback(attach_to, missing_accuracy="ignore", **options)
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        model.evaluate(x, y, batch_size=BATCH, verbose=0, callbacks=[callback])
    texts = [text for text in ours(given) if "nothing tells which axis" in text]
    assert len(texts) == bool(warn)
    assert not warn or warn in texts[0]
    return callback.last.layers


def check_axes(model, x, axes, **options):
    """Compare the reports of layers with their outputs, neurons moved from their axes to the end.

    Args:
        axes: Axis of each layer, or several that are folded.
    """
    reports = watched(model, x, list(axes), **options)
    found = outputs(model, [model.get_layer(name).output for name in axes], x)
    for (name, axis), activations in zip(axes.items(), found, strict=True):
        several = (axis,) if isinstance(axis, int) else axis
        moved = np.moveaxis(activations, several, range(-len(several), 0))
        check(reports[name], moved.reshape(*moved.shape[: -len(several)], -1))
    return reports


def model_of(x, shape, **options):
    """A model whose last tensor is `x(inputs)`, with a head that makes two classes of it."""
    inputs = keras.Input(shape)
    return compiled(keras.Model(inputs, head(layers.Flatten()(x(inputs)))), **options)


def chain(*parts):
    def run(x):
        for part in parts:
            x = part(x)
        return x

    return run
