"""Turnover, unchanged neurons and NASWOT's score of planted states, against plain NumPy."""

import copy
import json
import math
import pickle

import numpy as np
import pytest
import reports

from tensorstate_callbacks import EfficiencyReport, History, ProbeChange
from tensorstate_callbacks.display.page import write_page
from tensorstate_callbacks.errors import TensorStateWarning, WarnOnce
from tensorstate_callbacks.metrics import turnover as metrics
from tensorstate_callbacks.recording import probe_rows, probe_states
from tensorstate_callbacks.recording.budget import Sampling
from tensorstate_callbacks.recording.probe_rows import LayerStates
from tensorstate_callbacks.recording.probe_states import (
    FollowedProbe,
    Outcome,
    ProbeSeries,
    TooMuchDataError,
    end_batch,
    states_of,
)
from tensorstate_callbacks.recording.recorder import Recorder
from tensorstate_callbacks.reports.metric_keys import PROBE_METRICS
from tensorstate_callbacks.reports.packed_history import HistoryPacker, unpack_history
from tensorstate_callbacks.states.positions import spread_positions

KEEPS = Sampling(keeps_rows=True)


def packed(bits):
    return np.packbits(bits, axis=-1, bitorder="little")


def random_bits(*shape, seed=0):
    return np.random.default_rng(seed).random(shape) < 0.4


def kernel(bits):
    """By the definition: pair by pair, bit by bit."""
    flat = bits.reshape(len(bits), -1)
    return np.array([[np.sum(a == b) for b in flat] for a in flat], float)


@pytest.mark.parametrize("shape", [(12, 3, 13), (30, 1, 64), (2, 5, 9), (1, 1, 1)])
def test_score_is_that_of_the_definition(shape, monkeypatch):
    bits = random_bits(*shape)
    rows = packed(bits).reshape(len(bits), -1)
    n_bits = bits[0].size
    assert np.array_equal(metrics.hamming_kernel(rows, n_bits), kernel(bits))
    sign, expected = np.linalg.slogdet(kernel(bits))
    assert sign == 1
    assert metrics.naswot(rows, n_bits) == pytest.approx(expected, rel=1e-9)
    # However many bits are unpacked at once.
    monkeypatch.setattr(metrics, "_MOST_UNPACKED", 16 * len(bits))
    assert np.array_equal(metrics.hamming_kernel(rows, n_bits), kernel(bits))


@pytest.mark.parametrize(
    "bits",
    [
        [[0, 1, 1], [1, 0, 0], [0, 1, 1]],  # Two samples alike.
        [[0, 0], [0, 1], [1, 0], [1, 1]],  # More samples than bits and one.
        # All different, and yet one follows from three others.
        [[0, 0, 0, 1, 1], [0, 1, 0, 1, 1], [1, 0, 0, 1, 1], [1, 1, 0, 1, 1]],
    ],
)
def test_score_of_what_a_layer_cannot_tell_apart_is_minus_infinity(bits):
    assert metrics.naswot(packed(np.array(bits)), len(bits[0])) == -math.inf


def test_bits_are_counted_with_numpy_1_too(monkeypatch):
    rows = packed(random_bits(50, 21))
    expected = int(np.unpackbits(rows).sum())
    assert metrics.count_ones(rows) == expected
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert metrics.count_ones(rows) == expected


def states(bits, n_samples=None):
    return LayerStates(bits.shape[-1], packed(bits.reshape(-1, bits.shape[-1])), n_samples)


def test_series_tells_planted_changes_exactly():
    first = random_bits(6, 4, 11)
    second, third = first.copy(), first.copy()
    second[..., 3] ^= True  # One neuron is inverted, and back again.
    second[2, 1, 7] ^= True
    third[5, :, 10] ^= True
    series = ProbeSeries()
    (begun,) = series.add({"conv": states(first, 6)}).values()
    assert begun == ProbeChange(naswot=pytest.approx(np.linalg.slogdet(kernel(first))[1]))
    (change,) = series.add({"conv": states(second, 6)}).values()
    assert change.since_previous == change.since_first == (24 + 1) / (24 * 11)
    assert change.unchanged == 9 / 11
    (same,) = series.add({"conv": states(second, 6)}).values()
    assert (same.since_previous, same.since_first) == (0.0, 25 / 264)
    (last,) = series.add({"conv": states(third, 6)}).values()
    assert last.since_previous == (25 + 4) / 264
    assert last.since_first == 4 / 264
    assert last.unchanged == 8 / 11
    assert {each.naswot for each in (change, same, last)} == {begun.naswot}


