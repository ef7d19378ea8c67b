"""Ctrl-C at any line of a recording leaves nothing that acts, and counts a batch whole or not."""

import contextlib
import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interrupts import Lines, each_line
from torch import nn
from torch.utils._python_dispatch import (
    _get_current_dispatch_mode_stack,
    is_in_torch_dispatch_mode,
)

from tensorstate_callbacks.states.group_counter import GroupCounter
from tensorstate_callbacks.tensorstate import (
    StateCaptureHook,
    build_efficiency_model,
    remove_state_layers,
)
from tensorstate_callbacks.tensorstate.captured_states import CapturedStates
from tensorstate_callbacks.torch import (
    device_states,
    hooks,
    record,
    row_transfers,
    tensor_recorder,
)

# All lines: `make soak`.
MOST = None if os.environ.get("TENSORSTATE_SOAK") else 150
RECORDS = [
    *(f"torch/{name}.py" for name in ("record", "watch", "hooks", "padding", "following")),
    *("torch/tensor_recorder.py", "torch/picking.py", "recording/recorder.py"),
]
DATA = torch.randn(10, 4, generator=torch.Generator().manual_seed(1))


def net() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(), nn.Unflatten(1, (2, 3)), nn.Flatten(), nn.Linear(6, 5)
    ).eval()


def our_hooks(model: nn.Module) -> list[Any]:
    return [
        hook
        for module in model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        if isinstance(hook, hooks.Hook)
    ]


def counted(recording: Any) -> dict[str, tuple[int, int]]:
    return {name: (c.n_states, c.n_distinct) for name, c in recording.counters.items()}


def test_an_interrupt_at_any_line_of_a_recording_leaves_nothing_that_acts() -> None:
    model = net()
    made: list[Any] = []
    # Imports the compiler, so that recordings hold it off.
    stance = importlib.import_module("torch._dynamo.eval_frame")._stance

    def run() -> None:
        made.append(record(model, "*", method="both"))
        with made[-1] as recording, torch.no_grad():
            model(DATA)
            recording.report()

    run()
    expected = counted(made[-1])
    with torch.no_grad():
        outputs = model(DATA)
        n_lines = 0
        for where in each_line(RECORDS, run, most=MOST):
            n_lines += 1
            before = counted(made[-1])
            # All is taken off as the block ends, however that happens.
            assert our_hooks(model) == [], where
            assert _get_current_dispatch_mode_stack() == [], where
            assert not is_in_torch_dispatch_mode(), where
            assert torch._dynamo.eval_frame._stance == stance, where
            assert torch.equal(model(DATA), outputs), where
            assert counted(made[-1]) == before, where
            # The same recording goes on with the next block, another one begins anew.
            with made[-1]:
                model(DATA)
            states = {name: n for name, (n, _) in counted(made[-1]).items()}
            assert all(10 <= n <= before.get(k, (0, 0))[0] + 10 for k, n in states.items()), where
            run()
            assert counted(made[-1]) == expected, where
            assert our_hooks(model) == [], where
    print(f"interrupted at {n_lines} lines")
    assert n_lines >= 100


DEVICE = [
    *(f"torch/{name}.py" for name in ("tensor_recorder", "row_transfers", "device_tables")),
    *(f"torch/{name}.py" for name in ("device_states", "device_streams", "counting_threads")),
]


