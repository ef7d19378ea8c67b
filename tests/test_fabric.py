"""Models that Lightning's Fabric has set up have the layers, names and figures that they had."""

import copy
from importlib import import_module
from typing import Any

import pytest
import torch
from lightning_models import NAMESPACE, VAL, Classifier
from torch import nn

from tensorstate_callbacks.torch import record

FABRIC = {"pytorch_lightning": "lightning_fabric", "lightning.pytorch": "lightning.fabric"}
X = VAL.tensors[0]


@pytest.fixture(scope="module")
def fabric() -> Any:
    return import_module(FABRIC[NAMESPACE]).Fabric(accelerator="cpu", devices=1)


def net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize("attach_to", [None, "0", "Linear", "[02]", nn.Linear])
def test_layers_have_their_plain_names(fabric: Any, attach_to: Any) -> None:
    reports = []
    for model in (net(), fabric.setup(net())):
        with record(model, attach_to) as recording, torch.no_grad():
            model(X)
        reports.append(recording.report(accuracy=0.5))
    assert reports[0].layers["0"].n_states == len(X)
    assert reports[0] == reports[1]


def test_layer_alone_is_named_by_its_class(fabric: Any) -> None:
    model = fabric.setup(nn.Linear(6, 4))
    with record(model, "Linear") as recording:
        model(X)
    assert list(recording.counters) == ["Linear"]


def test_module_of_a_larger_one_has_its_plain_name(fabric: Any) -> None:
    model = nn.ModuleDict({"part": fabric.setup(net()), "head": nn.Linear(3, 2)})
    with record(model) as recording:
        model["head"](model["part"](X))
    assert list(recording.counters) == ["part.0", "part.2"]


@pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="torch before 2.6")
def test_compiled_module_has_its_plain_names(fabric: Any) -> None:
    torch.compiler.reset()
    for model in (
        fabric.setup(torch.compile(net(), backend="eager")),
        torch.compile(fabric.setup(net()), backend="eager"),
    ):
        with record(model, ["0", "2"]) as recording, torch.no_grad():
            model(X)
        assert list(recording.counters) == ["0", "2"]


def test_wrapper_of_a_strategy_is_no_part_of_a_name(fabric: Any) -> None:
    class Wrapped(nn.DataParallel):
        """Stands for DistributedDataParallel, which takes several processes."""

    model = fabric.setup(net())
    model._forward_module = Wrapped(model._forward_module)
    with record(model, ["0", "2"]) as recording, torch.no_grad():
        model(X)
    assert list(recording.counters) == ["0", "2"]


def test_steps_of_a_lightning_module_are_counted(fabric: Any) -> None:
    plain = Classifier("never")
    wrapped = fabric.setup(copy.deepcopy(plain))
    reports = []
    for model in (plain, wrapped):
        with record(model) as recording, torch.no_grad():
            model.validation_step(VAL.tensors, 0)
        reports.append(recording.report())
    assert list(reports[0].layers) == ["net.0", "net.2"]
    assert reports[0] == reports[1]


def test_modules_attribute_is_no_wrapper() -> None:
    class Own(nn.Module):
        """Has a layer of a name that wrappers use, and passes calls on to more than that."""

        def __init__(self) -> None:
            super().__init__()
            self.module, self.last = nn.Linear(6, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.module(x))

    with record(Own(), "Linear") as recording:
        recording._model(X)
    assert list(recording.counters) == ["module", "last"]