def test_series_goes_on_from_its_state_as_if_it_had_not_been_broken_off():
    recordings = [{"a": states(random_bits(5, 2, 70, seed=n), 5)} for n in range(4)]
    whole, first = ProbeSeries(), ProbeSeries()
    expected = [whole.add(each) for each in recordings]
    assert [first.add(each) for each in recordings[:2]] == expected[:2]
    saved = pickle.loads(pickle.dumps(first.state_dict()))  # noqa: S301
    second = ProbeSeries()
    second.load_state_dict(saved)
    assert [second.add(each) for each in recordings[2:]] == expected[2:]


def test_series_that_is_too_large_is_not_saved(monkeypatch):
    series = ProbeSeries()
    series.add({"a": states(random_bits(64, 64), 64)})
    assert series.state_dict()
    monkeypatch.setattr(probe_states, "_MOST_SAVED", 100)
    assert series.state_dict() == {}


def kept(batches, sampling=KEEPS, channel_axis=1, **axes):
    recorder = Recorder(["a"], sampling=sampling)
    for batch in batches:
        recorder.observe("a", batch, channel_axis, **axes)
        end_batch(recorder, len(batch))
    return states_of(recorder)["a"]


@pytest.mark.parametrize("positions", [None, 5])
def test_states_are_kept_sample_after_sample_however_they_are_cut(positions):
    values = np.random.default_rng(4).normal(size=(7, 13, 4, 3)).astype(np.float32)
    sampling = Sampling(positions=positions, keeps_rows=True)
    found = kept([values], sampling)
    by_position = np.moveaxis(values > 0, 1, -1).reshape(7, 12, 13)
    if positions is not None:
        by_position = by_position[:, spread_positions((4, 3), positions)]
    assert np.array_equal(found.rows, packed(by_position).reshape(-1, 2))
    assert (found.n_neurons, found.n_samples) == (13, 7)
    cut = kept([values[:3], values[3:4], values[4:]], sampling)
    assert np.array_equal(cut.rows, found.rows)
    assert cut.n_samples == 7


def test_a_layer_that_is_called_twice_has_the_states_of_both_calls_by_sample():
    values = np.random.default_rng(4).normal(size=(2, 6, 9))
    recorder = Recorder(["a"], sampling=KEEPS)
    for rows in (slice(0, 4), slice(4, 6)):
        recorder.observe("a", values[0, rows], 1)
        recorder.observe("a", values[1, rows], 1)
        end_batch(recorder, rows.stop - rows.start)
    found = states_of(recorder)["a"]
    assert np.array_equal(found.rows, packed(np.moveaxis(values > 0, 0, 1)).reshape(-1, 2))
    assert found.n_samples == 6


def test_samples_of_several_lengths_have_changes_and_no_score():
    recorder = Recorder(["a"], sampling=KEEPS)
    rng = np.random.default_rng(1)
    for shape in ((2, 3, 8), (1, 5, 8)):
        recorder.observe("a", rng.normal(size=shape), 2)
    end_batch(recorder, 3)
    found = states_of(recorder)
    assert found["a"].rows.shape == (11, 1)
    series = ProbeSeries()
    assert series.add(found) == {"a": ProbeChange()}
    assert series.add(found) == {"a": ProbeChange(0.0, 0.0, 1.0, None)}


def test_too_many_states_are_an_error_that_says_how_to_take_fewer(monkeypatch):
    monkeypatch.setattr(probe_rows.RowLimit.__init__, "__defaults__", (100,))
    assert len(kept([np.ones((50, 9))]).rows) == 50
    with pytest.raises(TooMuchDataError, match=r"give fewer samples.*\(positions=16\)"):
        kept([np.ones((51, 9))])


def recorder_of(values):
    recorder = Recorder(["a"], sampling=KEEPS)
    recorder.observe("a", values, 1)
    end_batch(recorder, len(values))
    return recorder


def test_what_fails_is_warned_of_once_and_off():
    followed = FollowedProbe(WarnOnce())

    def fail():
        raise ZeroDivisionError("no samples")

    assert set(followed.record(lambda: recorder_of(np.eye(3)))) == {"a"}
    with pytest.warns(TensorStateWarning, match="ZeroDivisionError: no samples"):
        assert followed.record(fail) == {}
    # With warnings as errors, a second one would be raised.
    assert followed.record(fail) == {}
    assert followed.record(lambda: recorder_of(np.eye(3))) == {}
    with pytest.raises(KeyboardInterrupt):
        FollowedProbe(WarnOnce()).record(interrupted)


def interrupted():
    raise KeyboardInterrupt


