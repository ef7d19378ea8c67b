"""Two processes of JAX, connected by `keras.distribution`, give the very numbers of one."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from keras_models import count_states
from rank_processes import TESTS, free_port

from tensorstate_callbacks import entropy

if keras.backend.backend() != "jax":
    pytest.skip("only JAX has processes under Keras", allow_module_level=True)

import jax_rank_runs

DEADLINE = 240


def spawn(folder):
    """Return what the two processes wrote; raise `AssertionError` with what they said otherwise."""
    port, files = str(free_port()), [folder / f"{rank}.json" for rank in (0, 1)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "TENSORSTATE_KERAS_ON_DEVICE": "",
    }
    outputs = [folder / f"{rank}.txt" for rank in (0, 1)]
    processes = []
    for rank, output in enumerate(outputs):
        command = [sys.executable, Path(jax_rank_runs.__file__), str(rank), port, files[rank]]
        with output.open("w") as said:
            processes.append(
                subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT)
            )
    end = time.monotonic() + DEADLINE
    try:
        while any(process.poll() is None for process in processes) and time.monotonic() < end:
            if any(process.poll() for process in processes):
                # The other one waits for it.
                time.sleep(2)
                break
            time.sleep(0.05)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    said = "\n".join(output.read_text()[-5000:] for output in outputs)
    assert all(process.returncode == 0 for process in processes), said
    return [json.loads(file.read_text()) for file in files]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return spawn(tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def one():
    before = os.environ.get("TENSORSTATE_KERAS_ON_DEVICE")
    try:
        found = json.loads(json.dumps([jax_rank_runs.runs(), jax_rank_runs.more_runs()]))
    finally:
        os.environ.pop("TENSORSTATE_KERAS_ON_DEVICE", None)
        if before is not None:
            os.environ["TENSORSTATE_KERAS_ON_DEVICE"] = before
    return found


@pytest.mark.parametrize("how", ["data parallel", "model parallel"])
def test_two_processes_give_what_one_gives_to_the_bit(how, one, two):
    expected = dict(one[0])
    told = expected.pop("told")
    for rank, found in enumerate(two):
        assert found[how].pop("told") == ([] if rank else told)
        assert found[how].keys() == expected.keys()
        for name in expected:
            # With the order of layers.
            assert json.dumps(found[how][name]) == json.dumps(expected[name]), name
    assert any("fewer positions of a sample are read of wide (" in text for text in told)
    wide = expected["thinned 0"][0]["layers"]["wide"]
    assert wide["n_states"] == jax_rank_runs.N


def test_two_processes_give_what_numpy_gives(two):
    model = jax_rank_runs.build()
    kernel, bias, *dense = [w.astype(np.float64) for w in model.get_weights()[:4]]
    windows = np.lib.stride_tricks.sliding_window_view(jax_rank_runs.X, (3, 3), axis=(1, 2))
    wide = np.einsum("nijcxy,xyck->nijk", windows, kernel) + bias
    fc = wide.reshape(len(wide), -1) @ dense[0] + dense[1]
    for rank in two:
        layers = rank["data parallel"]["whole 0"][0]["layers"]
        for name, activations in (("wide", wide), ("fc", fc)):
            counts = count_states(activations)
            assert layers[name]["n_states"] == counts.sum()
            assert layers[name]["entropy"] == pytest.approx(entropy(counts), rel=1e-12)


def test_fit_logs_the_same_on_both_as_on_one(one, two):
    assert [rank["more"] for rank in two] == [one[1]] * 2
    reports, _ = one[1]["fit"]
    assert [report["epoch"] for report in reports] == [0, 1]
    # Three steps an epoch, of both processes together.
    assert [report["step"] for report in reports] == [3, 6]
    assert one[1]["logged"]["val_aiq"] == [report["aiq"] for report in reports]
    assert "val_x_efficiency/fc" in one[1]["logged"]


def test_loggers_get_their_extras_from_the_first_process_only(two):
    first, second = (rank["failures"]["trackers"] for rank in two)
    assert first == "[1, 1]"
    assert second == "[0, 0]"


def test_processes_that_keras_does_not_connect_are_refused(two):
    for rank in two:
        assert rank["apart"].startswith("ValueError: JAX runs in 2 processes, of which keras.dist")
        assert "keras.distribution.set_distribution(keras.distribution.DataPara" in rank["apart"]


def test_what_fails_on_one_process_ends_both_and_is_named(two):
    first, second = (rank["failures"] for rank in two)
    unlike = "RankError: the ranks don't record alike, so their counts of states can't be merged. "
    assert first["settings"] == second["settings"]
    assert first["settings"].startswith(f"{unlike}every_n_epochs: 1 on rank 0; 2 on rank 1")
    assert first["layers"].startswith("NoLayerMatchedError: attach_to='nothing'")
    assert "without rank 0: it failed with NoLayerMatchedError" in second["layers"]
    assert "rank 1 can't merge its counts of states with the" in first["accuracy"]
    assert second["accuracy"].startswith("ZeroDivisionError")
    assert "without rank 1: it failed with ArithmeticError: this batch is bad" in first["another"]
    assert second["another"] == "ArithmeticError: this batch is bad"
    # And they go on together.
    assert first["after"] == second["after"] == "[104, 104]"


def test_a_layer_in_a_trace_of_its_own_is_refused_by_name(two):
    for rank in two:
        told = rank["failures"]["inner"]
        assert told.startswith("ProbeError: layer 'outer/inner' could not be counted: it runs in a")
        assert "in 2 processes. Exclude it" in told


def test_a_process_that_does_not_come_is_named_and_learns_of_it(two):
    first, second = (rank["absence"] for rank in two)
    assert first[0].startswith(
        "RankError: the counts of states can't be merged without rank 1: it did not come within 0.1"
    )
    assert second[0].startswith(first[0])
    # Both have taken the same turns.
    assert first[1] == second[1] == "returned [b'2', b'2']"
    assert (first[2], second[2]) == ("returned [b'0', b'0']", "returned [b'1', b'1']")


def test_masked_positions_are_left_out_in_both(two):
    bright = (jax_rank_runs.X[:, 1:-1, 1:-1, 0] > 0).reshape(jax_rank_runs.N, -1).sum(1)
    for rank in two:
        wide = rank["data parallel"]["masked 0"][0]["layers"]["wide"]
        assert wide["n_states"] == np.minimum(bright, 3).sum()


def test_what_processes_cannot_share_is_refused_with_the_way_out(two):
    for rank in two:
        assert 'leave "train" out of on' in rank["failures"]["training"]
        assert "probe_data can't be followed in a model" in rank["failures"]["probe_data"]
        for what in ("rows", "labels"):
            assert "2 replicas of the model share the batches" in rank["failures"][what]
        assert "classes='tone': the batch has no such key" in rank["failures"]["key"]


def test_each_process_counts_by_the_labels_of_its_samples(two):
    labels = jax_rank_runs.X.sum((1, 2, 3)).astype(int) % 3
    for rank in two:
        reports = rank["data parallel"], rank["model parallel"]
        for layer in (each["classes 0"][0]["layers"]["fc"] for each in reports):
            assert layer["classes"]["labels"] == [0, 1, 2]
            assert layer["classes"]["n_states"] == np.bincount(labels).tolist()
        rows = rank["more"]["rows"][0]["layers"]["rows/inner"]["classes"]
        assert rows["n_states"] == (2 * np.bincount(labels)).tolist()


def test_padding_of_another_process_is_told_of_by_the_first(two):
    (text,), nothing = (rank["lost"] for rank in two)
    assert "behind" in text
    assert nothing == []
