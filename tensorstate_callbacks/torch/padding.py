"""Tell masks of padding among what modules are called with, and warn where padding is counted."""

import inspect
import weakref
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from tensorstate_callbacks.torch.activations import find_tensor, is_symbolic, under_transform
from tensorstate_callbacks.torch.hooks import Hooks, fast_modules, is_first_run, takes_hooks

# Parameters of forward methods whose masks are 0 where there is padding, and those that are not.
DATA_MASKS = frozenset({"attention_mask", "decoder_attention_mask", "encoder_attention_mask"})
PADDING_MASKS = frozenset(
    {
        "key_padding_mask",
        "src_key_padding_mask",
        "tgt_key_padding_mask",
        "memory_key_padding_mask",
        "encoder_padding_mask",
        "padding_mask",
    }
)


class MaskCheck:
    """Looks at a module's masks before it runs.

    Args:
        places: The module's parameters that are masks, and where they stand among its arguments.
        report: Called with the name of a mask that masks something.
    """

    def __init__(self, places: Mapping[str, int], report: Callable[[str], None]) -> None:
        self._places, self._report = places, report
        self._clean: Callable[[], Any] = lambda: None

    def __call__(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Look at a call."""
        if under_transform() or not is_first_run():
            return
        for name, place in self._places.items():
            mask = kwargs.get(name, args[place] if place < len(args) else None)
            # The same mask goes on to many modules, and looking at it waits for its device.
            if isinstance(mask, torch.Tensor) and mask is not self._clean():
                if masks_padding(name, mask, other_tensor(mask, args, kwargs)):
                    self._report(name)
                    return
                self._clean = weakref.ref(mask)


def watch_for_padding(
    model: nn.Module,
    warn: Callable[[str], None],
    hooks: Hooks,
    active: Callable[[], bool] = lambda: True,
) -> None:
    """Warn once if the model, or a module inside it, is called with a mask that masks padding.

    Args:
        model: The model. Those of its modules are watched whose `forward` has a parameter of a
            usual name: `attention_mask` (1 where there is data), or `src_key_padding_mask`,
            `key_padding_mask`, `padding_mask`... (True where there is none).
        warn: Takes the text, as the model is called. Nothing is looked at any more after that.
        hooks: What the hooks are of.
        active: Calls are looked at only while it gives True.
    """
    handles: list[RemovableHandle] = []

    def warn_once(layer: str, name: str) -> None:
        if not active():
            return
        while handles:
            handles.pop().remove()
        warn(
            f"{layer} is called with {name}, which masks padding: these positions are counted like "
            "any other, so efficiency and aIQ depend on the batches' sizes and order. Give mask="
            '"auto" to leave them out, pad all batches to one length, or evaluate with a batch '
            "size of 1"
        )

    untouched = fast_modules(model)
    for path, module in model.named_modules():
        places = argument_places(module, DATA_MASKS | PADDING_MASKS)
        if places and takes_hooks(module) and module not in untouched:
            report = partial(warn_once, f"layer {path!r}" if path else "the model")
            hook = hooks.make(MaskCheck(places, report))
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))


def masks_padding(name: str, mask: torch.Tensor, data: torch.Tensor | None = None) -> bool:
    """Tell whether a mask marks some position as padding; see `data_positions`."""
    kept = data_positions(name, mask, data)
    return kept is not None and not bool(kept.all())


def data_positions(
    name: str, mask: torch.Tensor, data: torch.Tensor | None = None
) -> torch.Tensor | None:
    """Return which positions a mask says are data; None where it is no mask of padding.

    Args:
        name: The parameter that it is given for.
        mask: `(N, T)`: of `attention_mask`, bool or 0 and 1, 0 where there is padding; of
            `..._padding_mask`, True there. Floats that are added to scores are below 0 there.
            Masks `(T, T)`, such as causal ones, say which positions see each other, not which are
            padding; others of more axes may say both, and are not looked into.
        data: What else the module takes, `(N, T, ...)` or `(T, N, ...)`.

    Returns:
        `(N, T)` bool, True where there is data.
    """
    if is_symbolic(mask) or mask.is_nested or mask.ndim != 2 or not mask.numel():
        return None
    if mask.shape[0] == mask.shape[1] and _is_relation(mask, data):
        return None
    if name in DATA_MASKS and not (mask.is_floating_point() and bool((mask < 0).any())):
        return mask != 0
    return mask == 0


def _is_relation(mask: torch.Tensor, data: torch.Tensor | None) -> bool:
    n = mask.shape[0]
    if data is not None and data.ndim > 1 and tuple(data.shape[:2]) != (n, n):
        return True
    # As many samples as positions. A causal mask has no other than its values above the diagonal.
    open_, shut = mask[0, 0], mask[0, -1]
    causal = torch.ones(n, n, dtype=torch.bool, device=mask.device).tril()
    return bool((torch.where(causal, open_, shut) == mask).all())


def other_tensor(mask: torch.Tensor, args: Any, kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """Return the first tensor of a call that isn't its mask."""
    return find_tensor([value for value in (*args, *kwargs.values()) if value is not mask])


def argument_places(module: nn.Module, names: Collection[str]) -> dict[str, int]:
    """Return which of some parameters a module's forward has, and where they stand.

    One that is given by its name alone stands behind all arguments.
    """
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        return {}
    named_only = inspect.Parameter.KEYWORD_ONLY
    return {
        parameter.name: len(parameters) if parameter.kind is named_only else place
        for place, parameter in enumerate(parameters)
        if parameter.name in names
    }
