"""Models rebuilt around the same layers with captures between them, and taken back."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers
from keras_models import (
    BACKEND,
    X_VAL,
    Y_VAL,
    X,
    Y,
    compiled,
    count_states,
    functional,
    sequential,
    subclassed,
)

from tensorstate_callbacks import NoLayerMatchedError, TensorStateWarning, entropy
from tensorstate_callbacks.keras import EfficiencyCallback, StateCapture
from tensorstate_callbacks.tensorstate import build_efficiency_model as build
from tensorstate_callbacks.tensorstate import efficiency_layers
from tensorstate_callbacks.tensorstate import remove_state_layers as remove
from tensorstate_callbacks.tensorstate import reset_efficiency_model as reset


def names(model):
    return [layer.name for layer in model.efficiency_layers]


def check_counts(model, original, tensors, x):
    """Compare what the model captured of `x` with the outputs of the original's tensors."""
    model.predict(x, batch_size=64, verbose=0)
    inner = keras.Model(original.inputs[0], list(tensors.values()))
    outputs = inner.predict(x, batch_size=64, verbose=0)
    outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    assert names(model) == list(tensors)
    for layer, activations in zip(model.efficiency_layers, outputs, strict=True):
        counts = count_states(activations)
        assert layer.state_count == counts.sum()
        assert np.sort(layer.counts()).tolist() == counts.tolist()
        assert layer.entropy() == entropy(counts)


@pytest.mark.parametrize("builder", [sequential, functional])
def test_captures_see_what_the_layers_give(builder):
    original = builder()
    model = build(original)
    assert type(model) is type(original)
    tensors = {
        f"{name}_post_states": original.get_layer(name).output
        for name in ("conv_1", "conv_2", "fc")
    }
    check_counts(model, original, tensors, X)
    assert set(map(id, original.layers)) <= set(map(id, model.layers))
    assert all(a is b for a, b in zip(model.weights, original.weights, strict=True))
    plain = original.predict(X, verbose=0)
    np.testing.assert_allclose(model.predict(X, verbose=0), plain, rtol=1e-5)


def test_inputs_are_captured_if_asked():
    original = functional()
    model = build(original, "fc", method="both")
    fc = original.get_layer("fc")
    check_counts(model, original, {"fc_pre_states": fc.input, "fc_post_states": fc.output}, X)


def test_sequential_models_have_inputs_too_and_exclude_leaves_out():
    original = sequential()
    model = build(original, ["Conv2D", "fc"], exclude="conv_2", method="before")
    tensors = {f"{n}_pre_states": original.get_layer(n).input for n in ("conv_1", "fc")}
    check_counts(model, original, tensors, X)


def two_towers():
    """A model that calls an inner one twice, which holds another; and a layer shared by both."""
    fc = layers.Dense(5, activation="tanh", name="fc")
    deep = keras.Sequential([keras.Input((6,)), layers.Dense(4, name="fc")], name="deep")
    inside = keras.Input((3,))
    block = keras.Model(inside, deep(layers.Dense(6, name="wide")(fc(inside))), name="block")
    left, right = keras.Input((3,), name="left"), keras.Input((3,), name="right")
    joined = layers.Concatenate()([block(left), block(right), fc(right)])
    return keras.Model([left, right], layers.Dense(2, activation="softmax", name="out")(joined))


def test_nested_and_shared_layers_are_captured_once_and_sum_their_calls():
    original = two_towers()
    model = build(original)
    x = [np.random.default_rng(n).normal(size=(80, 3)).astype(np.float32) for n in (1, 2)]
    np.testing.assert_array_equal(model.predict(x, verbose=0), original.predict(x, verbose=0))
    assert names(model) == [
        "block.fc_post_states",
        "block.wide_post_states",
        "block.deep.fc_post_states",
    ]
    block = original.get_layer("block")
    fc, wide, deep = block.layers[1], block.get_layer("wide"), block.get_layer("deep")
    expected = {name: [] for name in ("fc", "wide", "deep")}
    for tower in x:
        expected["fc"].append(keras.ops.convert_to_numpy(fc(tower)))
        expected["wide"].append(keras.ops.convert_to_numpy(wide(fc(tower))))
        expected["deep"].append(keras.ops.convert_to_numpy(deep(wide(fc(tower)))))
    expected["fc"].append(keras.ops.convert_to_numpy(fc(x[1])))
    for layer, batches in zip(model.efficiency_layers, expected.values(), strict=True):
        assert np.sort(layer.counts()).tolist() == count_states(np.concatenate(batches)).tolist()


