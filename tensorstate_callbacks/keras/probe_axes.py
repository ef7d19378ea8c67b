"""Decide which axes of a probed layer's tensors hold its neurons, once for each call in a pass."""

import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from tensorstate_callbacks.errors import list_some
from tensorstate_callbacks.keras.axis_flow import AxisFlow, Found, shape_of
from tensorstate_callbacks.keras.axis_rules import LAST, Axes, class_axes
from tensorstate_callbacks.recording.channel_axis import (
    ChannelAxis,
    given_axis,
    n_neurons,
    normal_axes,
)


class Site(NamedTuple):
    """One place in a pass at which a probe takes a tensor.

    Attributes:
        name: The probe.
        number: Which of its calls in the pass it is.
    """

    name: str
    number: int


class Decided(NamedTuple):
    """The axes that are taken at a site.

    Attributes:
        axes: Counted from the end.
        sure: Whether the user or layers say so.
        n_axes: Of the tensor.
    """

    axes: Axes
    sure: bool
    n_axes: int


class ProbeAxes:
    """Tells the axes of probes' tensors: what the user gave, what layers say, or else a guess.

    Args:
        given: `channel_axis` as the user gave it.
        keys: The layers' own names as keys of a mapping given are replaced by their paths already.

    Attributes:
        guessed: Shape and axes of each probe whose axes nothing tells.
        settled: Whether all sites seen so far are decided, so that nothing need be followed.
    """

    def __init__(self, given: ChannelAxis) -> None:
        self._given = given
        self._sites: dict[Site, Decided] = {}
        self._sizes: dict[Site, int] = {}
        self._calls: Counter[tuple[int, str]] = Counter()
        self.guessed: dict[str, tuple[Any, Axes]] = {}
        self.settled = False

    def begin_again(self) -> None:
        """Follow the next pass that is traced, whose data may be of another size."""
        self.settled = False
        self._sizes.clear()

    def begin_pass(self) -> None:
        """Count the calls of each probe anew."""
        thread = threading.get_ident()
        for key in [key for key in self._calls if key[0] == thread]:
            del self._calls[key]

    def next_site(self, name: str) -> Site:
        """Return the place in the pass at which a probe is called now."""
        key = (threading.get_ident(), name)
        self._calls[key] += 1
        return Site(name, self._calls[key] - 1)

    def decide(
        self,
        site: Site,
        layer_name: str,
        layer: Any,
        tensor: Any,
        flow: AxisFlow | None,
        *,
        is_input: bool,
    ) -> Decided:
        """Return the axes to take.

        Args:
            site: Where the tensor is.
            layer_name: The layer's name.
            layer: The layer.
            tensor: What it takes or gives.
            flow: What is known of tensors in this pass, if it is followed.
            is_input: Whether the layer takes the tensor.

        Raises:
            TypeError: `channel_axis` gave something else than an axis.
            ValueError: The tensor doesn't have the axis that was given.
        """
        shape = shape_of(tensor)
        n_axes = -1 if shape is None else len(shape)
        decided = self._sites.get(site)
        if decided is not None and decided.n_axes == n_axes:
            return decided
        found = self._given_axes(layer_name, layer, tensor)
        if found is not None:
            if flow is not None:
                flow.note(tensor, found)
        elif flow is not None:
            found = flow.of_input(layer, tensor) if is_input else flow.of(tensor)
        else:
            found = self._without_flow(site.name, layer, shape, is_input=is_input)
        if found is None:
            axes = LAST if flow is None else flow.guess(n_axes)
            if n_axes > 2:
                self.guessed.setdefault(site.name, (shape, axes))
            found = Found(axes, False)
        self._sites[site] = Decided(found.axes, found.sure, n_axes)
        return self._sites[site]

    def check_size(self, site: Site, decided: Decided, shape: tuple[int, ...]) -> None:
        """Raise `ValueError` if axes that nothing tells have another size than in an earlier batch.

        Args:
            site: Where the activations are from.
            decided: The axes taken there.
            shape: Of the activations.
        """
        if decided.sure:
            return
        size = n_neurons(decided.axes, shape)
        before = self._sizes.setdefault(site, size)
        if before != size:
            raise ValueError(
                f"axis {shown(decided.axes)} of shape {tuple(shape)}, which was taken for that of "
                f"the neurons, had {before} entries in an earlier batch. Say which axis holds the "
                f"neurons: channel_axis={{{site.name.removesuffix('.input')!r}: ...}}"
            )

    def _given_axes(self, layer_name: str, layer: Any, tensor: Any) -> Found | None:
        axis = given_axis(self._given, layer_name, layer, tensor)
        if axis is None:
            return None
        shape = shape_of(tensor)
        if shape is None:
            return Found((axis,) if isinstance(axis, int) else tuple(axis), True)
        # From the end: where Keras adds an axis of steps in front, they still hold.
        return Found(tuple(at - len(shape) for at in normal_axes(axis, range(len(shape)))), True)

    def _without_flow(self, name: str, layer: Any, shape: Any, *, is_input: bool) -> Found | None:
        """Tell the axes where the way of the tensor wasn't followed: a call that is new."""
        n_axes = -1 if shape is None else len(shape)
        alike = {
            (decided.axes, decided.sure)
            for site, decided in self._sites.items()
            if site.name == name and decided.n_axes == n_axes
        }
        if len(alike) == 1:
            return Found(*alike.pop())
        self.settled = False
        axes = None if shape is None else class_axes(layer, shape, is_input=is_input)
        return None if axes is None else Found(axes, True)


def shown(axes: Axes) -> str:
    """Return axes as the user would give them."""
    return str(axes[0]) if len(axes) == 1 else str(axes)


def guess_message(guessed: Mapping[str, tuple[Any, Axes]]) -> str:
    """Return what to warn of where nothing tells the axes of some probes."""
    listed = list_some(
        f"{name} (shape {shape}, axis {shown(axes)} taken)"
        for name, (shape, axes) in guessed.items()
    )
    example = next(iter(guessed)).removesuffix(".input")
    return (
        f"nothing tells which axis holds the neurons of {listed}. Say which: "
        f"channel_axis={{{example!r}: ...}}, or exclude these layers"
    )
