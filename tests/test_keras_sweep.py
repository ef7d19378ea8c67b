"""Every layer of well-known architectures: the neurons that there are, the states they have."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import ops
from keras_models import only_on
from keras_sweep_oracle import check_every_layer
from own_warnings import ours

# Run eagerly, as their tensors are collected; compiled models are held against others elsewhere.
pytestmark = only_on("tensorflow", "torch", because="takes minutes to run these models eagerly")

NETWORKS = {
    "MobileNetV3Small": {},
    "MobileNetV2": {"alpha": 0.35},
    "EfficientNetB0": {},
    "DenseNet121": {},
    "ConvNeXtTiny": {},
    "Xception": {},
}


# What of it runs on other backends than TensorFlow, where it takes longer.
FEW = {"MobileNetV3Small", "DistilBertBackbone", "Qwen3Backbone"}


def skip_most(name: str) -> None:
    if keras.backend.backend() != "tensorflow" and name not in FEW:
        pytest.skip("runs on TensorFlow only, to save time")


def images(n: int, height: int, width: int) -> Any:
    return np.random.default_rng(8).normal(size=(n, height, width, 3)).astype(np.float32)


def compiled(model: Any) -> Any:
    model.compile(loss=lambda y_true, y_pred: ops.mean(y_pred), run_eagerly=True)
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_of_an_application_is_counted_exactly(name: str, recwarn: Any) -> None:
    skip_most(name)
    keras.utils.set_random_seed(4)
    build = getattr(keras.applications, name)
    model = build(weights=None, include_top=False, input_shape=(None, None, 3), **NETWORKS[name])
    n = check_every_layer(compiled(model), [(images(3, 64, 96), 2), (images(3, 96, 64), 3)])
    assert n > 50
    assert ours(recwarn.list) == []


def tokens(n: int, length: int) -> Any:
    return np.random.default_rng(8).integers(1, 50, size=(n, length)).astype("int32")


def sequences(*more: str) -> Any:
    """What a language model takes, of a number of samples and a length."""

    def inputs(n: int, length: int) -> dict[str, Any]:
        ones = np.ones((n, length), "int32")
        others = {name: ones if "mask" in name else 0 * ones for name in more}
        return {"token_ids": tokens(n, length), **others}

    return inputs


SMALL = {"vocabulary_size": 50, "num_layers": 2, "hidden_dim": 12, "intermediate_dim": 20}
HUB: dict[str, tuple[dict[str, Any], Any]] = {
    "BertBackbone": (
        {**SMALL, "num_heads": 3, "max_sequence_length": 16},
        sequences("segment_ids", "padding_mask"),
    ),
    "DistilBertBackbone": (
        {**SMALL, "num_heads": 3, "max_sequence_length": 16},
        sequences("padding_mask"),
    ),
    "GPT2Backbone": (
        {**SMALL, "num_heads": 3, "max_sequence_length": 16},
        sequences("padding_mask"),
    ),
    "LlamaBackbone": (
        {**SMALL, "num_query_heads": 6, "num_key_value_heads": 2},
        sequences("padding_mask"),
    ),
    "Qwen3Backbone": (
        {**SMALL, "num_query_heads": 6, "num_key_value_heads": 2, "head_dim": 4},
        sequences("padding_mask"),
    ),
}


@pytest.mark.parametrize("name", HUB)
@pytest.mark.filterwarnings("ignore")
def test_every_layer_of_a_language_model_is_counted_exactly(name: str) -> None:
    skip_most(name)
    hub = pytest.importorskip("keras_hub", reason="keras_hub isn't installed")
    keras.utils.set_random_seed(4)
    options, inputs = HUB[name]
    model = getattr(hub.models, name)(**options)
    last = keras.tree.flatten(model.output)[-1]
    model = compiled(keras.Model(model.input, ops.mean(last, axis=-1)))
    assert check_every_layer(model, [(inputs(3, 7), 2), (inputs(3, 9), 3)]) > 15
