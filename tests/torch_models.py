"""Small PyTorch models for tests, and what hangs on them."""

from typing import Any

import torch
from state_oracle import counted_states
from torch import nn

from tensorstate_callbacks.torch import record


def images(n: int = 12) -> torch.Tensor:
    return torch.randn(n, 3, 9, 9, generator=torch.Generator().manual_seed(1))


def small_net() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(3, 7, 3),
        nn.ReLU(inplace=True),
        nn.Conv2d(7, 5, 3),
        nn.Flatten(),
        nn.Linear(125, 4),
    ).eval()


def all_hooks(model: nn.Module) -> list[list[Any]]:
    return [
        [*m._forward_hooks.values(), *m._forward_pre_hooks.values(), *m._forward_hooks_with_kwargs]
        for m in model.modules()
    ]


def collect(module: nn.Module, *, inputs: bool = False) -> tuple[list[torch.Tensor], Any]:
    """A hook of the user's that keeps clones of what the module gives or takes."""
    seen: list[torch.Tensor] = []

    def keep(_: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        seen.append((args[0] if inputs else output).clone())

    return seen, module.register_forward_hook(keep)


def recorded(model: nn.Module, *batches: torch.Tensor, **options: Any) -> dict[str, Any]:
    """The states of its convolutions and activations, and how often each was seen."""
    with torch.no_grad(), record(model, ["Conv2d", "ReLU"], **options) as recording:
        for batch in batches:
            model(batch)
    return {name: counted_states(counter) for name, counter in recording.counters.items()}
