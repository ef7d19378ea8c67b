"""Record the states of a PyTorch model's layers while a block is open."""

import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import torch.distributed as dist
from torch import nn

from tensorstate_callbacks.errors import TensorStateWarning, WarnOnce
from tensorstate_callbacks.metrics.turnover import ProbeChange
from tensorstate_callbacks.recording.budget import describe_thinned
from tensorstate_callbacks.recording.channel_axis import ChannelAxis
from tensorstate_callbacks.recording.class_labels import BatchLabels, Classes
from tensorstate_callbacks.recording.masks import Mask
from tensorstate_callbacks.recording.pass_counts import PassCounts, PassInfo
from tensorstate_callbacks.recording.probe_counter import Counter
from tensorstate_callbacks.recording.recorder import Recorder
from tensorstate_callbacks.recording.selection import Patterns
from tensorstate_callbacks.recording.settings import Method, Settings, describe_value
from tensorstate_callbacks.reports.limits import describe_low_coverage
from tensorstate_callbacks.reports.report import EfficiencyReport
from tensorstate_callbacks.torch.activations import OutputFn, count_samples
from tensorstate_callbacks.torch.channel_axis import ChannelAxes
from tensorstate_callbacks.torch.distributed.own_samples import (
    ActiveLoader,
    BatchSamples,
    own_batches,
)
from tensorstate_callbacks.torch.distributed.ranks import merge_report, share_changes
from tensorstate_callbacks.torch.hooks import Hooks, forced_eager
from tensorstate_callbacks.torch.masks import Masks
from tensorstate_callbacks.torch.padding import watch_for_padding
from tensorstate_callbacks.torch.picking import PickedLayers, pick_layers, refuse_split_layers
from tensorstate_callbacks.torch.probe_set import ProbeSet
from tensorstate_callbacks.torch.tensor_recorder import TensorRecorder
from tensorstate_callbacks.torch.watch import Watch

Batch = TypeVar("Batch")


class _Exit:
    """Gives each `with` block an exit of its own, which lives as long as the block.

    An interrupt may arrive as the exit begins to run, before it has taken anything off. The block
    is over all the same, and as its exit goes, all is taken off.
    """

    def __get__(self, recording: Any, owner: type) -> Any:
        if recording is None:
            return owner._leave  # type: ignore[attr-defined]
        leave = partial(recording._leave)
        recording._exit = weakref.ref(leave)
        return leave


