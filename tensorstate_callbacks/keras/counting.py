"""Have the states of tensors counted whenever a step runs: by the host, or by the step itself."""

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from tensorstate_callbacks.errors import ProbeError
from tensorstate_callbacks.keras.axis_flow import shape_of
from tensorstate_callbacks.keras.backends import TapRefusedError, WeakObserver, current_backend
from tensorstate_callbacks.keras.device_states import Plan, plan_states, states_of
from tensorstate_callbacks.keras.host_labels import HostLabels
from tensorstate_callbacks.keras.host_masks import HostMasks
from tensorstate_callbacks.keras.mask_flow import Lost
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
    nothing leaves it before the evaluation ends. Where classes are told apart the host counts.

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
        self._masks, self._labels = HostMasks(settings.mask), HostLabels(settings.classes)
        self.recorder: Recorder | None = None
        self.step = Overrides()
        self.may_tap = True
        self._was_refused = False

    @cached_property
    def _in_graph(self) -> bool:
        # Only as an evaluation begins: to ask for devices fixes how they are set up.
        return self._backend.makes_states()

    @property
    def takes_rows(self) -> bool:
        """Whether a mask or labels are an array of all samples, and each batch takes its rows."""
        return self._masks.has_rows or self._labels.has_rows

    @property
    def needs_taps(self) -> bool:
        """Whether a step has to give something to the host, as far as is known."""
        if self._was_refused or self._settings.group_size is None or self._masks.has_array:
            return True
        if self._labels.are_wanted:
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
        self._settings, self._masks = settings, HostMasks(settings.mask)
        self._labels = HostLabels(settings.classes)
        self._counts.reset()
        recorder = self._backend.new_recorder(names, settings.threshold, settings.sampling())
        recorder.drop(dropped)
        self.recorder = recorder

    def begin_batch(self, n_samples: Any) -> None:
        """Have the rows of what is an array of all samples taken whenever the step runs.

        Args:
            n_samples: How many samples the batch has, as a tensor.
        """
        self._tap(n_samples, WeakObserver(self._observe_batch))

    def warnings(self, without: Iterable[str]) -> dict[str, str]:
        """Return what is to be warned of masks and labels: kinds to texts.

        Args:
            without: Probes that don't count any more.
        """
        return self._masks.warnings(without) | self._labels.warnings()

    def take(
        self, site: Site, decided: Decided, tensor: Any, mask: Any = None, labels: Any = None
    ) -> Any:
        """Have a tensor's states counted whenever the step runs.

        Args:
            site: Where it is.
            decided: The axes taken there.
            tensor: Activations.
            mask: A tensor that says which of their positions count, or `Lost`; None: all.
            labels: Of the batch's samples, a tensor; None where none came with it.

        Returns:
            The tensor to go on with, or None: with the same.
        """
        if isinstance(mask, Lost):
            # One number for all samples, which the first of several processes sees too.
            keeps_all = keras.ops.all(mask.mask)
            self._tap(keeps_all, WeakObserver(self._observe_lost, site.name))
            mask = None
        # What a mask leaves is chosen from by the host: how much it is differs from sample to
        # sample, which a compiled step can't have.
        is_masked = mask is not None or self._masks.has_array
        plan = self._plan(tensor, decided, is_masked=is_masked)
        in_step = plan is not None and plan.n_counts is not None
        if plan is not None and in_step and not (is_masked or self._labels.are_wanted):
            self._counts.add(site, decided, tensor, plan)
            return None
        # They come with what they are of: replicas and processes have each their own.
        beside = {"mask": mask, "labels": labels}
        beside = {name: each for name, each in beside.items() if each is not None}
        if plan is None:
            observe = WeakObserver(self._observe, site, decided, tuple(beside))
            return self._tap(tensor, observe, *beside.values())
        shape = tuple(tensor.shape)
        rows = self._backend.pack(states_of(self._backend, tensor, plan))
        observe = WeakObserver(self._observe_packed, site, decided, tuple(beside), shape, plan)
        self._tap(rows, observe, *beside.values())
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

    def _tap(self, tensor: Any, observe: WeakObserver, *others: Any) -> Any:
        if not self.may_tap:
            self._was_refused = True
            raise TapRefusedError("the step can't count this alone")
        return self._backend.tap(tensor, observe, *others)

    def _plan(self, tensor: Any, decided: Decided, *, is_masked: bool) -> Plan | None:
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
            positions=None if is_masked else settings.positions,
        )

    def _check_size(self, site: Site, decided: Decided, shape: tuple[Any, ...]) -> None:
        try:
            self._axes.check_size(site, decided, shape)
        except ValueError as error:
            raise ChangingSizeError(f"layer {site.name!r} could not be counted: {error}") from error

    def _observe_batch(self, n_samples: npt.ArrayLike) -> None:
        if self.recorder is not None and self.step.active:
            self._masks.begin_batch(int(np.asarray(n_samples)))
            self._labels.begin_batch(int(np.asarray(n_samples)))

    def _observe_lost(self, name: str, keeps_all: npt.ArrayLike) -> None:
        if self.recorder is not None and self.step.active and not np.asarray(keeps_all):
            self._masks.note_lost(name)

    def _observe(
        self,
        site: Site,
        decided: Decided,
        beside: tuple[str, ...],
        activations: npt.ArrayLike,
        *others: Any,
    ) -> None:
        recorder = self._recorder_for(site, decided, getattr(activations, "shape", None))
        if recorder is None:
            return
        given = dict(zip(beside, others, strict=True))
        axis = decided.axes if len(decided.axes) > 1 else decided.axes[0]
        try:
            labels = self._labels.of(given.get("labels"))
            for part in self._masks.parts(site.name, activations, axis, given.get("mask")):
                recorder.observe_later(site.name, *part, labels=labels)
        except ProbeError as error:
            recorder.error = recorder.error or error

    def _observe_packed(
        self,
        site: Site,
        decided: Decided,
        beside: tuple[str, ...],
        shape: Any,
        plan: Plan,
        rows: npt.ArrayLike,
        *others: Any,
    ) -> None:
        recorder = self._recorder_for(site, decided, shape)
        if recorder is None:
            return
        given = dict(zip(beside, others, strict=True))
        try:
            labels = self._labels.of(given.get("labels"))
            # Where all positions are read, they lie in the rows as in the tensor.
            for part in self._masks.parts(site.name, np.asarray(rows), -1, given.get("mask")):
                packed, _, along, samples = part
                states, grid = self._masks.states(packed, along, self._settings.positions)
                grid = grid if plan.places is None else plan.known_grid
                recorder.observe_packed_later(
                    site.name, states, plan.n_neurons, grid, samples, labels
                )
        except ProbeError as error:
            recorder.error = recorder.error or error

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
