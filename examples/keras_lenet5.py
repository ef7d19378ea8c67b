"""LeNet-5 in Keras, the digits for it, and a line for each epoch."""

from typing import Any

import keras
import numpy as np
from digits import Digits, EpochProgress
from keras import layers


def lenet5() -> keras.Model:
    """Build LeNet-5 with 20, 50 and 100 neurons."""
    model = keras.Sequential([keras.Input((28, 28, 1))])
    for number, (neurons, size) in enumerate([(20, 5), (50, 5), (100, 4)], start=1):
        model.add(
            layers.Conv2D(
                neurons,
                size,
                activation="elu",
                kernel_initializer="he_normal",
                kernel_regularizer=keras.regularizers.L2(0.0005),
                name=f"conv_{number}",
            )
        )
        model.add(layers.BatchNormalization(name=f"norm_{number}"))
        if number < 3:
            model.add(layers.MaxPooling2D(name=f"pool_{number}"))
    model.add(layers.Flatten())
    model.add(
        layers.Dense(
            10,
            activation="softmax",
            kernel_initializer="he_normal",
            kernel_regularizer=keras.regularizers.L2(0.0005),
            name="pred",
        )
    )
    model.compile(
        optimizer=keras.optimizers.SGD(0.001, momentum=0.9, nesterov=True),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


class EpochLines(keras.callbacks.Callback):
    """A progress bar while an epoch runs, and a line when it is over."""

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Start the bar."""
        self._progress = EpochProgress(epoch, self.params["steps"])

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Move the bar on."""
        self._progress.update()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Replace the bar by the figures of the validation pass."""
        self._progress.close(logs or {})


def load_full() -> Digits:
    """Download MNIST with Keras."""
    (x_train, y_train), (x_val, y_val) = keras.datasets.mnist.load_data()
    images = [(x / 255).astype(np.float32) for x in (x_train, x_val)]
    return Digits(images[0], y_train.astype(np.int64), images[1], y_val.astype(np.int64))