def test_a_model_may_be_the_captured_layer():
    original = two_towers()
    model = build(original, "block", method="both")
    x = [np.random.default_rng(n).normal(size=(80, 3)).astype(np.float32) for n in (1, 2)]
    model.predict(x, verbose=0)
    assert names(model) == ["block_pre_states", "block_post_states"]
    counts = count_states(np.concatenate(x))
    assert np.sort(model.efficiency_layers[0].counts()).tolist() == counts.tolist()
    block = original.get_layer("block")
    counts = count_states(np.concatenate([keras.ops.convert_to_numpy(block(tower)) for tower in x]))
    assert np.sort(model.efficiency_layers[1].counts()).tolist() == counts.tolist()


def test_a_second_call_adds_nothing_twice():
    original = functional()
    once = build(original, "Conv2D")
    assert build(once, "Conv2D") is once
    more = build(once, "fc", method="both")
    assert names(more) == [
        f"{n}_states" for n in ("conv_1_post", "conv_2_post", "fc_pre", "fc_post")
    ]
    assert more.efficiency_layers[:2] == once.efficiency_layers
    more.predict(X_VAL, verbose=0)
    assert [layer.state_count for layer in more.efficiency_layers] == [6464, 6464, 101, 101]
    with pytest.raises(ValueError, match="'threshold': 0.0.*'threshold': 0.5.*remove_state_layers"):
        build(once, "fc", threshold=0.5)


def test_removing_takes_ours_only():
    own = StateCapture("own")
    original = keras.Sequential([*sequential().layers[:-1], own, layers.Softmax()])
    original.predict(X_VAL, verbose=0)
    model = build(original, method="both")
    assert len(efficiency_layers(model)) == 6
    back = remove(model)
    assert [layer.name for layer in back.layers] == [layer.name for layer in original.layers]
    assert not hasattr(back, "efficiency_layers")
    own.reset_states()
    np.testing.assert_array_equal(
        back.predict(X_VAL, verbose=0), original.predict(X_VAL, verbose=0)
    )
    assert own.state_count == 2 * 101
    assert remove(back) is back
    for model in (two_towers(), functional()):
        back = remove(build(model))
        assert [layer.name for layer in back.layers] == [layer.name for layer in model.layers]
        assert back.count_params() == model.count_params()


def test_resetting_forgets_the_states():
    model = build(sequential(), "Conv2D")
    model.predict(X_VAL, verbose=0)
    reset(model)
    assert [layer.state_count for layer in model.efficiency_layers] == [0, 0]
    with pytest.raises(ValueError, match="has no state layers: build_efficiency_model"):
        reset(sequential())


