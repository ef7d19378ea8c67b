"""Ctrl-C at any line leaves nothing that acts, and the next fit's numbers are right."""

import os
import signal

import keras
import numpy as np
import pytest
from interrupts import at_random_times, each_line

from tensorstate_callbacks.keras import EfficiencyCallback

# All lines, and many interrupts: `make soak`.
ALL = bool(os.environ.get("TENSORSTATE_SOAK"))
BACKEND = keras.backend.backend()
FILES = [
    *(f"keras/{name}.py" for name in ("callback", "counting", "evaluation", "probes", "watch")),
    *(f"keras/{name}.py" for name in ("train_step", "training")),
    *(f"keras/backends/{name}.py" for name in ("__init__", BACKEND)),
    *(f"recording/{name}.py" for name in ("callback", "overrides", "recorder", "windows")),
    *(["torch/hooks.py"] if BACKEND == "torch" else []),
]
X = np.random.default_rng(1).normal(size=(12, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)


def small(**options):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((4,))
    x = keras.layers.Dense(5, activation="relu", name="first")(inputs)
    x = keras.layers.Dense(6, activation="tanh", name="second")(x)
    model = keras.Model(inputs, keras.layers.Dense(2, activation="softmax", name="out")(x))
    optimizer = keras.optimizers.SGD(0.0)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], **options)
    return model


def fit(model, *callbacks):
    data = {"validation_data": (X, Y), "validation_batch_size": 6, "shuffle": False}
    return model.fit(X[:4], Y[:4], verbose=0, callbacks=list(callbacks), **data).history


def evaluate(model, *callbacks):
    return model.evaluate(X, Y, batch_size=6, verbose=0, callbacks=list(callbacks))


def numbers(report):
    return [
        (name, layer.n_states, layer.n_distinct, layer.entropy)
        for name, layer in report.layers.items()
    ]


def entries(model):
    """What hides methods of the model, its layers and its metrics; and its test function."""
    owners = [model, *model._flatten_layers(include_self=False), *model.metrics]
    hidden = [sorted(vars(owner).keys() & set(dir(type(owner)))) for owner in owners]
    function = vars(model).get("test_function")
    return hidden, function is None or function.__module__.startswith("keras.")


def counted(callback):
    recorder = callback.watch.counting.recorder
    counters = {} if recorder is None else recorder.counters
    return {name: counter.n_states for name, counter in counters.items()}


# What stays on a model until its next fit: the last two only where no step came any more.
WITHOUT_EFFECT = ("evaluate", "fit", "_get_metrics_result_or_logs", "train_on_batch")


class Checks:
    """A model and what it gave before the first interrupt."""

    def __init__(self, on="val", **options):
        self.model = small(**options)
        self.callback = EfficiencyCallback(on=on, every_n_train_steps=1, window=1)
        fit(self.model)
        self.results, self.outputs = evaluate(self.model), self.model.predict_on_batch(X)
        self.entries = entries(self.model)
        self.history = fit(self.model, self.callback)
        evaluate(self.model, self.callback)
        self.numbers = [numbers(report) for report in self.callback.history]
        assert self.numbers[0] == self.numbers[1]
        assert [states for _, states, _, _ in self.numbers[0]] == [12, 12]
        del self.callback.history[:]
        model = self.model
        variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
        self.variables = [(each, keras.ops.convert_to_numpy(each)) for each in variables]

    def give_back_state(self):
        """Put right what frameworks themselves lose.

        Keras on JAX the weights that a step was given, TensorFlow that no replica runs any more,
        PyTorch that gradients are wanted again.
        """
        if BACKEND == "torch":
            import torch

            torch.set_grad_enabled(True)
        if BACKEND == "tensorflow":
            import tensorflow as tf

            graph = tf.compat.v1.get_default_graph()
            getattr(graph, "_distribution_strategy_stack", []).clear()
        for variable, value in self.variables:
            held = getattr(variable, "_value", value)
            if held is None or getattr(held, "is_deleted", bool)():
                variable._value = keras.ops.convert_to_tensor(value, variable.dtype)

    def check(self, where, *, gone):
        self.give_back_state()
        before = counted(self.callback)
        assert np.array_equal(self.model.predict_on_batch(X), self.outputs), where
        assert evaluate(self.model) == self.results, where
        assert counted(self.callback) == before, where
        if gone:
            hidden = entries(self.model)[0]
            hidden[0] = [name for name in hidden[0] if name not in WITHOUT_EFFECT]
            assert hidden == self.entries[0], where
        assert fit(self.model, self.callback) == self.history, where
        assert numbers(self.callback.last) == self.numbers[0], where
        assert len(self.callback.history) <= 3, where
        del self.callback.history[:]
        for report in self.callback.train_history:
            assert [states for _, states, _, _ in numbers(report)] == [4, 4], where
        del self.callback.train_history[:]
        assert entries(self.model) == self.entries, where


@pytest.fixture(scope="module", params=["eager", "compiled", "training"])
def checks(request):
    on = ("val", "train") if request.param == "training" else "val"
    return Checks(on, run_eagerly=request.param != "compiled")


@pytest.mark.filterwarnings("ignore:In windows of training batches. Coverage")
@pytest.mark.parametrize("run", [fit, evaluate])
def test_an_interrupt_at_any_line_leaves_nothing_that_acts(run, checks):
    interrupted = 0
    most = None if ALL else 20 if checks.model.run_eagerly else 6
    for where in each_line(FILES, lambda: run(checks.model, checks.callback), most=most):
        checks.check(where, gone=run is fit)
        interrupted += 1
    print(f"interrupted at {interrupted} lines")
    assert interrupted >= 5


@pytest.mark.filterwarnings("ignore:In windows of training batches. Coverage")
# Where it arrives in a callback of a framework's own, that says so.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="Windows has no timer signals")
def test_an_interrupt_at_any_time_leaves_nothing_that_acts(checks):
    n_interrupts = 0
    for arrived in at_random_times(
        lambda: fit(checks.model, checks.callback), 100 if ALL else 6, errors=(Exception,)
    ):
        n_interrupts += arrived
        checks.check("signal", gone=False)
    assert n_interrupts >= 2
