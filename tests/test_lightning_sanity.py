"""The sanity check tries the probes: what can't be counted ends the run before it trains."""

import warnings
from typing import Any

import pytest
import torch
from lightning_models import QUIET, TRAIN, VAL, Classifier, Curves, fit, loader, pl, trainer
from own_warnings import ours
from torch import nn

from tensorstate_callbacks import ProbeError, TensorStateWarning
from tensorstate_callbacks.lightning import EfficiencyCallback

pytestmark = [pytest.mark.filterwarnings(text) for text in QUIET]


class Complex(Classifier):
    """Its first layer gives complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Linear(6, 6, dtype=torch.complex64)
        self.n_steps = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.turn(x.to(torch.complex64)).real)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.n_steps += 1
        return super().training_step(batch, batch_idx)


class Nothing(nn.Module):
    def forward(self, x: torch.Tensor) -> None:
        return None


class Empty(Complex):
    """A layer of it gives no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = Nothing()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.nothing(x)
        return super().forward(x)


@pytest.mark.parametrize(
    ("kind", "options", "text"),
    [
        (Complex, {"attach_to": "Linear"}, "layer 'turn' could not be counted: .* complex"),
        (Empty, {"attach_to": "nothing"}, "layer 'nothing' gave a NoneType without a tensor"),
        (Complex, {"attach_to": "net.0", "channel_axis": 5}, "layer 'net.0' could not be counted"),
    ],
)
def test_layer_that_can_not_be_counted_ends_the_run_before_it_trains(
    kind: type[Complex], options: dict[str, Any], text: str
) -> None:
    model = kind()
    with pytest.raises(ProbeError, match=text):
        fit(model, EfficiencyCallback(**options))
    assert model.n_steps == 0
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not {"validation_step", "on_validation_epoch_end"} & set(vars(model))


def test_without_a_sanity_check_nothing_is_tried() -> None:
    model = Complex()
    with pytest.raises(ProbeError, match="layer 'turn'"):
        fit(model, EfficiencyCallback("Linear"), num_sanity_val_steps=0)
    assert model.n_steps == 4


class AfterSanityCheck(pl.Callback):
    """Keeps what the sanity check left behind."""

    def __init__(self, watch: EfficiencyCallback) -> None:
        self.watch, self.seen = watch, dict[str, Any]()

    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.seen["history"] = list(self.watch.history)
        self.seen["metrics"] = {*trainer.callback_metrics, *trainer.logged_metrics}
        self.seen["hooks"] = sum(len(m._forward_hooks) for m in pl_module.modules())


def test_sanity_check_leaves_nothing_and_says_nothing() -> None:
    callback = EfficiencyCallback()
    after = AfterSanityCheck(callback)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(Classifier("epoch_end"), callback, after)
    assert after.seen == {"history": [], "metrics": {"val_acc"}, "hooks": 0}
    assert ours(caught) == []
    # What comes after is as it is without.
    expected = EfficiencyCallback()
    fit(Classifier("epoch_end"), expected, num_sanity_val_steps=0)
    assert callback.history == expected.history
    assert [r.epoch for r in callback.history] == [0, 1, 2]


def test_accuracy_that_the_sanity_check_does_not_log_is_no_error_there() -> None:
    callback, curves = EfficiencyCallback(missing_accuracy="raise"), Curves()
    # Logs its accuracy outside of the sanity check only.
    fit(Classifier(scripted=[0.5, 0.6, 0.7]), callback, curves)
    assert [r.accuracy for r in callback.history] == pytest.approx([0.5, 0.6, 0.7])


def test_probe_that_sees_nothing_is_told_after_a_whole_pass_only() -> None:
    told: list[int] = []

    class Told(AfterSanityCheck):
        def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            told.append(len(ours(caught)))

    model = Classifier()
    model.idle = nn.Linear(2, 2)
    callback = EfficiencyCallback(["net.0", "idle"])
    with pytest.warns(TensorStateWarning, match="no activations came from idle") as caught:
        fit(model, callback, Told(callback), max_epochs=1)
    assert told == [0]
    assert len(ours(caught)) == 1


def test_epochs_that_are_passed_over_are_tried_too() -> None:
    with pytest.raises(ProbeError, match="layer 'turn'"):
        fit(Complex(), EfficiencyCallback("Linear", every_n_epochs=100))


def test_only_the_chosen_dataloader_is_tried() -> None:
    class Second(Classifier):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            if dataloader_idx:
                self.net[0](batch[0][0])  # Has one axis.
            super().validation_step(batch, batch_idx)

    for index, raises in ((0, False), (1, True)):
        callback = EfficiencyCallback("net.0", channel_axis={"net.0": 1}, dataloader_idx=index)
        made = trainer(callback, max_epochs=1, limit_val_batches=3)
        run = [Second("epoch_end"), loader(TRAIN), [loader(VAL)] * 2]
        if raises:
            with pytest.raises(ProbeError, match=r"net.0"):
                made.fit(*run)
            assert made.global_step == 0
        else:
            made.fit(*run)
            assert callback.history[0].layers["net.0"].n_neurons == 8


def test_sanity_check_in_which_something_is_first_compiled_says_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import sys
    from types import ModuleType

    class Compiling(Classifier):
        """Stands for a model that loads the compiler in its first step."""

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            if self.trainer.sanity_checking:
                dynamo = ModuleType("torch._dynamo")
                dynamo.utils = ModuleType("utils")  # type: ignore[attr-defined]
                dynamo.utils.counters = {"frames": 1}  # type: ignore[attr-defined]
                monkeypatch.setitem(sys.modules, "torch._dynamo", dynamo)
            super().validation_step(batch, batch_idx)

        def on_train_start(self) -> None:
            monkeypatch.undo()

    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(Compiling(), EfficiencyCallback(), max_epochs=1)
    assert ours(caught) == []
