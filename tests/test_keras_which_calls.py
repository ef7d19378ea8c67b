"""Only the evaluation's own forward pass counts, whatever else calls the model meanwhile."""

import keras
import numpy as np
import pytest
from keras import layers
from keras_models import BACKEND, RELEASE, compiled, count_states, only_on

from tensorstate_callbacks import entropy
from tensorstate_callbacks.keras import EfficiencyCallback

RNG = np.random.default_rng(8)
X = RNG.integers(-2, 3, (40, 5)).astype(np.float32)
OTHER = RNG.integers(-2, 3, (20, 5)).astype(np.float32)
Y = np.arange(40) % 2
KERNEL = RNG.integers(-2, 3, (5, 7)).astype(np.float32)


def model_of(cls=keras.Sequential, **options):
    parts = [layers.Dense(7, use_bias=False, name="fc"), layers.Dense(2, activation="softmax")]
    model = cls([keras.Input((5,)), *parts])
    parts[0].set_weights([KERNEL])
    return compiled(model, **options)


def check_counts(callback):
    counts = count_states(X @ KERNEL)
    report = callback.last.layers["fc"]
    assert (report.n_states, report.n_distinct) == (40, len(counts))
    assert report.entropy == entropy(counts)


def call(model):
    model(OTHER)


def predict(model):
    model.predict(OTHER, verbose=0)


def predict_on_batch(model):
    model.predict_on_batch(OTHER)


def evaluate(model):
    model.evaluate(OTHER, Y[:20], verbose=0)


def test_on_batch(model):
    model.test_on_batch(OTHER, Y[:20])


test_on_batch.__test__ = False


class CallsToo(keras.callbacks.Callback):
    """Calls the model in one of the hooks of an evaluation's batches."""

    def __init__(self, hook, action):
        super().__init__()
        self.n_calls = 0

        def run(batch, logs=None):
            self.n_calls += 1
            if BACKEND == "jax":
                # Keras takes the weights out of the model meanwhile.
                self.model.jax_state_sync()
            action(self.model)

        setattr(self, hook, run)


@pytest.mark.parametrize("options", [{}, {"run_eagerly": True}])
@pytest.mark.parametrize("action", [call, predict, predict_on_batch, evaluate, test_on_batch])
@pytest.mark.parametrize("hook", ["on_test_batch_begin", "on_test_batch_end"])
@pytest.mark.parametrize("ours_first", [True, False])
def test_another_callback_that_runs_the_model_does_not_count(options, action, hook, ours_first):
    if BACKEND == "jax" and action is not call and (options or hook == "on_test_batch_end"):
        pytest.skip("Keras's own state on JAX isn't made for that")
    if RELEASE < (3, 4) and action is test_on_batch and hook == "on_test_batch_begin":
        pytest.skip(f"Keras {keras.__version__} by itself ends an evaluation for that")
    model, callback = model_of(**options), EfficiencyCallback("fc", missing_accuracy="ignore")
    other = CallsToo(hook, action)
    callbacks = [callback, other] if ours_first else [other, callback]
    model.evaluate(X, Y, batch_size=10, verbose=0, callbacks=callbacks)
    assert other.n_calls >= 4
    check_counts(callback)


class RunsTheModel(keras.metrics.Metric):
    """Runs the model on what it is evaluated on, or on other data."""

    def __init__(self, model):
        super().__init__(name="runs")
        self._held = [lambda: model]
        self.total = self.add_weight(shape=(), initializer="zeros", name="total")

    def update_state(self, y_true, y_pred, sample_weight=None):
        outputs = self._held[0]()(OTHER, training=False)
        self.total.assign_add(keras.ops.sum(outputs))

    def result(self):
        return self.total


@only_on("tensorflow", "torch", because="Keras has no weights of the model within a metric")
@pytest.mark.parametrize("options", [{}, {"run_eagerly": True}])
def test_the_model_within_a_metric_does_not_count(options):
    model = model_of()
    model.compile(
        "sgd", "sparse_categorical_crossentropy", metrics=[RunsTheModel(model)], **options
    )
    callback = EfficiencyCallback("fc", missing_accuracy="ignore")
    results = model.evaluate(X, Y, batch_size=10, verbose=0, callbacks=[callback], return_dict=True)
    # Keras 3.3 gives a variable.
    assert float(keras.ops.convert_to_numpy(results["runs"])) == pytest.approx(4 * 20)
    check_counts(callback)


@pytest.mark.parametrize("options", [{}, {"run_eagerly": True}])
def test_the_model_within_a_loss_does_not_count(options):
    model = model_of()

    def loss(y_true, y_pred):
        return keras.ops.mean(y_pred) + 0 * keras.ops.mean(model(OTHER, training=False))

    model.compile("sgd", loss, **options)
    callback = EfficiencyCallback("fc", missing_accuracy="ignore")
    model.evaluate(X, Y, batch_size=10, verbose=0, callbacks=[callback])
    check_counts(callback)


@only_on("tensorflow", because="has no tf.function")
def test_a_layer_that_was_compiled_during_the_evaluation_does_not_count_outside():
    import tensorflow as tf

    class Compiles(layers.Layer):
        """Compiles what it runs as soon as it is told to."""

        def __init__(self):
            super().__init__(name="compiles")
            self.fc = layers.Dense(7, use_bias=False, name="fc")
            self.wanted, self.run = False, None

        def build(self, shape):
            self.fc.build(shape)

        def call(self, x):
            if self.wanted and self.run is None:
                shape = tf.TensorSpec((None, 5))
                self.run = tf.function(self.fc, input_signature=[shape])
            return (self.run or self.fc)(x)

    class Wants(CallsToo):
        def on_test_begin(self, logs=None):
            layer.wanted = True

    layer = Compiles()
    model = compiled(
        keras.Sequential([keras.Input((5,)), layer, layers.Dense(2, activation="softmax")])
    )
    layer.fc.set_weights([KERNEL])
    callback = EfficiencyCallback("fc", missing_accuracy="ignore")
    seen = []
    other = Wants("on_test_batch_end", lambda model: seen.append(layer.run(tf.constant(OTHER))))
    model.evaluate(X, Y, batch_size=10, verbose=0, callbacks=[callback, other])
    # It runs the trace that was made with a probe in it.
    assert len(seen) == 4
    assert layer.run.experimental_get_tracing_count() == 1
    report = next(iter(callback.last.layers.values()))
    assert (report.n_states, report.entropy) == (40, entropy(count_states(X @ KERNEL)))
