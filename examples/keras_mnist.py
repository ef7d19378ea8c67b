"""Train LeNet-5 on handwritten digits with Keras, and stop when its aIQ no longer rises.

The network and its training are those of TensorState's tutorials: three convolutions of 20, 50 and
100 neurons with ELU and batch normalization, SGD with Nesterov momentum. Run it with `make demo`,
or `python examples/keras_mnist.py --help`.
"""

import os
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import mlflow
import numpy as np
from digits import (
    Digits,
    EpochProgress,
    load_digits,
    parse_arguments,
    print_commands,
    print_result,
    run_name,
)
from keras import layers

import tensorstate_callbacks


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


def main() -> None:
    """Train, watch, stop, draw."""
    arguments = parse_arguments(__doc__ or "", "runs/keras_mnist")
    output = arguments.output_dir
    output.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(arguments.seed)
    digits = load_digits(arguments, load_full)
    model = lenet5()

    mlflow.set_tracking_uri(f"sqlite:///{output / 'mlflow.db'}")
    mlflow.set_experiment("keras_mnist")
    efficiency = tensorstate_callbacks.keras.EfficiencyCallback(beta=2)
    stop = keras.callbacks.EarlyStopping("val_aiq", mode="max", patience=arguments.patience)
    run = run_name()
    with mlflow.start_run(run_name=run):
        mlflow.log_params({"beta": 2, "batch_size": arguments.batch_size, "seed": arguments.seed})
        model.fit(
            digits.x_train[..., None],
            digits.y_train,
            batch_size=arguments.batch_size,
            epochs=arguments.epochs,
            validation_data=(digits.x_val[..., None], digits.y_val),
            validation_batch_size=arguments.batch_size,
            verbose=0,
            callbacks=[
                efficiency,
                stop,
                keras.callbacks.TensorBoard(output / "tensorboard" / run, write_graph=False),
                # mlflow.keras.MlflowCallback() does the same and stores the model's summary too.
                keras.callbacks.LambdaCallback(
                    on_epoch_end=lambda epoch, logs: mlflow.log_metrics(logs, step=epoch)
                ),
                EpochLines(),
            ],
        )

    stopped = len(efficiency.history) if stop.stopped_epoch else None
    print_result(efficiency.history, stopped, output)
    print_commands(output)


if __name__ == "__main__":
    main()
