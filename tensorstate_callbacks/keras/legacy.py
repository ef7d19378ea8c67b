"""A model in; an error out if it is one of Keras 2, which Keras 3's callbacks don't understand."""

from typing import Any


def check_not_keras_2(model: Any) -> None:
    """Raise `TypeError` for a model of `tf_keras`, as `tf.keras` is under TF_USE_LEGACY_KERAS."""
    if any(base.__module__.partition(".")[0] == "tf_keras" for base in type(model).__mro__):
        raise TypeError(
            f"the model ({type(model).__name__} of tf_keras) is one of Keras 2: "
            "tensorstate_callbacks.keras needs Keras 3.3 or later. Build it with `import keras`, "
            "or unset TF_USE_LEGACY_KERAS where it is built with tf.keras"
        )
