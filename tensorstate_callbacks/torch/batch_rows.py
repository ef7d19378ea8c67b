"""Cut a layer's activations to the first samples of a batch, which are the rank's own.

Activations rarely say which axis is the batch. What is known: the number of samples, the axis of
the neurons, for some modules the axis of the batch, and the shapes of the batches before.
"""

import torch
from torch import nn

from tensorstate_callbacks.recording.channel_axis import Axis, normal_axes
from tensorstate_callbacks.torch.distributed.own_samples import ActiveLoader, BatchSamples
from tensorstate_callbacks.torch.module_axis import rule_axis


class BatchRows:
    """Leaves out the samples of a batch that other ranks count.

    Attributes:
        n_samples: How many samples the model was given in the run that is under way; None where
            that isn't known.
        samples: Of the batch that is under way; None where that wasn't given.
        loader: Where it wasn't, gives it of a loader that is known without being named, or None.
        doubts: What had to be assumed, for each probe where that was so.
        left_out: Probes of which a whole batch was left out.
    """

    def __init__(self) -> None:
        self.n_samples: int | None = None
        self.samples: BatchSamples | None = None
        self.loader: ActiveLoader | None = None
        self.doubts: dict[str, str] = {}
        self.left_out: set[str] = set()
        self._candidates: dict[str, set[int]] = {}

    def keeps_all(self) -> bool:
        """Tell whether nothing is known that could leave out samples of the batch."""
        return self._samples() is None

    @property
    def n_own(self) -> int | None:
        """How many samples of the batch are the rank's own; None where all are."""
        samples = self._samples()
        return None if samples is None or samples.n_own == samples.n_all else samples.n_own

    def by_sample(
        self,
        module: nn.Module,
        tensor: torch.Tensor,
        channel_axis: Axis,
        n_samples: int | None = None,
    ) -> tuple[torch.Tensor, Axis, int | None]:
        """Return the activations, the axis of the neurons and the axis of the samples.

        Several rows of each sample, one after the other, become an axis of their own. Where nothing
        else is known, the samples lie along axis 0.

        Args:
            module: The probed module.
            tensor: What it took or gave in one call, in strided memory.
            channel_axis: The axis of its neurons.
            n_samples: So many of the batch's samples are left in it; None where all are.
        """
        shape = tuple(tensor.shape)
        axes = normal_axes(channel_axis, shape)
        known = _batch_axis(module, shape)
        if known is not None:
            return tensor, channel_axis, None if known < 0 else known
        n_all = self.n_samples if n_samples is None else n_samples
        if 0 in axes or n_all is None or shape[0] == n_all or not n_all:
            return tensor, channel_axis, None if 0 in axes else 0
        if shape[0] % n_all == 0:
            further = [axis + 1 for axis in axes]
            # No copy: an axis can be divided wherever the entries lie.
            view = tensor.reshape(n_all, shape[0] // n_all, *shape[1:])
            return view, further[0] if isinstance(channel_axis, int) else tuple(further), 0
        among = [axis for axis, size in enumerate(shape) if size == n_all and axis not in axes]
        return tensor, channel_axis, min(among, default=0)

    def own(
        self, probe: str, module: nn.Module, tensor: torch.Tensor, channel_axis: Axis
    ) -> torch.Tensor | None:
        """Return the activations of the rank's own samples; None where there is none.

        Args:
            probe: The probe.
            module: The probed module.
            tensor: What it took or gave in one call.
            channel_axis: The axis of its neurons.
        """
        samples = self._samples()
        if samples is None:
            return tensor
        n_all, n_own = samples
        axes = self._axes(probe, module, tensor, channel_axis, n_all)
        if n_own == n_all:
            return tensor
        if not n_own:
            self.left_out.add(probe)
            return None
        if tensor.is_nested:
            if tensor.size(0) == n_all:
                return torch.nested.as_nested_tensor(list(tensor.unbind()[:n_own]))
            axes = set()
        if len(axes) > 1:
            self._doubt(probe, tensor, "its axis 0 was taken for the batch", n_all)
        if axes:
            return tensor.narrow(min(axes), 0, n_own)
        if _is_flat(module, tensor, channel_axis, n_all):
            self._doubt(probe, tensor, "its axis 0 was taken to hold sample after sample", n_all)
            return tensor.narrow(0, 0, tensor.shape[0] // n_all * n_own)
        self._doubt(probe, tensor, "all of it was counted", n_all)
        return tensor

    def _samples(self) -> BatchSamples | None:
        if self.samples is None and self.loader is not None:
            return self.loader.samples()
        return self.samples

    def _axes(
        self, probe: str, module: nn.Module, tensor: torch.Tensor, channel_axis: Axis, n_all: int
    ) -> set[int]:
        """The axes that may be the batch, as far as this and earlier batches tell."""
        if tensor.is_nested:
            return set()
        axes = {axis for axis in range(tensor.ndim) if tensor.shape[axis] == n_all}
        axes -= set(normal_axes(channel_axis, tensor.shape))
        known = _batch_axis(module, tuple(tensor.shape))
        if known is not None:
            axes &= {known}
        axes &= self._candidates.get(probe, axes)
        # A batch of one says little: many axes have one entry.
        if n_all > 1 and axes:
            self._candidates[probe] = axes
        return axes

    def _doubt(self, probe: str, tensor: torch.Tensor, assumed: str, n_all: int) -> None:
        shape = "nested" if tensor.is_nested else str(tuple(tensor.shape))
        self.doubts.setdefault(probe, f"{probe} {shape}, of {n_all} samples: {assumed}")


def _batch_axis(module: nn.Module, shape: tuple[int, ...]) -> int | None:
    """The axis that the module's type says is the batch; -1 for none, None where it isn't known."""
    n_axes = len(shape)
    batch_first = getattr(module, "batch_first", None)
    if isinstance(batch_first, bool):
        return int(not batch_first) if n_axes == 3 else -1
    axis = rule_axis(module, shape)
    # Before the neurons of convolution, pooling and batch normalization comes the batch.
    if axis is None or axis == -1 or hasattr(module, "normalized_shape"):
        return None
    return n_axes + axis - 1


def _is_flat(module: nn.Module, tensor: torch.Tensor, channel_axis: Axis, n_all: int) -> bool:
    # The rows of a PackedSequence, all that a recurrent layer takes with two axes, go by time.
    packed = isinstance(module, nn.RNNBase)
    first_is_free = tensor.ndim > 1 and 0 not in normal_axes(channel_axis, tensor.shape)
    return not packed and first_is_free and tensor.shape[0] % n_all == 0
