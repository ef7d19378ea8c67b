"""A watched model is saved, exported, copied and pickled as if nobody watched it."""

import copy
import pickle

import keras
import numpy as np
import pytest
from keras_models import X_VAL, Y_VAL, X, Y, compiled, only_on, sequential

from tensorstate_callbacks.keras import EfficiencyCallback

OURS = {"evaluate", "_get_metrics_result_or_logs", "_flatten_metrics_in_order"}


class Once(keras.callbacks.Callback):
    """Does something with the model, the first time that Keras comes to a hook."""

    def __init__(self, hook, act):
        super().__init__()
        setattr(self, hook, lambda *_, **__: self.act())
        self._act, self.result = act, None

    def act(self):
        if self.result is None:
            self.result = self._act(self.model)


def watched_fit(hook, act):
    """Fit with our callback; return the model, what `act` gave, and our callback."""
    model, callback, once = compiled(sequential()), EfficiencyCallback(), Once(hook, act)
    given = {"validation_data": (X_VAL, Y_VAL), "batch_size": 50, "verbose": 0}
    model.fit(X, Y, callbacks=[callback, once], **given)
    return model, once.result, callback


@pytest.mark.parametrize("hook", ["on_epoch_end", "on_test_batch_end", "on_train_batch_end"])
def test_copies_carry_nothing_of_ours(hook, tmp_path):
    def duplicate(model):
        model.save(tmp_path / "model.keras")
        model.save_weights(tmp_path / "model.weights.h5")
        return [
            keras.models.clone_model(model),
            copy.deepcopy(model),
            pickle.loads(pickle.dumps(model)),  # noqa: S301
            keras.models.load_model(tmp_path / "model.keras"),
            [weights.copy() for weights in model.get_weights()],
        ]

    model, (*copies, weights), callback = watched_fit(hook, duplicate)
    for copied in copies:
        assert not OURS & set(vars(copied))
        assert copied.test_function is None or copied.test_function.__module__.startswith("keras.")
        assert not any({"call", "quantized_call"} & set(vars(part)) for part in copied.layers)
    # All but the clone have the weights of that moment.
    for copied in copies[1:]:
        for found, expected in zip(copied.get_weights(), weights, strict=True):
            np.testing.assert_array_equal(found, expected)
    model.load_weights(tmp_path / "model.weights.h5")
    for found, expected in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(found, expected)
    # A copy that is evaluated doesn't count here.
    before = len(callback.history), callback.last.layers["conv_1"].n_states
    compiled(copies[1]).evaluate(X_VAL, Y_VAL, verbose=0)
    assert (len(callback.history), callback.last.layers["conv_1"].n_states) == before


@only_on("tensorflow", because="a SavedModel is TensorFlow's")
@pytest.mark.parametrize("hook", ["on_epoch_end", "on_test_batch_end", "on_train_end"])
def test_an_exported_model_carries_no_probe(hook, tmp_path):
    import tensorflow as tf

    def export(model):
        model.export(str(tmp_path / "served"))
        return model.predict_on_batch(X_VAL)

    _, expected, _ = watched_fit(hook, export)
    served = tf.saved_model.load(tmp_path / "served")
    np.testing.assert_allclose(served.serve(X_VAL.astype(np.float32)), expected, atol=1e-5)
    graph = served.signatures["serving_default"].graph.as_graph_def()
    kinds = {node.op for node in graph.node}
    for function in graph.library.function:
        kinds |= {node.op for node in function.node_def}
    assert "Conv2D" in kinds
    assert not {"PyFunc", "EagerPyFunc", "PyFuncStateless"} & kinds
