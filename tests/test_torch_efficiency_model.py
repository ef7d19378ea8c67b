"""build_efficiency_model on PyTorch modules: hooks of ours in forward order, and off again."""

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from state_oracle import expected_states
from torch import nn
from torch_models import all_hooks, collect, images, small_net

from tensorstate_callbacks import NoLayerMatchedError, TensorStateWarning
from tensorstate_callbacks.tensorstate import (
    build_efficiency_model,
    efficiency_layers,
    remove_state_layers,
    reset_efficiency_model,
)
from tensorstate_callbacks.torch import StateCaptureHook


def captured(hook: StateCaptureHook) -> dict[bytes, int]:
    return dict(zip(hook.state_ids(), map(int, hook.counts()), strict=True))


def names(model: Any) -> list[str]:
    return [layer.name for layer in model.efficiency_layers]


def test_states_of_inputs_and_outputs_are_those_numpy_counts() -> None:
    model = small_net()
    inputs, _ = collect(model[2], inputs=True)
    outputs, _ = collect(model[2])
    built = build_efficiency_model(model, attach_to=["2"], method="both", threshold=0.25)
    assert built is model
    for batch in images().split(5):
        model(batch)
    assert names(model) == ["2_pre_states", "2_post_states"]
    pre, post = model.efficiency_layers
    assert captured(pre) == expected_states(inputs, 1, 0.25)
    assert captured(post) == expected_states(outputs, 1, 0.25)


def test_attach_to_and_exclude_take_class_and_layer_names() -> None:
    class Wider(nn.Linear):
        pass

    class Widest(Wider):
        pass

    model = nn.Sequential(nn.Conv2d(3, 7, 3), nn.Flatten(), Widest(343, 5), nn.Linear(5, 2))
    assert names(build_efficiency_model(model, ["Conv2d", "Linear"], exclude=["3"])) == [
        "0_post_states",
        "2_post_states",
    ]
    assert names(build_efficiency_model(small_net())) == ["0_post_states", "2_post_states"]
    with pytest.raises(NoLayerMatchedError, match=r"'Conv2D' matched no layer.*Conv2d \(2\)"):
        build_efficiency_model(small_net(), ["Conv2D"])


