"""Run one training of a study in Keras."""

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
from epoch_metrics import collect_metrics
from keras_lenet5 import lenet5
from study import Parts, Training

import tensorstate_callbacks


def train(training: Training, parts: Parts, on_epoch: Callable[[], None]) -> list[dict[str, Any]]:
    """Train LeNet-5 with Keras's defaults, and return the metrics of each epoch.

    Args:
        training: The settings.
        parts: The digits.
        on_epoch: Called after each epoch.
    """
    keras.backend.clear_session()
    keras.utils.set_random_seed(training.seed)
    model = lenet5(
        training.neurons,
        batch_norm=training.batch_norm,
        dropout=training.dropout,
        defaults=True,
    )
    efficiency = tensorstate_callbacks.keras.EfficiencyCallback()
    grouped = tensorstate_callbacks.keras.EfficiencyCallback(
        group_size=training.group_size, prefix="grouped_"
    )
    test_accuracies = []

    def test(epoch: int, logs: dict[str, Any]) -> None:
        tested = model.evaluate(
            parts.x_test[..., None], parts.y_test, batch_size=500, verbose=0, return_dict=True
        )
        test_accuracies.append(tested["accuracy"])
        on_epoch()

    logs = model.fit(
        parts.x_train[..., None],
        parts.y_train,
        batch_size=training.batch_size,
        epochs=training.epochs,
        validation_data=(parts.x_val[..., None], parts.y_val),
        validation_batch_size=500,
        verbose=0,
        callbacks=[efficiency, grouped, keras.callbacks.LambdaCallback(on_epoch_end=test)],
    ).history
    return collect_metrics(
        efficiency.history, grouped.history, logs["loss"], logs["val_loss"], test_accuracies
    )
