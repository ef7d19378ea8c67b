"""Lightning: windows of recorded training batches, which training knows nothing of."""

import copy
import csv
import math
import pickle
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_models import QUIET, TRAIN, VAL, Classifier, fit, loader, pl, trainer
from own_warnings import ours
from sampling_oracle import sampled_efficiency
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from tensorstate_callbacks import EfficiencyReport, ProbeError, TensorStateWarning
from tensorstate_callbacks.lightning import EfficiencyCallback
from tensorstate_callbacks.recording.overrides import StandIn

pytestmark = [
    *(pytest.mark.filterwarnings(text) for text in QUIET),
    pytest.mark.filterwarnings("ignore:In windows of training batches. Coverage"),
    pytest.mark.filterwarnings("ignore:Coverage"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
]

N_BATCHES = 4
"""Of an epoch; a fit of three epochs has twelve."""


def watch(**options: Any) -> EfficiencyCallback:
    given = {"on": "train", "every_n_train_steps": 2, "window": 3, **options}
    return EfficiencyCallback(**given)


class Outputs(pl.Callback):
    """Keeps what the probed layers gave in each training batch, by hooks of its own."""

    def __init__(self, *names: str) -> None:
        self.names = names or ("net.0", "net.2")
        self.batches: list[dict[str, np.ndarray]] = []
        self._handles: list[Any] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        seen: dict[str, np.ndarray] = {}
        self.batches.append(seen)
        for name in self.names:

            def keep(module: Any, args: Any, output: Any, name: str = name) -> None:
                seen.setdefault(name, output.detach().numpy().copy())

            self._handles.append(pl_module.get_submodule(name).register_forward_hook(keep))

    def on_train_batch_end(self, *_: Any) -> None:
        while self._handles:
            self._handles.pop().remove()


def assert_recount(
    report: EfficiencyReport, batches: list[dict[str, np.ndarray]], group_size: int | None = None
) -> None:
    for name, layer in report.layers.items():
        values = np.concatenate([batch[name] for batch in batches])
        efficiency, n_states = sampled_efficiency(values, (), group_size, None)
        assert layer.efficiency == pytest.approx(efficiency, rel=1e-12)
        assert layer.n_states == n_states
    logs = [math.log(layer.efficiency) for layer in report.layers.values()]
    assert report.efficiency == pytest.approx(math.exp(sum(logs) / len(logs)), rel=1e-12)


@pytest.mark.parametrize("group_size", [None, 3])
@pytest.mark.parametrize(("every", "window"), [(1, 1), (1, 20), (2, 3), (5, 2)])
def test_a_window_is_a_recount_of_its_steps(
    every: int, window: int, group_size: int | None
) -> None:
    outputs = Outputs()
    fit(Classifier(), outputs)
    callback = watch(every_n_train_steps=every, window=window, group_size=group_size)
    fit(Classifier(), callback)
    steps = range(every, 3 * N_BATCHES + 1, every)
    # Steps made before, as in evaluations; and epochs, counted from 0.
    assert [report.step for report in callback.train_history] == [step - 1 for step in steps]
    assert [r.epoch for r in callback.train_history] == [(s - 1) // N_BATCHES for s in steps]
    for step, report in zip(steps, callback.train_history, strict=True):
        assert list(report.layers) == ["net.0", "net.2"]
        recorded = outputs.batches[every - 1 : step : every]
        assert_recount(report, recorded[-window:], group_size)
        assert (report.stage, report.accuracy, report.aiq) == ("train", None, None)
    assert callback.history == []


def test_both_are_recorded_apart() -> None:
    both, val, train = watch(on=("val", "train")), EfficiencyCallback(), watch()
    fit(Classifier(), both)
    fit(Classifier(), val)
    fit(Classifier(), train)
    assert both.history == val.history
    assert both.last.stage == "val"
    assert both.train_history == train.train_history
    assert len(both.train_history) == 6


def test_weights_are_those_of_a_training_without() -> None:
    plain, watched = Classifier(), Classifier()
    fit(plain)
    fit(watched, watch(on=("val", "train"), every_n_train_steps=1, method="both"))
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, watched.state_dict()[name]), name


class Traces(pl.Callback):
    """Notes in each training step which modules carry hooks, or entries that hide their methods."""

    def __init__(self) -> None:
        self.inside: list[bool] = []
        self.between: list[bool] = []

    @staticmethod
    def carries(module: nn.Module) -> bool:
        hooked = [bool(m._forward_hooks or m._forward_pre_hooks) for m in module.modules()]
        stand_ins = [isinstance(v, StandIn) for m in module.modules() for v in vars(m).values()]
        return any(hooked) or any(stand_ins)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        self.inside.append(self.carries(pl_module))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.between.append(self.carries(pl_module))


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


def test_loggers_get_the_window_at_its_step(tmp_path: Path) -> None:
    tables = [
        import_logger("CSVLogger")(tmp_path, name="a", version=0),
        import_logger("CSVLogger")(tmp_path, name="b", version=0, prefix="x"),
    ]
    callback = watch(prefix="w_", layer_metrics=["efficiency", "dead"])
    # Lightning's own metrics of steps: every fifth one.
    fit(Classifier(), callback, logger=tables, log_every_n_steps=5)
    for name, lead in (("a", ""), ("b", "x-")):
        text = (tmp_path / name / "version_0" / "metrics.csv").read_text()
        rows = [
            row for row in csv.DictReader(text.splitlines()) if row[f"{lead}train_w_efficiency"]
        ]
        assert [int(row["step"]) for row in rows] == [1, 3, 5, 7, 9, 11]
        for row, report in zip(rows, callback.train_history, strict=True):
            scalars = report.scalars("w_", layer_metrics=["efficiency", "dead"])
            assert {*scalars} == {
                "train_w_efficiency",
                *(f"train_w_{m}/{n}" for m in ("efficiency", "dead") for n in ("net.0", "net.2")),
            }
            assert {key: float(row[lead + key]) for key in scalars} == scalars


def test_tensorboard_shows_the_window_at_its_step(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = import_logger("TensorBoardLogger")(tmp_path)
    callback = watch(on=("val", "train"))
    fit(Classifier(), callback, logger=board, log_every_n_steps=5)
    events = EventAccumulator(board.log_dir)
    events.Reload()
    found = events.Scalars("train_efficiency")
    assert [event.step for event in found] == [1, 3, 5, 7, 9, 11]
    expected = [report.efficiency for report in callback.train_history]
    assert [event.value for event in found] == pytest.approx(expected, rel=1e-6)
    assert "train_efficiency/net.0" in events.Tags()["scalars"]
    assert "train_aiq" not in events.Tags()["scalars"]


def import_logger(name: str) -> Any:
    return getattr(pl.loggers, name)


class Sees(pl.Callback):
    def __init__(self) -> None:
        self.values: list[Any] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        value = trainer.callback_metrics.get("train_efficiency")
        self.values.append(None if value is None else value.item())


def test_callbacks_see_the_latest_window() -> None:
    callback, sees = watch(every_n_train_steps=5), Sees()
    fitted = fit(Classifier(), callback, sees)
    first, second = (report.efficiency for report in callback.train_history)
    assert sees.values[:4] == [None] * 4
    assert sees.values[4:] == pytest.approx([first] * 5 + [second] * 3, rel=1e-6)
    assert fitted.progress_bar_metrics["train_efficiency"] == pytest.approx(second, rel=1e-6)
    # A further fit of the same Trainer begins without.
    fitted.fit_loop.max_epochs = 4
    fitted.fit(Classifier(), loader(TRAIN), loader(VAL))
    assert sees.values[12] is None


def test_checkpoints_and_stopping_follow_the_window(tmp_path: Path) -> None:
    checkpoints = pl.callbacks.ModelCheckpoint(
        tmp_path,
        "{step}",
        monitor="train_efficiency",
        mode="max",
        every_n_train_steps=4,
        save_top_k=-1,
    )
    stop = pl.callbacks.EarlyStopping(
        "train_efficiency", mode="max", patience=1, check_on_train_epoch_end=True, min_delta=1.0
    )
    callback = watch()
    fit(Classifier(), checkpoints, stop, callback, enable_checkpointing=True, max_epochs=9)
    assert len(checkpoints.best_k_models) == 2
    second, _, fourth = callback.train_history[1:]
    scores = [value.item() for value in checkpoints.best_k_models.values()]
    assert scores == pytest.approx([second.efficiency, fourth.efficiency], rel=1e-6)


def test_a_fit_that_goes_on_from_a_checkpoint_goes_on_counting_batches(tmp_path: Path) -> None:
    outputs, through = Outputs(), watch(every_n_train_steps=3)
    fit(Classifier(), through, outputs)
    path = tmp_path / "last.ckpt"
    first = fit(Classifier(), watch(every_n_train_steps=3), max_epochs=2)
    first.save_checkpoint(path)
    again = watch(every_n_train_steps=3)
    fitted = trainer(again)
    fitted.fit(Classifier(), loader(TRAIN), loader(VAL), ckpt_path=path)
    # Of eight batches the sixth was the last one recorded; the window begins anew.
    assert [report.step for report in again.train_history] == [8, 11]
    assert_recount(again.train_history[0], [outputs.batches[8]])
    assert_recount(again.train_history[1], [outputs.batches[8], outputs.batches[11]])
    assert [report.step for report in through.train_history] == [2, 5, 8, 11]


def test_accumulated_batches_are_counted_one_by_one() -> None:
    outputs, callback = Outputs(), watch()
    fit(Classifier(), outputs, accumulate_grad_batches=4)
    fit(Classifier(), callback, accumulate_grad_batches=4)
    # One step for four batches.
    assert [report.step for report in callback.train_history] == [0, 0, 1, 1, 2, 2]
    assert_recount(callback.train_history[-1], outputs.batches[1::2][-3:])


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


@pytest.mark.parametrize("options", [{"positions": 2}, {"max_memory": 10_000}], ids=str)
def test_positions_and_memory_of_windows(options: dict[str, Any]) -> None:
    class Convolving(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(1, 40, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x + self.conv(x[:, None]).mean(1))

    outputs = Outputs("conv")
    fit(Convolving(), outputs)
    callback = watch(attach_to="conv", **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TensorStateWarning)
        fit(Convolving(), callback)
    told = ours(w for w in caught if "In windows" not in str(w.message))
    short = "max_memory" in options
    if short:
        (text,) = told
        assert "conv (1 of 6)" in text
        assert text.endswith("or give more max_memory, or a smaller window")
    else:
        assert told == []
    last = [np.moveaxis(batch["conv"], 1, -1) for batch in outputs.batches[1::2][-3:]]
    efficiency, n = sampled_efficiency(np.concatenate(last), (6,), None, 1 if short else 2)
    layer = callback.train_history[-1].layers["conv"]
    assert layer.efficiency == pytest.approx(efficiency, rel=1e-12)
    assert layer.n_states == n


def test_a_failing_logger_costs_a_warning() -> None:
    class Failing(import_logger("CSVLogger")):  # type: ignore[misc]
        def log_metrics(self, metrics: Any, step: Any = None) -> None:
            if "train_efficiency" in metrics:
                raise OSError("the disk is full")

    callback = watch()
    with pytest.warns(TensorStateWarning, match="Failing got no train_efficiency.*disk is full"):
        fit(Classifier(), callback, logger=Failing("."))
    assert len(callback.train_history) == 6


def test_copies_keep_the_reports_and_nothing_of_the_window() -> None:
    copies: list[EfficiencyCallback] = []

    class Copying(pl.Callback):
        def on_before_backward(self, *_: Any) -> None:
            copies.append(copy.deepcopy(callback))
            copies.append(pickle.loads(pickle.dumps(callback)))  # noqa: S301

    callback = watch(every_n_train_steps=1)
    fit(Classifier(), callback, Copying(), max_epochs=1)
    assert [len(made.train_history) for made in copies] == [0, 0, 1, 1, 2, 2, 3, 3]
    for made in copies:
        without = [report.without_states() for report in made.train_history]
        assert without == [r.without_states() for r in callback.train_history][: len(without)]
        assert (len(made._window), made._batch) == (0, None)
    n_before = len(callback.train_history)
    fit(Classifier(), copies[-1], max_epochs=1)
    assert len(copies[-1].train_history) == 3 + N_BATCHES
    assert len(callback.train_history) == n_before


def test_batches_of_other_sizes_are_counted_as_they_are() -> None:
    dataset = TensorDataset(*TRAIN.tensors)
    callback = watch(every_n_train_steps=1, window=2)
    trainer(callback).fit(Classifier(), DataLoader(dataset, 24))
    n_states = [report.layers["net.0"].n_states for report in callback.train_history]
    assert n_states == [24, 48, 40, 40, 48, 40, 40, 48, 40]
