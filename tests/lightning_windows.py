"""What windows of Lightning's training batches are compared with: plain hooks, and NumPy."""

import math
from typing import Any

import numpy as np
import pytest
from lightning_models import pl
from sampling_oracle import sampled_efficiency
from torch import nn

from tensorstate_callbacks import EfficiencyReport
from tensorstate_callbacks.lightning import EfficiencyCallback
from tensorstate_callbacks.recording.overrides import StandIn

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
