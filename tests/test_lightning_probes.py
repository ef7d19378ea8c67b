"""Probe data in Lightning: a fit is the same to the bit, and its changes are those of NumPy."""

import copy
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interrupts import each_line
from lightning_models import QUIET, TRAIN, VAL, Classifier, loader, trainer
from test_lightning_interrupts import Checks, run
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tensorstate_callbacks import ProbeChange, TensorStateWarning
from tensorstate_callbacks.lightning import EfficiencyCallback

pytestmark = [pytest.mark.filterwarnings(text) for text in QUIET]

PROBE = torch.randn(12, 6, generator=torch.Generator().manual_seed(4))
METRICS = ("efficiency", "turnover", "turnover_from_first", "unchanged")


class Learning(Classifier):
    """Draws numbers while it trains, and keeps its weights of each validation."""

    def __init__(self) -> None:
        super().__init__("metric")
        self.net = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.4), nn.Linear(8, 3)
        )
        self.bits: list[np.ndarray[Any, Any]] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.3, momentum=0.9)

    def keep(self) -> None:
        self.bits.append((self.net[0](PROBE) > 0).numpy(force=True))

    def on_train_start(self) -> None:
        self.keep()

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        if not self.trainer.sanity_checking:
            self.keep()


def shuffled() -> DataLoader[Any]:
    return DataLoader(TRAIN, 16, shuffle=True)


def fit(callback: Any, model: Any = None, **options: Any) -> Any:
    torch.manual_seed(8)
    model = model or Learning()
    fitted = trainer(*([callback] if callback else []), **{"max_epochs": 3, **options})
    fitted.fit(model, shuffled(), loader(VAL))
    return fitted


def changes(callback: EfficiencyCallback) -> list[ProbeChange | None]:
    return [report.layers["net.0"].probe for report in callback.history]


def expected(bits: list[np.ndarray[Any, Any]]) -> list[ProbeChange]:
    # Of 12 samples and 8 neurons: the determinant is 0.
    return [
        ProbeChange(
            np.mean(bits[n] != bits[n - 1]).item(),
            np.mean(bits[n] != bits[0]).item(),
            np.mean(~(np.stack(bits[: n + 1]) != bits[0]).any((0, 1))).item(),
            -np.inf,
        )
        for n in range(1, len(bits))
    ]


def test_a_fit_is_the_same_to_the_bit_and_changes_are_those_of_numpy() -> None:
    callback = EfficiencyCallback("Linear", probe_data=PROBE, layer_metrics=METRICS)
    model, plain = Learning(), Learning()
    fitted = fit(callback, model)
    drawn = torch.rand(3)
    without = fit(EfficiencyCallback("Linear"), plain)
    assert torch.equal(torch.rand(3), drawn)
    pairs = zip(model.state_dict().values(), plain.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert changes(callback) == expected(model.bits)
    assert 0 < callback.last.layers["net.0"].probe.since_first < 1
    logged = {key: value.item() for key, value in fitted.callback_metrics.items()}
    assert logged.items() >= {k: v.item() for k, v in without.callback_metrics.items()}.items()
    probe = changes(callback)[-1]
    assert logged["val_turnover/net.0"] == pytest.approx(probe.since_previous)
    assert logged["val_turnover_from_first/net.0"] == pytest.approx(probe.since_first)
    assert logged["val_unchanged/net.0"] == pytest.approx(probe.unchanged)
    assert model.training


@pytest.mark.parametrize("others", [False, True])
def test_a_fit_that_goes_on_from_a_checkpoint_goes_on_with_its_changes(
    tmp_path: Path, others: bool
) -> None:
    first = EfficiencyCallback("Linear", probe_data=PROBE, every_n_epochs=2)
    model = Learning()
    stopped = fit(first, model, max_epochs=2)
    stopped.save_checkpoint(tmp_path / "fit.ckpt")
    probe_data = TRAIN[:12][0] if others else DataLoader(TensorDataset(PROBE.clone()), 12)
    again = EfficiencyCallback("Linear", probe_data=probe_data, every_n_epochs=2)
    fitted, further = trainer(again, max_epochs=4), Learning()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted.fit(further, shuffled(), loader(VAL), ckpt_path=tmp_path / "fit.ckpt")
    told = [str(each.message) for each in caught if "probe_data" in str(each.message)]
    before, after = changes(again)
    assert before == changes(first)[0]
    if others:
        assert "the checkpoint has the states of other samples than probe_data" in told[0]
        assert after.since_first == after.since_previous
        return
    assert told == []
    # As if it were one fit: the recordings of the second come after those of the first.
    bits = [model.bits[0], model.bits[2], further.bits[-1]]
    assert [before, after] == expected(bits)
    assert after.since_first != after.since_previous


class Still(Classifier):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.0)


