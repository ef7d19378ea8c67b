"""What the probes of one callback see in the evaluations of one model."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import keras

from tensorstate_callbacks.errors import ProbeError, WarnOnce, list_some
from tensorstate_callbacks.keras.axis_flow import AxisFlow, shape_of
from tensorstate_callbacks.keras.axis_rules import usual_axes
from tensorstate_callbacks.keras.backends import TapRefusedError
from tensorstate_callbacks.keras.batch_masks import BatchMasks
from tensorstate_callbacks.keras.counting import ChangingSizeError, Counting
from tensorstate_callbacks.keras.layers import account_weights
from tensorstate_callbacks.keras.mask_flow import MaskFlow
from tensorstate_callbacks.keras.probe_axes import ProbeAxes, guess_message
from tensorstate_callbacks.keras.probes import Flows, Probe
from tensorstate_callbacks.keras.step_labels import StepLabels
from tensorstate_callbacks.recording.channel_axis import ChannelAxis
from tensorstate_callbacks.recording.recorder import Recorder
from tensorstate_callbacks.recording.selection import uncovered_message
from tensorstate_callbacks.recording.settings import Settings


class Watch:
    """The probes on one set of layers, what was found out about them, and where states go.

    An evaluation's and those of training steps are two, each with what its own kind of step shows.

    Args:
        layers: Every layer of the model under its path.
        picked: Those that are probed.
        settings: What the callback was given.
        given: `channel_axis` as the callback was given it.
        warn: Takes the warnings.
        others: Layers and operations whose tensors are followed until all axes are known.
        contenders: Sets of paths, of each of which the layer called last makes an output, and is
            left out.
        left_out: Paths of the layers that the default selection leaves out on purpose; None where
            the user chose the layers.
        in_training: Whether it is for training steps. A layer that can't be seen there is left out,
            with a warning.

    Attributes:
        probes: The probes.
        others: As above.
        counting: What is counted of the tensors that they take.
        defers: Whether errors wait until the evaluation ends. Where processes share it, the others
            would wait for the next step of one that ends before.
        failure: The error that waits, or None.
    """

    def __init__(
        self,
        layers: Mapping[str, keras.layers.Layer],
        picked: Mapping[str, keras.layers.Layer],
        settings: Settings,
        given: ChannelAxis,
        warn: WarnOnce,
        *,
        others: Sequence[Any] = (),
        contenders: Collection[frozenset[str]] = (),
        left_out: Collection[str] | None = None,
        in_training: bool = False,
    ) -> None:
        self._in_training = in_training
        self._layers, self._settings, self._warn = layers, settings, warn
        self.others, self._contenders, self._left_out = others, contenders, left_out
        self._axes = ProbeAxes(given)
        self.counting = Counting(settings, self._axes)
        self._masks, self._labels = BatchMasks(settings.mask), StepLabels(settings.classes)
        # None as long as no pass was followed.
        self._has_masks: bool | None = None
        self.probes = [
            Probe(name, layer, *settings.probe_names(name), observer=self)
            for name, layer in picked.items()
        ]
        # Whatever is found out by a pass depends on these.
        self._basis = (
            [(name, id(layer)) for name, layer in layers.items()],
            [(name, id(layer), *settings.probe_names(name)) for name, layer in picked.items()],
            [id(other) for other in others],
            list(contenders),
            None if left_out is None else list(left_out),
            self._masks.basis,
            self._labels.basis,
            dict(given) if isinstance(given, Mapping) else given,
        )
        self.defers = False
        self.failure: Exception | None = None
        self._passed = False
        self._dropped: set[str] = set()
        # In forward order.
        self._taken: dict[str, None] = {}
        self._empty: dict[str, str] = {}
        self._hidden: dict[str, None] = {}
        self._refused: ProbeError | None = None
        self._called: set[int] = set()

    def names(self) -> list[str]:
        """Return the names of the probes whose states count, in the model's order."""
        names = (name for probe in self.probes for name in (probe.before, probe.after) if name)
        gone = self._gone()
        return [name for name in names if name not in gone]

    def expected_names(self) -> list[str]:
        """Return `names` before the model has run, taking what is defined last for the output."""
        last = (
            next(name for name in reversed(list(self._layers)) if name in group)
            for group in self._contenders
        )
        gone = {name for layer in last for name in self._settings.probe_names(layer)}
        return [name for name in self.names() if name not in gone]

    def stands_for(self, other: "Watch") -> bool:
        """Tell whether all that was found out here holds for another one, which is new."""
        # What a callable gives may be something else by now.
        asks_anew = callable(self._basis[-1]) or callable(self._masks.basis)
        asks_anew = asks_anew or self._labels.asks_anew
        is_the_same = self._basis == other._basis
        is_made_for_it = self.counting.made_for == other.counting.made_for
        return self._axes.settled and not asks_anew and is_the_same and is_made_for_it

    def begin_again(self, settings: Settings) -> None:
        """Prepare for another evaluation, in which a step may run that was traced before.

        Args:
            settings: What the callback is given now.
        """
        self._settings, self._passed = settings, True
        self._axes.begin_again()
        self._has_masks = self._has_masks or None

    def start_recording(self) -> None:
        """Count what the probes see from now on, and nothing of what they have seen."""
        self.failure = None
        self.counting.begin(self.names(), self._dropped, self._settings)

    def new_flow(self) -> AxisFlow | None:
        """Return what to note the axes of tensors in, None where all is known that is needed."""
        return None if self._axes.settled else AxisFlow(usual_axes(self._layers.values()))

    def new_masks(self) -> MaskFlow | None:
        """Return what to note the masks of tensors in, None where there are none that matter."""
        return None if self._masks.is_given or self._has_masks is False else MaskFlow()

    @property
    def needs_batches(self) -> bool:
        """Whether the batches of the evaluation have to be shown to it."""
        return self._masks.is_asked or self._labels.is_asked or self.counting.takes_rows

    def begin_batch(self, batch: Any) -> None:
        """Take what a test step is called with; None when it is over."""
        self._masks.begin(batch)
        self._labels.begin(batch)
        if batch is not None and self.counting.takes_rows:
            # A loop of the user's own may give arrays.
            first = next(leaf for leaf in keras.tree.flatten(batch) if shape_of(leaf))
            n_samples = keras.ops.shape(keras.ops.convert_to_tensor(first))[0]
            self.counting.begin_batch(keras.ops.convert_to_tensor(n_samples, "int32"))

    def begin_pass(self) -> None:
        """Take note that the model is called."""
        self._axes.begin_pass()

    def take(self, probe: Probe, name: str, tensor: Any, flows: Flows) -> Any:
        """Have the tensor's states counted whenever the step runs; return the one to go on with."""
        site = self._axes.next_site(name)
        problem = _why_not(tensor)
        if problem is not None:
            self._empty.setdefault(name, problem)
            return None
        dtype = str(getattr(tensor, "dtype", ""))
        if "complex" in dtype:
            self._refuse(name, f"its activations are complex ({dtype}), and neither fire nor don't")
            return None
        try:
            mask = self._find_mask(probe, name, tensor, flows.masks)
            labels = self._labels.of_batch()
        except ProbeError as error:
            self._refused = self._refused or error
            return None
        try:
            decided = self._axes.decide(
                site,
                probe.name,
                probe.layer,
                tensor,
                flows.axes,
                is_input=name == probe.before,
            )
        except (TypeError, ValueError) as error:
            self._refuse(name, str(error))
            return None
        try:
            passed = self.counting.take(site, decided, tensor, mask, labels)
        except ValueError as error:
            self._refuse(name, str(error))
            return None
        except TapRefusedError:
            if not self._in_training:
                raise
            self._hidden[name] = None
            return None
        self._taken[name] = None
        return passed

    def _find_mask(self, probe: Probe, name: str, tensor: Any, masks: MaskFlow | None) -> Any:
        """Return the mask that says which of a tensor's positions count; None: all."""
        if masks is None or self._masks.is_given:
            return self._masks.of(probe.name)
        is_input = name == probe.before
        return masks.of_input(probe.layer, tensor) if is_input else masks.of(tensor)

    def end_step(self, flows: Flows) -> None:
        """Draw the conclusions from a test step, if the model was called or traced in it.

        Args:
            flows: What was noted of tensors.

        Raises:
            ProbeError: A layer can't be counted; names it.
        """
        if not self.defers:
            self._conclude_step(flows)
        elif self.failure is None:
            try:
                self._conclude_step(flows)
            except Exception as error:  # noqa: BLE001 - raised as the evaluation ends
                self.failure = error

    def _conclude_step(self, flows: Flows) -> None:
        if self._refused is not None:
            raise self._refused
        recorder = self.counting.recorder
        if recorder is not None and isinstance(recorder.error, ChangingSizeError):
            raise recorder.error
        flow, masks = flows
        if masks is not None and (masks.began or self._passed):
            self._has_masks = bool(self._has_masks) or masks.seen
        if flow is None or not (flow.called or self._passed):
            self._tell_of_guesses()
            return
        self._axes.settled = True
        self._leave_out_hidden()
        self._called.update(map(id, flow.called))
        self._drop_outputs(flow.called)
        self._tell_of_empty()
        if self._left_out is not None:
            self._tell_of_weights(self._left_out)
        self._tell_of_guesses()

    def counted(self, recorder: Recorder) -> Recorder:
        """Return what was recorded, without probes that are left out as the pass has shown.

        Raises:
            ProbeError: A layer could not be counted.
        """
        problem = self.failure or recorder.error
        if problem is not None:
            raise problem
        gone = self._gone()
        recorder.drop(gone)
        for kind, text in self.counting.warnings(gone).items():
            self._warn(kind, text)
        self.counting.read_counts(recorder, list(self._taken))
        return recorder

    def _gone(self) -> set[str]:
        """Return the probes that make outputs, or have no neurons in any call."""
        return self._dropped | (self._empty.keys() - self._taken.keys())

    def _refuse(self, name: str, problem: str) -> None:
        self._refused = self._refused or ProbeError(
            f"layer {name!r} could not be counted: {problem}. Exclude it, or attach to other layers"
        )

    def _drop_outputs(self, called: list[Any]) -> None:
        """Leave out the layers that made the outputs: of each set the one called last."""
        order = {id(layer): at for at, layer in enumerate(called)}
        waiting = []
        for group in self._contenders:
            ran = [name for name in group if id(self._layers[name]) in order]
            if ran:
                last = max(ran, key=lambda name: order[id(self._layers[name])])
                self._drop(filter(None, self._settings.probe_names(last)))
            else:
                waiting.append(group)
        self._contenders = waiting

    def _drop(self, names: Iterable[str]) -> None:
        self._dropped.update(names)
        if self.counting.recorder is not None:
            self.counting.recorder.drop(self._dropped)

    def _leave_out_hidden(self) -> None:
        """Leave out the layers of which no call, or not every one, can be seen in training."""
        hidden = [name for name in self._hidden if name not in self._dropped]
        if hidden:
            self._drop(hidden)
            self._warn("hidden", hidden_message(hidden))

    def _tell_of_empty(self) -> None:
        empty = {name: self._empty[name] for name in self._empty if name not in self._taken}
        if empty and not self.names():
            name, problem = next(iter(empty.items()))
            raise ProbeError(
                f"layer {name!r} has no neurons to count: {problem}. Attach to other layers"
            )
        if empty:
            listed = ", ".join(f"{name} ({problem})" for name, problem in empty.items())
            self._warn("empty", f"left out layers that have no neurons to count: {listed}")

    def _tell_of_guesses(self) -> None:
        guessed = {
            name: what for name, what in self._axes.guessed.items() if name not in self._dropped
        }
        if guessed:
            self._warn("axis", guess_message(guessed))

    def _tell_of_weights(self, on_purpose: Collection[str]) -> None:
        left_out = {*on_purpose, *(probe.name for probe in self.probes)}
        probed = [
            probe.name
            for probe in self.probes
            if not self._dropped.intersection((probe.before, probe.after))
        ]
        message = uncovered_message(
            *account_weights(self._layers, self._called, probed, left_out.difference(probed))
        )
        if message is not None:
            self._warn("weights", message)


def hidden_message(names: list[str]) -> str:
    """Return the warning of layers that can't be seen in training steps."""
    return (
        f"training steps are recorded without {list_some(names)}: they run where nothing but their "
        "output leaves the step, in a loop or where they are computed again for the gradients "
        "(keras.RematScope). Their evaluations can be recorded: on='val'; or exclude them"
    )


def new_flows(watches: Sequence[Watch]) -> tuple[Flows, list[Any]]:
    """Return what to note of tensors in a step, and the layers and operations to follow for it.

    They are followed until all that is needed is known: from then on the probed layers are enough.
    """
    # No generator: one that isn't run to its end would lose an interrupt as it goes.
    flow = next(filter(None, [watch.new_flow() for watch in watches]), None)
    masks = next(filter(None, [watch.new_masks() for watch in watches]), None)
    flows = Flows(flow, masks)
    others = {id(each): each for watch in watches for each in watch.others}
    return flows, list(others.values()) if any(flows) else []


def _why_not(tensor: Any) -> str | None:
    """Return why a tensor has no neurons to count, if it has none."""
    if tensor is None:
        return "no tensor"
    shape = shape_of(tensor)
    if shape is not None and len(shape) < 2:
        return f"shape {shape}, no axis beside that of the samples"
    return None
