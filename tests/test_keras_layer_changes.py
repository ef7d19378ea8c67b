"""Which layers a Keras evaluation calls may change during a fit: each change is told."""

import warnings
from typing import Any

import keras
import numpy as np
from own_warnings import ours

from tensorstate_callbacks.keras import EfficiencyCallback


class Switching(keras.Model):
    """Calls its second layer in every second epoch only."""

    def __init__(self) -> None:
        super().__init__()
        self.first = keras.layers.Dense(5, name="first")
        self.second = keras.layers.Dense(5, name="second")
        self.head = keras.layers.Dense(2, name="head")
        self.epoch = 0

    def call(self, x: Any) -> Any:
        x = self.first(x)
        return self.head(self.second(x) if self.epoch % 2 == 0 else x)


class Epochs(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.model.epoch = epoch


def test_layer_that_is_not_called_in_every_epoch_is_told_at_each_change() -> None:
    x = np.random.default_rng(1).normal(size=(40, 6)).astype("float32")
    y = np.eye(2, dtype="float32")[(x[:, 0] > 0).astype(int)]
    model, callback = Switching(), EfficiencyCallback(["first", "second"])
    model(x)
    model.compile("sgd", "mse", metrics=["accuracy"], run_eagerly=True)
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.fit(
                x,
                y,
                validation_data=(x, y),
                epochs=4,
                callbacks=[Epochs(), callback],
                verbose=0,
            )
        changes = [text for text in ours(caught) if "saw other layers" in text]
        # The next fit begins anew.
        assert ["missing" in text for text in changes] == [True, False, True]
        assert ["added" in text for text in changes] == [False, True, False]
    assert [len(report.layers) for report in callback.history] == [2, 1, 2, 1] * 2
