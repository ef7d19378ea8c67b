"""Have the states of tensors counted whenever a step runs: by the host, or by the step itself."""

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorstate_callbacks.errors import ProbeError
from tensorstate_callbacks.keras.axis_flow import shape_of
from tensorstate_callbacks.keras.backends import TapRefusedError, WeakObserver, current_backend
from tensorstate_callbacks.keras.device_states import Plan, plan_states, states_of
from tensorstate_callbacks.keras.probe_axes import Decided, ProbeAxes, Site
from tensorstate_callbacks.keras.site_counts import SiteCounts
from tensorstate_callbacks.recording.overrides import Overrides
from tensorstate_callbacks.recording.recorder import Recorder
from tensorstate_callbacks.recording.settings import Settings


class ChangingSizeError(ProbeError):
    """An axis that was guessed has another size than in an earlier batch."""


class Counting:
    """What is counted of the tensors that probes take, pass after pass.

    Where activations lie in the host's memory, the host reads them there. Elsewhere the step makes
    states of them: packed ones go to the host, those of groups are counted in the step, so that
    nothing leaves it before the evaluation ends.

    Args:
        settings: What the callback was given.
        axes: Tells the axes of the neurons.

    Attributes:
        recorder: What counts; None while nothing is to be counted.
        step: What is on the model for the test step that runs: nothing counts without it.
        may_tap: Whether the step that runs can give something to the host; else the attempt is an
            error.
    """

    def __init__(self, settings: Settings, axes: ProbeAxes) -> None:
        self._settings, self._axes = settings, axes
        self._backend = current_backend()
        self._counts = SiteCounts(self._backend)
        self.recorder: Recorder | None = None
        self.step = Overrides()
        self.may_tap = True
        self._was_refused = False

    @cached_property
    def _in_graph(self) -> bool:
        # Only as an evaluation begins: to ask for devices fixes how they are set up.
        return self._backend.makes_states()

    @property
    def needs_taps(self) -> bool:
        """Whether a step has to give something to the host, as far as is known."""
        if self._was_refused or self._settings.group_size is None:
            return True
        return not (self._backend.TAPS_END_XLA and self._in_graph)

    @property
    def made_for(self) -> tuple[Any, ...]:
        """What a step that was traced can't take anew."""
        settings = self._settings
        if not self._in_graph:
            return ()
        return settings.threshold, settings.group_size, settings.positions

    def begin(self, names: list[str], dropped: set[str], settings: Settings) -> None:
        """Count from now on, and nothing of what came before.

        Args:
            names: The probes.
            dropped: Others that may be called all the same.
            settings: What the callback is given now.
        """
        self._settings = settings
        self._counts.reset()
        recorder = self._backend.new_recorder(names, settings.threshold, settings.sampling())
        recorder.drop(dropped)
        self.recorder = recorder

    def take(self, site: Site, decided: Decided, tensor: Any) -> Any:
        """Have a tensor's states counted whenever the step runs.

        Args:
            site: Where it is.
            decided: The axes taken there.
            tensor: Activations.

        Returns:
            The tensor to go on with, or None: with the same.
        """
        plan = self._plan(tensor, decided)
        if plan is not None and plan.n_counts is not None:
            self._counts.add(site, decided, tensor, plan)
            return None
        if not self.may_tap:
            self._was_refused = True
            raise TapRefusedError(f"layer {site.name!r} can't be counted by the step alone")
        if plan is None:
            return self._backend.tap(tensor, WeakObserver(self._observe, site, decided))
        shape = tuple(tensor.shape)
        rows = self._backend.pack(states_of(self._backend, tensor, plan))
        self._backend.tap(rows, WeakObserver(self._observe_packed, site, decided, shape, plan))
        return None

    def read_counts(self, recorder: Recorder, forward: list[str]) -> None:
        """Give what steps have counted to the recorder.

        Args:
            recorder: Takes it.
            forward: The probes in forward order.

        Raises:
            ProbeError: A layer could not be counted.
        """
        if self._in_graph:
            self._counts.read_into(recorder, self._check_size)
            recorder.sort(forward)

    def _plan(self, tensor: Any, decided: Decided) -> Plan | None:
        shape = shape_of(tensor) if self._in_graph else None
        if shape is None or not self._backend.is_dense(tensor):
            return None
        settings = self._settings
        return plan_states(
            shape,
            tensor.dtype.name,
            decided.axes,
            settings.threshold,
            group_size=settings.group_size,
            positions=settings.positions,
        )

    def _check_size(self, site: Site, decided: Decided, shape: tuple[Any, ...]) -> None:
        try:
            self._axes.check_size(site, decided, shape)
        except ValueError as error:
            raise ChangingSizeError(f"layer {site.name!r} could not be counted: {error}") from error

    def _observe(self, site: Site, decided: Decided, activations: npt.ArrayLike) -> None:
        recorder = self._recorder_for(site, decided, getattr(activations, "shape", None))
        if recorder is not None:
            axes = tuple(decided.axes)
            recorder.observe_later(site.name, activations, axes if len(axes) > 1 else axes[0])

    def _observe_packed(
        self, site: Site, decided: Decided, shape: Any, plan: Plan, rows: npt.ArrayLike
    ) -> None:
        recorder = self._recorder_for(site, decided, shape)
        if recorder is not None:
            packed = np.asarray(rows)
            # Where all positions are read, they lie in the rows as in the tensor.
            grid = packed.shape[1:-1] if plan.places is None else plan.known_grid
            states = packed.reshape(-1, packed.shape[-1])
            recorder.observe_packed_later(site.name, states, plan.n_neurons, grid)

    def _recorder_for(self, site: Site, decided: Decided, shape: Any) -> Recorder | None:
        """Return what is to count a tensor of the step that runs, if anything is."""
        recorder = self.recorder
        if recorder is None or not self.step.active or site.name in recorder.dropped:
            return None
        try:
            if shape is not None:
                self._check_size(site, decided, tuple(shape))
        except ProbeError as error:
            recorder.error = recorder.error or error
            return None
        return recorder
