"""Only what Lightning's own evaluation steps run is counted, whatever else runs the model."""

import copy
from typing import Any

import pytest
import torch
from lightning_models import QUIET, TRAIN, VAL, Classifier, data, fit, loader, pl, trainer

from tensorstate_callbacks.lightning import EfficiencyCallback

pytestmark = [pytest.mark.filterwarnings(text) for text in QUIET]
OTHER = data(30, 5)


class Meddling(pl.Callback):
    """Runs the model on other data in one of its own hooks."""

    def __init__(self, where: str, how: str = "model") -> None:
        self.n_calls, self.how = 0, how
        for stage in ("validation", "test"):
            setattr(self, f"on_{stage}_batch_{where}", self.meddle)

    def meddle(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        self.n_calls += 1
        if self.how == "model":
            pl_module(OTHER.tensors[0])
        else:
            where = pl_module.where
            pl_module.where = "never"
            getattr(pl_module, self.how)(OTHER.tensors, 0)
            pl_module.where = where


@pytest.mark.parametrize("where", ["start", "end"])
@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.parametrize("how", ["model", "validation_step"])
def test_other_callbacks_may_run_the_model_in_hooks_of_their_own(
    where: str, ours_first: bool, how: str
) -> None:
    alone, callback, other = EfficiencyCallback(), EfficiencyCallback(), Meddling(where, how)
    fit(Classifier(), alone)
    fit(Classifier(), *([callback, other] if ours_first else [other, callback]))
    # Four batches in each of three epochs, two in the sanity check.
    assert other.n_calls == 14
    assert callback.history[0].layers["net.0"].n_states == len(VAL)
    assert callback.history == alone.history


@pytest.mark.parametrize("where", ["start", "end"])
@pytest.mark.parametrize("run", ["validate", "test"])
def test_passes_outside_of_a_fit_count_their_step_only(where: str, run: str) -> None:
    reports = []
    for others in ([], [Meddling(where), Meddling(where, "validation_step")]):
        callback = EfficiencyCallback(accuracy="test_acc" if run == "test" else "val_acc")
        made = trainer(*others[:1], callback, *others[1:])
        getattr(made, run)(Classifier(), loader(VAL), verbose=False)
        reports.append(callback.last)
    assert reports[0] is not None
    assert reports[0].layers["net.0"].n_states == len(VAL)
    assert reports[0] == reports[1]


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("where", ["start", "end"])
def test_of_several_dataloaders_one_is_counted_among_other_calls(index: int, where: str) -> None:
    sets, reports = [VAL, data(20, 9)], []
    for others in ([], [Meddling(where), Meddling(where, "validation_step")]):
        callback = EfficiencyCallback(dataloader_idx=index)
        made = trainer(*others[:1], callback, *others[1:], max_epochs=1)
        made.fit(Classifier(), loader(TRAIN), [loader(each) for each in sets])
        reports.append(callback.last)
    assert reports[0] is not None
    assert reports[0].layers["net.0"].n_states == len(sets[index])
    assert reports[0] == reports[1]


def test_step_that_calls_itself_or_the_other_one_is_counted_as_a_whole() -> None:
    class Halving(Classifier):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            if len(batch[0]) > 8:
                self.validation_step([part[:8] for part in batch], batch_idx)
                batch = [part[8:] for part in batch]
            super().validation_step(batch, batch_idx)

        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.validation_step(batch, batch_idx)

    callback = EfficiencyCallback(missing_accuracy="ignore")
    made, model = trainer(callback), Halving()
    made.validate(model, loader(VAL), verbose=False)
    made.test(model, loader(VAL), verbose=False)
    assert [r.layers["net.0"].n_states for r in callback.history] == [len(VAL)] * 2


class Decorated(Classifier):
    @torch.no_grad()
    def validation_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        super().validation_step(batch, batch_idx)


class WithoutIndex(Classifier):
    def validation_step(self, batch: Any) -> None:  # type: ignore[override]
        super().validation_step(batch, 0)


class DecoratedWithoutIndex(Classifier):
    @torch.no_grad()
    def validation_step(self, batch: Any) -> None:  # type: ignore[override]
        super().validation_step(batch, 0)


class FromIterator(Classifier):
    def validation_step(self, dataloader_iter: Any) -> None:  # type: ignore[override]
        batch, index, _ = next(dataloader_iter)
        super().validation_step(batch, index)


@pytest.mark.filterwarnings("ignore:Found `dataloader_iter` argument")
@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter`")
@pytest.mark.parametrize("kind", [Decorated, WithoutIndex, DecoratedWithoutIndex, FromIterator])
def test_step_gets_the_arguments_that_it_takes(kind: type[Classifier]) -> None:
    expected, callback = EfficiencyCallback(), EfficiencyCallback()
    fit(Classifier("epoch_end"), expected)
    fit(kind("epoch_end"), callback)
    assert callback.history == expected.history


def test_step_on_the_instance_is_counted_and_kept() -> None:
    model, callback = Classifier(), EfficiencyCallback()
    own = model.validation_step = Classifier.validation_step.__get__(model)  # type: ignore[method-assign]
    fit(model, callback, max_epochs=1)
    assert callback.history[0].layers["net.0"].n_states == len(VAL)
    assert vars(model)["validation_step"] is own


def test_copy_made_in_a_step_has_a_step_of_its_own() -> None:
    copies: list[Any] = []

    class Copying(Classifier):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            attached, self._trainer = self._trainer, None
            copies.append(copy.deepcopy(self))
            self._trainer = attached
            copies[-1](batch[0])
            super().validation_step(batch, batch_idx)

    callback = EfficiencyCallback()
    fit(Copying(), callback, max_epochs=1, num_sanity_val_steps=0)
    assert callback.history[0].layers["net.0"].n_states == len(VAL)
    for clone in copies:
        assert clone.validation_step.__self__ is clone


def test_step_that_fails_leaves_the_module_its_own() -> None:
    class Failing(Classifier):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            super().validation_step(batch, batch_idx)
            raise ArithmeticError("this batch is bad")

    model, callback = Failing(), EfficiencyCallback()
    with pytest.raises(ArithmeticError, match="this batch is bad"):
        fit(model, callback)
    assert not {"validation_step", "on_validation_epoch_end"} & set(vars(model))


def test_two_callbacks_count_the_same_steps() -> None:
    first, second = EfficiencyCallback(), EfficiencyCallback(prefix="x_", dataloader_idx=1)
    made = trainer(first, second, max_epochs=2)
    made.fit(Classifier("epoch_end"), loader(TRAIN), [loader(VAL), loader(OTHER)])
    for callback, n in ((first, len(VAL)), (second, len(OTHER))):
        assert [r.layers["net.2"].n_states for r in callback.history] == [n, n]
