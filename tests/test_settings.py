import dataclasses
import inspect
import math

import numpy as np
import pytest

from tensorstate_callbacks.errors import StatesNotAvailableError
from tensorstate_callbacks.recording.accuracy import find_accuracy
from tensorstate_callbacks.recording.callback import RecordingCallback
from tensorstate_callbacks.recording.settings import Settings
from tensorstate_callbacks.reports.metric_keys import LAYER_METRICS


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
        ({"layer_metrics": ["turnover"]}, ValueError, "'turnover', which is of probe_data: give"),
        ({"probe_data": "x_val"}, TypeError, "probe_data takes a few samples.*got 'x_val'"),
        ({"probe_data": [[1.0]], "on": "train"}, ValueError, 'on has no "val"'),
        ({"probe_data": 16}, TypeError, "got 16"),
        ({"missing_accuracy": "cry"}, ValueError, "missing_accuracy must be one of"),
        ({"log_extras": True}, ValueError, "log_extras must be one of charts, figures, None"),
        ({"channel_axis": "last"}, TypeError, "channel_axis takes an axis.*got 'last'"),
        ({"accuracy": 3}, TypeError, "accuracy takes a log key"),
        ({"attach_to": []}, ValueError, "attach_to is empty"),
        ({"attach_to": 3}, TypeError, "attach_to takes"),
        ({"exclude": [None]}, TypeError, "exclude takes"),
        ({"prefix": 1}, TypeError, "prefix takes a string"),
        ({"neurons": "all"}, TypeError, "neurons takes True, to find .* or False; got 'all'"),
    ],
)
def test_arguments_are_checked_by_name(arguments, error, words):
    with pytest.raises(error, match=words):
        Settings(**arguments)


def test_probe_data_is_recorded_whole_and_with_a_mask_that_is_its_own():
    given = {"group_size": 4, "positions": 3, "max_memory": 10, "threshold": 0.5}
    settings = Settings(probe_data=[[1.0]], mask=np.ones((9, 2)), **given).of_probe()
    sampling = settings.sampling()
    assert (sampling.group_size, sampling.positions, sampling.max_memory) == (None, 3, None)
    assert sampling.keeps_rows
    assert not Settings(**given).sampling().keeps_rows
    assert (settings.threshold, settings.mask) == (0.5, None)
    # One row is for all samples.
    for mask in ("keep", "auto", abs, [1, 0]):
        assert Settings(mask=mask).of_probe().mask == mask
    assert Settings(probe_data=np.ones(3)).comparable()["probe_data"] == "given"


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
    [("acc", 0.75), ("val_acc", 0.75), (None, 0.75), (lambda logs: 1 - logs["loss"], 0.7)],
)
def test_accuracy_is_found(accuracy, value):
    assert find_accuracy(accuracy, LOGS).value == pytest.approx(value)


@pytest.mark.parametrize(
    ("accuracy", "problem"),
    [
        (
            "val_top1",
            "no accuracy under 'val_top1' or 'top1'; the logs have 'loss', 'acc'.*accuracy=",
        ),
        ("percent", "88.0, which is no share from 0 to 1 .divide a percentage"),
        ("nan", "nan, which is no share"),
        ("word", "'good', which is no number"),
        (lambda logs: None, "callable given as accuracy gave None"),
    ],
)
def test_accuracy_that_cannot_be_used_is_explained(accuracy, problem):
    import re

    found = find_accuracy(accuracy, LOGS)
    assert found.value is None
    assert re.search(problem, found.problem)


def test_callback_keeps_its_arguments_under_their_names_and_documents_them():
    given = {"beta": 1, "channel_axis": -1, "log_extras": None, "layer_metrics": ("dead",)}
    callback = RecordingCallback("Conv2D", **given)
    assert {name: getattr(callback, name) for name in given} == given
    assert callback.attach_to == "Conv2D"
    described = inspect.getdoc(RecordingCallback.__init__)  # Python 3.13 takes off the indentation
    for name in dataclasses.asdict(Settings()):
        assert f"\n    {name}: " in described, name
    for name in LAYER_METRICS:
        assert f'`"{name}"`' in described, name


def test_callback_and_settings_have_the_same_defaults():
    arguments = inspect.signature(RecordingCallback).parameters
    assert {name: a.default for name, a in arguments.items()} == dataclasses.asdict(Settings())


def test_last_report_before_any_evaluation_is_an_error_that_says_why():
    with pytest.raises(StatesNotAvailableError, match="recorded no evaluation: give it to a fit"):
        _ = RecordingCallback().last
