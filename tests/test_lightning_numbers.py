"""What the Lightning callback logs is what the network did in that very pass."""

from typing import Any

import numpy as np
import pytest
import torch
from lightning_models import (
    N_VAL,
    QUIET,
    TRAIN,
    VAL,
    Classifier,
    Curves,
    data,
    fit,
    loader,
    pl,
    trainer,
)
from state_oracle import expected_states

from tensorstate_callbacks.lightning import EfficiencyCallback
from tensorstate_callbacks.recording.accuracy import accuracy_keys

pytestmark = [pytest.mark.filterwarnings(text) for text in QUIET]


def metrics_of(weights: dict[str, torch.Tensor], dataset: Any = VAL) -> dict[str, float]:
    """Accuracy, efficiency and aIQ (β = 2) worked out from the weights with NumPy."""
    x, y = (tensor.numpy() for tensor in dataset.tensors)
    w = {key: value.double().numpy() for key, value in weights.items()}
    first = x @ w["net.0.weight"].T + w["net.0.bias"]
    second = np.maximum(first, 0) @ w["net.2.weight"].T + w["net.2.bias"]
    scores = np.tanh(second) @ w["net.4.weight"].T + w["net.4.bias"]
    found = {"accuracy": float((scores.argmax(1) == y).mean())}
    for name, activations in (("net.0", first), ("net.2", second)):
        counts = np.array([*expected_states([torch.from_numpy(activations)], 1).values()])
        shares = counts / counts.sum()
        found[name] = float(-(shares * np.log2(shares)).sum() / activations.shape[1])
    found["efficiency"] = float(np.sqrt(found["net.0"] * found["net.2"]))
    found["aiq"] = float(np.cbrt(found["efficiency"] * found["accuracy"] ** 2))
    return found


@pytest.mark.parametrize("log", ["step", "metric", "epoch_end", "metric_epoch_end"])
@pytest.mark.parametrize("callback_first", [True, False])
def test_logged_numbers_are_those_of_the_weights_of_that_epoch(
    log: str, callback_first: bool
) -> None:
    callback, curves = EfficiencyCallback(), Curves()
    order = (callback, curves) if callback_first else (curves, callback)
    fit(Classifier(log), *order, num_sanity_val_steps=2)
    expected = [metrics_of(weights) for weights in curves.weights]
    # A stale accuracy would show: it changes from epoch to epoch.
    assert len({row["accuracy"] for row in expected}) == 3
    for key, name in (
        ("val_aiq", "aiq"),
        ("val_efficiency", "efficiency"),
        ("val_efficiency/net.0", "net.0"),
        ("val_efficiency/net.2", "net.2"),
    ):
        assert curves.of(key) == pytest.approx([row[name] for row in expected], abs=1e-6)
    assert [r.accuracy for r in callback.history] == pytest.approx(curves.of("val_acc"))
    assert [(r.epoch, r.step, r.stage) for r in callback.history] == [
        (0, 4, "val"),
        (1, 8, "val"),
        (2, 12, "val"),
    ]


def test_sanity_check_is_not_recorded() -> None:
    callback = EfficiencyCallback()
    fit(Classifier(), callback, num_sanity_val_steps=2, max_epochs=1)
    assert [report.layers["net.0"].n_states for report in callback.history] == [N_VAL]


def test_model_is_called_as_often_as_without() -> None:
    plain, watched = Classifier(), Classifier()
    fit(plain)
    fit(watched, EfficiencyCallback())
    assert watched.n_forward == plain.n_forward
    for a, b in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(a, b)


def test_accuracy_logged_by_another_callback_is_found() -> None:
    class Judge(pl.Callback):
        def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            pl_module.log("judged", 0.1 * (trainer.current_epoch + 1))

    callback = EfficiencyCallback(accuracy="judged")
    fit(Classifier("never"), callback, Judge())
    assert [report.accuracy for report in callback.history] == pytest.approx([0.1, 0.2, 0.3])


def test_callable_takes_what_the_pass_logged() -> None:
    seen: list[set[str]] = []

    def halved(logs: dict[str, float]) -> float:
        seen.append(set(logs))
        return logs["val_acc"] / 2

    callback, curves = EfficiencyCallback(accuracy=halved), Curves()
    fit(Classifier(), callback, curves)
    assert [r.accuracy for r in callback.history] == pytest.approx(
        [value / 2 for value in curves.of("val_acc")]
    )
    # Neither train_loss nor our own keys of the epoch before are of this pass.
    assert seen == [{"val_acc"}] * 3


@pytest.mark.parametrize("key", ["acc", "accuracy"])
def test_usual_names_are_found(key: str) -> None:
    callback = EfficiencyCallback()
    fit(Classifier(key=key), callback, max_epochs=1)
    assert callback.last.accuracy is not None


