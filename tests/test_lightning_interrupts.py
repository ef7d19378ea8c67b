"""Ctrl-C at any line of a Lightning run leaves nothing that acts, and the next one is right."""

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from interrupts import at_random_times, each_line
from lightning_models import QUIET, VAL, Classifier, loader, trainer

from tensorstate_callbacks.lightning import EfficiencyCallback
from tensorstate_callbacks.torch.hooks import Hook

pytestmark = [pytest.mark.filterwarnings(text) for text in QUIET]

# All lines, and many interrupts: `make soak`.
ALL = bool(os.environ.get("TENSORSTATE_SOAK"))
FILES = [
    *(f"lightning/{name}.py" for name in ("callback", "evaluation", "logged_metrics", "steps")),
    *(f"torch/{name}.py" for name in ("record", "watch", "hooks", "tensor_recorder")),
    *(f"recording/{name}.py" for name in ("callback", "overrides", "recorder", "windows")),
]


@pytest.fixture(autouse=True)
def sigint() -> Iterator[None]:
    # Lightning ignores Ctrl-C from the first one on.
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def run(model: Classifier, *callbacks: Any) -> dict[str, float]:
    model.train()
    model.n_right = model.n_seen = 0
    # Lightning turns Ctrl-C into an exit, or (before 2.5) into a run that ends as if it were done.
    fitted = trainer(*callbacks, max_epochs=1, num_sanity_val_steps=0)
    with contextlib.suppress(SystemExit):
        fitted.fit(model, loader(VAL, 50), loader(VAL, 25))
    return {key: value.item() for key, value in fitted.callback_metrics.items()}


def numbers(callback: EfficiencyCallback) -> list[tuple[Any, ...]]:
    return [
        (name, layer.n_states, layer.n_distinct, layer.entropy)
        for report in (callback.last, callback.train_history[-1])
        for name, layer in report.layers.items()
    ]


def hooked(model: Classifier) -> list[Any]:
    own = [sorted(vars(m).keys() & set(dir(type(m)))) for m in model.modules()]
    ours = [
        hook
        for m in model.modules()
        for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())
        if isinstance(hook, Hook)
    ]
    return [own, ours]


class Checks:
    """A model that doesn't learn, and what is logged of it without an interrupt."""

    def __init__(self) -> None:
        self.model = Classifier("epoch_end", scripted=None)
        self.model.configure_optimizers = (  # type: ignore[method-assign]
            lambda: torch.optim.SGD(self.model.parameters(), 0.0)
        )
        self.outputs, self.hooked = self.model(VAL.tensors[0]), hooked(self.model)
        self.callback = EfficiencyCallback(on=("val", "train"), every_n_train_steps=1, window=1)
        self.metrics = run(self.model, self.callback)
        self.numbers = numbers(self.callback)
        assert {states for _, states, _, _ in self.numbers} == {50}
        assert {"val_aiq", "train_efficiency"} <= self.metrics.keys()

    def check(self, where: str) -> None:
        # PyTorch loses that gradients are wanted again, where `no_grad` ends.
        torch.set_grad_enabled(True)
        n_reports = len(self.callback.history)
        self.callback.train_history.clear()
        assert torch.equal(self.model(VAL.tensors[0]), self.outputs), where
        self.model.validation_step([t[:5] for t in VAL.tensors], 0)
        self.model.n_right = self.model.n_seen = 0
        assert run(self.model, self.callback) == self.metrics, where
        assert numbers(self.callback) == self.numbers, where
        assert len(self.callback.history) == n_reports + 1, where
        assert len(self.callback.train_history) == 1, where
        assert hooked(self.model) == self.hooked, where


@pytest.fixture(scope="module")
def checks() -> Checks:
    return Checks()


def test_an_interrupt_at_any_line_leaves_nothing_that_acts(checks: Checks) -> None:
    n_lines = 0
    most = None if ALL else 20
    for where in each_line(FILES, lambda: run(checks.model, checks.callback), most=most):
        checks.check(where)
        n_lines += 1
    print(f"interrupted at {n_lines} lines")
    assert n_lines >= 15


# Where it arrives in a callback of a framework's own, that says so; Lightning's own metrics say
# that they were asked before they were given anything.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric _ResultMetric")
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="Windows has no timer signals")
def test_an_interrupt_at_any_time_leaves_nothing_that_acts(checks: Checks) -> None:
    n_interrupts = 0
    for arrived in at_random_times(
        lambda: run(checks.model, checks.callback), 200 if ALL else 6, errors=(RuntimeError,)
    ):
        n_interrupts += arrived
        checks.check("signal")
    assert n_interrupts >= 2
