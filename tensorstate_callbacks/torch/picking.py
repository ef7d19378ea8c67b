"""Pick the layers of a model to probe, and learn from its first run which of them are meant."""

import sys
import warnings
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from tensorstate_callbacks.errors import NoLayerMatchedError, ProbeError, TensorStateWarning
from tensorstate_callbacks.recording.selection import (
    Pattern,
    Patterns,
    check_patterns,
    select_layers,
    uncovered_message,
)
from tensorstate_callbacks.torch.layers import NO_LAYERS, find_default, named_layers, own_weights


class PickedLayers(dict[str, nn.Module]):
    """The layers to probe under their names, and what the first pass has still to show of them.

    Attributes:
        is_default: Nothing was asked for: these are all layers that may be meant, and the one that
            makes the output among them.
        output: The layer that makes the output, as soon as a pass has shown it.
        tentative: Layers that may be dense ones; the first call shows it.
        aside: Layers that were excluded, one of which may make the output.
    """

    def __init__(self, layers: Mapping[str, nn.Module], *, is_default: bool = False) -> None:
        super().__init__(layers)
        self.is_default = is_default
        self.output: str | None = None
        self.tentative: set[str] = set()
        self.aside: dict[str, nn.Module] = {}

    def expected(self) -> list[str]:
        """Return the names of the layers that a report will have, as far as is known.

        Before a model has run, the layer defined last is taken for the one of the output.
        """
        names = list(self)
        return names[:-1] if self.is_default and self.output is None else names

    def copied(self) -> "PickedLayers":
        """Return the same layers, of which something may be found out without this knowing."""
        made = PickedLayers(self, is_default=self.is_default)
        made.output, made.tentative, made.aside = self.output, {*self.tentative}, dict(self.aside)
        return made

    def leave_out(self, name: str) -> None:
        """Forget a layer that turned out to be none of those that are meant."""
        self.pop(name, None)
        self.tentative.discard(name)


def pick_layers(
    model: nn.Module, attach_to: Patterns | None, exclude: Patterns = ()
) -> PickedLayers:
    """Return the layers of the model to probe, under their names; see `select_layers`.

    Raises:
        NoLayerMatchedError: No layer is left; the message lists what the model has.
        TypeError: The model is no module, or a pattern is of the wrong kind.

    Warns:
        TensorStateWarning: A layer was left out, since its module uses its weights without calling
            it.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"the model must be a torch.nn.Module; got {type(model).__name__}")
    layers = named_layers(model)
    if attach_to is not None:
        layers = _with_measures(model, layers, check_patterns("attach_to", attach_to))
    certain, tentative = find_default(layers)
    default = [name for name in layers if name in certain or name in tentative]
    # The only one makes the output.
    default = default if len(default) > 1 else []
    chosen = select_layers(layers, attach_to, exclude, default=default)
    picked = PickedLayers(_without_bypassed(model, chosen), is_default=attach_to is None)
    if picked.is_default:
        picked.tentative = tentative & picked.keys()
        picked.aside = {name: layers[name] for name in default if name not in picked}
    return picked


class FirstPass:
    """What the calls of a model show of the layers that were picked by default.

    Args:
        layers: They; what is found out is kept in them.
    """

    def __init__(self, layers: PickedLayers) -> None:
        self._layers = layers
        self._last: str | None = None
        self._unprobed: dict[str, nn.Module] = {}
        self._called: set[str] = set()
        self._picked: dict[str, nn.Module] = {}
        self._aside: tuple[str, ...] = ()

    def begin(self, model: nn.Module) -> Mapping[str, nn.Module]:
        """Return the modules besides the picked ones whose calls are to be seen."""
        if not self.awaits_calls():
            return {}
        self._unprobed = unprobed_weights(model, self._layers)
        self._picked = dict(self._layers)
        seen = {**self._unprobed, **self._layers.aside}
        self._aside = tuple(seen)
        return seen

    def see(self, name: str) -> None:
        """Note that a layer is called."""
        if name not in self._unprobed:
            self._last = name
        if self._layers.output is None:
            self._called.add(name)

    def awaits_calls(self) -> bool:
        """Tell whether calls are still to be seen, for the layer that makes the output."""
        return self._layers.is_default and self._layers.output is None

    def find_output(self) -> tuple[str | None, Iterable[str]]:
        """Find the layer that makes the output: the one called last.

        Returns:
            That layer where it was picked and is to be left out now, and the modules whose calls
            need no longer be seen.
        """
        layers, found = self._layers, None
        if layers.is_default and layers.output is None and self._last is not None:
            layers.output = self._last
        if layers.output is None:
            return None, ()
        if layers.is_default and layers.output in layers:
            found = layers.output
        done, self._aside = self._aside, ()
        return found, done

    def uncovered(self) -> str | None:
        """Return the warning of weights that ran and aren't probed; None where they are few."""
        owned = {n: own_weights(m) for n, m in self._unprobed.items() if n in self._called}
        probed = self._called & self._picked.keys() & self._layers.keys()
        covered = (inner for name in probed for inner in self._picked[name].modules())
        return uncovered_message(owned, sum(map(own_weights, covered)))


