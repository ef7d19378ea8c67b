"""What the Keras callback says when something can't be measured."""

import math
import os
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
from keras_models import X_VAL, Y_VAL, X, Y, compiled, once, sequential, since, train
from own_warnings import of_coverage
from own_warnings import ours as own

from tensorstate_callbacks import (
    NoLayerMatchedError,
    ProbeError,
    StatesNotAvailableError,
    TensorStateWarning,
)
from tensorstate_callbacks.keras import EfficiencyCallback


def test_missing_accuracy_logs_efficiency_and_says_which_keys_there_are():
    model, ours = (
        compiled(sequential(), metrics=["sparse_categorical_crossentropy"]),
        EfficiencyCallback("Conv2D"),
    )
    with pytest.warns(TensorStateWarning) as given:
        history = model.fit(
            X, Y, validation_data=(X_VAL, Y_VAL), epochs=3, verbose=0, callbacks=[ours]
        ).history
    (text,) = own(given)
    assert len(of_coverage(given)) == 1
    assert "no accuracy under 'accuracy' or 'acc'" in text
    assert "the logs have 'loss', 'sparse_categorical_crossentropy'" in text
    assert "val_aiq" not in history
    assert history["val_efficiency"] == [report.efficiency for report in ours.history]


def test_each_fit_has_a_warning_of_its_own():
    ours, model = EfficiencyCallback("Conv2D"), compiled(sequential(), metrics=[])
    for _ in range(2):
        with pytest.warns(TensorStateWarning, match="no accuracy under") as given:
            model.fit(X, Y, validation_data=(X_VAL, Y_VAL), epochs=2, verbose=0, callbacks=[ours])
        assert len(own(given)) == 1


@pytest.mark.parametrize("name", ["val_hits", "hits"])
def test_accuracy_is_found_under_the_name_given(name):
    model = compiled(sequential(), metrics=[keras.metrics.SparseCategoricalAccuracy("hits")])
    ours = EfficiencyCallback("Conv2D", accuracy=name)
    history = model.fit(X, Y, validation_data=(X_VAL, Y_VAL), verbose=0, callbacks=[ours]).history
    assert ours.last.accuracy == history["val_hits"][0]


def test_missing_accuracy_may_be_ignored_or_an_error():
    model = compiled(sequential(), metrics=[])
    ours = EfficiencyCallback("Conv2D", missing_accuracy="ignore")
    model.evaluate(X, Y, verbose=0, callbacks=[ours])
    assert ours.last.aiq is None
    ours = EfficiencyCallback("Conv2D", missing_accuracy="raise")
    with pytest.raises(ValueError, match="aIQ can't be computed: no accuracy under"):
        model.evaluate(X, Y, verbose=0, callbacks=[ours])
    assert model.evaluate(X, Y, verbose=0) == pytest.approx(math.log(2), abs=1)


def test_fit_without_validation_data_says_so_once_and_trains_on():
    ours = EfficiencyCallback("Conv2D")
    with pytest.warns(TensorStateWarning, match="fit has no validation data") as given:
        _, history = train([ours], validation_data=None)
    assert len(own(given)) == 1
    assert len(history["loss"]) == 4
    assert ours.history == []
    with pytest.raises(StatesNotAvailableError, match="recorded no evaluation: give it to a fit"):
        _ = ours.last


def test_the_model_is_left_clean_where_that_warning_is_an_error():
    model = compiled(sequential())
    with warnings.catch_warnings():
        warnings.simplefilter("error", TensorStateWarning)
        with pytest.raises(TensorStateWarning, match="fit has no validation data"):
            model.fit(X, Y, verbose=0, callbacks=[EfficiencyCallback("Conv2D")])
    assert "evaluate" not in vars(model)


@since((3, 8), before="it has no complex numbers")
def test_complex_activations_are_refused_by_name():
    @keras.saving.register_keras_serializable("tests")
    class Complex(keras.layers.Layer):
        def call(self, x):
            return keras.ops.cast(x, "complex64")

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.odd, self.out = Complex(name="odd"), keras.layers.Dense(2, activation="softmax")

        def call(self, x):
            return self.out(keras.ops.real(self.odd(x)))

    with pytest.raises(ProbeError, match="layer 'odd'.*complex"):
        compiled(Model()).evaluate(
            X[:, 0, :, 0], Y, verbose=0, callbacks=[EfficiencyCallback("Complex")]
        )


def test_nothing_matched_is_said_before_training():
    model = compiled(sequential())
    before = model.get_weights()[0].copy()
    with pytest.raises(NoLayerMatchedError, match="'LSTM' matched no layer.*Conv2D .2.*conv_1"):
        model.fit(X, Y, validation_data=(X_VAL, Y_VAL), callbacks=[EfficiencyCallback("LSTM")])
    np.testing.assert_array_equal(model.get_weights()[0], before)


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_a_layer_that_is_not_called_is_warned_about_once():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.used = keras.layers.Dense(5, name="used")
            self.unused = keras.layers.Dense(5, name="unused")
            self.unused.build((None, 10))
            self.out = keras.layers.Dense(2, activation="softmax", name="out")

        def call(self, x):
            return self.out(self.used(x))

    model, callback = compiled(Model()), EfficiencyCallback()
    flat = X[:, 0, :, 0]
    with pytest.warns(TensorStateWarning, match="no activations came from unused") as given:
        model.fit(flat, Y, validation_data=(flat, Y), epochs=2, verbose=0, callbacks=[callback])
    assert len(own(given)) == 1
    assert list(callback.last.layers) == ["used"]


@once
def test_other_backends_are_refused_by_name():
    code = "import tensorstate_callbacks as ts; ts.keras.EfficiencyCallback()"
    environment = {**os.environ, "KERAS_BACKEND": "numpy"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    if "No module named 'jax'" in done.stderr:
        pytest.skip("this Keras imports JAX for its NumPy backend, and there is none")
    assert "ValueError: tensorstate_callbacks.keras works with Keras on tensorflow, jax, torch" in (
        done.stderr
    )
    assert "the backend is 'numpy'. Set KERAS_BACKEND to one of these" in done.stderr


def test_low_coverage_is_told_once_a_fit_and_names_its_layers():
    ours, model = EfficiencyCallback(), compiled(sequential())
    for _ in range(2):
        with pytest.warns(TensorStateWarning) as given:
            model.fit(X, Y, validation_data=(X_VAL, Y_VAL), epochs=3, verbose=0, callbacks=[ours])
        (text,) = of_coverage(given)
        coverages = {name: layer.coverage for name, layer in ours.history[-3].layers.items()}
        assert coverages["conv_1"] > 0.5 > coverages["conv_2"]
        assert f"below 0.5 in conv_2 ({coverages['conv_2']:.2f})" in text
        assert "conv_1" not in text
        assert "(group_size=8)" in text
        assert "report.layers['conv_2'].interval()" in text
        assert own(given) == []


@pytest.mark.filterwarnings("error:Coverage is below")
def test_coverage_of_one_half_or_more_is_silent():
    ours = EfficiencyCallback("Conv2D", exclude="conv_2")
    _, history = train([ours])
    assert ours.last.layers["conv_1"].coverage > 0.5
    assert history["val_efficiency"][-1] == ours.last.efficiency