def test_keys_of_the_own_stage_come_first() -> None:
    assert accuracy_keys(None, "test")[0] == "test_accuracy"
    assert accuracy_keys(None, "test").index("val_acc") < accuracy_keys(None, "test").index("acc")
    assert accuracy_keys("val/top1", "test") == ["val/top1", "test/top1"]
    assert accuracy_keys("val/top1", "val") == ["val/top1"]


def test_validate_and_test_outside_of_a_fit() -> None:
    model, callback = Classifier(), EfficiencyCallback(accuracy="val_acc", every_n_epochs=5)
    alone = trainer(callback)
    expected = metrics_of(model.state_dict())
    (logged,) = alone.validate(model, loader(VAL), verbose=False)
    assert logged["val_aiq"] == pytest.approx(expected["aiq"], abs=1e-6)
    other = data(30, 7)
    (logged,) = alone.test(model, loader(other), verbose=False)
    expected = metrics_of(model.state_dict(), other)
    assert logged["test_aiq"] == pytest.approx(expected["aiq"], abs=1e-6)
    assert logged["test_efficiency/net.2"] == pytest.approx(expected["net.2"], abs=1e-6)
    assert [(r.stage, r.epoch, r.step) for r in callback.history] == [
        ("val", None, None),
        ("test", None, None),
    ]


def test_arguments_reach_the_metrics() -> None:
    callback = EfficiencyCallback(
        "net.0", method="both", beta=1, alpha=2, threshold=0.5, prefix="x_", layer_metrics=["dead"]
    )
    fitted = fit(Classifier(), callback, max_epochs=1)
    report = callback.last
    assert report is not None
    assert list(report.layers) == ["net.0.input", "net.0"]
    keys = {"val_x_aiq", "val_x_efficiency", "val_x_dead/net.0.input", "val_x_dead/net.0"}
    assert keys == {key for key in fitted.callback_metrics if "_x_" in key}
    assert report.aiq == pytest.approx((report.efficiency * (report.accuracy or 0)) ** 0.5)
    counts = np.array([*expected_states([VAL.tensors[0]], 1, 0.5).values()])
    renyi = -np.log2(((counts / N_VAL) ** 2).sum())
    assert report.layers["net.0.input"].entropy == pytest.approx(renyi)


def test_every_n_epochs_records_the_last_of_each_n_and_withdraws_old_values() -> None:
    callback, curves = EfficiencyCallback(every_n_epochs=2), Curves()
    fit(Classifier(), callback, curves, max_epochs=5)
    assert [report.epoch for report in callback.history] == [1, 3]
    assert ["val_aiq" in row for row in curves.metrics] == [False, True, False, True, False]


def test_limit_val_batches_counts_what_was_run() -> None:
    callback = EfficiencyCallback()
    fit(Classifier(), callback, limit_val_batches=2, max_epochs=1)
    assert callback.history[0].layers["net.0"].n_states == 32


def test_validation_within_an_epoch_is_recorded_each_time() -> None:
    callback = EfficiencyCallback()
    fit(Classifier(), callback, val_check_interval=2, max_epochs=2)
    assert [(r.epoch, r.step) for r in callback.history] == [(0, 2), (0, 4), (1, 6), (1, 8)]


def test_fast_dev_run_records_whatever_the_epoch() -> None:
    callback = EfficiencyCallback(every_n_epochs=4)
    fit(Classifier(), callback, fast_dev_run=True)
    assert [report.layers["net.0"].n_states for report in callback.history] == [16]


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("log", ["step", "epoch_end"])
def test_of_several_dataloaders_one_is_recorded_with_its_accuracy(index: int, log: str) -> None:
    sets = [VAL, data(30, 5)]
    model = Classifier(log)
    callback, curves = EfficiencyCallback(dataloader_idx=index), Curves()
    trainer(callback, curves, max_epochs=2).fit(model, loader(TRAIN), [loader(s) for s in sets])
    expected = [metrics_of(weights, sets[index]) for weights in curves.weights]
    efficiencies = [row["efficiency"] for row in expected]
    assert curves.of("val_efficiency") == pytest.approx(efficiencies, abs=1e-6)
    if log == "step":
        assert curves.of("val_aiq") == pytest.approx([row["aiq"] for row in expected], abs=1e-6)
    else:
        accuracies = [report.accuracy for report in callback.history]
        assert accuracies == pytest.approx(curves.of("val_acc"))


def test_output_fn_and_channel_axis_reach_the_probes() -> None:
    callback = EfficiencyCallback(
        "net.0", channel_axis={"net.0": 0}, output_fn=lambda name, output: output[:3]
    )
    fit(Classifier(), callback, max_epochs=1, limit_val_batches=3)
    layer = callback.history[0].layers["net.0"]
    # 3 batches, of each the first 3 rows, of them the 8 columns.
    assert (layer.n_neurons, layer.n_states) == (3, 24)
