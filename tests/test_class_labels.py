"""Labels are found in batches, checked to be classes, and refused in words that name a way out."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from tensorstate_callbacks import ProbeError
from tensorstate_callbacks.recording.class_labels import (
    MOST_CLASSES,
    BatchLabels,
    as_labels,
    check_classes,
    is_array,
    is_on,
)
from tensorstate_callbacks.recording.settings import Settings

X = torch.zeros(3, 4)
Y = [2, 0, 7]


class Pair(NamedTuple):
    x: Any
    y: Any


@pytest.mark.parametrize(
    "given",
    [
        Y,
        np.array(Y, np.uint8),
        np.array(Y, np.float16),
        np.array(Y)[:, None],
        torch.tensor(Y),
        torch.tensor(Y, dtype=torch.bfloat16),
        torch.tensor([[2.0], [0.0], [7.0]], requires_grad=True),
        np.eye(8)[Y],
        np.eye(8, dtype=bool)[Y],
        torch.nn.functional.one_hot(torch.tensor(Y)),
    ],
    ids=lambda given: f"{type(given).__name__} {getattr(given, 'dtype', '')}",
)
def test_labels_are_whole_numbers_or_one_hot(given: Any) -> None:
    found = as_labels(given)
    assert found.dtype == np.int64
    assert found.tolist() == Y


def test_bool_and_nothing_are_labels_too() -> None:
    assert as_labels([True, False]).tolist() == [1, 0]
    assert as_labels([]).tolist() == []
    assert as_labels(np.zeros((0, 1))).tolist() == []


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        (np.array([0.5, 1.0]), TypeError, "whole numbers; got 0.5.*callable batch -> labels"),
        (np.array([np.nan, 1.0]), TypeError, "whole numbers; got nan"),
        (np.array(["cat", "dog"]), TypeError, "whole numbers; got ndarray of str.*numbers the"),
        (np.array([1, 2**31]), ValueError, "32 bits; got 1 to 2147483648"),
        (np.array([1j]), TypeError, "complex"),
        (np.zeros((2, 3, 4), int), ValueError, r"got \(2, 3, 4\).*one label for each sample"),
        (np.array(3), ValueError, r"got \(\)"),
        (np.array([[3, 4], [5, -100]]), ValueError, r"\(2, 2\).*as those of its tokens"),
        (np.array([[0.9, 0.1], [0.0, 1.0]]), ValueError, r"\(2, 2\) are no one-hot.*fractions"),
        (np.array([[1, 1], [0, 1]], bool), ValueError, "several ones, none"),
    ],
)
def test_other_labels_are_refused(given: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        as_labels(given)


@pytest.mark.parametrize(
    ("classes", "batch"),
    [
        (True, (X, torch.tensor(Y))),
        (True, [X, Y, "weights"]),
        (True, Pair(X, Y)),
        *((True, {"x": X, key: Y}) for key in ("labels", "label", "y", "target", "targets")),
        ("digit", {"x": X, "y": X, "digit": Y}),
        ("digit", (X, {"digit": np.eye(8)[Y]})),
        (lambda batch: batch["meta"][0], {"meta": [Y]}),
    ],
    ids=str,
)
def test_labels_of_a_batch_are_found(classes: Any, batch: Any) -> None:
    labels = BatchLabels(classes)
    assert labels.is_on
    assert labels.of_batch(batch).tolist() == Y
    assert labels.warnings() == {}


@pytest.mark.parametrize(
    ("classes", "batch", "text"),
    [
        (True, X, "second element.*the batch is a Tensor. Do this, or give classes= the key"),
        (True, (X,), "second element of a batch, and there is none: the batch is a tuple of 1"),
        (True, (X, None), "no labels are there"),
        (True, {"x": X, "id": Y}, "looked for under labels, label.*there are x, id"),
        (True, (X, {"a": Y, "b": Y}), "no labels are there: there are a, b"),
        ("digit", {"x": X}, "classes='digit': the batch has no such key: there are x. Do this"),
        ("digit", (X, Y), "no such key: the batch is a tuple of 2"),
        (True, (X, torch.zeros(3, 5, dtype=torch.long)), r"classes=True: .*\(3, 5\).*tokens"),
        (lambda batch: "cat", (X, Y), "classes=.*lambda.*whole numbers; got str"),
    ],
    ids=str,
)
def test_what_is_missing_is_told_with_what_there_is(classes: Any, batch: Any, text: str) -> None:
    with pytest.raises(ProbeError, match=text):
        BatchLabels(classes, "do this").of_batch(batch)


def test_an_array_is_taken_in_the_samples_order() -> None:
    labels = BatchLabels(np.eye(10)[[3, 1, 4, 1, 5]])
    assert [labels.of_batch(None, n).tolist() for n in (2, 2, 1)] == [[3, 1], [4, 1], [5]]
    assert labels.warnings() == {}
    with pytest.raises(ProbeError, match="classes has 5 labels, and 6 samples came so far"):
        labels.of_batch(None, 1)


def test_an_array_of_other_samples_is_told_of() -> None:
    labels = BatchLabels([3, 1, 4])
    labels.of_batch(None, 2)
    (text,) = labels.warnings().values()
    assert text.startswith("classes has 3 labels, and 2 samples came")
    with pytest.raises(ProbeError, match="how many samples a batch has isn't known"):
        labels.of_batch(None)


@pytest.mark.parametrize("classes", [None, False])
def test_nothing_is_asked_for(classes: Any) -> None:
    assert not is_on(check_classes(classes))
    assert not BatchLabels(classes).is_on
    assert not Settings(classes=classes).sampling().by_class


@pytest.mark.parametrize("classes", [True, "y", len, [1, 2], np.array([0.0, 1.0])])
def test_settings_take_classes(classes: Any) -> None:
    settings = Settings(classes=classes)
    assert settings.sampling().by_class
    assert is_array(classes) == (settings.comparable()["classes"] == "an array")
    # Training batches have none.
    of_batch = Settings(classes=classes, layer_metrics=["class_information"]).of_train_batch()
    assert not of_batch.sampling().by_class


@pytest.mark.parametrize(
    ("classes", "error", "text"),
    [
        ("", ValueError, "classes is an empty key"),
        (3, TypeError, "classes takes True, the key of labels.*got 3"),
        ({"y": 1}, TypeError, "classes takes True, the key"),
        ([0.5], TypeError, "classes: labels must be whole numbers; got 0.5"),
        (np.zeros((2, 3), int), ValueError, r"classes: labels of shape \(2, 3\)"),
        (range(MOST_CLASSES + 1), ValueError, "1,001 different values.*at most 1,000 classes"),
    ],
    ids=str,
)
def test_settings_refuse_other_classes(classes: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        Settings(classes=classes)


@pytest.mark.parametrize("name", ["class_information", "shuffled_class_divergence"])
def test_metrics_of_classes_need_classes(name: str) -> None:
    assert Settings(layer_metrics=[name], classes=True).layer_metrics == [name]
    with pytest.raises(ValueError, match=f"layer_metrics has {name}, which needs classes"):
        Settings(layer_metrics=[name])