class Recording:
    """Counts the states of a model's layers while a block is open: `with record(model) as ...`.

    `record` is a short name for this class.

    The model's outputs, gradients and own hooks are not touched, and nothing is left on it
    afterwards. A layer that is called several times is one layer, its states summed. What
    `torch.compile` made runs uncompiled inside the block, since compiled code calls no hooks.
    `report` works inside and after the block, and a further block goes on counting.

    Args:
        model: Any module. Its layers are named as in `named_modules`, without what
            `torch.compile`, FSDP and data parallelism add.
        attach_to: Which layers to probe: a class name (`"Conv2d"`), a layer name or glob
            (`"blocks.*.conv"`), a type, a predicate `(name, module) -> bool`, or a sequence of
            these. None takes every convolution and dense layer except the one that makes the
            output: the one that the model's first run calls last.
        exclude: Which of them to leave out, in the same forms.
        method: `"after"` probes the layers' outputs, `"before"` their inputs (named
            `<layer>.input`), `"both"` both.
        threshold: A neuron fires where its activation is above it; finite.
        alpha: Order of the Rényi entropy, 0 to infinity; 1 is Shannon's.
        beta: Weight of accuracy in aIQ, above 0.
        group_size: Neurons of a unit, 1 to 22. So many neighbouring neurons of a layer are one
            unit, and the layer's entropy is the sum of the units'. None makes the layer one unit,
            as in the paper.
        positions: At most so many positions of each sample (pixels, tokens) are read, spread
            evenly. Which ones depends on the shape of the layer's output only. None reads all.
        max_memory: Bytes that the counters may hold together. Where they would pass it, the layers
            that need most are read at fewer positions. None is a quarter of the machine's memory,
            `math.inf` no limit.
        channel_axis: Axis of the neurons, where the one that is found out (by the module's type, by
            following the data through the model, by the module's parameters) is wrong: an axis;
            several, `(-2, -1)`, that are one unit together; a mapping of layer names, globs, class
            names or types to these; or a callable `(name, module, tensor)` that returns one or
            None. Negative axes count from the end.
        mask: Which positions (tokens, pixels) of the samples count. The others, such as padding,
            are left out, so that a padded batch gives the counts of its samples without padding. A
            key of the batch (`"attention_mask"`), or the name of an argument that layers are called
            with; a callable `(name, batch)` that returns a layer's mask, or None where everything
            counts; an array for all samples in their order; or `"auto"`, the masks that layers are
            called with under their usual names (`attention_mask`, `key_padding_mask`...). The batch
            is what `batches` yields, or else what the model is called with. A mask has the shape
            `(samples, positions)`, or more axes of positions, and is True, or 1, where a position
            counts.
        neurons: Whether to find, at the end of each recorded pass, the neurons of a layer that
            fired in exactly the same states (`layer.agreeing`), and those that fired exactly where
            another did not (`layer.opposing`); with `group_size` within each unit only. It also
            keeps how often each neuron fired when reports are saved or copied
            (`layer.firing_rates`, `history.lifelines(layer)`).
        classes: Labels of the samples, to count states by class too: how evenly each class uses its
            states, how many of them two classes share, and what a state tells of the label, each
            beside the same for shuffled labels. The results are in `report.layers[name].classes`.
            True takes the second element of a batch, or what a mapping has under `labels`, `label`,
            `y`, `target` or `targets`; or give a key of the batch, a callable `batch -> labels`, or
            an array with a label for each sample, in their order. The batch is what `batches`
            yields, or else what the model is called with. Labels are whole numbers, one for each
            sample, or one-hot, of at most 1,000 classes. They take half of `max_memory`.
        probe_data: A few samples whose states are followed from one recording to the next: a
            `ProbeSet` that each evaluation's recording is given. Other data, such as a batch or a
            loader, is followed in this recording only, which has NASWOT's score and no change. The
            model is run on them as the block ends without an error; a `report` inside the block
            doesn't know of it. A mask that is an array of all samples isn't applied to them. If the
            model fails on them, a warning says so.
        output_fn: `(name, output)` to the tensor to count. None takes a tensor as it is, and of a
            tuple, list or dict the first tensor (or `last_hidden_state`).

    Raises:
        NoLayerMatchedError: `attach_to` and `exclude` leave no layer. The message says what the
            model has.
        ProbeError: From the model's call: a layer's activations can't be counted; names the layer.
        TypeError: An argument is of the wrong kind.
        ValueError: An argument is out of its range.

    Warns:
        TensorStateWarning: As the block ends: some probes saw no activations, or no tensor; the
            axis of a layer's neurons had to be guessed; the layers that were probed by default hold
            only a part of the weights; the model was given a mask of padding, but padding is
            counted.

    Examples:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
        >>> with record(model, attach_to="Linear") as recording:
        ...     _ = model(torch.ones(10, 4))
        >>> recording.report().layers["0"].n_states
        10
    """

    def __init__(
        self,
        model: nn.Module,
        attach_to: Patterns | None = None,
        *,
        exclude: Patterns = (),
        method: Method = "after",
        threshold: float = 0.0,
        alpha: float = 1,
        beta: float = 2,
        group_size: int | None = None,
        positions: int | None = None,
        max_memory: float | None = None,
        channel_axis: ChannelAxis = None,
        mask: Mask = None,
        neurons: bool = False,
        classes: Classes = None,
        probe_data: Any = None,
        output_fn: OutputFn | None = None,
    ) -> None:
        settings = Settings(
            attach_to=attach_to,
            exclude=exclude,
            method=method,
            threshold=threshold,
            alpha=alpha,
            beta=beta,
            group_size=group_size,
            positions=positions,
            max_memory=max_memory,
            channel_axis=channel_axis,
            mask=mask,
            neurons=neurons,
            classes=classes,
            probe_data=probe_data,
        )
        probe = None if probe_data is None else ProbeSet.of(probe_data)
        layers = pick_layers(model, attach_to, exclude)
        axes = ChannelAxes(channel_axis, layers)
        self._prepare(model, layers, settings, axes, output_fn, probe)

    @classmethod
    def of_layers(
        cls,
        model: nn.Module,
        layers: PickedLayers,
        settings: Settings,
        axes: ChannelAxes,
        output_fn: OutputFn | None = None,
    ) -> "Recording":
        """Return a recording of layers that were picked before.

        Args:
            model: The model.
            layers: The layers under their names; what their first pass shows is kept in them.
            settings: How to probe and weigh them.
            axes: Finds the axis of the neurons.
            output_fn: Outputs to the tensor to count.
        """
        recording = cls.__new__(cls)
        recording._prepare(model, layers, settings, axes, output_fn)
        return recording

    @classmethod
    def of_model(
        cls, model: nn.Module, settings: Settings, output_fn: OutputFn | None = None
    ) -> "Recording":
        """Return a recording of the layers that settings pick; see `of_layers`."""
        layers = pick_layers(model, settings.attach_to, settings.exclude)
        axes = ChannelAxes(settings.channel_axis, layers)
        return cls.of_layers(model, layers, settings, axes, output_fn)

    def _prepare(
        self,
        model: nn.Module,
        layers: PickedLayers,
        settings: Settings,
        axes: ChannelAxes,
        output_fn: OutputFn | None,
        probe: ProbeSet | None = None,
    ) -> None:
        refuse_split_layers(model, layers)
        self._layers, self._axes = layers, axes
        names = [name for layer in layers for name in settings.probe_names(layer) if name]
        self.recorder = TensorRecorder(
            names, threshold=settings.threshold, sampling=settings.sampling()
        )
        self._model = model
        self._settings, self._output_fn, self._probe = settings, output_fn, probe
        self._padding: str | None = None
        # How the states of probe data have changed up to the latest block.
        self._changes: Mapping[str, ProbeChange] = {}
        self._warn = WarnOnce()
        self._eager = forced_eager(warn=False)
        # The exit that was last asked for, weakly held: `with` asks before it enters, and holds it.
        self._exit: weakref.ref[Any] | None = None
        self._hooks = Hooks(weakref.WeakMethod(self.close))
        self._watch = Watch(
            self.recorder,
            layers,
            settings,
            axes,
            output_fn,
            masks=Masks(settings.mask, model),
            labels=BatchLabels(settings.classes, "take batches from recording.batches(loader)"),
            hooks=self._hooks,
        )

    @property
    def given(self) -> Settings:
        """How it probes and weighs the layers."""
        return self._settings

    def anew(self, settings: Settings) -> "Recording":
        """Return a recording of the same layers and of what is known of them, without counts."""
        return self.of_layers(self._model, self._layers, settings, self._axes, self._output_fn)

    def of_probe(self) -> "Recording":
        """Return a recording of the same layers that keeps the states of probe data in order.

        What it finds out about the layers it finds out for itself.
        """
        layers, settings = self._layers.copied(), self._settings.of_probe()
        axes = ChannelAxes(settings.channel_axis, {})
        return self.of_layers(self._model, layers, settings, axes, self._output_fn)

    @property
    def counters(self) -> Mapping[str, Counter]:
        """Counter of each probe that has seen activations, in forward order, read-only."""
        return self.recorder.counters

    def __enter__(self) -> "Recording":
        """Begin to count."""
        # Of exits that were only looked at none is left.
        exit_ = self._exit and self._exit()
        try:
            self.open()
            if exit_ is not None:
                hooks = self._hooks
                hooks.block = weakref.ref(exit_, lambda _: hooks.take_off())
            return self
        except BaseException as error:
            self.close(error)
            raise

    def _leave(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take everything off the model, and warn, unless an error ends the block."""
        self.close(error)
        if kind is not None:
            return
        if self._probe is not None:
            self._changes = self._probe.record(self._model, self.of_probe())
        for text in self.conclude().values():
            warnings.warn(text, TensorStateWarning, stacklevel=2)
        thinned = self.recorder.thinned()
        if thinned:
            warnings.warn(describe_thinned(thinned), TensorStateWarning, stacklevel=2)
        # A rank that is given repeats only has counted none, as it should.
        left_out = self._watch.rows.left_out
        unseen = [name for name in self.recorder.unseen() if name not in left_out]
        if unseen:
            warnings.warn(
                f"no activations came from {', '.join(unseen)}: the model was not run, or doesn't "
                "call these layers, or runs them inside compiled or scripted code, which calls no "
                "hooks. Attach to other layers, or exclude them",
                TensorStateWarning,
                stacklevel=2,
            )

    if TYPE_CHECKING:
        __exit__ = _leave
    else:
        __exit__ = _Exit()

    @contextmanager
    def attached(self) -> Iterator["Recording"]:
        """Count while the block is open, without the warnings that `with recording` ends with."""
        try:
            try:
                yield self.__enter__()
            finally:
                self.close()
        finally:
            self.close()

    def open(self, *, trial: bool = False) -> None:
        """Begin to count, until `close`.

        Args:
            trial: The counts are not used, so states that are missing are no loss.
        """
        # What an interrupt may have left of an earlier block.
        self.close()
        watch, model = self._watch, self._model
        # Probe data comes from no loader that is under way.
        watch.rows.loader = None if self.recorder.row_limit is not None else ActiveLoader()
        watch.open(model)
        # Padding after the probes, whose hooks show which modules are hooked anyway.
        if self._settings.mask is None:
            watch_for_padding(model, self._note_padding, self._hooks, lambda: watch.active)
        self._eager = forced_eager(warn=not trial)
        self._eager.__enter__()
        self._hooks.block = None
        self._hooks.is_open = True

    def close(self, error: BaseException | None = None) -> None:
        """Take everything off the model; may be called again.

        Args:
            error: What ended the pass, if it was broken off.
        """
        self._watch.close(self._model)
        self._eager.__exit__(error)
        # What is over needs no further end: an interrupt would be lost in it.
        self._hooks.block = None

    def pause(self) -> None:
        """Count nothing until `resume`: the model is run on data that is not to be counted."""
        self._watch.pause()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing inside the block, in the middle of a batch."""
        watch = self._watch
        was_active, watch.active = watch.active, False
        try:
            yield
        finally:
            watch.active = was_active

    def resume(
        self,
        samples: BatchSamples | None = None,
        n_samples: int | None = None,
        batch: Any = None,
    ) -> None:
        """Go on counting, if `samples` is given a batch's own samples only.

        Args:
            samples: Of the batch that follows; None counts all.
            n_samples: How many it has, where that is known otherwise.
            batch: The batch, where it is known.

        Raises:
            ProbeError: States are counted by class, and the batch has no labels; says what it has.
        """
        rows = self._watch.rows
        rows.samples = samples
        rows.n_samples = samples.n_all if samples is not None and samples.n_all else n_samples
        n_given = rows.n_samples or count_samples((batch,), {})
        self._watch.resume(batch, n_given)

    def conclude(self) -> Mapping[str, str]:
        """End the pass, and return its warnings: kinds to texts."""
        texts = self._watch.conclude()
        if self._padding is not None and self._watch.sees_padding:
            texts["padding"] = self._padding
        return texts

    def _note_padding(self, text: str) -> None:
        self._padding = text

    @property
    def doubts(self) -> Mapping[str, str]:
        """What had to be assumed to leave samples out, for each probe where that was so."""
        return self._watch.rows.doubts

    @property
    def settings(self) -> Mapping[str, str]:
        """What ranks that merge their counts must have in common, as texts."""
        own = {"output_fn": describe_value(self._output_fn)}
        if self._probe is not None:
            own["probe_data"] = self._probe.data.described
        return {**self._settings.comparable(), **own}

    def batches(self, loader: Iterable[Batch], process_group: Any = None) -> Iterator[Batch]:
        """Yield a data loader's batches, and count only the samples that are this rank's own.

        `DistributedSampler` and Accelerate repeat samples where the ranks don't divide the data.
        Without the repeats, the merged counts of all ranks are those of one process. A loop over a
        loader of Accelerate's needs no `batches`: its repeats are left out anyway. `mask` and
        `classes` take their keys from the batches that this yields.

        Args:
            loader: A DataLoader with a `DistributedSampler`, or one that Accelerate has prepared.
            process_group: The ranks that share the data; None means all of them.

        Warns:
            TensorStateWarning: It can't be known which samples are repeated: all are counted.
        """
        return own_batches(loader, process_group, self._begin_batch)

    def _begin_batch(self, samples: BatchSamples | None, batch: Any) -> None:
        self.resume(samples, batch=batch)

    def report(
        self,
        accuracy: float | None = None,
        epoch: int | None = None,
        step: int | None = None,
        stage: str = "val",
        process_group: Any = None,
    ) -> EfficiencyReport:
        """Return efficiency and aIQ of what was counted so far.

        Args:
            accuracy: Accuracy on the same data, share 0 to 1; without it there is no aIQ. Where
                it differs over the ranks of a process group, it is taken for that of each one's
                own data.
            epoch: Epoch that the data was seen in, counted from 0.
            step: Training steps made before.
            stage: First part of the metric keys.
            process_group: Ranks whose counts are merged, for example
                `torch.distributed.group.WORLD`; each of them has to call this. All get the report
                of one process that runs on all of their data. None: this process alone.

        Raises:
            ProbeError: No probe saw any activations.
            RankError: A rank failed, records with other arguments, or didn't come within the
                group's timeout; names it.
            ValueError: `accuracy` is not a share, or this process is not in the group.

        Warns:
            TensorStateWarning: It had to be assumed which activations belong to repeated samples;
                or, once, too little was seen of some layers, or some have no metrics of classes.
        """
        self._watch.find_output()
        counted: Recorder | PassCounts = self.recorder
        if process_group is not None:
            counted, accuracy = merge_report(
                self.recorder, process_group, accuracy, self.doubts, self.settings
            )
        changes = self._changes
        if self._probe is not None and process_group is not None:
            changes = share_changes(changes, process_group)
        if isinstance(counted, Recorder):
            if counted.error is not None:
                raise counted.error
            counted = counted.counts()
        report = counted.report(
            PassInfo(
                accuracy=accuracy,
                alpha=self._settings.alpha,
                beta=self._settings.beta,
                epoch=epoch,
                step=step,
                stage=stage,
            )
        )
        report = report.with_probe(changes) if changes else report
        texts = {
            "coverage": describe_low_coverage(report.layers, report.alpha),
            "classes": counted.class_warning(),
        }
        if process_group is None or dist.get_rank(process_group) == 0:
            for kind, text in texts.items():
                if text is not None:
                    self._warn(kind, text)
        return report


record = Recording
"""Short name of `Recording`, as blocks open it."""
