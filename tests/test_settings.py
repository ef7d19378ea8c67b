import math

import numpy as np
import pytest

from tensorstate_callbacks.recording.accuracy import find_accuracy
from tensorstate_callbacks.recording.settings import Settings


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"beta": 0}, ValueError, "beta.*above 0; got 0"),
        ({"beta": -2}, ValueError, "beta"),
        ({"beta": "two"}, TypeError, "beta must be a number; got 'two'"),
        ({"threshold": math.nan}, ValueError, "threshold.*finite"),
        ({"threshold": math.inf}, ValueError, "threshold.*finite"),
        ({"alpha": -1}, ValueError, "alpha"),
        ({"method": "during"}, ValueError, "method must be one of after, before, both"),
        ({"every_n_epochs": 0}, ValueError, "every_n_epochs.*at least 1; got 0"),
        ({"every_n_epochs": 1.5}, ValueError, "every_n_epochs"),
        ({"every_n_epochs": True}, ValueError, "every_n_epochs"),
        ({"layer_metrics": ("efficency",)}, ValueError, "'efficency'"),
        ({"missing_accuracy": "cry"}, ValueError, "missing_accuracy must be one of"),
        ({"accuracy": 3}, TypeError, "accuracy takes a log key"),
        ({"attach_to": []}, ValueError, "attach_to is empty"),
        ({"attach_to": 3}, TypeError, "attach_to takes"),
        ({"exclude": [None]}, TypeError, "exclude takes"),
        ({"prefix": 1}, TypeError, "prefix takes a string"),
    ],
)
def test_arguments_are_checked_by_name(arguments, error, words):
    with pytest.raises(error, match=words):
        Settings(**arguments)


def test_every_n_epochs():
    settings = Settings(every_n_epochs=3)
    assert [epoch for epoch in range(8) if settings.is_due(epoch)] == [2, 5]


@pytest.mark.parametrize(
    ("method", "names"),
    [("after", (None, "fc")), ("before", ("fc.input", None)), ("both", ("fc.input", "fc"))],
)
def test_names_of_probes(method, names):
    assert Settings(method=method).probe_names("fc") == names


LOGS = {"loss": 0.3, "acc": np.float32(0.75), "percent": 88.0, "nan": math.nan, "word": "good"}


@pytest.mark.parametrize(
    ("accuracy", "value"),
    [("acc", 0.75), (None, 0.75), (lambda logs: 1 - logs["loss"], 0.7)],
)
def test_accuracy_is_found(accuracy, value):
    assert find_accuracy(accuracy, LOGS, ["accuracy", "acc"]).value == pytest.approx(value)


@pytest.mark.parametrize(
    ("accuracy", "problem"),
    [
        ("val_acc", "no accuracy under 'val_acc'; the logs have 'loss', 'acc'.*accuracy="),
        ("percent", "88.0, which is no share from 0 to 1 .divide a percentage"),
        ("nan", "nan, which is no share"),
        ("word", "'good', which is no number"),
        (lambda logs: None, "callable given as accuracy gave None"),
    ],
)
def test_accuracy_that_cannot_be_used_is_explained(accuracy, problem):
    import re

    found = find_accuracy(accuracy, LOGS, ["accuracy"])
    assert found.value is None
    assert re.search(problem, found.problem)
