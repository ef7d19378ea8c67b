"""A window of training batches is a recount of them, whatever came before and in any order."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest
from sampling_oracle import fail_to_count, sampled_efficiency

from tensorstate_callbacks import ProbeError, TensorStateWarning
from tensorstate_callbacks.recording.budget import Sampling, level_positions
from tensorstate_callbacks.recording.callback import _MOST_WINDOWS, RecordingCallback
from tensorstate_callbacks.recording.pass_counts import PassInfo
from tensorstate_callbacks.recording.recorder import Recorder
from tensorstate_callbacks.recording.settings import Settings
from tensorstate_callbacks.recording.windows import StateWindow

TRAIN = PassInfo(stage="train")
# Channels, then the axes of positions.
SHAPES = {"wide": (70, 8, 8), "conv": (12, 4, 4), "fc": (30,)}
SAMPLINGS = [Sampling(), Sampling(group_size=8), Sampling(positions=5), Sampling(4, 3)]


def batches(n: int, rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
    """Batches of 2 to 6 samples, of which some don't show all layers."""
    found = []
    for number in range(n):
        size = 2 + number % 5
        batch = {name: rng.normal(size=(size, *shape)) for name, shape in SHAPES.items()}
        # States come back, within a batch and in others.
        batch["fc"] = batch["fc"].round()[:, :1].repeat(30, axis=1)
        if number % 3 == 1:
            del batch["conv"]
        found.append(batch)
    return found


def recorded(some: Sequence[dict[str, np.ndarray]], sampling: Sampling) -> Recorder:
    recorder = Recorder(SHAPES, sampling=sampling)
    for batch in some:
        for name, values in batch.items():
            recorder.observe(name, values, 1)
    return recorder


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_a_window_is_a_recount_of_its_batches(rng, sampling):
    given, window = batches(11, rng), StateWindow(4)
    for number, batch in enumerate(given, 1):
        window.add(recorded([batch], sampling))
        latest = given[max(0, number - 4) : number]
        report = window.counts().report(TRAIN)
        assert report == recorded(latest, sampling).report(TRAIN)
        for name, layer in report.layers.items():
            parts = [np.moveaxis(b[name], 1, -1) for b in latest if name in b]
            of = np.concatenate(parts), SHAPES[name][1:], sampling.group_size
            efficiency, n_states = sampled_efficiency(*of, sampling.positions)
            assert layer.efficiency == pytest.approx(efficiency, rel=1e-12)
            assert layer.n_states == n_states
        assert (len(window), window.is_full) == (min(number, 4), number >= 4)


def test_the_order_of_the_batches_changes_nothing(rng):
    given, forth, back = batches(6, rng), StateWindow(6), StateWindow(6)
    for batch in given:
        forth.add(recorded([batch], Sampling()))
    for batch in given[::-1]:
        back.add(recorded([batch], Sampling()))
    assert forth.counts().report(TRAIN) == back.counts().report(TRAIN)


def test_counting_a_window_leaves_it_as_it_was(rng):
    window = StateWindow(3)
    for batch in batches(3, rng):
        window.add(recorded([batch], Sampling()))
    assert window.counts().report(TRAIN) == window.counts().report(TRAIN)
    window.clear()
    assert (len(window), window.counts().seen()) == (0, [])


def in_a_share_of(n_bytes: float, window: int) -> Sampling:
    return Settings(max_memory=n_bytes, window=window, on="train").of_train_batch().sampling()


@pytest.mark.parametrize(("n_bytes", "reads"), [(200_000, 4), (20_000, 1)])
def test_where_memory_is_short_a_window_is_exact_for_what_is_read(rng, n_bytes, reads):
    given, window = batches(9, rng), StateWindow(3)
    sampling = in_a_share_of(n_bytes, 3)
    for batch in given:
        window.add(recorded([batch], sampling))
    counts = window.counts()
    assert counts.thinned["wide"] == (reads, 64)
    assert reads in level_positions(64)
    whole = recorded(given[-3:], Sampling(positions=reads)).report(TRAIN)
    assert counts.report(TRAIN).layers["wide"] == whole.layers["wide"]


def test_what_is_read_depends_on_the_batches_of_the_window_alone(rng):
    sampling = in_a_share_of(200_000, 2)
    small, large = ([{"wide": rng.normal(size=(n, 70, 8, 8))}] for n in (1, 40))
    alone, after = StateWindow(2), StateWindow(2)
    for batch in (large, large, small, small):
        after.add(recorded(batch, sampling))
    for batch in (small, small):
        alone.add(recorded(batch, sampling))
    assert not alone.counts().thinned
    assert after.counts().report(TRAIN) == alone.counts().report(TRAIN)
    # And those that are read at fewer positions hold the others to them.
    after.add(recorded(large, sampling))
    read, _ = after.counts().thinned["wide"]
    both = recorded([*small, *large], Sampling(positions=read))
    assert after.counts().report(TRAIN) == both.report(TRAIN)


@pytest.mark.parametrize("n_bytes", [100_000, 1_000_000, 8_000_000])
def test_counters_of_a_window_hold_no_more_than_max_memory(rng, n_bytes):
    sampling, window = in_a_share_of(n_bytes, 4), StateWindow(4)
    shares = []
    for _ in range(4):
        recorder = recorded([{"wide": rng.normal(size=(20, 70, 8, 8))}], sampling)
        window.add(recorder)
        sizes = [probe.sizes()[probe.level] or 0 for probe in recorder.probe_counters().values()]
        shares.append(sum(sizes))
    assert max(shares) <= n_bytes / 8
    merged = sum(counter.n_distinct for counter in window.counts().probes.values())
    # A distinct state of 70 neurons takes 56 bytes and its row of 9, one and a half times.
    assert merged * 69 + sum(shares) <= n_bytes


