"""Copies of the Keras callback: settings and history, nothing of a model or a fit under way."""

import copy
import pickle

import keras
import pytest
from keras_models import X_VAL, Y_VAL, X, Y, compiled, sequential

from tensorstate_callbacks.keras import EfficiencyCallback


def by_pickle(callback):
    return pickle.loads(pickle.dumps(callback))  # noqa: S301


COPIES = [copy.deepcopy, copy.copy, by_pickle]


def fit(callback, *others, epochs=1):
    model = compiled(sequential())
    data = {"validation_data": (X_VAL, Y_VAL), "verbose": 0, "epochs": epochs}
    model.fit(X[:64], Y[:64], callbacks=[callback, *others], **data)
    return model


@pytest.mark.parametrize("copied", COPIES)
def test_copies_before_and_after_a_fit_go_on_by_themselves(copied):
    options = {"beta": 1, "prefix": "x_", "every_n_epochs": 1, "classes": True}
    callback = EfficiencyCallback(["Conv2D", "fc"], **options)
    before = copied(callback)
    model = fit(callback)
    after = copied(callback)
    assert len(before.history) == 0
    assert after.last.layers == callback.last.layers
    assert after.model is None
    for each in (before, after):
        n_before = len(each.history)
        logs = model.evaluate(X_VAL, Y_VAL, verbose=0, callbacks=[each], return_dict=True)
        assert logs["x_aiq"] == each.last.aiq
        assert each.last.beta == 1
        assert list(each.last.layers) == ["conv_1", "conv_2", "fc"]
        assert each.last.layers["fc"].classes == callback.last.layers["fc"].classes
        assert each.last.layers["fc"].classes.n_classes == 2
        assert len(each.history) == n_before + 1
    assert len(callback.history) == 1


class CopiesAtEachHook(keras.callbacks.Callback):
    def __init__(self, callback, copied):
        super().__init__()
        self.callback, self.copied, self.copies = callback, copied, []

    def keep(self, *args, **kwargs):
        self.copies.append(self.copied(self.callback))

    on_train_begin = on_test_begin = on_test_batch_end = on_test_end = on_epoch_end = keep


@pytest.mark.parametrize("copied", COPIES)
def test_copies_during_a_fit_begin_between_evaluations(copied):
    callback = EfficiencyCallback("conv_1")
    other = CopiesAtEachHook(callback, copied)
    model = fit(callback, other, epochs=2)
    assert len(callback.history) == 2
    assert len(other.copies) > 8
    for each in (other.copies[0], other.copies[2], other.copies[-1]):
        n_before = len(each.history)
        model.evaluate(X_VAL, Y_VAL, verbose=0, callbacks=[each])
        assert len(each.history) == n_before + 1
        assert each.last.layers["conv_1"].n_states == 101 * 64


def test_what_the_user_gave_to_call_is_copied_too():
    callback = EfficiencyCallback(
        lambda name, layer: name == "conv_1",
        accuracy=lambda logs: 0.5,
        channel_axis=lambda name, layer, tensor: -1,
    )
    made = copy.deepcopy(callback)
    fit(made)
    assert list(made.last.layers) == ["conv_1"]
    assert made.last.accuracy == 0.5
