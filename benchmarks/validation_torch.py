"""A whole validation pass in PyTorch: its duration while it is watched over that of a plain one.

By the processor's time: one thread, and no other process counts.
"""

import logging
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.networks_torch import NETWORKS, TIMM, Batches, of_timm
from benchmarks.rows import Options, Row, Target, not_installed, relative
from benchmarks.timing import medians
from tensorstate_callbacks.reports.report import EfficiencyReport
from tensorstate_callbacks.torch import record

PART = "validation-torch"
TARGETS = {
    "LeNet-5": Target(1.03, False),
    "ResNet-18 at 64×64": Target(1.04, False),
    **dict.fromkeys(TIMM, Target(1.1, False)),
}
# Classes whose modules say nothing of the axis of their neurons: their data is followed.
ACTIVATIONS = ("ReLU", "Hardswish", "Hardsigmoid")


def run(options: Options) -> list[Row]:
    """Measure two networks in a loop of one's own and in Lightning, and deep ones in a loop."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    for name, load in NETWORKS.items():
        model, batches = load(options.quick)
        _check(model, batches, _watched(model, batches))
        plain, watched = partial(validate, model, batches), partial(_watched, model, batches)
        case = f"{name}, torch.record"
        rows.append(_compare(case, "the same loop", plain, watched, name, options))
        if not find_spec("pytorch_lightning"):
            rows.append(not_installed(PART, f"{name}, Lightning", "pytorch_lightning"))
            continue
        plain, watched = _lightning(model, batches)
        against = "the same Trainer"
        rows.append(_compare(f"{name}, Lightning", against, plain, watched, name, options))
    return rows + _deep(options)


def _deep(options: Options) -> list[Row]:
    """Measure networks of many small layers at 224×224: each call costs what is done in Python."""
    if not find_spec("timm"):
        return [not_installed(PART, name, "timm") for name in TIMM]
    rows = []
    for name, timm_name in TIMM.items():
        model, batches = of_timm(timm_name, options.quick)
        own = {type(module).__name__ for module in model.modules()}
        probed = [kind for kind in ACTIVATIONS if kind in own]
        plain = partial(validate, model, batches)
        for what, kinds in (("default layers", None), ("activations", probed)):
            watched = partial(_watched, model, batches, kinds)
            case = f"{name} at 224×224, {what}"
            rows.append(_compare(case, "the same loop", plain, watched, name, options))
    return rows


def _compare(
    case: str,
    against: str,
    plain: Callable[[], Any],
    watched: Callable[[], Any],
    network: str,
    options: Options,
) -> Row:
    taken = medians({"plain": plain, "watched": watched}, options.runs(9), time.process_time)
    milliseconds = {name: seconds * 1e3 for name, seconds in taken.items()}
    return relative(
        PART, case, against, milliseconds["watched"], milliseconds["plain"], "ms", TARGETS[network]
    )


def validate(model: nn.Module, batches: Batches) -> float:
    """Return a model's accuracy."""
    with torch.inference_mode():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in batches)
    return right / sum(len(y) for _, y in batches)


def _watched(
    model: nn.Module, batches: Batches, attach_to: list[str] | None = None
) -> EfficiencyReport:
    with record(model, attach_to) as recording:
        accuracy = validate(model, batches)
    return recording.report(accuracy=accuracy)


def _lightning(model: nn.Module, batches: Batches) -> tuple[Callable[[], Any], Callable[[], Any]]:
    import pytorch_lightning as pl

    from tensorstate_callbacks.lightning import EfficiencyCallback

    warnings.filterwarnings("ignore", module="pytorch_lightning")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

    class Validated(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            x, y = batch
            right = (self.model(x).argmax(1) == y).float().mean()
            self.log("val_accuracy", right, batch_size=len(y))

    def in_trainer(callbacks: list[Any]) -> Callable[[], Any]:
        # Of the Trainer's own, only what a validation pass can't do without.
        trainer = pl.Trainer(
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=callbacks,
        )
        module = Validated()
        loader = torch.utils.data.DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
        return lambda: trainer.validate(module, loader, verbose=False)

    return in_trainer([]), in_trainer([EfficiencyCallback()])


def _check(model: nn.Module, batches: Batches, report: EfficiencyReport) -> None:
    """Count the states of the first and the last layer by NumPy."""
    for name in (next(iter(report.layers)), list(report.layers)[-1]):
        packed: list[Any] = []
        handle = model.get_submodule(name).register_forward_hook(
            lambda module, args, output, packed=packed: packed.append(
                np.packbits((output > 0).movedim(1, -1).flatten(0, -2).numpy(), axis=1)
            )
        )
        validate(model, batches)
        handle.remove()
        rows = np.concatenate(packed)
        n_distinct = len(np.unique(rows.view(f"V{rows.shape[1]}")))
        layer = report.layers[name]
        if (layer.n_states, layer.n_distinct) != (len(rows), n_distinct):
            raise RuntimeError(f"layer {name!r} was counted otherwise than by NumPy")
