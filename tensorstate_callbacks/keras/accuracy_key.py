"""What the user gave as accuracy, and logs, in; the key that it has there out."""

from collections.abc import Container

from tensorstate_callbacks.recording.settings import Accuracy

USUAL_ACCURACY_KEYS = (
    "accuracy",
    "acc",
    "sparse_categorical_accuracy",
    "categorical_accuracy",
    "binary_accuracy",
)


def accuracy_keys(accuracy: Accuracy, logs: Container[str]) -> tuple[str, ...]:
    """Return the keys to look for in an evaluation's own logs, in order.

    Args:
        accuracy: The key that the user gave, with or without `val_`, which fit puts before the
            names only afterwards; otherwise the usual keys are returned.
        logs: The evaluation's logs, without `val_`.
    """
    if not isinstance(accuracy, str):
        return USUAL_ACCURACY_KEYS
    return (accuracy if accuracy in logs else accuracy.removeprefix("val_"),)
