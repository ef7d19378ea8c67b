"""The Lightning callback leaves nothing on the model, whatever happens, and can go on later."""

import contextlib
import copy
import io
import pickle
import signal
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from lightning_models import NAMESPACE, QUIET, TRAIN, VAL, Classifier, fit, loader, pl, trainer
from torch import nn

import tensorstate_callbacks.lightning
from tensorstate_callbacks import MissingExtraError
from tensorstate_callbacks.lightning import (
    LIGHTNING,
    PYTORCH_LIGHTNING,
    EfficiencyCallback,
    Namespace,
    find_namespace,
)

pytestmark = [pytest.mark.filterwarnings(text) for text in QUIET]


def traces(model: nn.Module) -> list[Any]:
    """All hooks of the model's modules, and the names of what hides its own methods."""
    hooks = [
        [*m._forward_hooks, *m._forward_pre_hooks, *m._forward_hooks_with_kwargs]
        for m in model.modules()
    ]
    return [hooks, [sorted(vars(m).keys() & set(dir(type(m)))) for m in model.modules()]]


def attributes(model: nn.Module) -> list[set[str]]:
    return [set(vars(module)) for module in model.modules()]


def test_model_after_fit_is_that_of_a_fit_without() -> None:
    plain, watched = Classifier(), Classifier()
    handle = watched.net[0].register_forward_hook(lambda *_: None)
    fit(plain)
    fit(watched, EfficiencyCallback(method="both"))
    assert list(watched.net[0]._forward_hooks) == [handle.id]
    handle.remove()
    assert traces(watched) == traces(plain)
    assert attributes(watched) == attributes(plain)


class Stop(BaseException):
    """Ends a run like SIGTERM does, past `except Exception`."""


@pytest.fixture
def sigint() -> Iterator[None]:
    # Lightning ignores Ctrl-C from the first one on.
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("sigint")
@pytest.mark.parametrize("error", [ValueError, Stop, KeyboardInterrupt])
@pytest.mark.parametrize(
    "where", ["on_validation_epoch_start", "forward", "on_validation_epoch_end"]
)
@pytest.mark.parametrize("run", ["fit", "validate"])
def test_nothing_stays_when_a_run_is_broken_off(
    error: type[BaseException], where: str, run: str
) -> None:
    class Breaking(Classifier):
        broken = True

    def break_off(self: Breaking, *args: Any) -> Any:
        if self.broken and self.trainer.validating and not self.trainer.sanity_checking:
            assert traces(self) != before
            raise error
        return getattr(Classifier, where)(self, *args)

    setattr(Breaking, where, break_off)
    model, callback = Breaking(), EfficiencyCallback()
    before = traces(model)
    loaders = [loader(TRAIN), loader(VAL)] if run == "fit" else [loader(VAL)]
    # Lightning turns Ctrl-C into an exit, or (before 2.5) into a fit that ends as if it were done.
    ctrl_c = contextlib.suppress(SystemExit)
    with ctrl_c if error is KeyboardInterrupt else pytest.raises(error):
        getattr(trainer(callback), run)(model, *loaders)
    assert traces(model) == before
    assert callback.history == []
    model.broken = False
    trainer(callback).validate(model, loader(VAL), verbose=False)
    assert len(callback.history) == 1
    assert callback.history[0].layers["net.0"].n_states == len(VAL)


def test_nothing_stays_after_an_error_of_our_own() -> None:
    model = Classifier("never")
    before = traces(model)
    with pytest.raises(ValueError, match="aIQ can't be computed"):
        fit(model, EfficiencyCallback(missing_accuracy="raise"))
    assert traces(model) == before


def test_hook_that_the_model_itself_carries_is_called_and_kept() -> None:
    model, calls = Classifier("never"), []
    model.on_validation_epoch_end = lambda: calls.append(model.log("val_acc", 0.5))  # type: ignore[method-assign]
    own = model.on_validation_epoch_end
    callback = EfficiencyCallback()
    fit(model, callback)
    assert len(calls) == 3 + 1
    assert model.on_validation_epoch_end is own
    assert [report.accuracy for report in callback.history] == [0.5] * 3


def test_copies_made_during_an_evaluation_count_nothing_and_have_hooks_of_their_own() -> None:
    copies: list[Classifier] = []

    class Copying(pl.Callback):
        def on_validation_batch_start(self, trainer: pl.Trainer, model: Any, *_: Any) -> None:
            if not copies:
                attached, model._trainer = model._trainer, None
                copies.append(copy.deepcopy(model))
                buffer = io.BytesIO()
                torch.save(model, buffer)
                model._trainer = attached
                buffer.seek(0)
                copies.append(torch.load(buffer, weights_only=False))

        def on_validation_batch_end(self, trainer: pl.Trainer, model: Any, *_: Any) -> None:
            for clone in copies:
                clone(VAL.tensors[0])

    callback = EfficiencyCallback()
    fit(Classifier("epoch_end"), Copying(), callback, max_epochs=1, num_sanity_val_steps=0)
    assert callback.history[0].layers["net.0"].n_states == len(VAL)
    assert len(copies) == 2
    for clone in copies:
        assert clone.on_validation_epoch_end.__self__ is clone  # type: ignore[attr-defined]


