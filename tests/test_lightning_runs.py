"""Ways to run Lightning, and what runs with it: each recorded pass is that of its own weights."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_models import (
    QUIET,
    TRAIN,
    VAL,
    Classifier,
    Curves,
    fit,
    loader,
    pl,
    trainer,
)
from state_oracle import expected_states

from tensorstate_callbacks.lightning import EfficiencyCallback

pytestmark = [pytest.mark.filterwarnings(text) for text in QUIET]
callbacks = pl.callbacks


def efficiency_of(weights: dict[str, torch.Tensor], x: torch.Tensor = VAL.tensors[0]) -> float:
    """Efficiency of the first layer, worked out from its weights with NumPy."""
    w = {key: value.double().numpy() for key, value in weights.items()}
    states = x.double().numpy() @ w["net.0.weight"].T + w["net.0.bias"]
    counts = np.array([*expected_states([torch.from_numpy(states)], 1).values()])
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum() / states.shape[1])


def test_argument_that_is_changed_counts_from_the_next_run_and_is_checked() -> None:
    class Changes(callbacks.Callback):  # type: ignore[misc]
        def on_validation_start(self, trainer: Any, module: Any) -> None:
            callback.prefix = "x_"

    callback = EfficiencyCallback("net.0")
    first = fit(Classifier(), Changes(), callback, max_epochs=2)
    second = fit(Classifier(), callback, max_epochs=1)
    assert {"val_aiq", "val_x_aiq"} & first.callback_metrics.keys() == {"val_aiq"}
    assert {"val_aiq", "val_x_aiq"} & second.callback_metrics.keys() == {"val_x_aiq"}
    callback.beta = 0
    with pytest.raises(ValueError, match=r"beta.*above 0; got 0"):
        fit(Classifier(), callback, max_epochs=1)
    assert len(callback.history) == 3


def test_check_val_every_n_epoch_records_what_is_run() -> None:
    callback, curves = EfficiencyCallback("net.0"), Curves()
    fit(Classifier(), callback, curves, max_epochs=5, check_val_every_n_epoch=2)
    assert [(r.epoch, r.step) for r in callback.history] == [(1, 8), (3, 16)]
    expected = [efficiency_of(weights) for weights in curves.weights]
    assert [r.efficiency for r in callback.history] == pytest.approx(expected)


def test_validation_by_steps_over_several_epochs() -> None:
    callback = EfficiencyCallback("net.0")
    options = {"check_val_every_n_epoch": None, "val_check_interval": 6}
    fit(Classifier(), callback, max_epochs=3, **options)
    assert [r.step for r in callback.history] == [6, 12]


def test_overfit_batches_records_the_batches_it_validates_on() -> None:
    callback, curves = EfficiencyCallback("net.0"), Curves()
    fit(Classifier(), callback, curves, max_epochs=2, overfit_batches=1)
    for report, weights in zip(callback.history, curves.weights, strict=True):
        # Lightning takes as many batches of the validation data, too.
        assert report.layers["net.0"].n_states == 16
        assert report.efficiency == pytest.approx(efficiency_of(weights, VAL.tensors[0][:16]))
    assert len(callback.history) == 2


@pytest.mark.skipif(not hasattr(callbacks, "WeightAveraging"), reason="Lightning before 2.6")
@pytest.mark.parametrize("ours_first", [True, False])
def test_averaged_weights_are_recorded_where_they_are_validated(ours_first: bool) -> None:
    class Averaged(Classifier):
        """Keeps the weights that it is validated with."""

        def __init__(self) -> None:
            super().__init__()
            self.validated: list[dict[str, torch.Tensor]] = []

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            super().validation_step(batch, batch_idx)
            if batch_idx == 0:
                self.validated.append({k: v.clone() for k, v in self.net[0].state_dict().items()})

    ema = callbacks.EMAWeightAveraging(decay=0.9)
    model, callback, curves = Averaged(), EfficiencyCallback("net.0"), Curves()
    order = [callback, ema, curves] if ours_first else [ema, callback, curves]
    fit(model, *order, num_sanity_val_steps=0)
    averaged = [
        efficiency_of({f"net.0.{key}": value for key, value in weights.items()})
        for weights in model.validated
    ]
    assert curves.of("val_efficiency") == pytest.approx(averaged)
    assert not torch.equal(model.validated[0]["weight"], curves.weights[0]["net.0.weight"])
    assert not any(module._forward_hooks for module in model.modules())


def test_learning_rate_monitor_and_logger_see_ours_next_to_theirs(tmp_path: Path) -> None:
    logger = pl.loggers.CSVLogger(tmp_path, "", "")
    monitor, curves = callbacks.LearningRateMonitor("epoch"), Curves()

    class Scheduled(Classifier):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.1)]

    fit(Scheduled(), monitor, EfficiencyCallback(), curves, logger=logger)
    header = (tmp_path / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"lr-SGD", "val_aiq", "val_efficiency"} <= set(header)


@pytest.mark.parametrize("bar", ["TQDMProgressBar", "RichProgressBar"])
def test_progress_bars_show_the_network(bar: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = getattr(callbacks, bar)()
    callback = EfficiencyCallback()
    trainer(callback, shown, max_epochs=1, enable_progress_bar=True).fit(
        Classifier(), loader(TRAIN), loader(VAL)
    )
    assert "val_aiq" in shown.get_metrics(shown.trainer, shown.trainer.lightning_module)
    if bar == "TQDMProgressBar":
        written = "".join(capsys.readouterr())
        assert "val_aiq=" in written
        assert "val_efficiency/net.0=" not in written


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to handle")
def test_sigterm_during_validation_leaves_nothing_behind() -> None:
    class Killed(Classifier):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            super().validation_step(batch, batch_idx)
            if not self.trainer.sanity_checking and not terminated.is_set():
                terminated.set()
                os.kill(os.getpid(), signal.SIGTERM)

    terminated, before = threading.Event(), signal.getsignal(signal.SIGTERM)
    # Lightning installs its own handler around the fit, which ends it at the next batch.
    model, callback = Killed(), EfficiencyCallback()
    try:
        with pytest.raises(BaseException) as caught:
            fit(model, callback, max_epochs=3)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert type(caught.value).__name__ in ("SIGTERMException", "SystemExit")
    assert terminated.is_set()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert "on_validation_epoch_end" not in vars(model)


def test_nothing_hangs_on_the_model_while_it_trains() -> None:
    hung: dict[str, list[int]] = {"train": [], "validate": []}

    class Look(pl.Callback):
        def count(self, when: str, model: Any) -> None:
            hung[when].append(sum(len(m._forward_hooks) for m in model.modules()))

        def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            self.count("train", pl_module)

        def on_validation_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            self.count("validate", pl_module)

    fit(Classifier(), EfficiencyCallback(), Look(), max_epochs=2, num_sanity_val_steps=0)
    # The first batch tells which layer makes the output.
    assert hung == {"train": [0] * 8, "validate": [3] + [2] * 7}


def test_model_is_saved_after_a_fit_as_without(tmp_path: Path) -> None:
    model = Classifier()
    fit(model, EfficiencyCallback(method="both"), max_epochs=1)
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    x = VAL.tensors[0]
    assert torch.equal(loaded(x), model(x))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in loaded.modules())


@pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="torch before 2.6")
@pytest.mark.parametrize("part", ["module", "net"])
def test_module_compiled_in_place_is_counted_in_full(part: str) -> None:
    torch.compiler.reset()
    plain, compiled, model = EfficiencyCallback(), EfficiencyCallback(), Classifier()
    fit(Classifier(), plain, max_epochs=1)
    (model if part == "module" else model.net).compile(backend="eager")
    # Two steps of the sanity check compile the graph before any of our hooks is there.
    fit(model, compiled, max_epochs=1, num_sanity_val_steps=2)
    assert plain.history[0].layers == compiled.history[0].layers