def test_no_limit_of_memory_is_none_for_a_batch():
    assert in_a_share_of(math.inf, 20).max_memory is None
    assert in_a_share_of(1, 20).max_memory == 1


def test_a_layer_without_memory_is_left_out_of_the_window(rng, monkeypatch):
    given = batches(2, rng)
    fail_to_count(monkeypatch, 30)
    window = StateWindow(2)
    for batch in given:
        window.add(recorded([batch], Sampling(max_memory=10**9)))
    counts = window.counts()
    assert counts.thinned == {"fc": (0, 1)}
    assert {*counts.report(TRAIN).layers} == {"wide", "conv"}


def test_a_probe_that_is_dropped_later_is_gone_from_the_batches_before(rng):
    first, second = (recorded([batch], Sampling()) for batch in batches(2, rng))
    window = StateWindow(2)
    window.add(first)
    second.drop(["fc"])
    window.add(second)
    counts = window.counts()
    assert "fc" not in counts.names
    assert "fc" not in counts.report(TRAIN).layers


def test_a_failed_batch_is_an_error_and_leaves_the_window(rng):
    (batch,), window = batches(1, rng), StateWindow(2)
    window.add(recorded([batch], Sampling()))
    failed = Recorder(["fc"])
    failed.observe_later("fc", np.eye(3) * 1j, 1)
    with pytest.raises(ProbeError, match="layer 'fc'"):
        window.add(failed)
    assert len(window) == 1


def follow(callback: RecordingCallback, given: Sequence[dict[str, np.ndarray]]) -> None:
    settings = callback._settings
    for step, batch in enumerate(given, 1):
        if settings.is_step_due(step):
            callback._window.add(recorded([batch], settings.of_train_batch().sampling()))
            callback._conclude_window(callback._window.counts(), PassInfo(epoch=0, step=step))


def test_reports_of_windows_have_a_history_of_their_own(rng):
    callback = RecordingCallback(on="train", every_n_train_steps=2, window=3, beta=1, alpha=2)
    given = batches(10, rng)
    with pytest.warns(TensorStateWarning) as caught:
        follow(callback, given)
    assert callback.history == []
    assert [r.step for r in callback.train_history] == [2, 4, 6, 8, 10]
    info = PassInfo(epoch=0, step=10, stage="train", alpha=2, beta=1)
    assert callback.train_history[-1] == recorded(given[5::2], Sampling()).report(info)
    for number, report in enumerate(callback.train_history[:-1], 1):
        info = dataclasses.replace(info, step=2 * number)
        whole = recorded(given[1 : 2 * number : 2][-3:], Sampling()).report(info)
        assert report == whole.without_states()
        assert report.scalars() == whole.scalars()
        assert "train_aiq" not in report.scalars()
    # Not of the accuracy, and not before the window is full.
    (low,) = (text for text in map(str, (w.message for w in caught)) if "overage" in text)
    assert "In windows of training batches: Coverage is below" in low
    assert "give a larger window" in low


def test_the_history_of_windows_is_bounded(rng):
    callback = RecordingCallback("fc", on="train", every_n_train_steps=1, window=1)
    recorder = Recorder(["fc"])
    recorder.observe("fc", np.tile(np.eye(3), (9, 1)), 1)
    for step in range(_MOST_WINDOWS + 5):
        callback._window.add(recorder)
        callback._conclude_window(callback._window.counts(), PassInfo(step=step))
    steps = [report.step for report in callback.train_history]
    assert steps == [*range(5, _MOST_WINDOWS + 5)]


def test_a_fit_of_too_few_batches_says_that_nothing_was_recorded(rng):
    callback = RecordingCallback(on=("val", "train"), every_n_train_steps=5)
    follow(callback, batches(4, rng))
    with pytest.warns(
        TensorStateWarning, match="no training batch was recorded.*of every 5 batches one"
    ):
        callback._end_windows()


def test_low_coverage_of_a_window_that_never_fills_is_told_at_the_end(rng):
    callback = RecordingCallback(on="train", every_n_train_steps=1, window=50)
    recorder = Recorder(["wide"])
    recorder.observe("wide", rng.normal(size=(9, 40)), 1)
    callback._window.add(recorder)
    callback._conclude_window(callback._window.counts(), PassInfo(step=1))
    with pytest.warns(TensorStateWarning, match="In windows.*wide"):
        callback._end_windows()


def test_layers_that_some_windows_lack_are_told_once(rng):
    callback = RecordingCallback(on="train", every_n_train_steps=1, window=1)
    with pytest.warns(TensorStateWarning) as caught:
        follow(callback, batches(6, rng))
    texts = [str(w.message) for w in caught if "Coverage" not in str(w.message)]
    assert [text[:60] for text in texts] == [
        "the window of training batches at step 2 saw other layers th"
    ]
    assert "(conv)" in texts[0]


@pytest.mark.parametrize("on", [(), "", "validation", ("val", "test"), None, [["val"]], 3])
def test_what_is_recorded_is_checked_by_name(on):
    with pytest.raises(ValueError, match=r'on takes "val".*"train".*or both.*got'):
        Settings(on=on)


@pytest.mark.parametrize("name", ["every_n_train_steps", "window"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_numbers_of_windows_are_checked_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a whole number, at least 1; got"):
        Settings(**{name: value})


def test_which_training_is_recorded():
    both, train = Settings(on=["train", "val"]), Settings(on="train")
    assert [Settings().records(what) for what in ("val", "train")] == [True, False]
    assert [both.records(what) for what in ("val", "train")] == [True, True]
    assert [train.records(what) for what in ("val", "train")] == [False, True]
    due = [step for step in range(1, 12) if Settings(every_n_train_steps=4).is_step_due(step)]
    assert due == [4, 8]