@pytest.mark.parametrize("builder", [sequential, functional])
def test_it_is_compiled_like_the_original_and_trains_the_same_weights(builder):
    original = builder()
    assert not build(original).compiled
    original.compile(
        keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    original.fit(X, Y, verbose=0)
    results = original.evaluate(X_VAL, Y_VAL, verbose=0, return_dict=True)
    model = build(original)
    again = model.evaluate(X_VAL, Y_VAL, verbose=0, return_dict=True)
    assert again == pytest.approx(results, rel=1e-5)
    reset(model)
    assert model.optimizer is original.optimizer
    steps = int(keras.ops.convert_to_numpy(original.optimizer.iterations))
    model.fit(X, Y, batch_size=50, verbose=0)
    assert int(keras.ops.convert_to_numpy(original.optimizer.iterations)) == steps + 6
    assert [layer.state_count for layer in model.efficiency_layers] == [0, 0, 0]
    back = remove(model)
    results = model.evaluate(X_VAL, Y_VAL, verbose=0, return_dict=True)
    for other in (original, back):
        again = other.evaluate(X_VAL, Y_VAL, verbose=0, return_dict=True)
        assert again == pytest.approx(results, rel=1e-5)


def test_the_callback_counts_alike_in_a_rebuilt_model():
    model, callback = compiled(build(functional())), EfficiencyCallback()
    model.evaluate(X, Y, verbose=0, callbacks=[callback])
    assert len(callback.last.layers) == 3
    for layer in model.efficiency_layers:
        report = callback.last.layers[layer.name.removesuffix("_post_states")]
        assert (report.n_states, report.entropy) == (layer.state_count, layer.entropy())


def test_it_is_saved_and_found_again(tmp_path):
    model = build(functional(), threshold=0.5)
    model.predict(X_VAL, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    loaded.predict(X_VAL, verbose=0)
    assert [layer.name for layer in efficiency_layers(loaded)] == names(model)
    for a, b in zip(efficiency_layers(loaded), model.efficiency_layers, strict=True):
        assert a.counts().tolist() == b.counts().tolist()
    assert build(loaded, threshold=0.5).efficiency_layers == efficiency_layers(loaded)
    assert remove(loaded).count_params() == model.count_params()


def test_a_subclassed_model_is_sent_to_the_callback():
    with pytest.raises(TypeError, match="Subclassed.*EfficiencyCallback.*StateCapture"):
        build(subclassed())


def test_layers_inside_of_layers_are_out_of_reach():
    inputs = keras.Input((4, 3))
    x = layers.TimeDistributed(layers.Dense(5, name="each"), name="steps")(inputs)
    x = layers.Dense(6, name="fc")(x)
    model = keras.Model(inputs, layers.Dense(2, name="out")(x))
    with pytest.raises(
        ValueError, match="steps/each: no capture.*layer around.*EfficiencyCallback"
    ):
        build(model, "steps/each")
    with pytest.warns(TensorStateWarning, match="left out steps/each: no capture"):
        assert names(build(model)) == ["fc_post_states"]
    with pytest.raises(NoLayerMatchedError, match="'GRU' matched no layer"):
        build(model, "GRU")


def test_classes_with_a_test_step_of_their_own_stay_what_they_are():
    class Halves(keras.Model):
        def test_step(self, *args):
            return super().test_step(*args)

    class Odd(keras.Model):
        def __init__(self, width):
            inputs = keras.Input((3,))
            hidden = layers.Dense(width, name="hidden")(inputs)
            super().__init__(inputs, layers.Dense(2, name="out")(hidden))

    plain = functional()
    assert isinstance(build(Halves(plain.input, plain.output)), Halves)
    with pytest.raises(TypeError, match="Odd has a constructor of its own.*EfficiencyCallback"):
        build(Odd(4))


def test_an_unbuilt_sequential_model_is_built_with_its_captures():
    original = keras.Sequential([layers.Dense(4, name="fc"), layers.Dense(2, name="out")])
    model = build(original, "fc")
    x = np.random.default_rng(3).normal(size=(30, 3)).astype(np.float32)
    model.predict(x, verbose=0)
    counts = count_states(keras.ops.convert_to_numpy(original.layers[0](x)))
    assert np.sort(model.efficiency_layers[0].counts()).tolist() == counts.tolist()


def branches():
    left, right = keras.Input((3,)), keras.Input((4,))
    short = layers.Dense(5, name="short")(left)
    long = layers.Dense(6, name="long_2")(layers.Dense(5, name="long_1")(right))
    joined = layers.Dense(2, name="out")(layers.Concatenate()([short, long]))
    return keras.Model([left, right], joined)


def test_weights_of_branches_in_another_order_are_not_mixed_up():
    model = branches()
    model.compile(keras.optimizers.Adam(0.1), "mse")
    rng = np.random.default_rng(4)
    x = [rng.normal(size=(16, n)).astype(np.float32) for n in (3, 4)]
    y = rng.normal(size=(16, 2)).astype(np.float32)
    model.train_on_batch(x, y)
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        rebuilt = build(model, "short")
    order = [variable.path for variable in model.trainable_variables]
    assert sorted(order) == sorted(variable.path for variable in rebuilt.trainable_variables)
    reordered = order != [variable.path for variable in rebuilt.trainable_variables]
    assert reordered
    fresh = BACKEND == "jax"
    assert any("has a fresh one" in str(warning.message) for warning in given) == fresh
    assert (rebuilt.optimizer is model.optimizer) != fresh
    before = {v.path: keras.ops.convert_to_numpy(v).copy() for v in rebuilt.trainable_variables}
    rebuilt.train_on_batch(x, y)
    for variable in model.trainable_variables:
        moved = np.abs(keras.ops.convert_to_numpy(variable) - before[variable.path])
        # A step of Adam is at most about the learning rate.
        assert 0 < moved.max() < 0.2
