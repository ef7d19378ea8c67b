"""A checkpoint keeps all metrics of a history to the bit, and its last report, in few bytes."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest

from tensorstate_callbacks import EfficiencyReport, LayerReport, Spectrum, StatesNotAvailableError
from tensorstate_callbacks.reports.packed_history import HistoryPacker, unpack_history
from tensorstate_callbacks.reports.report import History


def layer(name, seed=0, n_neurons=20, n_states=None, alpha=1):
    rng = np.random.default_rng(seed)
    spectrum = Spectrum.from_counts(rng.integers(1, 40, 300).astype(np.uint64))
    if n_states is not None:
        spectrum = Spectrum.from_counts(np.array([1, n_states - 1], np.uint64))
    fired = rng.integers(0, 300, n_neurons).astype(np.uint64)
    return LayerReport.from_spectrum(name, spectrum, fired, alpha)


def report(seed=0, names=("a", "b"), **fields):
    alpha = fields.get("alpha", 1)
    layers = {name: layer(name, 9 * seed + i, alpha=alpha) for i, name in enumerate(names)}
    return EfficiencyReport(layers=layers, **{"accuracy": seed / 700, "epoch": seed, **fields})


def mixed():
    """Epochs with tests in between, other layers, orders and weights, and nothing known."""
    reports = []
    for epoch in range(150):
        reports.append(report(epoch, step=8 * epoch))
        if epoch % 7 == 0:
            reports.append(report(epoch, stage="test", epoch=None, step=None, accuracy=None))
    reports.append(report(3, names=("b", "c", "a"), beta=1.5, alpha=2))
    reports.append(EfficiencyReport({"x": layer("x", n_states=2**64 - 1)}, accuracy=1.0))
    reports.append(report(600))
    return History(reports)


def without_spectra(history):
    return [
        dataclasses.replace(
            found,
            layers={n: dataclasses.replace(x, spectrum=None) for n, x in found.layers.items()},
        )
        for found in history
    ]


@pytest.mark.parametrize("length", [0, 1, 2, 128, 129, 130, 175])
def test_metrics_of_all_and_the_last_report_come_back_to_the_bit(length):
    history = mixed()[-length:] if length else History()
    assert len(history) == length
    back = unpack_history(pickle.loads(pickle.dumps(HistoryPacker().pack(history))))  # noqa: S301
    assert isinstance(back, History)
    assert list(back[:-1]) == without_spectra(history[:-1])
    assert back[-1:] == history[-1:]
    assert back.to_dicts() == history.to_dicts()
    assert [found.scalars() for found in back] == [found.scalars() for found in history]


def test_packing_again_as_a_history_grows_or_changes_gives_what_packing_it_once_does():
    history, packer = mixed(), HistoryPacker()
    for part in (history[:127], history[:128], history[:140], history[3:160], history[:5], history):
        assert packer.pack(part) == HistoryPacker().pack(part)


def test_an_epoch_more_costs_few_bytes_however_many_states_it_saw():
    packer, history, sizes = HistoryPacker(), History(), []
    for epoch in range(385):
        history.append(report(epoch, step=epoch))
        if epoch in (128, 384):
            sizes.append(len(pickle.dumps(packer.pack(history))))
    # 2 layers of 300 distinct states: as many numbers as 8 bytes a metric, and the rest in common.
    assert (sizes[1] - sizes[0]) / 256 < 60
    whole = len(pickle.dumps([found.to_dict() for found in history]))
    assert sizes[1] < whole / 10


def test_what_needs_a_spectrum_says_that_there_is_none():
    (first, last) = unpack_history(HistoryPacker().pack([report(1), report(2)]))
    assert last.interval() == report(2).interval()
    for ask in (first.interval, first.layers["a"].interval, first.layers["a"].estimate):
        with pytest.raises(StatesNotAvailableError, match=r"'a' isn't known: a checkpoint keeps"):
            ask()
    assert first.layers["a"].max_share == report(1).layers["a"].max_share
    assert EfficiencyReport.from_dict(first.to_dict()) == first
    assert first != report(1)
    assert len({first, last, report(1), report(2)}) == 3


@pytest.mark.parametrize(
    "made",
    [
        lambda given: given,
        copy.deepcopy,
        lambda given: pickle.loads(pickle.dumps(given)),  # noqa: S301
        lambda given: EfficiencyReport.from_dict(given.to_dict()),
    ],
)
def test_a_report_is_frozen_down_to_its_spectrum(made):
    counts = np.array([1, 2, 3], np.uint64)
    spectrum = Spectrum(counts, counts[::-1].copy())
    built = LayerReport.from_spectrum("a", spectrum, counts)
    found = made(EfficiencyReport({"a": built}))
    before = hash(found), found.interval()
    counts[0] = 7
    with pytest.raises(ValueError, match="read-only"):
        found.layers["a"].spectrum.values[0] = 7
    assert (hash(found), found.interval()) == before
    assert found == EfficiencyReport({"a": built})
