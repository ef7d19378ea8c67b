"""The argument `mask` in Keras: a key of the batch, a callable, an array of all samples."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import layers
from keras_masks import (
    LENGTHS,
    TOKENS,
    VALUES,
    Y,
    alone,
    batches,
    classifier,
    embed,
    evaluated,
    mask_of,
    padded,
    together,
)
from keras_models import SEVERAL_STEPS, compiled, only_on

from tensorstate_callbacks import ProbeError, TensorStateWarning
from tensorstate_callbacks.keras import EfficiencyCallback
from tensorstate_callbacks.keras.picking import check_rows
from tensorstate_callbacks.recording.settings import Settings

pytestmark = pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask")

X, MASK = padded(VALUES), mask_of(VALUES)
WITH_KEY = {"values": X, "kept": MASK}


def by_values(**options):
    """A model of dicts, which doesn't look at the mask among its inputs."""
    keras.utils.set_random_seed(3)
    values, kept = keras.Input((None, 3), name="values"), keras.Input((None,), name="kept")
    x = layers.Dense(11, name="fc")(values)
    x = layers.GlobalMaxPooling1D()(x + 0 * keras.ops.expand_dims(kept, -1))
    x = layers.Dense(2, activation="softmax", name="out")(x)
    return compiled(keras.Model({"values": values, "kept": kept}, x), **options)


@pytest.fixture(scope="module")
def model():
    return by_values()


def without_padding(model, **options):
    pairs = zip(VALUES, LENGTHS, strict=True)
    data = (({"values": v[None], "kept": np.ones((1, n))}, Y[:1]) for v, n in pairs)
    return evaluated(model, data, len(VALUES), "fc", mask="kept", **options)[0]


def by_batch(name, batch):
    x, _ = batch
    assert name == "fc"
    return x["kept"]


