"""Models spread over devices count exactly; those over TensorFlow's workers are refused."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import keras
import pytest

from tensorstate_callbacks.errors import TensorStateWarning
from tensorstate_callbacks.keras import EfficiencyCallback

BACKEND = keras.backend.backend()

# Whole numbers everywhere, so that sums are exact however the batches are cut.
MODEL = """
import numpy as np, keras
from tensorstate_callbacks.keras import EfficiencyCallback, StateCapture

def build():
    capture = StateCapture("states")
    head = [keras.layers.Dense(2, activation="softmax", name="out")]
    body = [keras.layers.Dense(7, name="fc"), capture]
    model = keras.Sequential([keras.Input((6,)), *body, *head])
    rng = np.random.default_rng(1)
    model.set_weights([rng.integers(-2, 3, w.shape) for w in model.get_weights()])
    loss = "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.SGD(0.0), loss, metrics=["accuracy"])
    return model, capture

x = np.random.default_rng(0).integers(-2, 3, size=(104, 6)).astype("float32")
y = np.arange(104) % 2

def run(model, capture):
    callback = EfficiencyCallback("fc")
    groups = EfficiencyCallback("fc", group_size=3, prefix="groups_")
    options = {"classes": True, "log_extras": None}
    classes = [EfficiencyCallback("fc", prefix=f"c{n}_", group_size=n, **options) for n in (20, 3)]
    data = {"validation_data": (x, y), "batch_size": 20, "verbose": 0}
    model.evaluate(x, y, batch_size=20, verbose=0, callbacks=[groups])
    logged = model.fit(x, y, epochs=2, callbacks=[callback, groups], **data).history
    # Alone, and beside another callback.
    assert len({(r.layers["fc"].n_states, r.layers["fc"].entropy) for r in groups.history}) == 1
    # Keras's own figure; 3.8 has another one on several devices.
    assert callback.last.accuracy == logged["val_accuracy"][-1]
    layer = callback.last.layers["fc"]
    mine = [layer.n_states, layer.n_distinct, layer.entropy, callback.last.step]
    mine += [groups.last.layers["fc"].n_states, groups.last.layers["fc"].entropy]
    model.evaluate(x, y, batch_size=20, verbose=0, callbacks=classes)
    mine += [each.last.layers["fc"].classes.to_dict() for each in classes]
    return [*mine, sorted(capture.counts().tolist())]
"""


def start(code, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def printed(process):
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return json.loads(out.splitlines()[-1])


@pytest.mark.parametrize("on_device", ["0", "1"])
@pytest.mark.skipif(BACKEND != "tensorflow", reason="MirroredStrategy is TensorFlow's")
def test_replicas_share_one_counter(on_device):
    code = """
import json
import tensorflow as tf
(cpu,) = tf.config.list_physical_devices("CPU")
halves = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(cpu, halves)
alone = run(*build())
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    spread = build()
numbers = run(*spread)
groups = EfficiencyCallback("fc", group_size=3)
spread[0].evaluate(x, y, batch_size=20, verbose=0, callbacks=[groups])
tables = sorted(key.device[-5:] for key in groups.watch.counting._counts._counted)
print(json.dumps([strategy.num_replicas_in_sync, alone, numbers, tables]))
"""
    started = start(MODEL + code, TENSORSTATE_KERAS_ON_DEVICE=on_device)
    replicas, alone, spread, tables = printed(started)
    # Each replica counts on its own device.
    assert tables == (["CPU:0", "CPU:1"] if on_device == "1" else [])
    assert replicas == 2
    assert alone[0] == 104
    # Four evaluations, by the layer.
    assert sum(alone[-1]) == 416
    assert alone[-2]["n_states"] == [52, 52]
    assert spread == alone


@pytest.mark.parametrize("on_device", ["0", "1"])
@pytest.mark.skipif(BACKEND != "jax", reason="keras.distribution is JAX's")
def test_devices_of_a_data_parallel_model_share_one_counter(on_device):
    code = """
import json
alone = run(*build())
keras.distribution.set_distribution(keras.distribution.DataParallel())
print(json.dumps([len(keras.distribution.list_devices()), alone, run(*build())]))
"""
    flags = "--xla_force_host_platform_device_count=2"
    started = start(MODEL + code, XLA_FLAGS=flags, TENSORSTATE_KERAS_ON_DEVICE=on_device)
    devices, alone, spread = printed(started)
    assert devices == 2
    assert alone[0] == 104
    assert alone[-2]["n_states"] == [52, 52]
    assert spread == alone


@pytest.mark.skipif(BACKEND != "tensorflow", reason="MultiWorkerMirroredStrategy is TensorFlow's")
def test_workers_in_several_processes_are_refused():
    # Keras 3 has no fit for them, and fails before it tells callbacks: they are refused as they are
    # made; those made elsewhere, by a list of callbacks that is driven by hand.
    code = """
import json, os
import tensorflow as tf
with tf.distribute.MultiWorkerMirroredStrategy().scope():
    model, _ = build()
messages = []
try:
    EfficiencyCallback("fc")
except ValueError as error:
    messages.append(str(error))
del os.environ["TF_CONFIG"]
for hook in ("on_train_begin", "on_test_begin"):
    callbacks = keras.callbacks.CallbackList([EfficiencyCallback("fc")], model=model)
    try:
        getattr(callbacks, hook)()
    except ValueError as error:
        messages.append(str(error))
print(json.dumps(messages))
"""
    with socket.socket() as one, socket.socket() as two:
        for free in (one, two):
            free.bind(("localhost", 0))
        workers = [f"localhost:{free.getsockname()[1]}" for free in (one, two)]
    started = [
        start(
            MODEL + code,
            TF_CONFIG=json.dumps(
                {"cluster": {"worker": workers}, "task": {"type": "worker", "index": rank}}
            ),
        )
        for rank in (0, 1)
    ]
    for messages in map(printed, started):
        assert len(messages) == 3
        assert messages[0].endswith("without TF_CONFIG, which names 2 workers")
        for message in messages:
            assert message.startswith("MultiWorkerMirroredStrategy spreads the evaluation over")
            assert "evaluate in one process: model.evaluate(..., callbacks=[callback])" in message


@pytest.mark.skipif(BACKEND != "torch", reason="torch's processes")
def test_processes_that_keras_does_not_know_of_are_warned_of(monkeypatch):
    import torch

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    callbacks = keras.callbacks.CallbackList([EfficiencyCallback()], model=model)
    with pytest.warns(TensorStateWarning, match="connects 2 processes, which Keras doesn't know"):
        callbacks.on_test_begin()


@pytest.mark.parametrize(
    "config", ["", "{}", "[1]", "not json", '{"cluster": {"worker": ["a:1"]}}']
)
def test_a_process_alone_is_not_refused(config, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", config)
    assert EfficiencyCallback().history == []