class Backwards(nn.Module):
    """Defined from its end to its beginning."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.twice, self.first = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.twice(self.twice(self.first(x))))


def test_layers_are_in_the_order_of_the_first_pass() -> None:
    model = build_efficiency_model(Backwards(), "Linear", method="both")
    defined = [f"{n}_{side}_states" for n in ("last", "twice", "first") for side in ("pre", "post")]
    assert names(model) == defined
    twin = copy.deepcopy(model)
    model(torch.randn(3, 4))
    called = [f"{n}_{side}_states" for n in ("first", "twice", "last") for side in ("pre", "post")]
    assert names(model) == called
    assert [layer.state_count for layer in model.efficiency_layers] == [3, 3, 6, 6, 3, 3]
    assert names(twin) == defined
    twin(torch.randn(2, 4))
    assert names(twin) == called
    assert [layer.state_count for layer in twin.efficiency_layers] == [2, 2, 4, 4, 2, 2]


def test_second_call_adds_what_is_missing_and_nothing_twice() -> None:
    model = build_efficiency_model(small_net(), "Conv2d")
    once = all_hooks(model)
    assert build_efficiency_model(model, "Conv2d") is model
    assert all_hooks(model) == once
    first = model.efficiency_layers[0]
    build_efficiency_model(model, ["Conv2d", "Linear"])
    assert names(model) == ["0_post_states", "2_post_states", "4_post_states"]
    assert model.efficiency_layers[0] is first
    with pytest.raises(ValueError, match="remove_state_layers"):
        build_efficiency_model(model, "Conv2d", threshold=0.5)


@pytest.mark.parametrize("attach_to", ["Conv2d", "ReLU"])
def test_remove_takes_ours_and_leaves_the_users(attach_to: str) -> None:
    model, own = small_net(), StateCaptureHook("own")
    collect(model[0])
    model[0].register_forward_hook(own)
    before, attributes = all_hooks(model), set(vars(model))
    build_efficiency_model(model, attach_to, method="both")
    assert all_hooks(model) != before
    model(images(1))
    assert remove_state_layers(model) is model
    assert all_hooks(model) == before
    assert set(vars(model)) == attributes
    model(images(2))
    assert own.state_count == 3 * 49
    assert remove_state_layers(model) is model


def test_copy_is_taken_off_on_its_own() -> None:
    model = build_efficiency_model(small_net(), "ReLU")
    twin = copy.deepcopy(model)
    remove_state_layers(twin)
    assert not any(any(hooks) for hooks in all_hooks(twin))
    model(images(2))
    assert model.efficiency_layers[0].state_count == 2 * 49


def test_reset_forgets_what_was_captured() -> None:
    model = build_efficiency_model(small_net(), "Conv2d")
    model(images(2))
    reset_efficiency_model(model)
    assert [layer.state_count for layer in model.efficiency_layers] == [0, 0]
    model(images(3))
    assert [layer.state_count for layer in model.efficiency_layers] == [3 * 49, 3 * 25]


def test_activation_has_the_axis_of_what_produced_its_input() -> None:
    for layer, n_neurons in ((nn.Linear(9, 5), 5), (nn.Conv1d(3, 6, 2), 6)):
        model = nn.Sequential(layer, nn.ReLU())
        for built in (copy.deepcopy(model), model):
            build_efficiency_model(built, "ReLU", method="both")
            (twin := copy.deepcopy(built))(torch.randn(2, 3, 9))
            assert [hook.max_entropy() for hook in twin.efficiency_layers] == [n_neurons] * 2


def test_raw_states_are_kept_in_memory_or_in_a_folder(tmp_path: Path) -> None:
    kept = build_efficiency_model(small_net(), "Conv2d", keep_raw=True)
    stored = build_efficiency_model(small_net(), "Conv2d", storage_path=tmp_path)
    for model in (kept, stored):
        model(images())
    for a, b in zip(kept.efficiency_layers, stored.efficiency_layers, strict=True):
        assert (a.raw_states == b.raw_states).all()
        assert a.counts([3]).sum() == a.state_count / 12
    before = all_hooks(model := small_net())
    with pytest.raises(FileExistsError):
        build_efficiency_model(model, "Conv2d", storage_path=tmp_path)
    assert all_hooks(model) == before
    assert not hasattr(model, "efficiency_layers")
    build_efficiency_model(model, "Conv2d", storage_path=tmp_path, resume=True)
    model(images())
    for a, b in zip(kept.efficiency_layers, model.efficiency_layers, strict=True):
        assert (b.counts() == 2 * a.counts()).all()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.second = nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.act(self.first(x)))


def test_model_built_first_and_compiled_then_is_captured_in_full() -> None:
    torch.compiler.reset()
    data = torch.randn(2, 3, 7, 9)
    plain = build_efficiency_model(Net(), ["act", "second"])
    twin = copy.deepcopy(plain)
    compiled = torch.compile(twin, backend="eager")
    with torch.no_grad():
        for _ in range(2):
            plain(data)
            compiled(data)
    assert [captured(a) for a in plain.efficiency_layers] == [
        captured(b) for b in twin.efficiency_layers
    ]
    assert plain.efficiency_layers[0].max_entropy() == 5
    assert efficiency_layers(compiled) == list(twin.efficiency_layers)
    remove_state_layers(compiled)
    assert not any(any(hooks) for hooks in all_hooks(twin))


def test_model_compiled_first_is_a_warning() -> None:
    torch.compiler.reset()
    model = torch.compile(Net(), backend="eager")
    with pytest.warns(
        TensorStateWarning, match="the model is compiled.*build_efficiency_model first"
    ):
        build_efficiency_model(model, "first")
    inside = Net()
    inside.second.compile(backend="eager")
    with pytest.warns(TensorStateWarning, match="layer 'second' is compiled"):
        build_efficiency_model(inside, "first")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_efficiency_model(Net(), "first")


def test_lightning_module_is_a_module() -> None:
    from lightning_models import Classifier

    model = build_efficiency_model(Classifier(), "Linear", exclude="net.4")
    model(torch.randn(7, 6))
    assert [(h.name, h.state_count) for h in model.efficiency_layers] == [
        ("net.0_post_states", 7),
        ("net.2_post_states", 7),
    ]
    assert "efficiency_layers" not in str(model.state_dict().keys())


def test_what_is_no_model_or_not_built_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"keras.Model.*torch.nn.Module.*got builtins.int"):
        build_efficiency_model(3)
    with pytest.raises(ValueError, match="Sequential has no state layers: build_efficiency_model"):
        reset_efficiency_model(small_net())
    with pytest.raises(ValueError, match="method must be one of after, before, both"):
        build_efficiency_model(small_net(), "Conv2d", method="between")  # type: ignore[arg-type]
    model = small_net()
    model.efficiency_layers = [1]  # type: ignore[assignment]
    with pytest.raises(ValueError, match="attribute 'efficiency_layers' of its own"):
        build_efficiency_model(model, "Conv2d")
    assert model.efficiency_layers == [1]


class Turned(nn.Module):
    """A dense layer by another name, as GPT-2 has it: the weight is (in, out)."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_in, n_out))
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


class Table(nn.Module):
    """Has a weight of two axes, and is no dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(5, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.places


def test_default_is_the_dense_layers_by_any_name_but_the_one_called_last() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = Table(), nn.Linear(6, 2)
            self.first, self.second = Turned(4, 6), nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.second(self.first(self.table(x))))

    model = build_efficiency_model(Model())
    # Before the first run the layer defined last is taken for the one of the output.
    assert [hook.name for hook in model.efficiency_layers] == [
        "head_post_states",
        "first_post_states",
    ]
    for _ in range(2):
        model(torch.randn(3, 5, 4))
    assert [(hook.name, hook.state_count) for hook in model.efficiency_layers] == [
        ("first_post_states", 30),
        ("second_post_states", 30),
    ]
    # A second call adds nothing, also not the layer that turned out to make the output.
    assert len(build_efficiency_model(model).efficiency_layers) == 2
