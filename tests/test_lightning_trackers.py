"""What the Lightning callback tells trackers of a fit, however it goes."""

import pickle
from typing import Any

import pytest
from lightning_models import QUIET, VAL, Classifier, fit, loader, pl, trainer
from tracker_log import TrackerLog

from tensorstate_callbacks.lightning import EfficiencyCallback, trackers

pytestmark = [pytest.mark.filterwarnings(text) for text in QUIET]


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> TrackerLog:
    log = TrackerLog()
    monkeypatch.setattr(trackers, "_find", lambda trainer, settings: [log])
    return log


def test_a_fit_is_told_from_its_beginning_to_its_end(tracker: TrackerLog) -> None:
    callback = EfficiencyCallback(method="both", beta=3, every_n_epochs=2)
    fit(Classifier(), callback, max_epochs=5)
    probes = ["net.0.input", "net.0", "net.2.input", "net.2"]
    first, second = callback.history
    assert tracker.told == [
        ("begin", 3, probes),
        ("epoch", 1, first.aiq, pytest.approx(first.aiq)),
        ("epoch", 3, second.aiq, pytest.approx(second.aiq)),
        ("end", 2),
    ]


def test_each_fit_has_a_history_of_its_own(tracker: TrackerLog) -> None:
    callback, model = EfficiencyCallback(), Classifier()
    fit(model, callback, max_epochs=1)
    trainer(callback).validate(model, loader(VAL), verbose=False)
    fit(model, callback, max_epochs=2)
    assert len(callback.history) == 4
    assert tracker.histories == [callback.history[:1], callback.history[2:]]


def test_the_end_is_told_where_fit_ends_in_an_error(tracker: TrackerLog) -> None:
    class Stops(pl.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        fit(Classifier(), EfficiencyCallback(), Stops())
    assert [told[0] for told in tracker.told] == ["begin", "end"]


def test_a_run_of_a_few_batches_for_the_developer_is_not_kept(tracker: TrackerLog) -> None:
    callback = EfficiencyCallback()
    fit(Classifier(), callback, fast_dev_run=True)
    assert len(callback.history) == 1
    assert tracker.told == []


def test_no_tracker_is_looked_for_where_none_is_wanted(tracker: TrackerLog) -> None:
    callback = EfficiencyCallback(log_extras=None)
    fit(Classifier(), callback, max_epochs=1)
    assert len(callback.history) == 1
    assert tracker.told == []


def test_a_copy_for_another_process_takes_no_tracker_along(tracker: TrackerLog) -> None:
    callback = EfficiencyCallback()
    fit(Classifier(), callback, max_epochs=1)
    copy = pickle.loads(pickle.dumps(callback))  # noqa: S301
    assert [r.aiq for r in copy.history] == [r.aiq for r in callback.history]
