"""Masked positions are left out: a padded batch gives what its samples give without padding."""

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
from keras_models import SEVERAL_STEPS, compiled, count_states, only_on, outputs_of

from tensorstate_callbacks import TensorStateWarning
from tensorstate_callbacks.keras import EfficiencyCallback

pytestmark = pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask")

OPTIONS = [{}, {"group_size": 4}, {"positions": 2}, {"positions": 3, "group_size": 3}]


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(2)
    inputs, x = embed()
    x = layers.LayerNormalization(name="norm")(layers.Dense(13, name="fc")(x))
    return classifier(inputs, layers.Dense(4, name="pooled")(layers.GlobalAveragePooling1D()(x)))


@pytest.mark.parametrize("options", OPTIONS)
def test_padded_batches_equal_samples_without_padding(model, options, force_device):
    force_device(False)
    names = ["embedding", "fc", "norm"]
    expected = alone(model, TOKENS, names, **options)
    assert expected["fc"].n_states == sum(min(n, options.get("positions", n)) for n in LENGTHS)
    for forced in (False, True):
        force_device(forced)
        for width, size in [(5, 7), (8, 3)]:
            found = together(model, TOKENS, names, width, size, **options)
            assert found == (expected, [])


def test_what_is_counted_is_what_numpy_counts_where_the_mask_is_true(model):
    x, mask = padded(TOKENS), mask_of(TOKENS)
    found, _ = together(model, TOKENS, ["fc", "norm"])
    for name, values in outputs_of(model, ["fc", "norm"], x).items():
        counts = count_states(values[mask])
        assert (found[name].n_states, found[name].n_distinct) == (sum(LENGTHS), len(counts))
        assert found[name].efficiency != pytest.approx(
            together(model, TOKENS, [name], mask=np.ones(6))[0][name].efficiency, rel=1e-3
        ), "the mask has to matter"


def test_behind_what_uses_the_mask_up_samples_are_counted_as_they_are(model):
    found, warned = together(model, TOKENS, "pooled")
    assert found["pooled"].n_states == len(TOKENS)
    assert warned == []
    inputs, x = embed()
    x = layers.Dense(5, name="made")(layers.RepeatVector(6)(layers.LSTM(3)(x)))
    found, warned = together(classifier(inputs, layers.Flatten()(x)), TOKENS, "made")
    assert found["made"].n_states == 6 * len(TOKENS)
    assert warned == []


def test_nothing_is_followed_where_there_is_no_mask():
    inputs, x = embed(mask_zero=False)
    model = classifier(inputs, layers.GlobalMaxPooling1D()(layers.Dense(5, name="fc")(x)))
    callback = EfficiencyCallback("fc", missing_accuracy="ignore")
    for _ in range(2):
        model.evaluate(padded(TOKENS), Y, batch_size=4, verbose=0, callbacks=[callback])
        assert callback.last.layers["fc"].n_states == 6 * len(TOKENS)
        assert callback.watch.new_masks() is None


def test_steps_masked_in_the_middle_are_left_out():
    inputs = keras.Input((None, 3))
    x = layers.Masking(name="masking")(inputs)
    x = layers.Dense(6, name="fc")(layers.Conv1D(5, 1, name="conv")(x))
    model = classifier(inputs, layers.GlobalMaxPooling1D()(x))
    gaps = [np.insert(each, np.arange(len(each)), 0, axis=0) for each in VALUES]
    names = ["masking.input", "masking", "conv.input", "conv", "fc.input", "fc"]
    names, options = ["masking", "conv", "fc"], {"method": "both", "positions": 3}
    found = together(model, gaps, names, width=11, **options)
    # Conv1D drops the mask, which holds for what it gives all the same.
    assert found == (alone(model, VALUES, names, **options), [])


@pytest.mark.parametrize("options", [{"run_eagerly": True}, SEVERAL_STEPS])
def test_steps_that_run_in_other_ways_are_masked(options):
    inputs, x = embed()
    model = classifier(inputs, layers.LSTM(4)(layers.Dense(5, name="fc")(x)))
    expected = together(model, TOKENS, "fc")[0]
    assert expected["fc"].n_states == sum(LENGTHS)
    model.compile("sgd", "sparse_categorical_crossentropy", **options)
    callback = EfficiencyCallback("fc", missing_accuracy="ignore")
    model.evaluate(padded(TOKENS), Y, batch_size=3, verbose=0, callbacks=[callback])
    assert callback.last.layers == expected


def test_validation_in_fit_is_masked(model):
    callback = EfficiencyCallback("embedding", missing_accuracy="ignore")
    model.fit(
        padded(TOKENS),
        Y,
        epochs=2,
        verbose=0,
        validation_data=(padded(TOKENS, 9), Y),
        validation_batch_size=2,
        callbacks=[callback],
    )
    n_states = [report.layers["embedding"].n_states for report in callback.history]
    assert n_states == [sum(LENGTHS)] * 2


