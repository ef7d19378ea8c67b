"""Windows of a training loop of one's own recount its batches, and training knows nothing of it."""

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interrupts import each_line
from own_warnings import ours
from sampling_oracle import sampled_efficiency
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch_models import images, small_net

import tensorstate_callbacks
from tensorstate_callbacks import NoLayerMatchedError, ProbeError, TensorStateWarning
from tensorstate_callbacks.lightning import EfficiencyCallback
from tensorstate_callbacks.torch import TrainingRecording, record, record_training

pytestmark = pytest.mark.filterwarnings("ignore:In windows of training batches. Coverage")

LAYERS = ["0", "4"]


def batches(n: int = 9) -> Iterator[torch.Tensor]:
    yield from images(4 * n).split(4)


class Loop:
    """Trains a small network, and keeps what its layers gave in each batch by hooks of its own."""

    def __init__(self, *, keep: bool = True) -> None:
        self.model, self.outputs = small_net(), []
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1)
        for name in LAYERS if keep else ():
            self.model.get_submodule(name).register_forward_hook(self._keep(name))

    def _keep(self, name: str) -> Any:
        def keep(module: Any, args: Any, output: torch.Tensor) -> None:
            self.outputs[-1].setdefault(name, output.detach().numpy().copy())

        return keep

    def step(self, batch: torch.Tensor) -> torch.Tensor:
        self.outputs.append({})
        self.optimizer.zero_grad()
        loss = self.model(batch).square().mean()
        loss.backward()
        self.optimizer.step()
        return loss


def assert_recount(report: Any, outputs: list[dict[str, np.ndarray]], group: int | None) -> None:
    for name, layer in report.layers.items():
        values = np.concatenate([np.moveaxis(each[name], 1, -1) for each in outputs])
        efficiency, n_states = sampled_efficiency(values, values.shape[1:-1], group, None)
        assert layer.efficiency == pytest.approx(efficiency, rel=1e-12)
        assert layer.n_states == n_states


@pytest.mark.parametrize("group_size", [None, 4])
@pytest.mark.parametrize(("every", "window"), [(1, 1), (2, 3), (1, 20)])
def test_a_window_is_a_recount_of_its_batches(
    every: int, window: int, group_size: int | None
) -> None:
    loop = Loop()
    training = record_training(
        loop.model, LAYERS, every_n_train_steps=every, window=window, group_size=group_size, alpha=1
    )
    for number, batch in enumerate(batches(), 1):
        with training.batch() as recorded:
            loop.step(batch)
        assert recorded == (number % every == 0)
        if recorded:
            report = training.report(epoch=3, step=number)
            assert list(report.layers) == LAYERS
            assert_recount(report, loop.outputs[every - 1 :: every][-window:], group_size)
            assert (report.stage, report.epoch, report.step) == ("train", 3, number)
            assert {*report.scalars()} == {
                "train_efficiency",
                *(f"train_efficiency/{n}" for n in LAYERS),
            }
    assert training.n_batches == 9


def test_training_is_the_same_to_the_bit() -> None:
    plain, watched = Loop(keep=False), Loop(keep=False)
    training = record_training(watched.model, every_n_train_steps=2, method="both")
    for batch in batches():
        loss = plain.step(batch)
        with training.batch():
            assert torch.equal(watched.step(batch), loss)
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, watched.model.state_dict()[name]), name


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_only_recorded_batches_carry_hooks() -> None:
    model = small_net()
    before = [set(vars(module)) for module in model.modules()]
    training = record_training(model, every_n_train_steps=3)
    for batch in batches():
        assert hooks(model) == 0
        with training.batch() as recorded:
            assert (hooks(model) > 0) == recorded
            model(batch)
    assert hooks(model) == 0
    assert [set(vars(module)) for module in model.modules()] == before


def test_nothing_stays_and_nothing_is_counted_of_a_batch_that_is_broken_off() -> None:
    model = small_net()
    training = record_training(model, LAYERS, every_n_train_steps=1)
    with training.batch():
        model(images(4))

    def break_off(error: type[BaseException]) -> None:
        with training.batch():
            model(images(4))
            raise error

    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error):
            break_off(error)
        assert hooks(model) == 0
    assert training.report().layers["4"].n_states == 4


def test_an_interrupt_at_any_line_leaves_nothing() -> None:
    model, data = small_net(), images(4)

    def run() -> Any:
        training = record_training(model, LAYERS, every_n_train_steps=2, window=2)
        for _ in range(5):
            with training.batch():
                model(data)
        return training.report()

    outputs, report = model(data), run()
    files = [f"torch/{name}.py" for name in ("record_training", "record", "watch", "hooks")]
    for where in each_line(files, run, most=20):
        assert torch.equal(model(data), outputs), where
        assert hooks(model) == 0, where
        assert run() == report, where