MASKS = {"key": "kept", "callable": by_batch, "array": MASK, "list": MASK.astype(int).tolist()}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("options", [{}, {"group_size": 3, "positions": 2}])
def test_masks_that_are_given_equal_samples_without_padding(model, mask, options, force_device):
    expected = without_padding(model, **options)
    assert expected["fc"].n_states == sum(min(n, options.get("positions", n)) for n in LENGTHS)
    for forced in (False, True):
        force_device(forced)
        for size in (3, 7):
            n_batches = -(-len(Y) // size)
            found = evaluated(model, batches(WITH_KEY, size), n_batches, "fc", mask=mask, **options)
            assert found == (expected, [])


@pytest.mark.parametrize("options", [{"run_eagerly": True}, SEVERAL_STEPS])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_steps_that_run_in_other_ways_see_the_masks(mask, options):
    model = by_values(**options)
    callback = EfficiencyCallback("fc", missing_accuracy="ignore", mask=mask)
    for _ in range(2):
        model.evaluate(WITH_KEY, Y, batch_size=3, verbose=0, callbacks=[callback])
        assert callback.last.layers["fc"].n_states == sum(LENGTHS)


@pytest.mark.parametrize("mask", ["kept", MASK], ids=["key", "array"])
def test_validation_and_loops_over_batches_see_the_masks(model, mask):
    callback = EfficiencyCallback("fc", missing_accuracy="ignore", mask=mask)
    data = {"validation_data": (WITH_KEY, Y), "validation_batch_size": 2}
    model.fit(WITH_KEY, Y, epochs=2, verbose=0, callbacks=[callback], **data)
    callbacks = keras.callbacks.CallbackList([callback], model=model)
    callbacks.on_test_begin()
    for x, y in batches(WITH_KEY, 4):
        logs = model.test_on_batch(x, y, return_dict=True)
    callbacks.on_test_end(dict(logs))
    n_states = [report.layers["fc"].n_states for report in callback.history]
    assert n_states == [sum(LENGTHS)] * 3


def test_another_mask_is_taken_at_once(model):
    callback = EfficiencyCallback("fc", missing_accuracy="ignore", mask="kept")
    for mask, n_states in [
        ("kept", sum(LENGTHS)),
        (lambda name, batch: keras.ops.logical_not(batch[0]["kept"]), 6 * len(Y) - sum(LENGTHS)),
        (lambda name, batch: None, 6 * len(Y)),
        (np.arange(6) < 2, 2 * len(Y)),
        ([[1, 0, 0, 0, 0, 1]], 2 * len(Y)),
        (MASK, sum(LENGTHS)),
    ]:
        callback.mask = mask
        model.evaluate(WITH_KEY, Y, batch_size=3, verbose=0, callbacks=[callback])
        assert callback.last.layers["fc"].n_states == n_states


def test_a_callable_is_asked_anew_in_each_evaluation(model):
    # What is compiled for a callback is kept as long as the model's own test function is.
    model.evaluate(WITH_KEY, Y, batch_size=3, verbose=0)
    kept = [2]
    callback = EfficiencyCallback(
        "fc", missing_accuracy="ignore", mask=lambda name, batch: np.arange(6) < kept[0]
    )
    for n in (2, 3):
        kept[0] = n
        model.evaluate(WITH_KEY, Y, batch_size=3, verbose=0, callbacks=[callback])
        assert callback.last.layers["fc"].n_states == n * len(Y)


def test_two_callbacks_have_masks_of_their_own(model):
    masked = EfficiencyCallback("fc", missing_accuracy="ignore", mask="kept")
    whole = EfficiencyCallback("fc", missing_accuracy="ignore", prefix="w_")
    model.evaluate(WITH_KEY, Y, batch_size=3, verbose=0, callbacks=[whole, masked])
    assert whole.last.layers["fc"].n_states == 6 * len(Y)
    assert masked.last.layers["fc"].n_states == sum(LENGTHS)


def test_masks_that_are_given_go_before_those_of_keras():
    inputs, x = embed()
    model = classifier(inputs, layers.GlobalMaxPooling1D()(layers.Dense(5, name="fc")(x)))
    found, _ = together(model, TOKENS, ["embedding", "fc"], mask=np.arange(6) < 3)
    assert {report.n_states for report in found.values()} == {3 * len(TOKENS)}
    expected = alone(model, TOKENS, "fc")
    assert together(model, TOKENS, "fc", mask="auto") == (expected, [])


def test_layers_that_shorten_the_sequence_can_be_given_masks_of_their_own():
    inputs = keras.Input((6, 3))
    x = layers.Conv1D(5, 2, strides=2, name="strided")(inputs)
    model = classifier(inputs, layers.GlobalMaxPooling1D()(x))

    def both_steps(name, batch):
        kept = keras.ops.any(keras.ops.not_equal(batch[0], 0), axis=-1)
        return keras.ops.all(keras.ops.reshape(kept, (-1, 3, 2)), axis=-1)

    found, warned = together(model, VALUES, "strided", mask=both_steps)
    assert (found["strided"].n_states, warned) == (sum(n // 2 for n in LENGTHS), [])
    found, (text,) = together(model, VALUES, "strided", mask=MASK)
    assert found["strided"].n_states == 3 * len(VALUES)
    assert "doesn't fit the positions of strided" in text


def evaluate(model, x=WITH_KEY, y=Y, **options):
    callback = EfficiencyCallback("fc", missing_accuracy="ignore", **options)
    model.evaluate(x, y, batch_size=3, verbose=0, callbacks=[callback])
    return callback.last.layers["fc"]


def test_a_key_that_is_not_there_is_an_error_that_names_those_there_are():
    with pytest.raises(ProbeError, match=r"mask='attention_mask': .*no such key \(.*values"):
        evaluate(by_values(), mask="attention_mask")
    inputs = keras.Input((6, 3))
    plain = classifier(inputs, layers.GlobalMaxPooling1D()(layers.Dense(5, name="fc")(inputs)))
    with pytest.raises(ProbeError, match=r"no such key \(it has no dict\)"):
        evaluate(plain, X, mask="attention_mask")


def test_too_few_rows_are_an_error_and_too_many_a_warning_that_name_both_numbers():
    with pytest.raises(ProbeError, match="mask has 5 samples, and 6 came so far"):
        evaluate(by_values(), mask=MASK[:5])
    with pytest.warns(TensorStateWarning, match="mask has 9 samples, and 7 came"):
        found = evaluate(by_values(), mask=np.concatenate([MASK, MASK[:2]]))
    assert found.n_states == sum(LENGTHS)


def test_what_is_no_mask_is_an_error_that_names_the_layer():
    with pytest.raises(ProbeError, match="layer 'fc' could not be masked: .*below 0"):
        evaluate(by_values(), mask=lambda name, batch: batch[0]["values"][..., 0])


def test_nothing_is_left_of_a_mask_on_the_model(model):
    before = set(vars(model))
    evaluate(model, mask="kept")
    assert "test_step" not in vars(model)
    assert set(vars(model)) <= before | {"_eval_epoch_iterator", "stop_evaluating"}


@only_on("tensorflow", "torch", because="a test step has a state there")
def test_a_test_step_of_ones_own_sees_the_batch():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.fc, self.pool = layers.Dense(5, name="fc"), layers.GlobalMaxPooling1D()
            self.out = layers.Dense(2, activation="softmax")

        def call(self, x):
            return self.out(self.pool(self.fc(x["values"])))

        def test_step(self, data):
            x, y = data
            return super().test_step(({"values": x["values"]}, y))

    assert evaluate(compiled(Own()), mask="kept").n_states == sum(LENGTHS)


def test_rows_are_refused_where_replicas_share_the_batches():
    class Spread:
        distribute_strategy = SimpleNamespace(num_replicas_in_sync=2)

    with pytest.raises(ValueError, match="2 replicas of the model share the batches"):
        check_rows(Spread(), Settings(mask=MASK))
    check_rows(Spread(), Settings(mask=MASK[0]))
    check_rows(Spread(), Settings(mask="kept"))


@pytest.mark.parametrize("mask", ["kept", by_batch, None])
def test_training_steps_are_masked_too(model, mask):
    data = WITH_KEY
    if mask is None:
        inputs, x = embed()
        model = classifier(inputs, layers.GlobalMaxPooling1D()(layers.Dense(11, name="fc")(x)))
        data = padded(TOKENS)
    # The weights stay, so that the batches of an epoch count as an evaluation of them.
    model.optimizer.learning_rate = 0.0
    options = {"group_size": 4, "positions": 3, "mask": mask}
    callback = EfficiencyCallback(
        "fc", on="train", every_n_train_steps=1, window=9, log_extras=None, **options
    )
    logs = model.fit(data, Y, batch_size=3, verbose=0, callbacks=[callback]).history
    after = EfficiencyCallback("fc", missing_accuracy="ignore", **options)
    model.evaluate(data, Y, batch_size=7, verbose=0, callbacks=[after])
    layer = callback.train_history[-1].layers["fc"]
    assert layer.n_states == sum(min(n, 3) for n in LENGTHS)
    assert layer.efficiency == after.last.layers["fc"].efficiency
    assert logs["train_efficiency"] == [layer.efficiency]