def test_each_fit_begins_anew_and_tests_compare_with_it() -> None:
    callback, model = EfficiencyCallback("Linear", probe_data=PROBE), Learning()
    fitted = fit(callback, model, max_epochs=1)
    fitted.test(model, loader(VAL), verbose=False)
    last = changes(callback)[-1]
    assert last.since_previous == 0
    assert last.since_first == changes(callback)[0].since_first > 0
    fit(callback, Still(), max_epochs=1)
    assert changes(callback)[-1].since_first == 0
    assert changes(callback)[-1].unchanged == 1
    for made in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):  # noqa: S301
        assert made.history == callback.history
        fit(made, Learning(), max_epochs=1)
        assert changes(made)[-1].since_previous > 0


def test_a_module_that_fails_on_it_trains_to_the_end() -> None:
    callback = EfficiencyCallback("Linear", probe_data=torch.ones(3, 5), layer_metrics=METRICS)
    with pytest.warns(TensorStateWarning, match="mat1 and mat2 shapes cannot be multiplied"):
        fitted = fit(callback)
    assert len(callback.history) == 3
    assert changes(callback) == [None] * 3
    assert "val_turnover/net.0" not in fitted.callback_metrics
    assert "val_efficiency/net.0" in fitted.callback_metrics


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (torch.ones(2000, 6), ValueError, "more than 1,024 samples"),
        (TRAIN, TypeError, "DataLoader with a few batches"),
    ],
)
def test_data_that_cannot_be_meant_ends_the_fit_before_it_begins(
    given: Any, error: type, words: str
) -> None:
    model = Learning()
    with pytest.raises(error, match=words):
        fit(EfficiencyCallback("Linear", probe_data=given), model)
    assert model.bits == []


class Logging(Learning):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.trainer.training:
            self.log("mean", x.mean(), on_epoch=True)
        return super().forward(x)


def test_what_forward_logs_joins_no_metrics() -> None:
    logged = []
    for callback in (None, EfficiencyCallback("Linear", probe_data=PROBE)):
        fitted = fit(callback, Logging(), max_epochs=1)
        logged.append(fitted.callback_metrics["mean"].item())
    assert logged[0] == logged[1]


class Heads(Classifier):
    """Has its last layer outside of `forward`."""

    def __init__(self) -> None:
        super().__init__("never")
        self.head = nn.Linear(3, 3)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.head(self(batch[0]))


@pytest.mark.filterwarnings("ignore:aIQ can't be computed")
def test_layers_that_are_evaluated_do_not_depend_on_it() -> None:
    found = []
    for given in ({}, {"probe_data": PROBE}):
        callback = EfficiencyCallback(**given)
        fit(callback, Heads(), max_epochs=1, num_sanity_val_steps=0)
        found.append(list(callback.last.layers))
    assert found[0] == found[1] == ["net.0", "net.2", "net.4"]


def test_bfloat16_is_run_as_in_steps() -> None:
    callback = EfficiencyCallback("Linear", probe_data=PROBE)
    seen = []
    model = Classifier()
    model.net[0].register_forward_hook(lambda *a: seen.append(a[-1].dtype))
    fit(callback, model, max_epochs=1, precision="bf16-mixed")
    assert set(seen) == {torch.bfloat16}
    assert changes(callback)[0] is not None


# All lines: `make soak`.
MOST = None if os.environ.get("TENSORSTATE_SOAK") else 40
FILES = ["lightning/probes.py", *(f"torch/{name}.py" for name in ("probe_set", "untouched"))]


def test_an_interrupt_at_any_line_leaves_nothing_that_acts() -> None:
    checks = Checks()
    followed = EfficiencyCallback(probe_data=TRAIN[:5])
    modes = [module.training for module in checks.model.modules()]
    for where in each_line(FILES, lambda: run(checks.model, followed), most=MOST):
        assert not torch.is_inference_mode_enabled(), where
        checks.model.train()
        assert [module.training for module in checks.model.modules()] == modes, where
        checks.check(where)


def test_nothing_is_kept_where_nothing_is_asked_for() -> None:
    callback = EfficiencyCallback("Linear")
    fit(callback, max_epochs=1)
    assert "probe" not in callback.state_dict()
    assert len(callback._probe.series) == 0
