"""PyTorch under Keras: in-place changes, tensors without values, and what torch.compile made."""

import functools

import keras
import numpy as np
import pytest
from keras import layers
from keras_models import BACKEND, X_VAL, Y_VAL, X, Y, compiled, count_states

from tensorstate_callbacks import ProbeError, entropy
from tensorstate_callbacks.keras import EfficiencyCallback

if BACKEND != "torch":
    pytest.skip("Keras doesn't run on PyTorch", allow_module_level=True)

import torch


class InPlace(layers.Layer):
    def call(self, x):
        return x.mul_(0).add_(1)


def test_activations_are_counted_before_they_are_overwritten_in_place():
    model = compiled(
        keras.Sequential(
            [
                keras.Input((10, 10, 1)),
                layers.Conv2D(6, 3, name="conv"),
                InPlace(),
                layers.Flatten(),
                layers.Dense(2, activation="softmax"),
            ]
        )
    )
    callback = EfficiencyCallback("conv")
    model.evaluate(X, Y, callbacks=[callback], verbose=0)
    counts = count_states(keras.ops.convert_to_numpy(model.get_layer("conv")(X)))
    assert len(counts) > 1
    assert callback.last.layers["conv"].n_distinct == pytest.approx(len(counts), abs=1)


class Gives(layers.Layer):
    """Gives its input in another form, and takes it back."""

    def __init__(self, form, **options):
        super().__init__(**options)
        self.form = form

    def call(self, x):
        return self.form(x)


@pytest.mark.parametrize(
    "form",
    [
        lambda x: torch.complex(torch.zeros_like(x), x).conj().imag,
        lambda x: (-x).bfloat16(),
        lambda x: (-x).to(torch.float8_e5m2),
        lambda x: (x < 0).to_sparse(),
    ],
    ids=["lazily negated", "bfloat16", "float8", "sparse bool"],
)
def test_tensors_of_every_kind_are_counted(form):
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.gives, self.out = Gives(form, name="gives"), layers.Dense(2, activation="softmax")

        def call(self, x):
            if x.device.type != "meta":
                self.gives(x)
            return self.out(x)

    flat, callback = X[:, 0, :, 0], EfficiencyCallback("Gives")
    compiled(Model()).evaluate(flat, Y, callbacks=[callback], verbose=0)
    counts = count_states(flat < 0)
    assert callback.last.layers["gives"].n_states == 300
    assert callback.last.layers["gives"].entropy == entropy(counts)


class Part(torch.Tensor):
    """What a DTensor is known by."""

    full_tensor = None


class Splits(layers.Layer):
    def call(self, x):
        return x.as_subclass(Part)


def test_part_of_a_tensor_is_refused_by_the_layers_name():
    model = compiled(
        keras.Sequential([keras.Input((3,)), Splits(name="part"), layers.Dense(2, name="out")])
    )
    with pytest.raises(ProbeError, match="layer 'part' could not be counted: .*DTensor"):
        model.evaluate(X[:, 0, :3, 0], Y, callbacks=[EfficiencyCallback("part")], verbose=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute")
def test_training_stays_compiled_and_is_compiled_as_often_as_without_us(monkeypatch):
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    # What the graphs are turned into doesn't matter here, and takes a minute.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=count))

    def run(*callbacks):
        graphs.clear()
        torch._dynamo.reset()
        keras.utils.set_random_seed(3)
        model = compiled(
            keras.Sequential(
                [keras.Input((10, 10, 1)), layers.Flatten(), layers.Dense(2, name="fc")]
            ),
            jit_compile=True,
        )
        model.fit(X, Y, batch_size=100, epochs=2, verbose=0, callbacks=list(callbacks))
        trained = len(graphs)
        for _ in range(2):
            model.evaluate(X_VAL, Y_VAL, verbose=0, callbacks=list(callbacks))
        evaluated = len(graphs)
        model.fit(X, Y, batch_size=100, verbose=0)
        assert model.jit_compile is True
        return trained, evaluated, len(graphs), model.get_weights()

    plain = run()
    callback = EfficiencyCallback("Dense", missing_accuracy="ignore")
    with pytest.warns(UserWarning, match="fit has no validation data"):
        watched = run(callback)
    assert watched[0] == plain[0] > 0
    # Our evaluations run uncompiled; training goes on with the graphs that it has.
    assert watched[1] == watched[0]
    assert watched[2] - watched[1] == plain[2] - plain[1]
    assert all(np.array_equal(a, b) for a, b in zip(plain[3], watched[3], strict=True))
    assert len(callback.history) == 2
    assert callback.last.layers["fc"].n_states == 101


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_layers_within_what_the_user_compiled_are_counted():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = layers.Dense(5, name="inner")
            self.out = layers.Dense(2, activation="softmax", name="out")
            self.compiled_part = torch.compile(self.part, backend="eager")

        def part(self, x):
            return self.inner(x) * 2

        def call(self, x):
            return self.out(self.part(x) if x.device.type == "meta" else self.compiled_part(x))

    flat, model = X[:, 0, :, 0], compiled(Model())
    model.predict(flat, verbose=0)
    callback = EfficiencyCallback("inner")
    model.evaluate(flat, Y, batch_size=64, callbacks=[callback], verbose=0)
    counts = count_states(keras.ops.convert_to_numpy(model.inner(flat)))
    assert callback.last.layers["inner"].n_states == 300
    assert callback.last.layers["inner"].n_distinct == len(counts)