def test_evaluations_in_between_are_no_part_of_it() -> None:
    model = small_net()
    training = record_training(model, LAYERS, every_n_train_steps=1, window=9)
    for batch in batches(3):
        with training.batch():
            model(batch)
        with record(model, LAYERS) as recording, torch.no_grad():
            model(images(7))
        model(images(5))
        assert recording.report().layers["4"].n_states == 7
    assert training.report().layers["4"].n_states == 12


def test_the_layer_that_makes_the_output_is_left_out_of_all_batches() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    training = record_training(model, every_n_train_steps=1)
    for _ in range(2):
        with training.batch():
            model(torch.randn(9, 6))
        assert list(training.report().layers) == ["0"]


def test_what_checkpointing_runs_again_is_not_counted() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    training = record_training(model, "0", every_n_train_steps=1)
    x = torch.randn(9, 6, requires_grad=True)
    for reentrant in (False, True):
        with training.batch():
            checkpoint(model, x, use_reentrant=reentrant).sum().backward()
    assert training.report().layers["0"].n_states == 18


def test_batches_may_go_on_from_a_checkpoint() -> None:
    training = record_training(small_net(), LAYERS, every_n_train_steps=4)
    training.n_batches = 6
    due = []
    for batch in batches(8):
        with training.batch() as recorded:
            training._recording._model(batch)
        due.append(recorded)
    assert due == [False, True, False, False, False, True, False, False]


def test_a_report_before_any_batch_says_what_to_do() -> None:
    model = small_net()
    training = record_training(model, every_n_train_steps=2)
    with training.batch():
        model(images(4))
    with pytest.raises(ProbeError, match="1 were run, and of every 2 one is recorded. Run each"):
        training.report()
    with training.batch():
        pass
    unseen = "no activations came from 0, 2, 4 in the training batches that were recorded"
    with pytest.warns(TensorStateWarning, match=unseen):  # noqa: SIM117 (the error ends the block)
        with pytest.raises(ProbeError, match="no probe saw any activations: 0, 2, 4"):
            training.report()


def test_arguments_are_those_of_record() -> None:
    with pytest.raises(NoLayerMatchedError, match="'Conv3d' matched no layer"):
        record_training(small_net(), "Conv3d")
    for name in ("every_n_train_steps", "window"):
        with pytest.raises(ValueError, match=f"{name} must be a whole number, at least 1; got 0"):
            record_training(small_net(), **{name: 0})
    with pytest.raises(TypeError, match="thresh"):
        record_training(small_net(), thresh=1)
    assert record_training is TrainingRecording


def test_warnings_come_once() -> None:
    model = nn.ModuleDict({"a": nn.Linear(6, 40), "b": nn.Linear(6, 3), "idle": nn.Linear(2, 2)})
    training = record_training(model, "Linear", every_n_train_steps=1, window=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in range(6):
            with training.batch():
                model["a"](torch.randn(5, 6))
                if number > 3:
                    model["b"](torch.randn(5, 6))
            training.report(step=number)
    idle, changed = ours(w for w in caught if "In windows" not in str(w.message))
    assert idle.startswith("no activations came from b, idle in the training batches")
    assert changed.startswith("the window of training batches at step 4 saw other layers")
    assert sum("In windows" in str(w.message) for w in caught) == 1


def test_fabric_loops() -> None:
    fabric = pytest.importorskip("lightning_fabric").Fabric(accelerator="cpu", devices=1)
    reports = []
    for prepare in (lambda *both: both, fabric.setup):
        loop = Loop(keep=False)
        model, optimizer = prepare(loop.model, loop.optimizer)
        training = record_training(model, every_n_train_steps=2, window=2)
        for batch in batches():
            with training.batch():
                optimizer.zero_grad()
                loss = model(batch).square().mean()
                loss.backward() if model is loop.model else fabric.backward(loss)
                optimizer.step()
        reports.append(training.report())
    assert list(reports[0].layers) == ["0", "2"]
    assert reports[0] == reports[1]


def test_the_code_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[1] / "docs/how_to/training.md").read_text(encoding="utf-8")
    callback, loop = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    model = small_net()
    names = {
        "EfficiencyCallback": EfficiencyCallback,
        "tensorstate_callbacks": tensorstate_callbacks,
        "model": model,
        "loss_fn": nn.functional.cross_entropy,
        "loader": [(images(6), torch.arange(6) % 4)] * 101,
        "optimizer": torch.optim.SGD(model.parameters(), 0.01),
    }
    exec(callback, names)  # noqa: S102
    made: Any = names["callback"]
    assert (made.on, made.every_n_train_steps, made.window) == (("val", "train"), 50, 20)
    exec(loop, names)  # noqa: S102
    training: Any = names["training"]
    assert training.report().layers["0"].n_states == 2 * 6 * 49
    assert capsys.readouterr().out.count("train_efficiency/0") == 2
