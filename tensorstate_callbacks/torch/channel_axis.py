"""Find the axis of a module's tensor that holds its neurons.

All axes found here count from the end, so that they hold for batched and unbatched tensors.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from tensorstate_callbacks.recording.channel_axis import (
    Axis,
    ChannelAxis,
    check_channel_axis,
    check_keys,
    given_axis,
)
from tensorstate_callbacks.recording.channel_axis import n_neurons as neurons_on
from tensorstate_callbacks.torch.following import Follower
from tensorstate_callbacks.torch.module_axis import (
    documented_axis,
    evident_axis,
    is_unruled,
    rule_axis,
)
from tensorstate_callbacks.torch.places import Place, Places, resolve, shape_of


def default_axis(n_axes: int) -> int:
    """Return the axis taken where nothing is known: last of up to three axes, else the second."""
    return -1 if n_axes <= 3 else 1 - n_axes


class Found(NamedTuple):
    """The axis of a tensor's neurons.

    Attributes:
        axis: One, or several that are the neurons together, counted from the end.
        is_sure: It can't be another, so that a changed size means another number of neurons.
    """

    axis: Axis
    is_sure: bool = True


class ChannelAxes:
    """Finds the axis of the neurons, of tensors as they go through the model.

    What the user gave comes first, then the module's type, then where the data came from, then the
    module's parameters, then the latest tensor of the same shape.

    Args:
        given: See `torch.record`.
        layers: The probed layers under their names.

    Attributes:
        places: Where the neurons of tensors lie, while the model is followed.
        follower: Follows it, where that is needed; or None.
        awaited: The probes whose axes depend on what came before them.
        guesses: Of each probe whose axis had to be guessed, a sentence's part that says so.
        revision: Counts the axes found so far of tensors on which no module's type decides.

    Raises:
        TypeError: `given` is of the wrong kind.
        ValueError: A key of the mapping matches none of the layers.
    """

    def __init__(self, given: ChannelAxis, layers: Mapping[str, nn.Module]) -> None:
        self.given = check_channel_axis(given)
        if layers:
            check_keys(given, layers)
        self._forget()

    def _forget(self) -> None:
        self.places = Places()
        self.follower: Follower | None = None
        self.awaited: set[str] = set()
        self.guesses: dict[str, str] = {}
        self.revision = 0
        self._has_news = False
        self._settled: dict[tuple[str, int], list[Found]] = {}
        self._guessed_widths: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        # What is known of tensors is for this moment; a copy of the model begins anew.
        return {"given": self.given, "follower": self.follower, "awaited": self.awaited}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._forget()
        vars(self).update(state)

    def need_following(self, modules: Iterable[nn.Module]) -> bool:
        """Tell whether some of these modules' axes depend on what came before them."""
        if not (self.given is None or callable(self.given) or isinstance(self.given, Mapping)):
            return False
        return any(is_unruled(module) for module in modules)

    def is_settled(self) -> bool:
        """Tell whether the axes of all awaited probes are known for good."""
        seen = {probe for probe, _ in self._settled}
        return seen >= self.awaited and all(len(found) == 1 for found in self._settled.values())

    def is_enough(self) -> bool:
        """Tell, as a call of the model ends, whether no further one needs to be followed."""
        news, self._has_news = self._has_news, False
        return not news and self.is_settled()

    def is_fixed(self, probe: str, n_axes: int) -> bool:
        """Tell whether the axis of a probe's tensors will be the one found, until `revision` grows.

        Args:
            probe: The probe's name.
            n_axes: Of the tensor.
        """
        several = len(self._settled.get((probe, n_axes), ())) > 1
        return not (several or callable(self.given) or self._is_followed())

    def find(self, probe: str, name: str, module: nn.Module, tensor: torch.Tensor) -> Found:
        """Return the axis of the neurons in what a module takes or gives.

        Args:
            probe: The probe's name, which tells input from output.
            name: The module's.
            module: The module.
            tensor: What it took or gave.

        Raises:
            ValueError: The axis that was guessed turns out to be none of neurons: its size changes.
        """
        given = self.given
        axis = None if given is None else given_axis(given, name, module, tensor)
        is_given = axis is not None
        if axis is None:
            axis = rule_axis(module, shape_of(tensor))
        if axis is None:
            return self._found_out(probe, name, module, tensor)
        if self._is_followed():
            self.places.set_axis(tensor, axis)
        return Found(axis, not is_given)

    def note(self, module: nn.Module, source: torch.Tensor | None, output: torch.Tensor) -> None:
        """Note what the type of a module says of its output, for the modules behind it.

        Args:
            module: The module.
            source: The first tensor that it took.
            output: The tensor that it gave.
        """
        known = self.places.get(output)
        if known is not None and known.parts is not None:
            return
        axis = rule_axis(module, shape_of(output))
        if axis is None:
            axis = evident_axis(module, shape_of(output))
        if axis is not None:
            self.places.set_axis(output, axis)
        elif source is not None:
            # Inside transforms operations are seen on other tensors than these.
            place = self.places.get(source)
            if place is not None and place.shape == shape_of(output):
                self.places.set(output, place.parts)

    def _is_followed(self) -> bool:
        return self.follower is not None and self.follower.is_on()

    def _found_out(self, probe: str, name: str, module: nn.Module, tensor: torch.Tensor) -> Found:
        known = self._settled.setdefault((probe, tensor.ndim), [])
        if not self._is_followed() and len(known) == 1:
            found = known[0]
        else:
            found = self._look_up(module, tensor) or self._guess(probe, tensor)
            if found not in known:
                known.append(found)
                self.revision += 1
                self._has_news = True
                if self.follower is not None:
                    self.follower.follow_again()
        if probe in self._guessed_widths and not tensor.is_nested:
            self._check_guess(probe, name, tensor, found.axis)
        return found

    def _look_up(self, module: nn.Module, tensor: torch.Tensor) -> Found | None:
        shape = shape_of(tensor)
        if not shape:
            raise ValueError("activations need an axis of neurons; got shape ()")
        evident = evident_axis(module, shape)
        if evident is None:
            evident = documented_axis(module, shape)
        followed = self._resolve(self.places.get(tensor), shape)
        if followed is not None:
            # Heads and what each has, of which a norm takes the latter.
            refines = isinstance(followed.axis, tuple) and evident in followed.axis
            return Found(evident) if refines and evident is not None else followed
        if evident is not None:
            if self._is_followed():
                self.places.set_axis(tensor, evident)
            return Found(evident)
        if not self._is_followed():
            return None
        parts = self.places.of_shape(tensor)
        return self._resolve(None if parts is None else Place(shape, parts), shape)

    @staticmethod
    def _resolve(place: Place | None, shape: tuple[int, ...]) -> Found | None:
        if place is None or place.parts is None:
            return None
        axis = resolve(place.parts, shape)
        # Features that were flattened together are as many as there are positions.
        is_sure = all(part.extent == shape[part.axis] for part in place.parts)
        return None if axis is None else Found(axis, is_sure)

    def _guess(self, probe: str, tensor: torch.Tensor) -> Found:
        axis = default_axis(tensor.ndim)
        width = 0 if tensor.is_nested else tensor.shape[axis]
        self._guessed_widths.setdefault(probe, width)
        if tensor.ndim > (3 if tensor.is_nested else 2):
            shape = "nested" if tensor.is_nested else str(tuple(tensor.shape))
            self.guesses.setdefault(probe, f"{probe} (shape {shape}, axis {axis} taken)")
        return Found(axis, is_sure=False)

    def _check_guess(self, probe: str, name: str, tensor: torch.Tensor, axis: Axis) -> None:
        width = neurons_on(axis, tensor.shape)
        expected = self._guessed_widths[probe]
        if width != expected:
            raise ValueError(
                f"axis {axis} was taken for the one of its neurons, since nothing tells which it "
                f"is, but its size changes: {expected} before, {width} in {tuple(tensor.shape)}. "
                f"Say which axis it is with channel_axis={{{name!r}: ...}}"
            )


def describe_guesses(guesses: Mapping[str, str]) -> str:
    """Return the warning of axes that had to be guessed."""
    return (
        f"which axis holds the neurons is not known of {', '.join(guesses.values())}: where their "
        "data comes from couldn't be followed, and their modules' types and parameters don't say. "
        "If that is wrong, give the axis, as channel_axis={'layer': axis}, or exclude these layers"
    )