def test_callback_is_pickled_and_copied_without_what_is_under_way() -> None:
    class Copying(pl.Callback):
        def on_validation_batch_start(self, *_: Any) -> None:
            for clone in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):  # noqa: S301
                assert clone.history == callback.history
                clones.append(clone)

    clones: list[EfficiencyCallback] = []
    callback = EfficiencyCallback()
    fit(Classifier(), callback, Copying(), max_epochs=2)
    assert callback.history[0].layers["net.0"].n_states == len(VAL)
    fit(Classifier(), clones[-1], max_epochs=1)
    assert len(clones[-1].history) == 2


def test_one_callback_in_several_fits_keeps_all_of_its_history() -> None:
    callback = EfficiencyCallback()
    for _ in range(2):
        fit(Classifier(), callback, max_epochs=2)
    assert [report.epoch for report in callback.history] == [0, 1, 0, 1]
    assert callback.history[:2] == callback.history[2:]


def test_history_goes_on_after_a_resume(tmp_path: Path) -> None:
    whole, half, path = EfficiencyCallback(), EfficiencyCallback(), tmp_path / "half.ckpt"
    fit(Classifier(), whole, max_epochs=4)
    fit(Classifier(), half, max_epochs=2).save_checkpoint(path)
    saved = torch.load(path, weights_only=True)
    (key,) = saved["callbacks"]
    assert key == "EfficiencyCallback{'prefix': ''}"
    resumed = _resume(path)
    # The spectra of the states are kept of the evaluation before the checkpoint, and from then on.
    assert resumed.history[1:] == whole.history[1:]
    assert resumed.history.to_dicts() == whole.history.to_dicts()
    assert resumed.history[0].layers["net.0"].spectrum is None
    # A checkpoint of the version before, with all reports whole.
    saved["callbacks"][key] = {"history": [report.to_dict() for report in half.history]}
    torch.save(saved, path)
    assert _resume(path).history == whole.history


def _resume(path: Path) -> EfficiencyCallback:
    callback = EfficiencyCallback()
    trainer(callback, max_epochs=4).fit(Classifier(), loader(TRAIN), loader(VAL), ckpt_path=path)
    return callback


OURS, OTHER = sorted([PYTORCH_LIGHTNING, LIGHTNING], key=lambda n: n.module != NAMESPACE)


def test_class_is_that_of_the_namespace_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_namespace() == OURS
    assert issubclass(EfficiencyCallback, pl.Callback)
    assert EfficiencyCallback.__module__ == OURS.callback_module
    monkeypatch.setitem(sys.modules, OTHER.module, ModuleType(OTHER.module))
    # Where both are loaded, the one that the extra installs.
    assert find_namespace() == PYTORCH_LIGHTNING
    monkeypatch.delitem(sys.modules, OURS.module)
    assert find_namespace() == OTHER


def test_other_namespace_gets_a_class_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Callback:
        pass

    class Trainer:
        __module__ = f"{OTHER.module}.trainer.trainer"
        is_global_zero, world_size = True, 1

    stand_in = ModuleType(OTHER.module)
    stand_in.Callback, stand_in.Trainer = Callback, Trainer  # type: ignore[attr-defined]
    if "." in OTHER.module:
        monkeypatch.setitem(sys.modules, OTHER.distribution, ModuleType(OTHER.distribution))
    monkeypatch.setitem(sys.modules, OTHER.module, stand_in)
    monkeypatch.delitem(sys.modules, OTHER.callback_module, raising=False)
    with monkeypatch.context() as only:
        only.delitem(sys.modules, OURS.module)
        other = tensorstate_callbacks.lightning.EfficiencyCallback
    monkeypatch.delitem(sys.modules, OTHER.callback_module)
    assert issubclass(other, Callback)
    assert not issubclass(other, pl.Callback)
    text = (
        f"made for {OTHER.module}, but the Trainer is of {OURS.module}.* from "
        f"{OURS.callback_module} import EfficiencyCallback"
    )
    with pytest.raises(TypeError, match=text):
        other().setup(trainer(), Classifier(), "fit")
    with pytest.raises(TypeError, match=f"but the Trainer is of {OTHER.module}"):
        EfficiencyCallback().setup(Trainer(), Classifier(), "fit")
    other().setup(Trainer(), Classifier(), "fit")


@pytest.mark.parametrize("namespace", [PYTORCH_LIGHTNING, LIGHTNING])
def test_missing_lightning_names_what_to_install(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, namespace.module, None)  # type: ignore[arg-type]
    monkeypatch.delitem(sys.modules, namespace.callback_module, raising=False)
    text = rf"'{namespace.distribution}', which is not .*tensorstate_callbacks\[lightning\]"
    with pytest.raises(MissingExtraError, match=text):
        import_module(namespace.callback_module)
