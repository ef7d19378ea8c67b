"""What the Lightning callback says when something can't be measured."""

import warnings
from typing import Any

import numpy as np
import pytest
from lightning_models import (
    QUIET,
    TRAIN,
    VAL,
    Classifier,
    Curves,
    fit,
    loader,
    trainer,
)
from own_warnings import of_coverage, ours
from torch import nn

from tensorstate_callbacks import NoLayerMatchedError, ProbeError, TensorStateWarning
from tensorstate_callbacks.lightning import EfficiencyCallback

pytestmark = [pytest.mark.filterwarnings(text) for text in QUIET]


def test_dataloader_that_is_not_there_is_one_warning() -> None:
    with pytest.warns(TensorStateWarning, match="no activations came from net.0, net.2") as caught:
        fitted = fit(Classifier(), EfficiencyCallback(dataloader_idx=1))
    assert len(ours(caught)) == 1
    assert "val_efficiency" not in fitted.callback_metrics


def test_missing_accuracy_is_one_warning_that_lists_the_keys() -> None:
    callback = EfficiencyCallback(accuracy="val_top5")
    with pytest.warns(TensorStateWarning, match="'val_top5'; the logs have 'val_acc'") as caught:
        fitted = fit(Classifier(), callback)
    assert len(ours(caught)) == 1
    assert "val_aiq" not in fitted.callback_metrics
    assert fitted.callback_metrics["val_efficiency"].item() == pytest.approx(
        callback.history[-1].efficiency
    )
    assert len(callback.history) == 3
    with pytest.warns(TensorStateWarning, match="'val_top5'"):
        fit(Classifier(), callback)


def test_missing_accuracy_may_be_ignored_or_an_error() -> None:
    fit(Classifier("never"), EfficiencyCallback(missing_accuracy="ignore"))
    with pytest.raises(ValueError, match="aIQ can't be computed"):
        fit(Classifier("never"), EfficiencyCallback(missing_accuracy="raise"))


@pytest.mark.parametrize("value", [float("nan"), 97.0])
def test_accuracy_that_is_no_share_is_not_used(value: float) -> None:
    curves = Curves()
    with pytest.warns(TensorStateWarning, match="'val_acc' gave"):
        fit(Classifier(scripted=[value] * 3), EfficiencyCallback(), curves)
    assert not any("val_aiq" in row for row in curves.metrics)
    assert all(np.isfinite(row["val_efficiency"]) for row in curves.metrics)


def test_accuracy_that_is_no_more_logged_takes_the_old_aiq_away() -> None:
    curves = Curves()
    with pytest.warns(TensorStateWarning, match="no accuracy under 'val_accuracy'"):
        fitted = fit(Classifier(scripted=[0.5, None, 0.7]), EfficiencyCallback(), curves)
    assert ["val_aiq" in row for row in curves.metrics] == [True, False, True]
    assert "val_aiq" in fitted.progress_bar_metrics
    assert "val_efficiency/net.0" not in fitted.progress_bar_metrics


@pytest.mark.parametrize("options", [{}, {"limit_val_batches": 0}])
def test_fit_without_validation_is_one_warning_and_goes_on(options: dict[str, Any]) -> None:
    model, callback = Classifier(), EfficiencyCallback()
    val_loader = loader(VAL) if options else None
    fitted = trainer(callback, max_epochs=2, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted.fit(model, loader(TRAIN), val_loader)
    (text,) = ours(caught)
    assert "fit has no validation" in text
    assert fitted.global_step == 8
    assert callback.history == []


def test_fit_too_short_for_a_recorded_validation_is_one_warning() -> None:
    with pytest.warns(TensorStateWarning, match="no validation pass was recorded") as caught:
        fit(Classifier(), EfficiencyCallback(every_n_epochs=4))
    assert len(ours(caught)) == 1


def test_no_layer_matched_shows_before_training() -> None:
    model = Classifier()
    with pytest.raises(NoLayerMatchedError, match=r"'Conv2d' matched no layer.*Linear \(3\)"):
        fit(model, EfficiencyCallback("Conv2d"))
    assert model.n_forward == 0


def test_pattern_that_matched_nothing_is_one_warning_per_run() -> None:
    with pytest.warns(TensorStateWarning, match="'Conv2d' matched no layer") as caught:
        fit(Classifier(), EfficiencyCallback(["Linear", "Conv2d"]))
    assert len(ours(caught)) == 1


def test_probe_that_saw_nothing_is_one_warning() -> None:
    model = Classifier()
    model.idle = nn.Linear(2, 2)
    with pytest.warns(TensorStateWarning, match="no activations came from idle") as caught:
        fitted = fit(model, EfficiencyCallback(["net.0", "idle"]))
    assert len(ours(caught)) == 1
    assert "val_efficiency/net.0" in fitted.callback_metrics


def test_error_in_a_probe_is_raised_as_itself() -> None:
    with pytest.raises(ProbeError, match="'net.0' could not be counted"):
        fit(Classifier(), EfficiencyCallback(channel_axis=5))


@pytest.mark.parametrize(
    "argument",
    [{"beta": 0}, {"threshold": float("inf")}, {"every_n_epochs": 0}, {"dataloader_idx": -1}],
)
def test_arguments_out_of_range_are_refused(argument: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(argument))):
        EfficiencyCallback(**argument)


def wide_and_narrow() -> Classifier:
    model = Classifier()
    model.net[0], model.net[2], model.net[4] = nn.Linear(6, 40), nn.Linear(40, 2), nn.Linear(2, 3)
    return model


def test_low_coverage_is_told_once_a_fit_and_names_its_layers() -> None:
    callback = EfficiencyCallback()
    for _ in range(2):
        with pytest.warns(TensorStateWarning) as caught:
            fit(wide_and_narrow(), callback)
        (text,) = of_coverage(caught)
        coverages = {name: layer.coverage for name, layer in callback.history[-3].layers.items()}
        assert coverages["net.0"] < 0.5 <= coverages["net.2"]
        assert f"below 0.5 in net.0 ({coverages['net.0']:.2f})" in text
        assert "net.2" not in text
        assert "(group_size=8)" in text
        assert "report.layers['net.0'].interval()" in text
        assert ours(caught) == []


@pytest.mark.filterwarnings("error:Coverage is below")
def test_coverage_of_one_half_or_more_is_silent() -> None:
    callback = EfficiencyCallback("net.2")
    fitted = fit(wide_and_narrow(), callback)
    assert callback.history[-1].layers["net.2"].coverage >= 0.5
    assert fitted.callback_metrics["val_efficiency"] == pytest.approx(
        callback.history[-1].efficiency
    )