@pytest.mark.parametrize("options", [{}, {"group_size": 3}, {"positions": 1}], ids=str)
def test_what_a_device_holds_is_counted_once_after_an_interrupt_at_any_line(
    options: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_recorder, "lies_on_device", lambda tensor: True)
    # Every layer is sent off, and batches are counted in parts.
    monkeypatch.setattr(row_transfers, "COPY_BYTES", 1)
    monkeypatch.setattr(row_transfers, "MOST_WAITING", 0)
    monkeypatch.setattr(device_states, "MOST_BYTES", 100)
    model, done = net(), [(record(net()), [0])]

    def run() -> None:
        done[:] = []
        recording, n_whole = record(model, "Linear", **options), [0]
        done.append((recording, n_whole))
        with recording:
            for _ in range(2):
                model(DATA)
                n_whole[0] += 1
                assert recording.counters

    def held(recording: Any) -> dict[str, list[int]]:
        counters = recording.counters.items()
        return {
            name: (c.tables() if isinstance(c, GroupCounter) else c.counts()).tolist()
            for name, c in counters
        }

    with torch.no_grad(), record(model, "Linear", **options) as once:
        model(DATA)
    expected, n_lines = held(once), 0
    with torch.no_grad():
        for where in each_line(DEVICE, run, most=MOST and 60):
            n_lines += 1
            for recording, n_whole in done:
                for n_more in range(3):
                    for _ in range(2):
                        for name, found in held(recording).items():
                            # A batch that was interrupted is counted whole or not at all.
                            least = n_whole[0] + n_more
                            some = [[n * each for each in expected[name]] for n in range(least + 2)]
                            assert found in some[least:] or (not any(found) and not least), where
                    with recording:
                        model(DATA)
    print(f"interrupted at {n_lines} lines")
    assert n_lines >= 50


def test_a_block_whose_end_is_interrupted_is_over() -> None:
    model = net()
    made: list[Any] = []

    def run() -> None:
        recording = record(model, "Linear")
        made.append(recording)
        # Looked at, as inspection does: of no consequence.
        assert callable(recording.__exit__)
        with recording:
            model(DATA)

    with torch.no_grad():
        places = []
        for where in each_line(["torch/record.py"], run):
            before = counted(made[-1])
            model(DATA)
            assert counted(made[-1]) == before, where
            assert our_hooks(model) == [], where
            places.append(where)
        with contextlib.ExitStack() as stack:
            recording = stack.enter_context(record(model, "Linear"))
            model(DATA)
        made[-1].__exit__  # noqa: B018
        made[-1].__enter__()
        model(DATA)
        made[-1].__exit__(None, None, None)
    first = record._leave.__code__.co_firstlineno
    assert f"record.py:{first} call" in places
    assert {name: n for name, (n, _) in counted(recording).items()} == {"0": 10, "4": 10}
    assert counted(made[-1])["0"][0] == before.get("0", (0, 0))[0] + 10


