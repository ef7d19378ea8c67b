"""KerasTuner searches by the keys of the callback, which it copies for each trial."""

import keras
import numpy as np
import pytest
from keras_models import X_VAL, Y_VAL, X, Y, compiled, count_states, outputs_of

from tensorstate_callbacks.keras import EfficiencyCallback

tuners = pytest.importorskip("keras_tuner", reason="keras-tuner isn't installed")

pytestmark = [
    # KerasTuner's own.
    pytest.mark.filterwarnings("ignore:(currentThread|getName).*deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer"),
]
AIQ = tuners.Objective("val_aiq", "max")


def build(hp):
    keras.utils.set_random_seed(5)
    layers = [keras.layers.Flatten(), keras.layers.Dense(hp.Choice("units", [4, 9]), name="fc")]
    layers.append(keras.layers.Dense(2, activation="softmax"))
    return compiled(keras.Sequential([keras.Input((10, 10, 1)), *layers]))


class Keeps(keras.callbacks.Callback):
    """Keeps what all its copies see."""

    seen: list[float]

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(logs["val_aiq"])


@pytest.fixture
def keeps():
    Keeps.seen = []
    return Keeps()


def search(tuner, *callbacks, **options):
    data = {"validation_data": (X_VAL, Y_VAL), "verbose": 0}
    tuner.search(X[:64], Y[:64], callbacks=list(callbacks), **data, **options)


def aiq_by_numpy(model):
    """aIQ of the one layer that is probed by default."""
    counts = count_states(outputs_of(model, ["fc"], X_VAL)["fc"])
    shares = counts / counts.sum()
    efficiency = -(shares * np.log2(shares)).sum() / model.get_layer("fc").units
    right = keras.ops.convert_to_numpy(model(X_VAL)).argmax(1) == Y_VAL
    return (efficiency * right.mean() ** 2) ** (1 / 3)


def test_random_search_finds_the_best_aiq(tmp_path, keeps):
    options = {"objective": AIQ, "max_trials": 2, "directory": tmp_path, "seed": 3}
    tuner = tuners.RandomSearch(build, **options)
    callback = EfficiencyCallback()
    search(tuner, callback, keeps, epochs=2)
    best, other = tuner.oracle.get_best_trials(2)
    assert best.score == max(keeps.seen)
    assert best.score >= other.score
    assert len(keeps.seen) == 4
    # Of the copies each trial has its own; the one that was given is as it was.
    assert len(callback.history) == 0

    (model,) = tuner.get_best_models()
    assert aiq_by_numpy(model) == pytest.approx(best.score, rel=1e-6)
    again = EfficiencyCallback()
    options = {"epochs": 2, "validation_data": (X_VAL, Y_VAL), "verbose": 0}
    tuner.hypermodel.build(best.hyperparameters).fit(X[:64], Y[:64], callbacks=[again], **options)
    assert best.score == pytest.approx(max(report.aiq for report in again.history), rel=1e-6)


def test_hyperband_keeps_the_trials_of_the_best_aiq(tmp_path, keeps):
    options = {"objective": AIQ, "max_epochs": 2, "factor": 2, "directory": tmp_path, "seed": 3}
    tuner = tuners.Hyperband(build, **options)
    search(tuner, EfficiencyCallback(), keeps)
    (best,) = tuner.oracle.get_best_trials(1)
    assert best.score == max(keeps.seen)
    (model,) = tuner.get_best_models()
    assert aiq_by_numpy(model) == pytest.approx(best.score, rel=1e-6)
