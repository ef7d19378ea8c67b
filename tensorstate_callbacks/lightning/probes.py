"""Run a LightningModule on probe data between Lightning's own steps."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from torch.distributed import is_available

from tensorstate_callbacks.lightning.ranks import find_group
from tensorstate_callbacks.metrics.turnover import ProbeChange
from tensorstate_callbacks.recording.overrides import Overrides
from tensorstate_callbacks.recording.probe_states import FollowedProbe
from tensorstate_callbacks.recording.recorder import Recorder
from tensorstate_callbacks.torch.distributed.ranks import gather_outcomes
from tensorstate_callbacks.torch.probe_data import ProbeData
from tensorstate_callbacks.torch.probe_set import run_probe
from tensorstate_callbacks.torch.record import Recording
from tensorstate_callbacks.torch.untouched import is_built

if TYPE_CHECKING:
    import pytorch_lightning as pl


def follow_module(
    probe: FollowedProbe,
    trainer: "pl.Trainer",
    module: "pl.LightningModule",
    new_recording: Callable[[], Recording],
    *,
    is_beginning: bool = False,
) -> dict[str, ProbeChange]:
    """Run a module on probe data, and return how its layers' states have changed.

    Processes that share the module all call this, and get what the first of them has.

    Args:
        probe: Follows the samples.
        trainer: The Trainer.
        module: Its module.
        new_recording: Makes a recording of its layers.
        is_beginning: Training hasn't begun.

    Raises:
        RankError: Another process failed, or is gone; names its rank.
        TooMuchDataError: At the beginning: the states take too much memory.
    """
    if probe.data is None or (is_beginning and not is_built(module)):
        return {}
    group = find_group(trainer)
    gather = None if group is None else partial(gather_outcomes, group=group)
    return probe.record(
        lambda: _run(trainer, module, probe.data, new_recording().of_probe()),
        gather,
        is_beginning=is_beginning,
    )


def _run(
    trainer: "pl.Trainer", module: "pl.LightningModule", data: ProbeData, recording: Recording
) -> Recorder:
    """Run a module's `forward` on probe data, in the precision of the Trainer's steps."""
    precision = trainer.precision_plugin
    # FSDP gathers what it has split of the module itself as its wrapper is called.
    wrapper = trainer.strategy.model
    runs = wrapper if wrapper is not None and _is_fsdp(wrapper) else module

    def call(*args: Any, **kwargs: Any) -> Any:
        return runs(*precision.convert_input(args), **precision.convert_input(kwargs))

    entries = Overrides()
    with entries, entries:
        # What a `forward` logs would join the metrics of the evaluation.
        for name in ("log", "log_dict"):
            entries.set(module, name, _log_nothing)
        return run_probe(module, data.batches, recording, call, precision.forward_context)


def _is_fsdp(model: Any) -> bool:
    if not is_available():
        return False
    from torch.distributed.fsdp import FullyShardedDataParallel

    return isinstance(model, FullyShardedDataParallel)


def _log_nothing(*_: Any, **__: Any) -> None:
    return None
