"""Single neurons in loops of one's own and in Lightning: found, followed, kept in checkpoints."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from board_folder import pictures, read_run
from lightning_models import QUIET, TRAIN, VAL, Classifier, fit, loader, pl, trainer
from planted import found_by_numpy, neurons_of
from torch import nn

from tensorstate_callbacks import StatesNotAvailableError
from tensorstate_callbacks.lightning import EfficiencyCallback
from tensorstate_callbacks.torch import record, record_training

pytestmark = [
    *(pytest.mark.filterwarnings(text) for text in QUIET),
    pytest.mark.filterwarnings("ignore:Coverage is below"),
    pytest.mark.filterwarnings("ignore:In windows of training batches"),
]


def planted_convolution() -> nn.Sequential:
    """16 channels: 3 never fires, 5 always does, 7 is 2, 9 is 2 inverted, 8 is 4."""
    torch.manual_seed(4)
    net = nn.Sequential(nn.Conv2d(2, 16, 3), nn.ReLU())
    with torch.no_grad():
        net[0].bias[3], net[0].bias[5] = -1e3, 1e3
        for neuron, like, sign in ((7, 2, 1), (9, 2, -1), (8, 4, 1)):
            net[0].weight[neuron] = sign * net[0].weight[like]
            net[0].bias[neuron] = sign * net[0].bias[like]
    return net


def firing(net: nn.Sequential, x: torch.Tensor) -> Any:
    with torch.no_grad():
        return (net[0](x) > 0).movedim(1, -1).reshape(-1, 16).numpy()


@pytest.mark.parametrize("group_size", [None, 3, 8, 22])
def test_neurons_of_a_loop_are_those_of_numpy(group_size: int | None) -> None:
    net, x = planted_convolution(), torch.randn(12, 2, 7, 7)
    with record(net, "Conv2d", neurons=True, group_size=group_size) as recording, torch.no_grad():
        for batch in x.split(5):
            net(batch)
    layer = recording.report().layers["0"]
    assert neurons_of(layer) == found_by_numpy(firing(net, x), group_size)
    assert (layer.never_fired, layer.always_fired) == ((3,), (5,))
    assert ((2, 7) in layer.agreeing) is (group_size in (None, 8, 22))


def test_masked_positions_say_nothing_of_neurons() -> None:
    net, x = planted_convolution(), torch.randn(12, 2, 7, 7)
    mask = torch.rand(12, 5, 5) < 0.3
    with (
        record(net, "Conv2d", neurons=True, mask=lambda name, batch: mask) as recording,
        torch.no_grad(),
    ):
        net(x)
    fires = firing(net, x)[mask.reshape(-1).numpy()]
    assert neurons_of(recording.report().layers["0"]) == found_by_numpy(fires)


def test_windows_of_a_loop_tell_the_neurons_of_their_batches() -> None:
    net, batches = planted_convolution(), torch.randn(4, 3, 2, 7, 7)
    training = record_training(net, "Conv2d", every_n_train_steps=1, window=2, neurons=True)
    for n, batch in enumerate(batches):
        with training.batch():
            net(batch)
        expected = firing(net, batches[max(0, n - 1) : n + 1].flatten(0, 1))
        assert neurons_of(training.report().layers["0"]) == found_by_numpy(expected)


class Kills(pl.Callback):
    """Takes every way to fire from two of the neurons, from the second epoch's validation on."""

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch > 0:
            with torch.no_grad():
                pl_module.net[0].weight[:2] = 0
                pl_module.net[0].bias[:2] = -1


class Fires(pl.Callback):
    """Keeps how often the neurons fired in each validation, by a pass of its own."""

    def __init__(self) -> None:
        self.rates: list[Any] = []

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            with torch.no_grad():
                fires = pl_module.net[0](VAL.tensors[0]) > 0
            self.rates.append(fires.double().mean(0).numpy())


def test_a_fit_that_goes_on_from_a_checkpoint_follows_the_neurons_on(tmp_path: Path) -> None:
    fires, path = Fires(), tmp_path / "last.ckpt"
    first = EfficiencyCallback(neurons=True)
    fitted = fit(Classifier(), first, Kills(), fires, max_epochs=3)
    fitted.save_checkpoint(path)
    second = EfficiencyCallback(neurons=True)
    again = trainer(second, Kills(), fires, max_epochs=5)
    again.fit(Classifier(), loader(TRAIN), loader(VAL), ckpt_path=path)
    assert [report.epoch for report in second.history] == [0, 1, 2, 3, 4]
    lines = second.history.lifelines("net.0")
    np.testing.assert_allclose(lines.rates.T, fires.rates, rtol=1e-12)
    assert {0, 1} <= lines.died.keys()
    assert [lines.died[neuron] for neuron in (0, 1)] == [2, 2]
    assert second.last.layers["net.0"].agreeing is not None
    with pytest.raises(StatesNotAvailableError, match=r"'net\.0' agree isn't known: a checkpoint"):
        _ = second.history[0].layers["net.0"].agreeing


def test_checkpoints_of_plain_fits_know_of_no_neurons(tmp_path: Path) -> None:
    first, path = EfficiencyCallback(), tmp_path / "last.ckpt"
    fitted = fit(Classifier(), first, max_epochs=2)
    assert first.history.lifelines("net.0").rates.shape == (8, 2)
    fitted.save_checkpoint(path)
    second = EfficiencyCallback(neurons=True)
    trainer(second, max_epochs=3).fit(Classifier(), loader(TRAIN), loader(VAL), ckpt_path=path)
    with pytest.raises(StatesNotAvailableError, match=r"isn't known of epoch 1, 2: .*history\[n:"):
        second.history.lifelines("net.0")
    assert second.history[2:].lifelines("net.0").rates.shape == (8, 1)


def test_tensorboard_gets_pictures_of_neurons_where_asked(tmp_path: Path) -> None:
    for name, neurons in (("with", True), ("without", False)):
        board = pl.loggers.TensorBoardLogger(tmp_path, name="", version=name)
        callback = EfficiencyCallback(neurons=neurons, log_extras="figures")
        fit(Classifier(), callback, logger=board, max_epochs=2)
    for layer in ("net.0", "net.2"):
        assert len(pictures(tmp_path / "with", f"val_neurons/{layer}")) == 2
    assert not [tag for tag in read_run(tmp_path / "without") if "neurons" in tag]
