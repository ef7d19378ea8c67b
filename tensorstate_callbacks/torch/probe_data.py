"""Read probe data for PyTorch: a few samples, once, in their order."""

import hashlib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from tensorstate_callbacks.recording.probe_states import check_n_samples
from tensorstate_callbacks.torch.activations import count_samples
from tensorstate_callbacks.torch.layers import unwrap
from tensorstate_callbacks.torch.untouched import UntouchedLoader


class ProbeBatch(NamedTuple):
    """A batch of probe data.

    Attributes:
        given: As it was given.
        n_samples: How many samples it has.
    """

    given: Any
    n_samples: int

    def call(self, model: nn.Module, device: torch.device | None) -> tuple[tuple[Any, ...], Any]:
        """Return the arguments and keyword arguments that a model is called with.

        Args:
            model: The model.
            device: Where it is; None where that isn't known.
        """
        x = _input_of(self.given)
        if isinstance(x, Mapping):
            names = _parameters(model)
            return (), {
                name: moved(value, device)
                for name, value in x.items()
                if names is None or name in names
            }
        parts = x if isinstance(x, (tuple, list)) else (x,)
        return tuple(moved(part, device) for part in parts), {}


class ProbeData:
    """The samples, read at the first use and held.

    Args:
        data: A batch as a loader gives it, or an iterable of batches; see `ProbeSet`.

    Raises:
        TypeError: It is neither.
    """

    def __init__(self, data: Any) -> None:
        self._data = data
        self._batches: list[ProbeBatch] | None = None
        self._digest = ""
        is_dataset = isinstance(data, Dataset) and not isinstance(data, IterableDataset)
        if is_dataset or isinstance(data, (str, bytes)) or not isinstance(data, Iterable):
            raise TypeError(
                "probe_data takes a tensor, a tuple or mapping of tensors as a data loader gives "
                f"them, or a DataLoader with a few batches; got {type(data).__name__}"
            )

    @property
    def batches(self) -> list[ProbeBatch]:
        """The batches.

        Raises:
            TooMuchDataError: There are more samples than probe data may have.
            TypeError: A batch has no tensor.
            ValueError: There are no samples.
        """
        if self._batches is None:
            batches = _read(self._data)
            self._digest = _digest_of([_input_of(batch.given) for batch in batches])
            self._batches = batches
            # What was read is held, what it was read from isn't.
            self._data = None
        return self._batches

    @property
    def digest(self) -> str:
        """Tells other samples from these, as a text."""
        _ = self.batches
        return self._digest

    @property
    def described(self) -> str:
        """Its digest; or that it can't be read, as a run over it warns of."""
        try:
            return self.digest
        except Exception as error:  # noqa: BLE001 - a loader of the user's may raise anything
            return f"nothing that can be read ({type(error).__name__})"


def device_of(model: nn.Module) -> torch.device | None:
    """Return where a model's first parameter is; None where it has none."""
    tensors = (*model.parameters(), *model.buffers())
    return tensors[0].device if tensors else None


def moved(value: Any, device: torch.device | None) -> Any:
    """Return a nest of tensors with all of them on a device."""
    if isinstance(value, torch.Tensor):
        return value if device is None else value.to(device)
    if isinstance(value, Mapping):
        return {name: moved(part, device) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return _rebuilt(value, [moved(part, device) for part in value])
    # PackedSequence has `to`, as what others made of tensors may have.
    move = getattr(value, "to", None)
    return value if device is None or move is None else move(device)


def _read(data: Any) -> list[ProbeBatch]:
    untouched, batches = UntouchedLoader(data), []
    n_samples = 0
    # What is copied in inference mode could be used in it only.
    with untouched, untouched, torch.inference_mode(False):
        for given in [data] if _is_batch(data) else data:
            # What a loader gives may be overwritten.
            held = _copied(given)
            n_batch = count_samples((_input_of(held),), {})
            if n_batch is None:
                raise TypeError(
                    f"probe_data: a batch is a {type(given).__name__} without a tensor to give to "
                    "the model. Give tensors, or what a data loader gives"
                )
            n_samples += n_batch
            check_n_samples(n_samples)
            if n_batch:
                batches.append(ProbeBatch(held, n_batch))
    if not n_samples:
        raise ValueError("probe_data has no samples")
    return batches


def _is_batch(data: Any) -> bool:
    """Tell a batch from an iterable of batches."""
    if isinstance(data, list):
        # As a loader gives it, [x, y]; or a list of batches, which have parts.
        return not data or not all(isinstance(part, (tuple, list, Mapping)) for part in data)
    return isinstance(data, (torch.Tensor, tuple, Mapping))


def _input_of(batch: Any) -> Any:
    """Return what of a batch the model takes: of (x, y) the first, as in Lightning's steps."""
    return batch[0] if isinstance(batch, (tuple, list)) and len(batch) else batch


def _parameters(model: nn.Module) -> set[str] | None:
    """Return the names of the arguments that a model takes; None where it takes any."""
    try:
        parameters = inspect.signature(unwrap(model).forward).parameters
    except (TypeError, ValueError):
        return None
    if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return None
    return set(parameters)


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, Mapping):
        return {name: _copied(part) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return _rebuilt(value, [_copied(part) for part in value])
    return value


def _rebuilt(value: Any, parts: list[Any]) -> Any:
    # A named tuple takes its entries one by one.
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


def _digest_of(batches: Any) -> str:
    digest = hashlib.sha256()
    for text in _texts(batches):
        digest.update(len(text).to_bytes(8, "little"))
        digest.update(text)
    return digest.hexdigest()[:16]


def _texts(value: Any) -> Iterator[bytes]:
    if isinstance(value, torch.Tensor) and value.is_nested:
        yield from _texts(value.unbind())
    elif isinstance(value, torch.Tensor):
        yield f"{value.dtype}{tuple(value.shape)}".encode()
        dense = value if value.layout is torch.strided else value.to_dense()
        plain = dense.cpu().resolve_conj().resolve_neg().contiguous()
        yield plain.reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype}{value.shape}".encode()
        yield value.tobytes()
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield str(name).encode()
            yield from _texts(part)
    elif isinstance(value, (tuple, list)):
        yield b"("
        for part in value:
            yield from _texts(part)
        yield b")"
    elif value is None or isinstance(value, (str, int, float)):
        yield repr(value).encode()
    else:
        yield type(value).__name__.encode()
