"""Compiled models: full counts while recording, and the user's graphs untouched afterwards."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from tensorstate_callbacks import TensorStateWarning
from tensorstate_callbacks.torch import hooks, record
from tensorstate_callbacks.torch.layers import named_layers

can_force = pytest.mark.skipif(
    not hasattr(torch.compiler, "set_stance"),
    reason="torch before 2.6 can't run compiled code eagerly",
)
DATA = torch.randn(6, 3, 8, 8)


class Compiler:
    """A backend that counts how many graphs it was asked for."""

    def __init__(self) -> None:
        self.n_graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Any:
        self.n_graphs += 1
        return graph.forward


class Net(nn.Module):
    """Layers of its own: torch compiles no module that is all torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).relu())


def net() -> Net:
    return Net().eval()


def compiled_whole(model: nn.Module, backend: Any) -> nn.Module:
    return torch.compile(model, backend=backend)  # type: ignore[return-value]


def compiled_in_place(model: nn.Module, backend: Any) -> nn.Module:
    model.compile(backend=backend)
    return model


def compiled_inside(model: Net, backend: Any) -> nn.Module:
    model.first = torch.compile(model.first, backend=backend)  # type: ignore[assignment]
    return model


def compiled_function(model: Net, backend: Any) -> Any:
    class Calls(nn.Module):
        """Stands for the function: its layers are those of the model."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = model.first, model.second
            self.call = torch.compile(lambda x: model(x), backend=backend)

        def forward(self, x: torch.Tensor) -> Any:
            return self.call(x)

    return Calls()


HOW = [compiled_whole, compiled_in_place, compiled_inside, compiled_function]


@can_force
@pytest.mark.parametrize("compiled", HOW)
@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
def test_compiled_model_is_counted_in_full_and_not_compiled_again(
    compiled: Any, warm: bool
) -> None:
    torch.compiler.reset()
    compiler = Compiler()
    model = compiled(net(), compiler)
    with torch.no_grad():
        if warm:
            expected = model(DATA)
        with record(model, "Conv2d") as recording:
            output = model(DATA)
        assert compiler.n_graphs == (1 if warm else 0)
        assert torch.equal(model(DATA), output)
        if warm:
            assert torch.equal(output, expected)
        assert compiler.n_graphs == 1
    assert {name: c.n_states for name, c in recording.counters.items()} == {
        "first": 216,
        "second": 96,
    }


@can_force
@pytest.mark.parametrize("compiled", HOW)
def test_model_compiled_while_recording_is_counted_in_full(compiled: Any) -> None:
    torch.compiler.reset()
    compiler, model = Compiler(), net()
    with torch.no_grad():
        with record(model, "Conv2d") as recording:
            model(DATA)
            late = compiled(model, compiler)
            late(DATA)
        assert compiler.n_graphs == 0
        for _ in range(2):
            late(DATA)
        assert compiler.n_graphs == 1
    assert [c.n_states for c in recording.counters.values()] == [2 * 216, 2 * 96]


@can_force
def test_graphs_compiled_for_several_shapes_stay() -> None:
    torch.compiler.reset()
    compiler = Compiler()
    model = torch.compile(net(), backend=compiler, dynamic=False)
    batches = [DATA, DATA[:4], DATA[:3]]
    with torch.no_grad():
        for batch in batches:
            model(batch)
        with record(model, "Conv2d") as recording:  # type: ignore[arg-type]
            for batch in [*batches, DATA[:2]]:
                model(batch)
        for batch in batches:
            model(batch)
    assert compiler.n_graphs == 3
    assert recording.counters["first"].n_states == 15 * 36


@can_force
def test_compiler_first_used_while_recording_is_a_warning() -> None:
    code = """
import sys, warnings, torch
from tensorstate_callbacks.torch import record
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)
    def forward(self, x):
        return self.layer(x)
model, data = Net(), torch.ones(4, 3)
with warnings.catch_warnings(record=True) as caught, torch.no_grad():
    warnings.simplefilter("always")
    with record(model, "Linear") as recording:
        model(data)
        assert "torch._dynamo" not in sys.modules
        torch.compile(model, backend="eager")(data)
print(recording.counters["layer"].n_states, *(w.message for w in caught))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "4 torch.compile was used for the first time while states were recorded" in done.stdout


@can_force
def test_recordings_may_end_in_any_order() -> None:
    torch.compiler.reset()
    compiler = Compiler()
    model = torch.compile(net(), backend=compiler)
    first, second = hooks.forced_eager(), hooks.forced_eager()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    model(DATA)
    assert compiler.n_graphs == 0
    second.__exit__(None, None, None)
    model(DATA)
    assert compiler.n_graphs == 1


def test_where_it_cannot_be_forced_the_probe_that_saw_nothing_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.compiler.reset()
    model = torch.compile(net(), backend="eager")
    monkeypatch.delattr(torch.compiler, "set_stance", raising=False)
    with torch.no_grad():
        model(DATA)
        text = "no activations came from first, second: .*compiled"
        with pytest.warns(TensorStateWarning, match=text), record(model, "Conv2d"):
            model(DATA)


def test_compiled_for_the_first_time_while_recording_leaves_the_graph_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.compiler.reset()
    compiler = Compiler()
    model = torch.compile(net(), backend=compiler, fullgraph=True)
    monkeypatch.delattr(torch.compiler, "set_stance", raising=False)
    with torch.no_grad():
        with pytest.warns(TensorStateWarning, match="compiled"), record(model, "Conv2d"):
            model(DATA)
        model(DATA)
    assert compiler.n_graphs <= 2


def test_names_are_those_of_the_model_that_was_compiled() -> None:
    model = compiled_inside(net(), "eager")
    assert list(named_layers(torch.compile(model, backend="eager"))) == ["first", "second"]  # type: ignore[arg-type]
    assert isinstance(named_layers(model)["first"], nn.Conv2d)


def test_export_sees_no_probe() -> None:
    model = net()
    with pytest.warns(TensorStateWarning), record(model, "Conv2d") as recording:
        program = torch.export.export(model, (DATA,))
    assert not recording.counters
    assert torch.equal(program.module()(DATA), model(DATA))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_traced_graph_holds_no_probe() -> None:
    model = net()
    with pytest.warns(TensorStateWarning), record(model, "Conv2d"):
        traced = torch.jit.trace(model, DATA, check_trace=False)
    assert torch.equal(traced(DATA), model(DATA))
