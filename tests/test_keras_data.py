"""Every way to give fit and evaluate their data: the states counted are those of that data."""

import keras
import numpy as np
import pytest
from keras import layers
from keras_models import RELEASE, SEVERAL_STEPS, count_states, since

from tensorstate_callbacks import entropy
from tensorstate_callbacks.keras import EfficiencyCallback

# Small integers, and weights that stay so: sums are exact, whatever a batch is.
RNG = np.random.default_rng(8)
X = RNG.integers(-2, 3, (96, 5)).astype(np.float32)
X_VAL = RNG.integers(-2, 3, (50, 5)).astype(np.float32)
Y, Y_VAL = RNG.integers(0, 2, 96), RNG.integers(0, 2, 50)
KERNEL = RNG.integers(-2, 3, (5, 7)).astype(np.float32)


def model(**options):
    fc, out = layers.Dense(7, name="fc", use_bias=False), layers.Dense(2, activation="softmax")
    made = keras.Sequential([keras.Input((5,)), fc, out])
    fc.set_weights([KERNEL])
    optimizer = keras.optimizers.SGD(0.0)
    made.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], **options)
    return made


def expected(x):
    counts = count_states(x @ KERNEL)
    return counts.sum(), len(counts), entropy(counts)


def counted(report):
    layer = report.layers["fc"]
    return layer.n_states, layer.n_distinct, layer.entropy


def batches(size=20):
    for start in range(0, len(X_VAL), size):
        yield X_VAL[start : start + size], Y_VAL[start : start + size]


def forever():
    while True:
        yield from batches()


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return list(batches())[index]


def tf_data():
    tf = pytest.importorskip("tensorflow", reason="tf.data needs TensorFlow")
    return tf.data.Dataset.from_tensor_slices((X_VAL, Y_VAL)).batch(20)


def data_loader():
    torch = pytest.importorskip("torch", reason="a DataLoader needs PyTorch")
    pairs = torch.utils.data.TensorDataset(torch.from_numpy(X_VAL), torch.from_numpy(Y_VAL))
    return torch.utils.data.DataLoader(pairs, batch_size=20)


ALL = {
    "arrays": lambda: (X_VAL, Y_VAL),
    "sample weights": lambda: (X_VAL, Y_VAL, np.linspace(0, 1, 50)),
    "tf.data": tf_data,
    "PyDataset with workers": lambda: Batches(workers=2, max_queue_size=2),
    "DataLoader": data_loader,
}
ENDLESS = {"generator": forever, "repeated tf.data": lambda: tf_data().repeat()}


def fit(made, callback, validation, epochs=2, **options):
    # Training data has its own batch size: two kinds of shapes.
    training = {"x": X, "y": Y, "batch_size": 32, "epochs": epochs, "verbose": 0}
    made.fit(**training, validation_data=validation, callbacks=[callback], **options)


@pytest.mark.parametrize("source", ALL)
@pytest.mark.parametrize("options", [{}, SEVERAL_STEPS])
def test_all_of_the_validation_data_is_counted_once_an_epoch(source, options):
    if options and source in ("arrays", "sample weights") and RELEASE < (3, 8):
        pytest.skip("this Keras's own fit fails where several steps run out of arrays")
    callback, made = EfficiencyCallback("fc"), model(**options)
    fit(made, callback, ALL[source]())
    assert [counted(report) for report in callback.history] == [expected(X_VAL)] * 2
    data = ALL[source]()
    given = dict(zip(("x", "y", "sample_weight"), data, strict=False))
    made.evaluate(
        **(given if isinstance(data, tuple) else {"x": data}), callbacks=[callback], verbose=0
    )
    assert counted(callback.last) == expected(X_VAL)


@pytest.mark.parametrize("source", ENDLESS)
def test_data_without_an_end_is_counted_for_as_many_steps_as_asked(source):
    callback = EfficiencyCallback("fc")
    fit(model(), callback, ENDLESS[source](), epochs=1, validation_steps=4)
    assert counted(callback.last) == expected(np.concatenate([X_VAL, X_VAL[:20]]))


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({"validation_batch_size": 7}, X_VAL),
        pytest.param(
            {"validation_batch_size": 7, "validation_steps": 3},
            X_VAL[:21],
            marks=since((3, 8), before="each epoch goes on in the data where the last one ended"),
        ),
        ({"validation_data": None, "validation_split": 0.25}, X[72:]),
        ({"class_weight": {0: 0.5, 1: 2.0}}, X_VAL),
        ({"sample_weight": np.linspace(0, 1, 96)}, X_VAL),
    ],
    ids=["batch size", "steps", "split", "class weights", "sample weights"],
)
def test_options_of_fit_choose_what_is_counted(options, seen):
    callback = EfficiencyCallback("fc")
    fit(model(), callback, options.pop("validation_data", (X_VAL, Y_VAL)), **options)
    assert [counted(report) for report in callback.history] == [expected(seen)] * 2


def test_evaluations_around_fits_and_compiling_anew_do_not_disturb_each_other():
    made = model()
    first, second = EfficiencyCallback("fc"), EfficiencyCallback("fc", prefix="x_", threshold=1)
    made.evaluate(X, Y, callbacks=[first], verbose=0)
    for run_eagerly in (False, True):
        made.compile(made.optimizer, made.loss, metrics=["accuracy"], run_eagerly=run_eagerly)
        data = {"validation_data": (X_VAL, Y_VAL), "verbose": 0}
        logs = made.fit(X, Y, callbacks=[first, second], **data).history
        assert logs["val_aiq"][0] == first.last.aiq
        assert logs["val_x_aiq"][0] == second.last.aiq
    made.evaluate(X, Y, callbacks=[second, first], verbose=0)
    sizes = [report.layers["fc"].n_states for report in first.history]
    assert sizes == [96, 50, 50, 96]
    assert [counted(report) for report in first.history[1:]] == [
        *[expected(X_VAL)] * 2,
        expected(X),
    ]
    above_one = entropy(count_states(X_VAL @ KERNEL, 1))
    assert [r.layers["fc"].entropy for r in second.history[:2]] == [above_one] * 2
