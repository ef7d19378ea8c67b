"""Learn from a model's first run what its modules don't say: which of its layers makes the output.

And which modules have weights of their own, ran, and aren't probed.
"""

from collections.abc import Iterable, Mapping

from torch import nn

from tensorstate_callbacks.recording.selection import uncovered_message
from tensorstate_callbacks.torch.default_layers import own_weights
from tensorstate_callbacks.torch.layers import PickedLayers, unprobed_weights


class FirstPass:
    """What the calls of a model tell of the layers that were picked by default.

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
        if not self._layers.is_default or self._layers.output is not None:
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

    def conclude(self) -> list[str]:
        """Find the layer that makes the output: the one called last. Return what to leave out."""
        layers = self._layers
        if not layers.is_default or layers.output is not None or self._last is None:
            return []
        layers.output = self._last
        return [layers.output] if layers.output in layers else []

    def take_aside(self) -> Iterable[str]:
        """Return the modules whose calls need no longer be seen."""
        if self._layers.output is None:
            return ()
        done, self._aside = self._aside, ()
        return done

    def uncovered(self) -> str | None:
        """Return what to say of the weights that ran and aren't probed; None where they are few."""
        owned = {n: own_weights(m) for n, m in self._unprobed.items() if n in self._called}
        probed = self._called & self._picked.keys() & self._layers.keys()
        covered = (inner for name in probed for inner in self._picked[name].modules())
        return uncovered_message(owned, sum(map(own_weights, covered)))
