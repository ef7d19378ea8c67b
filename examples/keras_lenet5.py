"""LeNet-5 in Keras, the digits for it, and a line for each epoch."""

from typing import Any

import keras
import numpy as np
from digits import Digits, EpochProgress
from keras import layers


def lenet5(
    neurons: tuple[int, int, int] = (20, 50, 100),
    *,
    batch_norm: bool = True,
    dropout: float = 0.0,
    defaults: bool = False,
    learning_rate: float = 0.001,
) -> keras.Model:
    """Build LeNet-5.

    Args:
        neurons: Neurons of its three convolutions.
        batch_norm: Whether batch normalization follows each of them.
        dropout: Share of activations dropped after each of them in training, 0 to 1.
        defaults: Keras's own initialization, and Adam, in place of the tutorial's He
            initialization, L2 regularization and SGD.
        learning_rate: Of SGD; the default is the tutorial's.
    """
    chosen: dict[str, Any] = {}
    if not defaults:
        chosen = {
            "kernel_initializer": "he_normal",
            "kernel_regularizer": keras.regularizers.L2(0.0005),
        }
    model = keras.Sequential([keras.Input((28, 28, 1))])
    for number, (width, size) in enumerate(zip(neurons, (5, 5, 4), strict=True), start=1):
        model.add(layers.Conv2D(width, size, activation="elu", name=f"conv_{number}", **chosen))
        if batch_norm:
            model.add(layers.BatchNormalization(name=f"norm_{number}"))
        if number < 3:
            model.add(layers.MaxPooling2D(name=f"pool_{number}"))
        if dropout:
            model.add(layers.Dropout(dropout, name=f"drop_{number}"))
    model.add(layers.Flatten())
    model.add(layers.Dense(10, activation="softmax", name="pred", **chosen))
    sgd = keras.optimizers.SGD(learning_rate, momentum=0.9, nesterov=True)
    model.compile(
        optimizer="adam" if defaults else sgd,
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
        """Replace the bar by the metrics of the validation pass."""
        self._progress.close(logs or {})


def load_full() -> Digits:
    """Download MNIST with Keras."""
    (x_train, y_train), (x_val, y_val) = keras.datasets.mnist.load_data()
    images = [(x / 255).astype(np.float32) for x in (x_train, x_val)]
    return Digits(images[0], y_train.astype(np.int64), images[1], y_val.astype(np.int64))
