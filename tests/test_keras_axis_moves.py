"""Where axes go as shapes change, worked out by hand."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from tensorstate_callbacks.keras.axis_flow import axes_of_tensor
from tensorstate_callbacks.keras.axis_moves import carried_axes, reshaped_axes
from tensorstate_callbacks.keras.axis_rules import class_axes, einsum_axes, weight_axes


@pytest.mark.parametrize(
    ("axes", "before", "after", "found"),
    [
        ((-1,), (None, 5, 4, 8), (None, 20, 8), (-1,)),
        ((-3,), (None, 8, 5, 4), (None, 8, 20), (-2,)),
        ((-1,), (None, 20, 8), (None, 5, 4, 8), (-1,)),
        ((-1,), (None, 20, 8), (None, 20, 2, 4), (-2, -1)),
        ((-2, -1), (None, 20, 2, 4), (None, 20, 8), (-1,)),
        ((-1,), (None, 5, 4, 8), (None, 160), (-1,)),
        ((-1,), (None, 8), (None, 1, 1, 8), (-1,)),
        ((-1,), (None, 1, 1, 8), (None, 8), (-1,)),
        ((-1,), (32, 6, 8), (32, 3, 2, 8), (-1,)),
        # Pixels and channels in another cut: nobody knows which are the neurons.
        ((-1,), (None, 4, 6), (None, 3, 8), ()),
        ((-1,), (None, None, 8), (None, 8, None), ()),
        ((-1,), (4, 8), (None, 8), ()),
    ],
)
def test_reshaping(axes, before, after, found):
    assert reshaped_axes(axes, before, after) == found


@pytest.mark.parametrize(
    ("axes", "before", "after", "found"),
    [
        ((-1,), (32, 20, 8), (32, 18, 8), (-1,)),
        ((-2,), (32, 8, 20), (32, 8, 18), (-2,)),
        ((-1,), (32, 20, 8), (32, 20, 5), (-1,)),
        ((-1,), (32, 1, 1, 8), (32, 5, 4, 8), (-1,)),
        ((-1,), (32, 20, 8), (32, 8, 20), ()),
        ((-1,), (32, 20, 8), (32, 8), ()),
    ],
)
def test_operations_that_are_not_known(axes, before, after, found):
    assert carried_axes(axes, before, after) == found


CONV = layers.Conv2D(8, 3, padding="same")


@pytest.mark.parametrize(
    ("operation", "axes"),
    [
        (lambda x: ops.transpose(x, (0, 3, 1, 2)), (-3,)),
        (lambda x: ops.transpose(x), (-4,)),
        (lambda x: ops.moveaxis(x, -1, 1), (-3,)),
        (lambda x: ops.swapaxes(x, 1, 3), (-3,)),
        (lambda x: ops.mean(x, axis=(1, 2)), (-1,)),
        (lambda x: ops.max(x, axis=1, keepdims=True), (-1,)),
        (lambda x: ops.mean(ops.transpose(x, (0, 3, 1, 2)), axis=-1), (-2,)),
        (lambda x: ops.mean(x, axis=-1), None),
        (lambda x: ops.expand_dims(x, 1), (-1,)),
        (lambda x: ops.expand_dims(x, -1), (-2,)),
        (lambda x: ops.squeeze(ops.mean(x, axis=1, keepdims=True), 1), (-1,)),
        (lambda x: ops.stack([x, x], axis=-1), (-2,)),
        (lambda x: ops.reshape(x, (-1, 48, 8)), (-1,)),
        (lambda x: x[:, 0], (-1,)),
        (lambda x: x[:, :, ::2, 1:], (-1,)),
        (lambda x: x[..., None], (-2,)),
        (lambda x: x[..., 0], None),
        (lambda x: ops.concatenate([x, x], axis=1), (-1,)),
        (lambda x: ops.gelu(x) * 2 + 1, (-1,)),
        (lambda x: layers.Dense(5)(x), (-1,)),
        (lambda x: layers.Permute((3, 1, 2))(x), (-3,)),
        (lambda x: layers.Flatten()(x), (-1,)),
    ],
)
def test_operations_in_a_graph(operation, axes):
    x = CONV(keras.Input((8, 6, 3)))
    assert axes_of_tensor(operation(x)) == axes


@pytest.mark.parametrize(
    ("equation", "n_axes", "is_input", "axes"),
    [
        ("ab,bc->ac", 2, False, (-1,)),
        ("abc,cde->abde", 4, False, (-2, -1)),
        ("abcd,cde->abe", 3, False, (-1,)),
        ("abcd,cde->abe", 4, True, (-2, -1)),
        ("abc,bd->adc", 3, False, (-2,)),
        ("ab...,bc->ac...", 4, False, (-3,)),
        ("...ab,bc->...ac", 4, False, (-1,)),
        ("ab,b->ab", 2, False, (-1,)),
        ("ab,bc->ac", 3, False, None),
    ],
)
def test_axes_of_an_einsum_equation(equation, n_axes, is_input, axes):
    assert einsum_axes(equation, n_axes, is_input=is_input) == axes


@pytest.mark.parametrize(
    ("layer", "shape", "axes"),
    [
        (layers.Conv2D(3, 3), (None, 5, 4, 3), (-1,)),
        (layers.Conv2D(3, 3), (None, 4, 3), None),
        (layers.Conv1D(3, 3, data_format="channels_first"), (None, 3, 5), (-2,)),
        (layers.GlobalMaxPooling1D(data_format="channels_first"), (None, 3), (-1,)),
        (layers.GlobalMaxPooling1D(data_format="channels_first", keepdims=True), (2, 3, 1), (-2,)),
        (layers.ConvLSTM1D(3, 3, data_format="channels_first"), (None, 3, 5), (-2,)),
        (layers.ConvLSTM1D(3, 3, data_format="channels_first"), (None, 9, 3, 5), (-2,)),
        (layers.Bidirectional(layers.LSTM(3)), (None, 6), (-1,)),
        (layers.BatchNormalization(axis=1), (None, 3, 5), (-2,)),
        (layers.LayerNormalization(axis=[1, 2]), (None, 3, 5), None),
        (layers.Softmax(axis=1), (None, 3, 5), None),
        (layers.UnitNormalization(axis=1), (None, 3, 5), None),
        (layers.Concatenate(axis=1), (None, 3, 5), None),
        (layers.ReLU(), (None, 3, 5), None),
    ],
)
def test_axes_by_class(layer, shape, axes):
    assert class_axes(layer, shape) == axes


def test_a_class_derived_from_keras_own_is_believed_where_its_call_is_still_keras_own():
    class Renamed(layers.Conv2D):
        pass

    class Turns(layers.LayerNormalization):
        def call(self, x):
            return ops.moveaxis(super().call(ops.moveaxis(x, 1, -1)), -1, 1)

    class Standardized(layers.Conv2D):
        def call(self, x):
            return super().call(x) * 2

    assert class_axes(Renamed(3, 3), (None, 5, 4, 3)) == (-1,)
    assert class_axes(Turns(), (None, 7, 10, 8)) is None
    assert class_axes(Standardized(3, 3), (None, 5, 4, 3)) == (-1,)
    assert class_axes(Standardized(3, 3), (None, 3, 5, 4)) is None
    turns = Turns()
    turns.build((None, 10, 8, 7))
    assert weight_axes(turns, (None, 7, 10, 8)) == (-3,)
    assert weight_axes(turns, (None, 7, 7, 8)) is None
    assert weight_axes(layers.ReLU(), (None, 7, 7, 8)) is None
    assert np.prod(turns.gamma.shape) == 7