def unprobed_weights(model: nn.Module, picked: PickedLayers) -> dict[str, nn.Module]:
    """Return the modules with weights of their own that are in none of the picked layers.

    Tables (embeddings), norms and what makes the output are not among them.
    """
    inside = {
        id(inner)
        for layer in (*picked.values(), *picked.aside.values())
        for inner in layer.modules()
    }
    return {
        name: module
        for name, module in named_layers(model).items()
        if id(module) not in inside and not isinstance(module, NO_LAYERS) and own_weights(module)
    }


def refuse_split_layers(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Raise an error if this process has a part of some layer's neurons only.

    That is so where `parallelize_module` (tensor parallelism) split its parameters. FSDP splits
    them too, but puts them together before the layer is called.

    Raises:
        ProbeError: It is; the message names the layers.
    """
    # Without DTensors there is nothing to look for, and importing them takes a while.
    if "torch.distributed.tensor" not in sys.modules:
        return
    inside_fsdp = {
        id(inner) for outer in model.modules() if _is_fsdp(outer) for inner in outer.modules()
    }

    def is_split(layer: nn.Module) -> bool:
        allowed = int(id(layer) in inside_fsdp)
        return any(_n_splits(parameter) > allowed for parameter in layer.parameters(recurse=False))

    if not any(is_split(module) for module in model.modules()):
        return
    split = [name for name, layer in layers.items() if is_split(layer)]
    if split:
        raise ProbeError(
            f"tensor parallelism splits the parameters of {', '.join(split)}: this process sees a "
            "part of the neurons only, of which no states can be made. Exclude these layers, or "
            "evaluate the model without parallelize_module"
        )
    bare = [name for name, layer in layers.items() if not list(layer.named_parameters())]
    if bare:
        raise ProbeError(
            f"{', '.join(bare)} can't be counted: the model has layers that tensor parallelism "
            "splits, and of layers without parameters can't be told whether this process sees all "
            "of their neurons. Exclude them"
        )


def _without_bypassed(model: nn.Module, picked: dict[str, nn.Module]) -> dict[str, nn.Module]:
    bypassed = {
        id(module.out_proj)
        for module in model.modules()
        if isinstance(module, nn.MultiheadAttention)
        and type(module).forward is nn.MultiheadAttention.forward
    }
    left_out = [name for name, layer in picked.items() if id(layer) in bypassed]
    if not left_out:
        return picked
    text = (
        f"{', '.join(left_out)}: MultiheadAttention uses the weights of this layer without calling "
        "it. Attach to the MultiheadAttention itself, whose output is the same, and exclude "
        "'*.out_proj'"
    )
    if len(left_out) == len(picked):
        raise NoLayerMatchedError(text)
    warnings.warn(f"left out {text}", TensorStateWarning, stacklevel=3)
    return {name: layer for name, layer in picked.items() if name not in left_out}


def _with_measures(
    model: nn.Module, layers: dict[str, nn.Module], patterns: Iterable[Pattern]
) -> dict[str, nn.Module]:
    """Add what metrics and losses have inside, where it is asked for by name."""
    asked = {
        name: layer
        for name, layer in named_layers(model, with_measures=True).items()
        if name not in layers
        and any(isinstance(p, str) and p != "*" and fnmatchcase(name, p) for p in patterns)
    }
    return {**layers, **asked}


def _n_splits(parameter: Any) -> int:
    return sum(placement.is_shard() for placement in getattr(parameter, "placements", ()))


def _is_fsdp(module: nn.Module) -> bool:
    return any(base.__name__ == "FSDPModule" for base in type(module).__mro__)
