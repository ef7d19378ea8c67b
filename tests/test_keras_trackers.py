"""What the Keras callback tells trackers of a fit, however it goes."""

import gc

import keras
import pytest
from keras_models import X_VAL, Y_VAL, once, train
from tracker_log import TrackerLog

from tensorstate_callbacks import TensorStateWarning
from tensorstate_callbacks.keras import EfficiencyCallback, trackers


@pytest.fixture
def tracker(monkeypatch):
    log = TrackerLog()
    monkeypatch.setattr(trackers, "_find", lambda callbacks, settings: [log])
    return log


def test_a_fit_is_told_from_its_beginning_to_its_end(tracker):
    callback = EfficiencyCallback("Conv2D", method="both", beta=3, every_n_epochs=2)
    train([callback], epochs=5)
    probes = ["conv_1.input", "conv_1", "conv_2.input", "conv_2"]
    first, second = callback.history
    assert tracker.told == [
        ("begin", 3, probes),
        ("epoch", 1, first.aiq, first.aiq),
        ("epoch", 3, second.aiq, second.aiq),
        ("end", 2),
    ]


@once
def test_each_fit_has_a_history_of_its_own(tracker):
    callback = EfficiencyCallback("Conv2D")
    model, _ = train([callback], epochs=1)
    model.evaluate(X_VAL, Y_VAL, callbacks=[callback], verbose=0)
    train([callback], epochs=2)
    assert len(callback.history) == 4
    assert tracker.histories == [callback.history[:1], callback.history[2:]]


def test_the_end_is_told_where_fit_ends_in_an_error(tracker):
    class Stops(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise RuntimeError("enough")

    callback = EfficiencyCallback("Conv2D")
    with pytest.raises(RuntimeError, match="enough"):
        train([Stops(), callback])
    gc.collect()
    assert [told[0] for told in tracker.told] == ["begin", "epoch", "end"]


@once
def test_no_tracker_is_looked_for_where_none_is_wanted(tracker):
    callback = EfficiencyCallback("Conv2D", log_extras=None)
    train([callback], epochs=1)
    assert len(callback.history) == 1
    assert tracker.told == []


@once
def test_a_tracker_that_fails_costs_one_warning_and_the_others_go_on(tracker, monkeypatch):
    class Fails(TrackerLog):
        name = "The broken one"

        def epoch(self, *args):
            raise OSError("no place at https://me:secret@host/x")

    monkeypatch.setattr(trackers, "_find", lambda callbacks, settings: [Fails(), tracker])
    callback = EfficiencyCallback("Conv2D")
    with pytest.warns(TensorStateWarning, match="The broken one gets no more") as said:
        train([callback], epochs=2)
    (message,) = [str(w.message) for w in said if "broken" in str(w.message)]
    assert "OSError: no place at https://host/x." in message
    assert [told[0] for told in tracker.told] == ["begin", "epoch", "epoch", "end"]


def test_looking_for_trackers_may_fail_and_the_fit_goes_on(tracker, monkeypatch):
    def find(callbacks, settings):
        yield tracker
        raise AttributeError("a board without a folder, at https://me:secret@host/x")

    monkeypatch.setattr(trackers, "_find", find)
    callback = EfficiencyCallback("Conv2D")
    with pytest.warns(TensorStateWarning, match="could not be found out") as given:
        train([callback], epochs=2)
    (message,) = [str(w.message) for w in given if "found out" in str(w.message)]
    assert "AttributeError: a board without a folder, at https://host/x" in message
    assert len(callback.history) == 2
    assert [told[0] for told in tracker.told] == ["begin", "epoch", "epoch", "end"]
