"""Run a LightningModule on probe data between Lightning's own steps."""

from typing import TYPE_CHECKING, Any

from torch.distributed import is_available

from tensorstate_callbacks.recording.overrides import Overrides
from tensorstate_callbacks.recording.recorder import Recorder
from tensorstate_callbacks.torch.probe_data import ProbeData
from tensorstate_callbacks.torch.probe_set import run_probe
from tensorstate_callbacks.torch.record import Recording

if TYPE_CHECKING:
    import pytorch_lightning as pl


def run_module(
    trainer: "pl.Trainer", module: "pl.LightningModule", data: ProbeData, recording: Recording
) -> Recorder:
    """Run a module's `forward` on probe data, in the precision of the Trainer's steps.

    Args:
        trainer: The Trainer.
        module: Its module.
        data: The samples.
        recording: Keeps the states; see `Recording.of_probe`.
    """
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
