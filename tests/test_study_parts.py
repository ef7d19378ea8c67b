"""The parts of the studies: intervals, correlations, noisy labels, stopping, data, networks."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def examples(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)


@pytest.mark.usefixtures("examples")
def test_interval_is_students():
    from seed_intervals import bands_of, interval_of

    # Four seeds: standard deviation sqrt(5/3), t 3.182 from the table for three degrees of freedom.
    found = interval_of([1.0, 2.0, 3.0, 4.0])
    assert found.mean == 2.5
    assert found.half == pytest.approx(3.182 * math.sqrt(5 / 3) / 2, abs=1e-3)
    assert (str(found), found.signed()) == ("2.500 ± 2.054", "+2.500 ± 2.054")
    verdicts = {"higher": [1.0, 1.1], "lower": [-1.0, -1.1], "undecided": [1.0, 3.0]}
    assert {name: interval_of(values).verdict() for name, values in verdicts.items()} == {
        name: name for name in verdicts
    }
    mean, half = bands_of([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [4.0, 0.0]])
    assert mean.tolist() == [2.5, 0.0]
    assert half.tolist() == [found.half, 0.0]
    # One seed says nothing of how far it may be off.
    assert str(interval_of([0.25])) == "0.250"
    assert interval_of([0.25]).verdict() == "undecided"


@pytest.mark.usefixtures("examples")
def test_interval_is_corrected_for_the_number_of_comparisons():
    from seed_intervals import describe_difference, interval_of

    # Five comparisons at 95 % together are 99 % each: t 5.841 for three degrees of freedom.
    found = interval_of([1.0, 2.0, 3.0, 4.0], 5)
    assert found.mean == 2.5
    assert found.half == pytest.approx(5.841 * math.sqrt(5 / 3) / 2, abs=1e-3)
    assert describe_difference([1.0, 2.0, 3.0, 4.0], 5) == "+2.500 ± 3.770 (2.054)"
    assert describe_difference([1.0, 2.0, 3.0, 4.0], 1) == "**+2.500 ± 2.054 (2.054)**"
    assert describe_difference([0.0, 0.0], 5) == "+0.000 ± 0.000 (0.000)"
    assert describe_difference([0.25], 5) == "+0.250"


@pytest.mark.usefixtures("examples")
def test_correlation_is_that_of_ranks():
    from rank_correlation import correlate, correlation_gains, spearman

    # 1 - 6 * (1 + 1 + 1 + 1 + 0) / (5 * 24), by the formula for ranks without ties.
    assert spearman([1, 2, 3, 4, 50], [0.2, 0.1, 0.4, 0.3, 0.5]) == pytest.approx(0.8)
    assert spearman([1, 2, 3], [30, 2, 1]) == pytest.approx(-1)
    # Ranks 1, 2.5, 2.5, 4 less their mean are -1.5, 0, 0, 1.5; the others -1.5, -0.5, 0.5, 1.5.
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert spearman([0.5, 0.5, 0.5], [1, 2, 3]) == spearman([1, 2, 3], [0.5, 0.5, 0.5]) == 0

    tested, losses, etas = [0.7, 0.9, 0.8], [3.0, 1.0, 2.0], [0.3, 0.2, 0.1]
    epochs = [
        {
            "test_accuracy": accuracy,
            "val_loss": loss,
            "grouped": {"layers": {"conv_3": {"efficiency": eta}}},
        }
        for accuracy, loss, eta in zip(tested, losses, etas, strict=True)
    ]
    runs = [{"epochs": epochs}, {"epochs": epochs[:2]}]
    # The lower the loss, the higher the accuracy; efficiency: 1 - 6 * (4 + 1 + 1) / (3 * 8).
    assert correlate(runs, "low validation loss") == pytest.approx([1, 1])
    assert correlate(runs, "grouped efficiency, conv_3") == pytest.approx([-0.5, -1])
    gains = correlation_gains(runs, "grouped efficiency, conv_3", "low validation loss")
    assert gains == pytest.approx([-1.5, -2])


@pytest.mark.usefixtures("examples")
def test_three_quarters_of_the_labels_are_drawn_anew():
    from study import randomize

    rng = np.random.default_rng(0)
    # A label that can't be drawn tells which were.
    drawn = randomize(np.full(3000, 10), 0.75, rng)
    assert np.count_nonzero(drawn != 10) == 2250
    assert set(drawn) == set(range(11))
    # 225 expected of each class, with a standard deviation of 14.
    assert np.abs(np.bincount(drawn)[:10] - 225).max() < 4 * 14.3
    # Where they stand is random too: about as many in the first half as in the second.
    assert np.count_nonzero(drawn[:1500] != 10) == pytest.approx(1125, abs=4 * 14)

    labels = np.arange(3000) % 10
    noisy = randomize(labels, 0.75, rng)
    # Nine in ten of those drawn are wrong: 2025, with a standard deviation of 14.
    assert np.count_nonzero(noisy != labels) == pytest.approx(2025, abs=4 * 14.3)
    assert labels.tolist() == (np.arange(3000) % 10).tolist()
    assert randomize(labels, 0.0, rng).tolist() == labels.tolist()


@pytest.mark.usefixtures("examples")
def test_labels_to_train_and_validate_on_are_noisy_and_those_to_test_on_true():
    from digits import small_digits
    from study import split_digits

    images, labels = small_digits()
    truth = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    assert len(truth) == 5000
    parts = split_digits(3, (3000, 1000, 1000), 0.75)
    seen = [image.tobytes() for x in (parts.x_train, parts.x_val, parts.x_test) for image in x]
    assert len(set(seen)) == 5000  # no digit is in two parts
    true = np.array([truth[image] for image in seen])
    train, val, test = np.split(true, [3000, 4000])
    assert np.bincount(val).tolist() == np.bincount(test).tolist() == [100] * 10
    assert parts.y_test.tolist() == test.tolist()
    for noisy, expected, n in ((parts.y_train, train, 3000), (parts.y_val, val, 1000)):
        wrong = np.mean(noisy != expected)
        assert wrong == pytest.approx(0.675, abs=4 * math.sqrt(0.75 * 0.09 / n))
    other = split_digits(4, (3000, 1000, 1000), 0.75)
    assert np.any(other.x_test != parts.x_test)
    again = split_digits(3, (3000, 1000, 1000), 0.75)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


curves = st.lists(st.integers(0, 5).map(float), min_size=1, max_size=12)


@settings(max_examples=60)
@given(values=curves, mode=st.sampled_from(["min", "max"]), patience=st.integers(0, 4))
def test_rule_stops_and_restores_where_keras_does(values, mode, patience):
    import keras

    sys.path.insert(0, str(EXAMPLES))
    try:
        from stopping import stop_early
    finally:
        sys.path.remove(str(EXAMPLES))

    class Weights:
        """Stands for a model whose weights are the number of the epoch."""

        stop_training = False

        def get_weights(self):
            return self.epoch

        def set_weights(self, epoch):
            self.epoch = epoch

    model = Weights()
    callback = keras.callbacks.EarlyStopping(
        "x", mode=mode, patience=patience, restore_best_weights=True
    )
    callback.set_model(model)
    callback.on_train_begin()
    for epoch, value in enumerate(values):
        model.epoch = epoch
        callback.on_epoch_end(epoch, {"x": value})
        if model.stop_training:
            break
    callback.on_train_end()
    stop = stop_early(values, mode, patience)
    assert (stop.best, stop.last, stop.early) == (model.epoch, epoch, model.stop_training)


@pytest.mark.usefixtures("examples")
@pytest.mark.filterwarnings("ignore::Warning")
@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("patience", [1, 2, 3])
def test_rule_stops_where_lightning_does(tmp_path, mode, patience):
    import torch
    from pytorch_lightning import LightningModule, Trainer
    from pytorch_lightning.callbacks import EarlyStopping
    from stopping import stop_early

    values = [3.0, 3.0, 2.0, 4.0, 4.0, 1.0, 4.0, 5.0, 1.0, 1.0, 1.0, 0.0]

    class Scripted(LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch, index):
            return self.layer(batch).sum()

        def validation_step(self, batch, index):
            self.log("x", values[self.current_epoch])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    batches = torch.utils.data.DataLoader(torch.ones(1, 1))
    callback = EarlyStopping("x", mode=mode, patience=patience)
    trainer = Trainer(
        max_epochs=len(values),
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    trainer.fit(Scripted(), batches, batches)
    stop = stop_early(values, mode, patience)
    assert stop.early == (callback.stopped_epoch > 0)
    assert stop.last == trainer.current_epoch - 1
    assert values[stop.best] == float(callback.best_score)


@pytest.mark.usefixtures("examples")
@pytest.mark.parametrize("values", [[], [0.1, float("nan")]])
def test_no_number_no_stop(values):
    from stopping import stop_early

    with pytest.raises(ValueError, match="needs a number for each epoch"):
        stop_early(values, "max", 2)


@pytest.mark.usefixtures("examples")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning")  # Lightning's own
@pytest.mark.parametrize("framework", ["keras_study", "lightning_study"])
def test_test_digits_are_told_apart_from_validation_digits(framework):
    import importlib

    from study import Training, split_digits

    module = importlib.import_module(framework)
    training = Training("", 1, 2, 10, (300, 60, 60), neurons=(8, 8, 8), batch_norm=False)
    parts = split_digits(1, (300, 60, 60), 0.0)
    called = []
    same = parts._replace(x_test=parts.x_val, y_test=parts.y_val)
    epochs = module.train(training, same, lambda: called.append(1))
    assert len(called) == len(epochs) == 2
    for epoch in epochs:
        assert epoch["test_accuracy"] == pytest.approx(epoch["val_accuracy"], abs=1e-6)
        # A group of 8 is the whole layer here.
        assert epoch["grouped"]["aiq"] == pytest.approx(epoch["aiq"])
    assert epochs[-1]["val_accuracy"] > 0.3
    # Other labels to test on: the accuracy on the test digits moves, and nothing else.
    wrong = same._replace(y_test=(parts.y_val + 1) % 10)
    others = module.train(training, wrong, lambda: None)
    for epoch, other in zip(epochs, others, strict=True):
        assert other["val_accuracy"] == pytest.approx(epoch["val_accuracy"], abs=1e-6)
    assert others[-1]["test_accuracy"] < epochs[-1]["test_accuracy"]


@pytest.mark.usefixtures("examples")
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_networks_hold_what_they_are_asked_for_and_start_as_the_frameworks_do(batch_norm, dropout):
    import keras
    import torch
    from keras_lenet5 import lenet5
    from torch_lenet5 import LeNet5

    asked = {"batch_norm": batch_norm, "dropout": dropout, "defaults": True}
    built = lenet5((4, 5, 6), **asked)
    kinds = [type(layer).__name__ for layer in built.layers]
    assert kinds.count("BatchNormalization") == 3 * batch_norm
    assert kinds.count("Dropout") == (3 if dropout else 0)
    assert isinstance(built.optimizer, keras.optimizers.Adam)
    assert not built.losses
    for layer in built.layers:
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense):
            # Glorot's uniform: its bound is nearly reached, He's normal passes it.
            fan_in, fan_out = np.prod(layer.kernel.shape[:-1]), layer.kernel.shape[-1]
            fan_out *= np.prod(layer.kernel.shape[:-2]) if len(layer.kernel.shape) == 4 else 1
            bound = math.sqrt(6 / (fan_in + fan_out))
            largest = np.abs(layer.kernel.numpy()).max()
            assert 0.8 * bound < largest <= bound

    network = LeNet5((4, 5, 6), **asked)
    modules = list(network.modules())
    assert sum(isinstance(x, torch.nn.BatchNorm2d) for x in modules) == 3 * batch_norm
    images = torch.rand(8, 1, 28, 28)
    # Batch normalization alone gives the same twice.
    repeats = torch.equal(network(images), network(images))
    assert repeats == (not dropout)
    for layer in (network.conv_1, network.conv_2, network.conv_3, network.pred):
        bound = 1 / math.sqrt(layer.weight[0].numel())
        assert 0.8 * bound < layer.weight.abs().max() <= bound
        assert layer.bias.abs().max() > 0