@keras.saving.register_keras_serializable("masks")
class Passes(layers.Layer):
    """Is given Keras's mask."""

    supports_masking = True

    def call(self, x, mask=None):
        return x * 1


def test_recurrent_layers_leave_their_masked_steps_out():
    inputs, x = embed()
    # Keras goes on with the mask of the other order.
    back = layers.LSTM(5, return_sequences=True, go_backwards=True, name="back")(x)
    fc = layers.Dense(7, name="fc")(Passes(name="passes")(back))
    gru = layers.GRU(4, return_sequences=True, name="gru")
    both = layers.Bidirectional(gru, name="both")(x)
    pooled = [layers.GlobalMaxPooling1D()(each) for each in (fc, both)]
    model = classifier(inputs, layers.Concatenate()(pooled))
    names = ["back", "passes", "fc", "both", "both/backward_gru"]
    assert together(model, TOKENS, names) == (alone(model, TOKENS, names), [])


def test_queries_and_values_have_masks_of_their_own():
    asked = keras.Input((None,), dtype="int32", name="asked")
    known = keras.Input((None,), dtype="int32", name="known")
    embedding = layers.Embedding(9, 6, mask_zero=True)
    attention = layers.MultiHeadAttention(2, 3, name="mha")
    x = attention(embedding(asked), embedding(known))
    model = classifier([asked, known], layers.GlobalMaxPooling1D()(layers.Dense(4, name="fc")(x)))
    names = ["mha", "mha/query", "mha/key", "mha/value", "mha/attention_output", "fc"]
    # As long as the queries, in another order.
    others = TOKENS[::-1]
    one_by_one = (
        ({"asked": a[None], "known": b[None]}, Y[:1]) for a, b in zip(TOKENS, others, strict=True)
    )
    expected, _ = evaluated(model, one_by_one, len(TOKENS), names)
    x = {"asked": padded(TOKENS), "known": padded(others)}
    assert evaluated(model, batches(x, 3), 3, names) == (expected, [])


@keras.saving.register_keras_serializable("masks")
class Block(layers.Layer):
    """Raw operations between layers, and a mask of padding that the caller gives."""

    def __init__(self, **options):
        super().__init__(**options)
        self.first, self.second = layers.Dense(6, name="first"), layers.Dense(6, name="second")
        self.memory = layers.Dense(6, name="memory")

    def call(self, decoder_x, encoder_x, encoder_padding_mask=None, decoder_padding_mask=None):
        memory = keras.ops.max(self.memory(encoder_x), axis=1, keepdims=True)
        return decoder_x + self.second(self.first(decoder_x) * 2 + memory * 0)


def test_masks_of_padding_hold_within_the_layer_that_they_are_given_to():
    ids = keras.Input((None,), dtype="int32", name="ids")
    mask = keras.Input((None,), dtype="int32", name="padding_mask")
    other = keras.Input((None, 3), name="other")
    other_mask = keras.Input((None,), dtype="int32", name="other_padding_mask")
    x = layers.Embedding(9, 6, name="embedding")(ids)
    x = Block(name="block")(x, other, other_mask, decoder_padding_mask=mask)
    x = layers.Dense(5, name="behind")(x)
    inputs = {"ids": ids, "padding_mask": mask, "other": other, "other_padding_mask": other_mask}
    model = classifier(inputs, layers.GlobalMaxPooling1D()(x))
    names = ["embedding", "block/first", "block/second", "block/memory", "block", "behind"]

    def data(i, values, width=None):
        n, m = width or len(i[0]), width or len(values[0])
        return {
            "ids": padded(i, n),
            "padding_mask": mask_of(i, n).astype("int32"),
            "other": padded(values, m),
            "other_padding_mask": mask_of(values, m).astype("int32"),
        }

    others = VALUES[::-1]
    one_by_one = ((data([a], [b]), Y[:1]) for a, b in zip(TOKENS, others, strict=True))
    found, warned = evaluated(model, batches(data(TOKENS, others, 7), 3), 3, names)
    assert {name: report.n_states for name, report in found.items()} == dict.fromkeys(
        names, sum(LENGTHS)
    )
    assert (evaluated(model, one_by_one, len(TOKENS), names)[0], warned) == (found, [])


SMALL = {"vocabulary_size": 50, "num_layers": 1, "hidden_dim": 12, "intermediate_dim": 20}


