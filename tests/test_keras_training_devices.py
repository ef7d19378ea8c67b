"""Training steps on several devices are recorded whole; what torch.compile made is recorded too."""

import functools

import keras
import numpy as np
import pytest
from keras_models import BACKEND
from keras_training import X, Y, watch
from test_keras_distribution import MODEL, printed, start

pytestmark = [
    pytest.mark.filterwarnings("ignore:In windows of training batches. Coverage"),
    pytest.mark.filterwarnings("ignore:Coverage"),
]

TRAIN = """
import warnings
warnings.simplefilter("ignore")

def train(model, *_):
    callbacks = [
        EfficiencyCallback("fc", on="train", every_n_train_steps=2, window=2, **options)
        for options in ({}, {"group_size": 3, "prefix": "groups_"})
    ]
    data = {"batch_size": 20, "verbose": 0, "shuffle": False}
    history = model.fit(x, y, epochs=2, callbacks=callbacks, **data).history
    reports = [report for callback in callbacks for report in callback.train_history]
    assert history["train_efficiency"][-1] == callbacks[0].train_history[-1].efficiency
    layers = [report.layers["fc"] for report in reports]
    return [[layer.n_states, layer.efficiency] for layer in layers]
"""
# Six batches an epoch, the last of four samples.
STATES = [20, 40, 24, 24, 40, 24]


@pytest.mark.parametrize("on_device", ["0", "1"])
@pytest.mark.skipif(BACKEND != "tensorflow", reason="MirroredStrategy is TensorFlow's")
def test_replicas_of_a_training_share_one_counter(on_device):
    code = """
import json
import tensorflow as tf
(cpu,) = tf.config.list_physical_devices("CPU")
halves = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(cpu, halves)
alone = train(*build())
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    spread = build()
print(json.dumps([alone, train(*spread)]))
"""
    alone, spread = printed(start(MODEL + TRAIN + code, TENSORSTATE_KERAS_ON_DEVICE=on_device))
    assert [states for states, _ in alone] == STATES * 2
    assert spread == alone


@pytest.mark.parametrize("on_device", ["0", "1"])
@pytest.mark.skipif(BACKEND != "jax", reason="keras.distribution is JAX's")
def test_devices_of_a_training_share_one_counter(on_device):
    code = """
import json
alone = train(*build())
keras.distribution.set_distribution(keras.distribution.DataParallel())
print(json.dumps([alone, train(*build())]))
"""
    flags = "--xla_force_host_platform_device_count=2"
    started = start(MODEL + TRAIN + code, XLA_FLAGS=flags, TENSORSTATE_KERAS_ON_DEVICE=on_device)
    alone, spread = printed(started)
    assert [states for states, _ in alone] == STATES * 2
    assert spread == alone


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute")
@pytest.mark.skipif(BACKEND != "torch", reason="torch.compile is PyTorch's")
def test_what_torch_compiled_runs_eagerly_in_recorded_steps_only(monkeypatch):
    import torch

    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    # What the graphs are turned into doesn't matter here, and takes a minute.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=count))

    def run(*callbacks):
        graphs.clear()
        torch._dynamo.reset()
        keras.utils.set_random_seed(3)
        parts = [keras.layers.Dense(3, name="first"), keras.layers.Dense(2, activation="softmax")]
        model = keras.Sequential([keras.Input((4,)), *parts])
        model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=True)
        model.fit(X[:20], Y[:20], batch_size=4, verbose=0, callbacks=list(callbacks))
        assert model.jit_compile is True
        return len(graphs), model.get_weights()

    n_graphs, weights = run()
    callback = watch("first", every_n_train_steps=2)
    n_watched, watched_weights = run(callback)
    assert n_watched == n_graphs > 0
    assert all(map(np.array_equal, weights, watched_weights))
    assert [r.layers["first"].n_states for r in callback.train_history] == [4, 8]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