class Interrupted(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_calls_that_two_recordings_follow_are_over_in_any_order(order: tuple[int, ...]) -> None:
    model = nn.Sequential(net(), Interrupted())
    opened = [record(model, "*"), record(model, "*")]
    for recording in opened:
        recording.open()
    with torch.no_grad(), pytest.raises(KeyboardInterrupt):
        model(DATA)
    # Not seen otherwise: that the call was followed by both.
    assert len(_get_current_dispatch_mode_stack()) == 2
    for i in order:
        opened[i].close()
    assert _get_current_dispatch_mode_stack() == []
    assert not is_in_torch_dispatch_mode()


def test_compiled_code_runs_compiled_again_after_an_interrupt_at_any_line() -> None:
    model = torch.compile(net(), backend="eager")
    with torch.no_grad():
        model(DATA)

        def run() -> None:
            block = hooks.forced_eager()
            with block, block:
                model(DATA)

        before = torch._dynamo.eval_frame._stance
        for where in each_line(["torch/hooks.py"], run):
            assert torch._dynamo.eval_frame._stance == before, where


KEEP = ["counts", "memory", "disk"]


@pytest.fixture
def new_captured(tmp_path: Path) -> Callable[[str], CapturedStates]:
    folders = iter(range(10**6))

    def new(keep: str) -> CapturedStates:
        if keep == "disk":
            return CapturedStates("layer", storage_path=tmp_path / str(next(folders)))
        return CapturedStates("layer", keep_raw=keep == "memory")

    return new


# A file is closed late where the interrupt comes as its block ends.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("keep", KEEP)
@pytest.mark.parametrize("first", [0, 3])
def test_an_interrupted_batch_is_captured_whole_or_not_at_all(
    keep: str, first: int, new_captured: Callable[[str], CapturedStates]
) -> None:
    rng = np.random.default_rng(5)
    begun, interrupted, last = (rng.normal(size=(n, 2, 9)) for n in (first, 4, 5))
    files = [f"tensorstate/{name}.py" for name in ("captured_states", "stored_states")]
    files += ["tensorstate/state_readings.py"]
    captured: list[CapturedStates] = []

    def batches_in(n_states: int) -> list[Any]:
        batches = [begun, interrupted] if n_states == 2 * (first + 4) else [begun]
        assert n_states == 2 * sum(map(len, batches))
        return batches

    def check(where: str, batches: list[Any]) -> None:
        own = captured[-1]
        whole = new_captured("memory")
        for batch in batches:
            whole.record(batch, -1)
        assert own.state_count == whole.state_count, where
        if not own.state_count:
            return
        assert own.counts().tolist() == whole.counts().tolist(), where
        assert own.states_per_instance() == 2, where
        if keep != "counts":
            assert own.raw_states.tolist() == whole.raw_states.tolist(), where
            assert own.counts([0, 1]).tolist() == whole.counts([0, 1]).tolist(), where

    n_lines = 0
    at = 0
    while True:
        captured.append(new_captured(keep))
        if first:
            captured[-1].record(begun, -1)
        lines = Lines(files, at)
        lines.run(lambda: captured[-1].record(interrupted, -1))
        if lines.where is None:
            break
        batches = batches_in(captured[-1].state_count)
        check(lines.where, batches)
        captured[-1].record(last, -1)
        check(lines.where, [*batches, last])
        if keep == "disk":
            folder = captured[-1]._captured.raw._states.parent  # type: ignore[union-attr]
            captured.append(CapturedStates("layer", storage_path=folder, resume=True))
            check(lines.where, [*batches, last])
        at, n_lines = at + 1, n_lines + 1
    print(f"interrupted at {n_lines} lines")
    assert n_lines > 10


@pytest.mark.parametrize("keep", KEEP)
def test_an_interrupted_reset_is_done_or_not(
    keep: str, new_captured: Callable[[str], CapturedStates]
) -> None:
    files = [f"tensorstate/{name}.py" for name in ("captured_states", "stored_states")]
    old, new = np.random.default_rng(5).normal(size=(2, 6, 9))
    at = 0
    while True:
        captured = new_captured(keep)
        captured.record(old, -1)
        lines = Lines(files, at)
        lines.run(captured.reset_states)
        if lines.where is None:
            break
        assert captured.state_count in (0, 6), lines.where
        n_old = captured.state_count
        captured.record(new, -1)
        assert captured.state_count == n_old + 6, lines.where
        if keep != "counts":
            assert len(captured.raw_states) == n_old + 6, lines.where
        if not n_old:
            captured.reset_states()
            # A reset capture takes another number of neurons.
            captured.record(new[:, :5], -1)
            assert captured.states.shape[1] == 5, lines.where
        at += 1
    assert at > 2


def test_a_hook_that_captures_is_interrupted_at_any_line() -> None:
    model = net()
    hook = StateCaptureHook("layer", keep_raw=True)
    model[0].register_forward_hook(hook)
    files = [f"tensorstate/{n}.py" for n in ("torch_hook", "captured_states", "stored_states")]

    def run() -> None:
        with torch.no_grad():
            model(DATA)

    for where in each_line(files, run):
        assert hook.state_count % 10 == 0, where
        assert len(hook.raw_states) == hook.state_count, where
        before = hook.state_count
        run()
        assert hook.state_count == before + 10, where


def test_building_is_interrupted_at_any_line() -> None:
    model = net()

    def build() -> None:
        build_efficiency_model(model, "Linear", method="both")

    def names_and_counts() -> list[tuple[str, int]]:
        return [(layer.name, layer.state_count) for layer in model.efficiency_layers]

    build()
    with torch.no_grad():
        model(DATA)
        expected = names_and_counts()
        remove_state_layers(model)
        n_lines = 0
        for where in each_line(["tensorstate/torch_model.py"], build, most=MOST):
            build()
            model(DATA)
            assert names_and_counts() == expected, where
            remove_state_layers(model)
            assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules()), where
            n_lines += 1
    assert n_lines > 20