@only_on("torch", because="takes long to compile these models for each length")
@pytest.mark.parametrize("name", ["BertBackbone", "GPT2Backbone"])
@pytest.mark.filterwarnings("ignore:`tf.keras:DeprecationWarning")
def test_padding_masks_of_keras_hub_apply_by_themselves(name):
    hub = pytest.importorskip("keras_hub", reason="keras_hub isn't installed")
    keras.utils.set_random_seed(4)
    backbone = getattr(hub.models, name)(**SMALL, num_heads=3, max_sequence_length=16)
    last = keras.tree.flatten(backbone.output)[-1]
    pooled = last if len(last.shape) == 2 else layers.GlobalMaxPooling1D()(last)
    model = classifier(backbone.input, pooled)

    def data(samples, width):
        ids, mask = padded(samples, width).astype("int32"), mask_of(samples, width)
        found = {"token_ids": ids, "padding_mask": mask.astype("int32"), "segment_ids": 0 * ids}
        return {key: found[key] for key in backbone.input}

    names = [
        "Dense",
        "EinsumDense",
        "LayerNormalization",
        "TransformerEncoder",
        "ReversibleEmbedding",
    ]
    names = names if name == "BertBackbone" else names[:3]
    one_by_one = ((data([each], len(each)), Y[:1]) for each in TOKENS)
    expected, _ = evaluated(model, one_by_one, len(TOKENS), names)
    assert len(expected) > 7
    assert evaluated(model, batches(data(TOKENS, 7), 3), 3, names) == (expected, [])


def warned_of(model, samples, names, **options):
    return together(model, samples, names, **options)[1]


def test_where_a_mask_does_not_fit_all_is_counted_and_one_warning_names_the_layers():
    inputs = keras.Input((None, 3))
    x = layers.Conv1D(5, 2, strides=2, name="strided")(layers.Masking()(inputs))
    x = layers.Dense(6, name="behind")(x)
    model = classifier(inputs, layers.GlobalMaxPooling1D()(x))
    found, (text,) = together(model, VALUES, ["strided", "behind"])
    assert found["behind"].n_states == 3 * len(VALUES)
    assert "doesn't fit the positions of strided (3, 3, 5), behind (3, 3, 6), so all" in text
    assert warned_of(model, [np.ones((6, 3), np.float32)] * 7, "strided") == []


class Mixed(keras.Model):
    """Embeds tokens, and does something to them that Keras's masks don't outlive."""

    def __init__(self):
        super().__init__()
        self.embedding = layers.Embedding(9, 6, mask_zero=True, name="embedding")
        self.fc = layers.Dense(5, name="fc")
        self.out = layers.Dense(2, activation="softmax", name="out")

    def call(self, tokens):
        return self.out(keras.ops.max(self.fc(self.embedding(tokens) + 1), axis=1))


def test_a_mask_that_raw_operations_lose_is_told_of_where_there_is_padding():
    model = compiled(Mixed())
    found, (text,) = together(model, TOKENS, ["embedding", "fc"])
    assert found["embedding"].n_states == sum(LENGTHS)
    assert found["fc"].n_states == 6 * len(TOKENS)
    assert "some of what passes fc is padding" in text
    assert "mask=(name, batch) -> mask" in text
    assert warned_of(model, [np.arange(1, 7)] * 7, "fc") == []


def test_what_could_not_be_masked_is_told_of_in_each_evaluation():
    model, callback = compiled(Mixed()), EfficiencyCallback("fc", missing_accuracy="ignore")
    for _ in range(3):
        with pytest.warns(TensorStateWarning, match="some of what passes fc is padding"):
            model.evaluate(padded(TOKENS), Y, batch_size=4, verbose=0, callbacks=[callback])


def test_what_runs_step_by_step_is_told_of():
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(9, 6, mask_zero=True)(inputs)
    x = layers.TimeDistributed(layers.Dense(5, name="inner"), name="outer")(x)
    model = classifier(inputs, layers.GlobalAveragePooling1D()(x))
    found, (text,) = together(model, TOKENS, ["outer", "outer/inner"])
    assert found["outer"].n_states == sum(LENGTHS)
    assert "what passes outer/inner is padding" in text


def test_an_unmasked_input_of_the_same_size_is_counted_whole():
    inputs, x = embed()
    other = keras.Input((None, 3))
    y = layers.Dense(5, name="other")(other)
    x = layers.Concatenate()([layers.GlobalMaxPooling1D()(each) for each in (x, y)])
    model = classifier([inputs, other], x)
    data = [padded(TOKENS), padded(VALUES)]
    callback = EfficiencyCallback(["embedding", "other"], missing_accuracy="ignore")
    model.evaluate(data, Y, batch_size=3, verbose=0, callbacks=[callback])
    n_states = {name: report.n_states for name, report in callback.last.layers.items()}
    assert n_states == {"embedding": sum(LENGTHS), "other": 6 * len(VALUES)}
