"""PyTorch: record the states of any `torch.nn.Module` while it runs in a loop of one's own."""

from tensorstate_callbacks._optional import require

require("torch", extra="lightning", purpose="tensorstate_callbacks.torch")

from tensorstate_callbacks.torch.own_samples import own_samples  # noqa: E402
from tensorstate_callbacks.torch.record import Recording, record  # noqa: E402
from tensorstate_callbacks.torch.state_capture import StateCaptureHook  # noqa: E402

__all__ = ["Recording", "StateCaptureHook", "own_samples", "record"]