def test_a_layer_of_another_shape_is_followed_anew_with_a_warning():
    followed = FollowedProbe(WarnOnce())
    followed.record(lambda: recorder_of(np.eye(3)))
    with pytest.warns(TensorStateWarning, match="on probe_data, a had other neurons"):
        changes = followed.record(lambda: recorder_of(np.eye(4)))
    assert changes["a"].since_previous is None
    assert followed.record(lambda: recorder_of(np.eye(4)))["a"].since_previous == 0


def test_processes_have_what_the_first_has_and_end_together():
    followed, other = FollowedProbe(WarnOnce()), {"a": ProbeChange(naswot=1.5)}
    gathered = followed.record(lambda: recorder_of(np.eye(3)), lambda own: [Outcome(other), own])
    assert gathered == other
    with pytest.warns(TensorStateWarning, match="on rank 1, it failed"):
        followed.record(
            lambda: recorder_of(np.eye(3)), lambda own: [own, Outcome(None, "on rank 1, it failed")]
        )
    assert followed.is_off


CHANGES = {
    "first": ProbeChange(naswot=-math.inf),
    "later": ProbeChange(0.125, 0.25, 0.5, 12.75),
    "lengths": ProbeChange(0.125, 0.25, 0.5, None),
}


def followed_report(change, **fields):
    return reports.report(**fields).with_probe({"conv": change, "unknown": change})


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_report_keeps_changes_through_json_pickle_and_history(change, tmp_path):
    report = followed_report(change)
    assert report.layers["conv"].probe == change
    assert report.layers["fc"].probe is None
    assert report != reports.report()
    assert len({report, reports.report(), followed_report(change)}) == 2
    report.save(tmp_path / "run.json")
    text = (tmp_path / "run.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert EfficiencyReport.load(tmp_path / "run.json") == report
    for made in (copy.deepcopy(report), pickle.loads(pickle.dumps(report))):  # noqa: S301
        assert made == report
    assert report.without_states().layers["conv"].probe == change
    history = History([reports.report(), report, *map(followed_report, CHANGES.values()), report])
    back = unpack_history(HistoryPacker().pack(history))
    assert back == [each.without_states() for each in history[:-1]] + [report]


def test_reports_and_histories_of_before_load_and_default_ones_do_not_grow():
    fields = reports.report().to_dict()
    for layer in fields["layers"].values():
        assert layer.pop("probe") is None
    assert EfficiencyReport.from_dict(fields) == reports.report()
    packer = HistoryPacker().pack(reports.history())
    assert all("followed" not in alike for block in packer["earlier"] for alike in block)


@pytest.mark.parametrize("value", [1.5, -0.1, "much", True])
def test_a_file_with_changes_that_cannot_be_is_refused(value, tmp_path):
    fields = followed_report(CHANGES["later"]).to_dict()
    fields["layers"]["conv"]["probe"]["since_first"] = value
    (tmp_path / "run.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="since_first of 'conv'"):
        EfficiencyReport.load(tmp_path / "run.json")


def test_metrics_are_logged_where_they_are_asked_for_and_known():
    first, later = followed_report(CHANGES["first"]), followed_report(CHANGES["later"])
    assert first.scalars(layer_metrics=PROBE_METRICS).keys() == {"val_efficiency", "val_aiq"}
    found = later.scalars(layer_metrics=PROBE_METRICS)
    assert {key: found[key] for key in found if "/" in key} == {
        "val_turnover/conv": 0.125,
        "val_turnover_from_first/conv": 0.25,
        "val_unchanged/conv": 0.5,
    }
    assert later.scalars() == reports.report().scalars()


def test_tables_pages_and_notes_show_changes(tmp_path):
    report = followed_report(CHANGES["later"])
    *_, heading, conv, fc, _ = report.table(full=True).splitlines()
    assert heading.split() == ["layer", "turnover", "from", "first", "unchanged", "NASWOT"]
    assert conv.split() == ["conv", "0.1250", "0.2500", "0.5000", "12.8"]
    assert fc.split() == ["fc", *"––––"]
    assert report.table() == reports.report().table()
    assert "NASWOT" not in reports.report().table(full=True)
    write_page(report, tmp_path / "run.html")
    page = (tmp_path / "run.html").read_text()
    assert page.count("NASWOT") == 2
    assert "12.8" in report._repr_html_()
    assert report.notes() == reports.report().notes()
    (note,) = set(followed_report(CHANGES["first"]).notes()) - set(report.notes())
    assert "minus infinity in conv" in note
    assert report.to_dicts()[0]["turnover"] == 0.125
    assert "turnover" not in reports.report().to_dicts()[0]
