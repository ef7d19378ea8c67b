"""Run a model aside, and leave it and the generators of random numbers as they were."""

import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

# What a run aside draws from, so that two runs of the same weights give the same.
_SEED = 0


class Untouched:
    """Keeps a model in evaluation mode for a while, and puts back what a run may have changed.

    That is: which modules are in training mode, buffers, torch's generators on the host and on the
    model's devices, Python's and NumPy's. There are no gradients inside. Modules' own `train` and
    `eval` aren't called: some change weights in them (LoRA merges its own).

    In `with untouched, untouched:` all is put back twice, and so also if an interrupt arrives while
    it is put back; nothing is changed before `begin`.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modes = [(module, module.training) for module in model.modules()]
        self._buffers = list(_kept_buffers(model))
        self._generators = _Generators(model)
        self._has_gradients = torch.is_grad_enabled()
        self._caches_casts = torch.is_autocast_cache_enabled()

    def __enter__(self) -> "Untouched":
        """Do nothing yet."""
        return self

    def begin(self) -> None:
        """Be in evaluation mode from here on, without gradients."""
        torch.set_grad_enabled(False)
        # Weights that are cast now have no gradient, and are not for the training that follows.
        torch.set_autocast_cache_enabled(False)
        self._generators.seed(_SEED)
        for module, is_training in self._modes:
            if is_training:
                module.training = False

    def __exit__(self, *_: object) -> None:
        """Put all back; may be called again."""
        torch.set_grad_enabled(self._has_gradients)
        torch.set_autocast_cache_enabled(self._caches_casts)
        for module, is_training in self._modes:
            if module.training != is_training:
                module.training = is_training
        self._generators.put_back()
        for buffer in self._buffers:
            buffer.put_back()


class _Buffer(NamedTuple):
    """A buffer, and what was in it."""

    module: nn.Module
    name: str
    tensor: torch.Tensor
    version: int
    copy: torch.Tensor

    def put_back(self) -> None:
        if self.module._buffers.get(self.name) is not self.tensor:
            self.module._buffers[self.name] = self.tensor
        if self.tensor._version != self.version and not torch.equal(self.tensor, self.copy):
            self.tensor.detach().copy_(self.copy)


def _kept_buffers(model: nn.Module) -> Iterator[_Buffer]:
    for module in model.modules():
        for name, tensor in module._buffers.items():
            # One of inference mode can't be written to by what trains.
            if tensor is not None and not tensor.is_inference() and not tensor.is_meta:
                copy = tensor.detach().clone()
                yield _Buffer(module, name, tensor, tensor._version, copy)


class _Generators:
    """The generators of random numbers that a model may draw from, and their states."""

    def __init__(self, model: nn.Module) -> None:
        self._python, self._numpy = random.getstate(), np.random.get_state()
        self._torch = torch.get_rng_state()
        devices = {parameter.device for parameter in model.parameters()}
        self._devices: list[tuple[torch.device, torch.Tensor]] = []
        for device in devices:
            kind = getattr(torch, device.type, None)
            if device.type in ("cuda", "xpu") and kind is not None:
                self._devices.append((device, kind.get_rng_state(device)))
            elif device.type == "mps":
                self._devices.append((device, torch.mps.get_rng_state()))

    def seed(self, seed: int) -> None:
        random.seed(seed)
        np.random.seed(seed)
        # The host's alone: `manual_seed` would also change how other devices begin.
        torch.default_generator.manual_seed(seed)
        for device, _ in self._devices:
            if device.type == "mps":
                torch.mps.manual_seed(seed)
            else:
                kind = getattr(torch, device.type)
                with kind.device(device):
                    kind.manual_seed(seed)

    def put_back(self) -> None:
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._torch)
        for device, state in self._devices:
            if device.type == "mps":
                torch.mps.set_rng_state(state)
            else:
                getattr(torch, device.type).set_rng_state(state, device)


class UntouchedLoader:
    """Puts back the generators that reading a data loader draws from; used as `Untouched` is.

    Args:
        loader: The loader, or any iterable.
    """

    def __init__(self, loader: Any) -> None:
        self._generators = _Generators(nn.Module())
        sampler = getattr(loader, "sampler", None)
        batches = getattr(loader, "batch_sampler", None)
        owners = (loader, sampler, batches, getattr(batches, "sampler", None))
        own = {id(found): found for found in (getattr(each, "generator", None) for each in owners)}
        self._own = [
            (generator, generator.get_state())
            for generator in own.values()
            if isinstance(generator, torch.Generator)
        ]

    def __enter__(self) -> "UntouchedLoader":
        """Begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """Put all back; may be called again."""
        self._generators.put_back()
        for generator, state in self._own:
            generator.set_state(state)


def is_built(model: nn.Module) -> bool:
    """Tell whether a model has all its parameters: a lazy module makes them as it is called."""
    return not any(map(nn.parameter.is_lazy, (*model.parameters(), *model.buffers())))
