"""Lightning: only the steps that are recorded are, and training knows nothing of it."""

import signal
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lightning_models import QUIET, TRAIN, VAL, Classifier, fit, loader, pl, trainer
from lightning_windows import Outputs, Traces, assert_recount, watch
from own_warnings import ours
from torch import nn
from torch.utils.checkpoint import checkpoint

from tensorstate_callbacks import ProbeError, TensorStateWarning
from tensorstate_callbacks.lightning import EfficiencyCallback

pytestmark = [
    *(pytest.mark.filterwarnings(text) for text in QUIET),
    pytest.mark.filterwarnings("ignore:In windows of training batches. Coverage"),
    pytest.mark.filterwarnings("ignore:Coverage"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
]


def test_weights_are_those_of_a_training_without() -> None:
    plain, watched = Classifier(), Classifier()
    fit(plain)
    fit(watched, watch(on=("val", "train"), every_n_train_steps=1, method="both"))
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, watched.state_dict()[name]), name


@pytest.mark.parametrize(
    ("on", "recorded"), [("val", []), (("val", "train"), [2, 5, 8, 11]), ("train", [2, 5, 8, 11])]
)
def test_only_recorded_steps_carry_anything(on: Any, recorded: list[int]) -> None:
    model, traces = Classifier(), Traces()
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    # Behind ours in the list, and so after it at the end of a batch.
    fit(model, EfficiencyCallback(on=on, every_n_train_steps=3, window=2), traces)
    assert traces.inside == [index in recorded for index in range(12)]
    assert not any(traces.between)
    after = {name: set(vars(module)) for name, module in model.named_modules()}
    plain = Classifier()
    fit(plain)
    expected = {name: set(vars(module)) for name, module in plain.named_modules()}
    assert after == expected
    assert before.keys() == after.keys()


class Checkpointing(Classifier):
    """Runs its first layers a second time in the backward pass."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net[3:](checkpoint(self.net[:3], x, use_reentrant=False))


class Penalized(Classifier):
    """Steps by hand, twice a batch, each time after a pass of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(nn.functional.cross_entropy(self(batch[0]), batch[1]))
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.SGD(self.net[:2].parameters(), 0.5),
            torch.optim.SGD(self.net[2:].parameters(), 0.5),
        ]


class Searching(Classifier):
    """Its optimizer runs the step several times a batch."""

    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)


@pytest.mark.parametrize(("kind", "n_passes"), [(Checkpointing, 1), (Penalized, 2), (Searching, 1)])
def test_what_is_counted_is_what_the_step_runs_first(kind: type[Classifier], n_passes: int) -> None:
    plain, watched, callback, outputs = kind(), kind(), watch(), Outputs()
    fit(plain, outputs)
    fit(watched, callback)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, watched.state_dict()[name]), name
    last = callback.train_history[-1]
    assert last.layers["net.2"].n_states == 3 * 16 * n_passes
    if n_passes == 1:
        assert_recount(last, outputs.batches[1::2][-3:])


