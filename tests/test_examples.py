"""The examples, run as a user runs them, and what they leave behind."""

import re
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import mlflow
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from tensorstate_callbacks import EfficiencyReport, LayerReport, TensorStateWarning
from tensorstate_callbacks.states.counter import kernel_report
from tensorstate_callbacks.states.spectrum import Spectrum

EXAMPLES = Path(__file__).parent.parent / "examples"
LINE = re.compile(
    r"epoch +(\d+)  accuracy ([\d.]+)  efficiency ([\d.]+)  aIQ ([\d.]+)"
    r"  conv_1 ([\d.]+)  conv_2 ([\d.]+)  conv_3 ([\d.]+)  \([\d.]+ s\)"
)


def curve_of(folder, *tags):
    """Return the values of the first of the tags that TensorBoard has."""
    for run in sorted({path.parent for path in folder.rglob("events.out.*")}):
        events = EventAccumulator(str(run))
        events.Reload()
        for tag in tags:
            if tag in events.Tags()["tensors"]:
                return [float(make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)]
            if tag in events.Tags()["scalars"]:
                return [event.value for event in events.Scalars(tag)]
    raise AssertionError(f"no run has any of {tags}")


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
def test_example_prints_logs_and_draws_the_same_metrics(example):
    name, folder, done = example
    lines = LINE.findall(done.stdout)
    printed = {key: [float(line[i]) for line in lines] for i, key in [(1, "a"), (2, "e"), (3, "q")]}
    assert [int(line[0]) for line in lines] == [1, 2]
    for accuracy, eta, aiq in zip(*printed.values(), strict=True):
        assert aiq == pytest.approx((eta * accuracy**2) ** (1 / 3), abs=1e-3)
    # conv_3: 1,000 images can't carry more than log2(1000) of 100 bits; in groups it moves.
    best, in_groups = re.findall(r"^conv_3 .*", done.stdout, re.MULTILINE)
    assert best.split()[4:6] == ["0.0997", "0.0997"]
    assert in_groups.split()[2] == "8"
    first, second = (float(line[6]) for line in lines)
    assert 0.3 < first != second
    assert in_groups.split()[5] in (f"{first:.4f}", f"{second:.4f}")

    output = folder / "runs" / name
    logged = curve_of(output / "tensorboard", "epoch_aiq", "val_aiq")
    assert logged == pytest.approx(printed["q"], abs=1e-4)

    client = mlflow.MlflowClient(f"sqlite:///{output / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name(name).experiment_id])
    history = client.get_metric_history(run.info.run_id, "val_aiq")
    assert [metric.value for metric in history] == pytest.approx(printed["q"], abs=1e-4)
    assert run.data.params["efficiency.beta"] == "2"
    kept = {path.name: path for path in (output / "artifacts").rglob("*.*")}
    files = ["history.png", "layers.json"]
    assert sorted(kept) == sorted([*files, *(f"g8_{name}" for name in files)])
    assert str(kept["layers.json"]).endswith(f"{run.info.run_id}/artifacts/efficiency/layers.json")

    best = f"Best aIQ, in epoch {printed['q'].index(max(printed['q'])) + 1}:"
    assert best in done.stdout
    assert (output / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_example_writes_nothing_else(example):
    name, folder, _ = example
    output = folder / "runs" / name
    assert sorted(path.name for path in folder.iterdir()) == ["runs"]
    left = sorted(path.name for path in output.iterdir())
    assert left == ["artifacts", "curves.png", "mlflow.db", "tensorboard"]


def test_example_shows_a_progress_bar(example):
    *_, done = example
    assert re.search(r"epoch 2:.*/40 \[", done.stderr)


def test_no_warning_stands_among_the_progress_lines_and_the_summary_has_the_note(example):
    *_, done = example
    assert "Warning" not in done.stderr
    lines = done.stdout.splitlines()
    numbers = [number for number, line in enumerate(lines) if LINE.fullmatch(line)]
    assert numbers == [numbers[0], numbers[0] + 1]
    # conv_1 is seen often enough, and in groups all layers are.
    whole, groups = done.stdout.split("In groups of 8 neurons")
    (note,) = re.findall(r"^Note: Coverage is below 0.5 in (.*): most", whole, re.MULTILINE)
    assert re.findall(r"conv_\d", note) == ["conv_2", "conv_3"]
    assert "Note:" not in groups


def test_example_begins_with_what_it_does_and_little_else(example):
    name, _, done = example
    assert done.stdout.startswith("LeNet-5 learns 4,000 handwritten digits, until aIQ")
    # What comes before the first bar is of libraries that warn by themselves.
    before = done.stderr.partition("epoch 1:")[0]
    assert [line for line in before.splitlines() if line.strip()] == [], name


def test_example_ends_with_the_commands_that_open_its_curves(example):
    name, folder, done = example
    board, ui, more = done.stdout.splitlines()[-3:]
    assert more.endswith("https://tensorstate-callbacks.github.io/tensorstate_callbacks/")
    assert board.split()[1:] == ["--logdir", f"runs/{name}/tensorboard"]
    assert ui.split()[1:] == ["ui", "--backend-store-uri", f"sqlite:///runs/{name}/mlflow.db"]
    for command in (board, ui):
        assert (folder / command.split()[0]).exists()


def test_closing_words_name_the_epoch_that_was_best(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    from digits import print_result

    layer = LayerReport.from_spectrum(
        "conv", Spectrum.from_counts([3, 2, 2, 1]), np.ones(4, dtype=np.uint64)
    )
    history = [
        EfficiencyReport({"conv": layer}, accuracy=accuracy, epoch=epoch)
        for epoch, accuracy in enumerate([0.5, 0.9, 0.7, 0.6])
    ]
    print_result(history, history, 4, tmp_path)
    words = capsys.readouterr().out
    assert "Stopped early: aIQ has not risen for 2 epochs." in words
    assert "Best aIQ, in epoch 2:" in words
    assert history[1].table() in words
    assert (tmp_path / "curves.png").exists()


def mnist_parts():
    rng = np.random.default_rng(0)
    for n in (6, 4):
        yield rng.integers(0, 256, (n, 28, 28), np.uint8), np.arange(n, dtype=np.uint8)


def assert_digits(digits):
    (x_train, y_train), (x_val, y_val) = mnist_parts()
    for found, pixels in ((digits.x_train, x_train), (digits.x_val, x_val)):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found * 255, pixels, rtol=1e-6)
    assert digits.y_train.tolist() == y_train.tolist()
    assert digits.y_val.tolist() == y_val.tolist()
    assert digits.y_val.dtype == np.int64


def test_all_of_mnist_comes_through_keras(monkeypatch):
    import keras

    monkeypatch.syspath_prepend(EXAMPLES)
    from keras_lenet5 import load_full

    monkeypatch.setattr(keras.datasets.mnist, "load_data", lambda: tuple(mnist_parts()))
    assert_digits(load_full())


def test_all_of_mnist_comes_through_torchvision(monkeypatch):
    import torch

    class Mnist:
        def __init__(self, root, train, download):
            assert download
            pixels, labels = list(mnist_parts())[0 if train else 1]
            self.data = torch.from_numpy(pixels)
            self.targets = torch.from_numpy(labels.astype(np.int64))

    monkeypatch.syspath_prepend(EXAMPLES)
    from torch_lenet5 import load_full

    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    datasets = ModuleType("torchvision.datasets")
    datasets.MNIST = Mnist
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)
    assert_digits(load_full())


def test_that_numpy_counts_is_warned_of_before_the_lines_of_the_epochs(monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    from digits import Digits, print_heading

    native = sys.modules[kernel_report.__module__]
    for name, value in (("_native_kernels", ()), ("_forced", ""), ("_warned", False)):
        monkeypatch.setattr(native, name, value)
    digits = Digits(np.zeros((40, 28, 28)), np.zeros(40), np.zeros((10, 28, 28)), np.zeros(10))
    arguments = Namespace(patience=5, epochs=9)
    with pytest.warns(TensorStateWarning, match="states are counted by NumPy"):
        print_heading(arguments, digits)
    first, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("LeNet-5 learns 40 handwritten digits, until aIQ has not risen for 5 ")
