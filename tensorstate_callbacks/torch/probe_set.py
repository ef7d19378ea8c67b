"""Follow the states of a few samples in a PyTorch model, from one recording to the next."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from tensorstate_callbacks.errors import WarnOnce
from tensorstate_callbacks.metrics.turnover import ProbeChange
from tensorstate_callbacks.recording.probe_states import FollowedProbe, end_batch
from tensorstate_callbacks.recording.recorder import Recorder
from tensorstate_callbacks.torch.probe_data import ProbeBatch, ProbeData, device_of
from tensorstate_callbacks.torch.untouched import Untouched

if TYPE_CHECKING:
    from tensorstate_callbacks.torch.record import Recording


class ProbeSet:
    """A few samples whose states are followed over several recordings of one model.

    Give the same one to each evaluation's `record(..., probe_data=probe)`: as a block ends, the
    model is run on the samples once more, in evaluation mode and without gradients, and its states
    are compared with those of the blocks before; see `ProbeChange`. Samples that a `record` is
    given itself are followed in that recording only, which has NASWOT's score and no change.

    The run changes nothing: training modes, buffers and generators of random numbers are put back.
    The generators start from one seed, so that a model that draws numbers in evaluation mode too
    draws the same ones each time. Where the block ends under autocast, so does the run.

    Args:
        data: A batch as a data loader gives it, or a loader or list of batches; at most 1,024
            samples. Of a tuple or list, such as `(x, y)`, the first element is the input. It is
            called as `model(x)`; a tuple or list of tensors as `model(*x)`; a mapping as
            `model(**x)`, without what `forward` doesn't take. The data is read once, at the first
            use, and kept on its device.

    Raises:
        TypeError: `data` is neither a batch nor an iterable of batches.
        ValueError: At the first use: it has more samples, or none.

    Examples:
        >>> import torch
        >>> from tensorstate_callbacks.torch import record
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
        >>> probe, data = ProbeSet(torch.eye(4)), torch.ones(10, 4)
        >>> for _ in range(2):
        ...     with record(model, "Linear", probe_data=probe) as recording:
        ...         _ = model(data)
        ...     report = recording.report()
        >>> report.layers["0"].probe.since_previous
        0.0
    """

    def __init__(self, data: Any) -> None:
        self.data = ProbeData(data)
        self._followed = FollowedProbe(WarnOnce())
        self._followed.data = self.data

    @classmethod
    def of(cls, data: Any) -> "ProbeSet":
        """Return what was given as `probe_data`: a `ProbeSet`, or one of these samples."""
        return data if isinstance(data, ProbeSet) else cls(data)

    def record(self, model: nn.Module, recording: "Recording") -> Mapping[str, ProbeChange]:
        """Run a model on the samples, and return how each layer's states have changed.

        Args:
            model: The model.
            recording: Keeps the states; see `Recording.of_probe`.
        """
        return self._followed.record(lambda: run_probe(model, self.data.batches, recording))

    def state_dict(self) -> dict[str, Any]:
        """Return the first and the latest recording, packed, for a checkpoint of your own.

        Recordings of more than 16 MiB are left out: a training that goes on from there begins anew.
        """
        return saved_series(self._followed)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave, if that was of the same samples."""
        load_series(self._followed, state_dict)


def read_data(given: Any) -> ProbeData:
    """Return the samples that a callback is given, which may be those of a `ProbeSet`."""
    return ProbeSet.of(given).data


def saved_series(followed: FollowedProbe) -> dict[str, Any]:
    """Return the recordings of probe data for a checkpoint; empty where there are none."""
    layers = followed.series.state_dict() if len(followed.series) else {}
    return {"digest": followed.data.digest, "layers": layers} if layers else {}


def load_series(followed: FollowedProbe, saved: Mapping[str, Any]) -> bool:
    """Go on from the recordings of a checkpoint; tell whether they are of the same samples."""
    if saved.get("digest") != followed.data.digest:
        return False
    followed.series.load_state_dict(saved["layers"])
    return True


def run_probe(
    model: nn.Module,
    batches: list[ProbeBatch],
    recording: "Recording",
    call: Callable[..., object] | None = None,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Recorder:
    """Run a model on probe data, and leave it as it was.

    Args:
        model: The model.
        batches: The samples.
        recording: Keeps the states; see `Recording.of_probe`.
        call: Runs it; None: itself, without what would exchange buffers between processes.
        context: Made for each batch, around the run.

    Returns:
        What has kept the states.
    """
    if call is None:
        call = model.module if isinstance(model, (DataParallel, DistributedDataParallel)) else model
    untouched = Untouched(model)
    try:
        try:
            # Not in inference mode: what a module would keep of it could not be trained with.
            with untouched, untouched, torch.inference_mode(False):
                untouched.begin()
                recording.open(trial=True)
                recording.pause()
                for batch in batches:
                    _run_batch(model, batch, recording, call, context)
                recording.conclude()
                return recording.recorder
        finally:
            recording.close()
    finally:
        # Again, should an interrupt have arrived in the line above.
        recording.close()


def _run_batch(
    model: nn.Module,
    batch: ProbeBatch,
    recording: "Recording",
    call: Callable[..., object],
    context: Callable[[], AbstractContextManager[Any]],
) -> None:
    args, kwargs = batch.call(model, device_of(model))
    recording.resume(None, batch.n_samples, batch.given)
    try:
        with context():
            call(*args, **kwargs)
    finally:
        recording.pause()
    end_batch(recording.recorder, batch.n_samples)