@pytest.mark.parametrize("how", ["model", "training_step"])
def test_hooks_of_other_callbacks_may_run_the_model_or_its_step(how: str) -> None:
    class Meddling(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            if how == "model":
                pl_module(VAL.tensors[0])
            else:
                pl_module.training_step(VAL.tensors, 0)

        on_train_batch_end = on_train_batch_start

        def on_before_backward(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            pl_module(VAL.tensors[0])

    alone, first, last = watch(), watch(), watch()
    fit(Classifier(), alone)
    fit(Classifier(), first, Meddling())
    fit(Classifier(), Meddling(), last)
    assert first.train_history == alone.train_history == last.train_history


def test_validation_within_an_epoch_is_no_part_of_a_window() -> None:
    alone, often = watch(), watch(on=["train", "val"])
    fit(Classifier(), alone)
    fit(Classifier(), often, val_check_interval=1)
    assert often.train_history == alone.train_history
    assert len(often.history) == 12


@pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="torch before 2.6")
def test_compiled_modules_run_eagerly_in_recorded_steps_only() -> None:
    calls: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        def run(*args: Any) -> Any:
            calls.append(1)
            return graph(*args)

        return run

    torch.compiler.reset()
    plain, callback = watch(every_n_train_steps=4), watch(every_n_train_steps=4)
    fit(Classifier(), plain)
    model = Classifier()
    model.net = torch.compile(model.net, backend=backend)  # type: ignore[assignment]
    trainer(callback).fit(model, loader(TRAIN))
    assert len(calls) == 9
    # What this backend gives is what runs without.
    assert callback.train_history == plain.train_history
    torch.compiler.reset()
    # What other tests are told by that something was compiled just now.
    torch._dynamo.utils.counters.clear()


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
@pytest.mark.parametrize("where", ["forward", "on_before_zero_grad", "on_train_batch_end"])
def test_nothing_stays_when_a_recorded_batch_is_broken_off(
    error: type[BaseException], where: str
) -> None:
    class Breaking(Classifier):
        broken = True

    original = getattr(Classifier, where)

    def break_off(self: Breaking, *args: Any) -> Any:
        if self.broken and self.trainer.training and self.trainer.global_step == 3:
            raise error
        return original(self, *args)

    setattr(Breaking, where, break_off)
    model, callback = Breaking(), watch()
    with pytest.raises((error, SystemExit)):
        fit(model, callback)
    assert not Traces.carries(model)
    n_before = len(callback.train_history)
    model.broken = False
    fit(model, callback)
    assert len(callback.train_history) == n_before + 6
    assert callback.train_history[n_before].layers["net.0"].n_states == 16


def test_an_epoch_that_the_module_ends_leaves_nothing_on_it() -> None:
    class Skipping(Classifier):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if batch_idx == 1 else None

    seen = []

    class Looks(pl.Callback):
        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            seen.append(Traces.carries(pl_module))

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            seen.append(Traces.carries(pl_module))

    model, callback = Skipping(), watch()
    with pytest.warns(TensorStateWarning, match="no training batch was recorded in this fit"):
        trainer(callback, Looks()).fit(model, loader(TRAIN))
    assert seen == [False] * 3
    assert not Traces.carries(model)
    assert callback.train_history == []


def test_a_fit_of_few_batches_says_that_nothing_was_recorded() -> None:
    with pytest.warns(TensorStateWarning) as caught:
        fit(Classifier(), EfficiencyCallback(on=("val", "train")))
    (text,) = ours(caught)
    assert "of every 50 batches one was to be, and there were fewer" in text


def test_without_evaluations_nothing_is_said_of_them() -> None:
    callback = watch(every_n_train_steps=1)
    fitted = trainer(callback)
    fitted.fit(Classifier(), loader(TRAIN))
    assert len(callback.train_history) == 12
    fit(Classifier(), callback, num_sanity_val_steps=0)
    assert "val_efficiency" not in fitted.callback_metrics
    assert callback.history == []


def test_a_layer_that_cannot_be_counted_ends_the_fit_with_its_name() -> None:
    class Complex(Classifier):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.real)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            nn.Linear.forward(self.net[0], batch[0])
            self.spectrum(torch.fft.fft(batch[0]))
            return super().training_step(batch, batch_idx)

        def __init__(self) -> None:
            super().__init__()
            self.spectrum = nn.Identity()

    model = Complex()
    with pytest.raises(ProbeError, match="layer 'spectrum' could not be counted.*complex"):
        fit(model, watch(attach_to=["Linear", "spectrum"]))
    assert not Traces.carries(model)


def test_layers_that_training_does_not_call_are_told_once() -> None:
    class Idle(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.idle = nn.Linear(6, 6)

    callback = watch()
    with pytest.warns(TensorStateWarning) as caught:
        fit(Idle(), callback)
    (text,) = (t for t in ours(caught) if "recorded" in t)
    assert text.startswith("no activations came from idle in the training batches")
    assert list(callback.train_history[-1].layers) == ["net.0", "net.2"]


def test_padding_is_told_once() -> None:
    class Attending(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            x = batch[0].reshape(4, 4, 6)
            mask = torch.zeros(4, 4, dtype=torch.bool)
            mask[:, -1] = True
            x = self.encoder(x, src_key_padding_mask=mask)
            return nn.functional.cross_entropy(self(x.flatten(0, 1)), batch[1])

    with pytest.warns(TensorStateWarning) as caught:
        trainer(watch()).fit(Attending(), loader(TRAIN))
    assert sum("masks padding" in text for text in ours(caught)) == 1
