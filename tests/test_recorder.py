import threading

import numpy as np
import pytest

from tensorstate_callbacks import ProbeError, entropy
from tensorstate_callbacks.recording.budget import WHOLE, Sampling
from tensorstate_callbacks.recording.pass_counts import PassInfo
from tensorstate_callbacks.recording.recorder import Recorder
from tensorstate_callbacks.states.counter import StateCounter


def test_report_is_what_numpy_counts(rng):
    activations = rng.normal(size=(40, 5, 6, 9)).astype(np.float32)
    recorder = Recorder(["conv"])
    recorder.observe("conv", activations, -1)
    layer = recorder.report(PassInfo(accuracy=0.5)).layers["conv"]
    rows = activations.reshape(-1, 9) > 0
    _, counts = np.unique(rows, axis=0, return_counts=True)
    assert layer.entropy == entropy(counts)
    assert layer.n_states == 40 * 5 * 6
    assert layer.n_distinct == len(counts)
    assert layer.n_singletons == (counts == 1).sum()
    assert layer.firing_rate == pytest.approx(rows.mean(), rel=1e-15)
    assert layer.n_never == (~rows.any(axis=0)).sum()


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_report_does_not_depend_on_batch_size_or_order(rng, batch_size):
    activations = np.round(rng.normal(size=(200, 4)), 1)
    whole, parts = Recorder(["fc"]), Recorder(["fc"])
    whole.observe("fc", activations, 1)
    shuffled = rng.permutation(activations)
    for start in range(0, 200, batch_size):
        parts.observe("fc", shuffled[start : start + batch_size], 1)
    assert parts.report(PassInfo(accuracy=0.3)) == whole.report(PassInfo(accuracy=0.3))


def test_layers_stand_in_the_order_in_which_they_were_reached():
    recorder = Recorder(["c", "b", "a"])
    for name in "baacb":
        recorder.observe(name, np.eye(2), 1)
    assert list(recorder.report().layers) == ["b", "a", "c"]


def test_threshold_is_applied():
    recorder = Recorder(["fc"], threshold=0.5)
    recorder.observe("fc", np.array([[0.5, 0.6]]), 1)
    assert recorder.counters["fc"].fired().tolist() == [0, 1]


def test_a_failing_batch_names_its_layer_and_loses_nothing():
    recorder = Recorder(["fc"])
    recorder.observe("fc", np.eye(3), 1)
    with pytest.raises(ProbeError, match=r"layer 'fc'.*shape \(4, 4\) has no axis 2"):
        recorder.observe("fc", np.eye(4), 2)
    with pytest.raises(ProbeError, match="layer 'fc'.*complex"):
        recorder.observe("fc", np.eye(3) * 1j, 1)
    assert recorder.report().layers["fc"].n_states == 3


def test_each_width_of_a_probe_is_counted_on_its_own_and_summed_where_widths_agree():
    recorder = Recorder(["relu", "fc"])
    for n in (3, 4, 3):
        recorder.observe("relu", np.eye(n), 1)
    recorder.observe("fc", np.eye(2), 1)
    layers = recorder.report().layers
    assert {name: layer.n_states for name, layer in layers.items()} == {
        "relu@3": 6,
        "relu@4": 4,
        "fc": 2,
    }
    assert recorder.counters["relu@3"].counts().tolist() == [2, 2, 2]
    assert (recorder.seen(), recorder.unseen()) == (["relu", "fc"], [])


def test_several_axes_are_one_unit():
    recorder, data = Recorder(["q"]), np.random.default_rng(1).normal(size=(5, 3, 2, 4))
    recorder.observe("q", data, (-2, -1))
    folded = np.packbits(data.reshape(15, 8) > 0, axis=1, bitorder="little")
    assert recorder.counters["q"].n_neurons == 8
    assert recorder.counters["q"].states().tolist() == np.unique(folded, axis=0).tolist()


@pytest.mark.parametrize(
    "sampling", [WHOLE, Sampling(8), Sampling(None, 1), Sampling(None, None, 10**9)], ids=str
)
def test_whatever_is_read_arrays_may_be_of_any_kind_and_masks_are_refused(sampling):
    class Lazy:
        shape = 4, 70, 20

        def __array__(self, dtype=None, copy=None):
            return np.ones(self.shape)

    recorder = Recorder(["fc"], sampling=sampling)
    recorder.observe("fc", Lazy(), 1)
    assert recorder.report().layers["fc"].n_states == 4 * (sampling.positions or 20)
    masked = np.ma.masked_array(np.ones(Lazy.shape), mask=np.ones(Lazy.shape))
    with pytest.raises(ProbeError, match="layer 'fc' could not be counted.*mask"):
        recorder.observe("fc", masked, 1)


def test_a_dropped_probe_is_forgotten_and_counts_no_more():
    recorder = Recorder(["a", "b"])
    recorder.observe("a", np.eye(3), 1)
    recorder.observe("b", np.eye(3), 1)
    recorder.drop(["a"])
    recorder.observe("a", np.eye(3), 1)
    assert list(recorder.report().layers) == ["b"]
    assert recorder.names == ("b",)


def test_an_error_kept_for_later_is_raised_by_report():
    recorder = Recorder(["fc"])
    recorder.observe_later("fc", np.eye(3), 1)
    recorder.observe_later("fc", np.eye(3) * 1j, 1)
    with pytest.raises(ProbeError, match="layer 'fc'.*complex"):
        recorder.report()


def test_a_layer_whose_first_batch_was_interrupted_has_seen_nothing(monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    recorder = Recorder(["a", "b"])
    recorder.observe("a", np.eye(3), 1)
    with monkeypatch.context() as patch:
        patch.setattr(StateCounter, "update", interrupt)
        with pytest.raises(KeyboardInterrupt):
            recorder.observe("b", np.eye(3), 1)
    assert (recorder.seen(), recorder.unseen()) == (["a"], ["b"])
    assert list(recorder.report().layers) == ["a"]


def test_probes_that_saw_nothing_are_told():
    recorder = Recorder(["a", "b"])
    recorder.observe("a", np.eye(2), 1)
    recorder.observe("b", np.zeros((0, 2)), 1)
    assert (recorder.seen(), recorder.unseen()) == (["a"], ["b"])
    assert list(recorder.report().layers) == ["a"]


def test_a_report_of_nothing_says_what_to_do():
    with pytest.raises(ProbeError, match="no probe saw any activations: a, b.*Run the model"):
        Recorder(["a", "b"]).report()


def test_unknown_probe_is_named():
    with pytest.raises(KeyError, match="no probe is named 'x'; there are a"):
        Recorder(["a"]).observe("x", np.eye(2), 1)


def test_scalars_have_no_axis_of_neurons():
    with pytest.raises(ProbeError, match="layer 'a'.*axis"):
        Recorder(["a"]).observe("a", np.float32(1), 0)


def test_threads_may_observe_at_once(rng):
    batches = [rng.normal(size=(500, 12)) for _ in range(8)]
    together, alone = Recorder(["fc"]), Recorder(["fc"])
    threads = [
        threading.Thread(target=together.observe, args=("fc", batch, 1)) for batch in batches
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for batch in batches:
        alone.observe("fc", batch, 1)
    assert together.report() == alone.report()
