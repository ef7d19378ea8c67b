"""Hold what all callbacks share: arguments, history, the end of a pass."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from tensorstate_callbacks.errors import StatesNotAvailableError, WarnOnce
from tensorstate_callbacks.metrics.turnover import ProbeChange
from tensorstate_callbacks.recording.accuracy import FoundAccuracy, find_accuracy
from tensorstate_callbacks.recording.budget import describe_thinned
from tensorstate_callbacks.recording.channel_axis import ChannelAxis
from tensorstate_callbacks.recording.class_labels import Classes
from tensorstate_callbacks.recording.masks import Mask
from tensorstate_callbacks.recording.pass_counts import PassCounts, PassInfo
from tensorstate_callbacks.recording.probe_states import FollowedProbe
from tensorstate_callbacks.recording.recorder import Recorder
from tensorstate_callbacks.recording.selection import Patterns
from tensorstate_callbacks.recording.settings import Accuracy, Method, Settings, Watched
from tensorstate_callbacks.recording.windows import (
    StateWindow,
    conclude_window,
    warn_of_low_coverage,
)
from tensorstate_callbacks.reports.limits import describe_low_coverage
from tensorstate_callbacks.reports.report import EfficiencyReport, History

_MOST_WINDOWS = 1000


class RecordingCallback:
    """Base of the callbacks, beside the framework's own `Callback`.

    Each argument is a public attribute under its own name. A changed one counts from the next run
    on, a fit or an evaluation outside of it, and is checked as that begins.

    Attributes:
        history: One `EfficiencyReport` per recorded evaluation, over all fits.
        train_history: One for each recorded training batch, of the window that it is the last of;
            stage `"train"`, without an accuracy: nobody measures one on just these batches. It
            keeps the latest 1,000, the last one whole and the others with their metrics only.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: An argument is out of its range.
    """

    # What a copy goes without: all that `_forget_the_run` sets.
    _NOT_COPIED: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        attach_to: Patterns | None = None,
        *,
        exclude: Patterns = (),
        method: Method = "after",
        beta: float = 2,
        accuracy: Accuracy = None,
        threshold: float = 0.0,
        alpha: float = 1,
        group_size: int | None = None,
        positions: int | None = None,
        max_memory: float | None = None,
        channel_axis: ChannelAxis = None,
        mask: Mask = None,
        neurons: bool = False,
        classes: Classes = None,
        probe_data: Any = None,
        every_n_epochs: int = 1,
        on: Watched | Sequence[Watched] = ("val",),
        every_n_train_steps: int = 50,
        window: int = 20,
        prefix: str = "",
        layer_metrics: bool | Sequence[str] = True,
        missing_accuracy: Literal["warn", "ignore", "raise"] = "warn",
        log_extras: Literal["charts", "figures"] | None = "charts",
    ) -> None:
        """Take and check the arguments.

        Args:
            attach_to: Which layers to probe: a class name (`"Conv2D"`), a layer name or glob
                (`"block_*/conv"`, `"net.blocks.*.conv"`), a type, a predicate
                `(name, layer) -> bool`, or a sequence of these. None takes every convolution and
                dense layer except the one that makes the output.
            exclude: Which of them to leave out, in the same forms.
            method: `"after"` probes the layers' outputs, `"before"` their inputs (named
                `<layer>.input`), `"both"` both.
            beta: Weight of accuracy in aIQ, above 0.
            accuracy: Key of the accuracy in the logs (`"val_acc"`), or a callable that takes the
                evaluation's logs and returns it, as a share 0 to 1. None looks for the usual names
                (`accuracy`, `acc`, `sparse_categorical_accuracy`...).
            threshold: A neuron fires where its activation is above it; finite.
            alpha: Order of the Rényi entropy, 0 to infinity; 1 is Shannon's.
            group_size: Neurons of a unit, 1 to 22. So many neighbouring neurons of a layer are one
                unit, and the layer's entropy is the sum of the units'. A small unit needs few
                states to be measured well, however wide the layer is. None makes the layer one
                unit, as in the paper.
            positions: At most so many positions of each sample (pixels, tokens) are read, spread
                evenly. Which ones depends on the shape of the layer's output only. None reads all.
            max_memory: Bytes that the counters of one evaluation may hold together. Where they
                would pass it, the layers that need most are read at fewer positions, and a warning
                names them. None is a quarter of the machine's memory, `math.inf` no limit.
            channel_axis: Axis of the neurons in the layers' tensors, batch axis included, where the
                one that is found out by itself is wrong: an axis; a tuple of axes that are one unit
                together, such as heads and their size, `(-2, -1)`; a mapping of layer names, globs,
                class names or types to these; or a callable `(name, layer, tensor)` that returns
                one, or None. Axes may be negative.
            mask: Which positions (tokens, pixels) of the samples count. The others, such as
                padding, are left out, so that a padded batch gives the counts of its samples
                without padding. A key of the batch (`"attention_mask"`); a callable `(name, batch)`
                that returns a layer's mask; an array for all samples in their order; or `"auto"`,
                the masks that layers are called with. A mask has the shape `(samples, positions)`,
                or more axes of positions, and is True, or 1, where a position counts.
            neurons: Whether to find, at the end of each recorded pass, the neurons of a layer that
                fired in exactly the same states (`layer.agreeing`), and those that fired exactly
                where another did not (`layer.opposing`); with `group_size` within each unit only.
                It also keeps how often each neuron fired over all evaluations, in checkpoints and
                files too (`layer.firing_rates`, `history.lifelines(layer)`).
            classes: Labels of the samples, to count the states of evaluations by class too: how
                evenly each class uses its states, how many of them two classes share, and what a
                state tells of the label, each beside the same for shuffled labels. The results are
                in `last.layers[name].classes`. True takes the second element of a batch, or what a
                mapping has under `labels`, `label`, `y`, `target` or `targets`; or give a key of
                the batch, a callable `batch -> labels`, or an array with a label for each sample,
                in their order. Labels are whole numbers, one for each sample, or one-hot, of at
                most 1,000 classes. They take half of `max_memory`. Recorded training batches have
                no metrics of classes.
            probe_data: A few samples, at most 1,024, whose states are followed over the training:
                how many of their bits change from one recorded evaluation to the next, and since
                the beginning. The results are in `last.layers[name].probe`, a `ProbeChange`. The
                model is run on them once more as a fit begins, if it is built by then, and at the
                end of each recorded evaluation, without gradients, as in evaluations. They are read
                once. Their packed states of the first and the latest run are kept, a bit for each
                neuron and position, and may take 128 MiB a run; `positions` takes fewer. A mask
                that is an array of all samples isn't applied to them. If the model fails on them, a
                warning says so, and training goes on without.
            every_n_epochs: Record every n-th epoch's validation only.
            on: What to record: `"val"` the evaluations, validation and tests; `"train"` the
                training itself; `("val", "train")` both.
            every_n_train_steps: With `"train"`, record every n-th training batch only. The others
                run as without the callback.
            window: With `"train"`, how many recorded batches are reported together, the latest
                ones. More of them show more states, but it takes longer until a change of the
                network shows. All of them share `max_memory`.
            prefix: Put before the metrics' names: `"x_"` gives `val_x_aiq`. Several callbacks of
                one fit need different ones.
            layer_metrics: True logs each layer's efficiency, False nothing of the layers. Or give
                the names of the metrics to log:

                - Shares, 0 to 1: `"efficiency"`, `"ceiling"`, `"ceiling_share"` (what the
                  efficiency reaches of the ceiling), `"rate_bound"` (the efficiency if neurons
                  fired independently), `"redundancy"` (what is lost of the rate bound),
                  `"coverage"` (of units, the smallest), `"mean_coverage"`, `"dead"` and `"always"`
                  (neurons that never and that always fired), `"firing_rate"`, `"max_share"` (of the
                  most frequent state).
                - Numbers of states: `"states"`, `"distinct"`, `"singletons"` (seen once),
                  `"effective_states"` (so many, used evenly, have the same entropy of order
                  `alpha`; of units the geometric mean).
                - Bits: `"entropy"`.
                - With `classes`, in bits: `"class_information"` (of state and label),
                  `"class_divergence"` (mean of two classes), and the same of shuffled labels,
                  `"shuffled_class_information"` and `"shuffled_class_divergence"`.
                - With `probe_data`, shares: `"turnover"` (of the bits, those that changed since the
                  recording before), `"turnover_from_first"`, `"unchanged"` (of the neurons, those
                  that never changed).
            missing_accuracy: What to do where no accuracy is found: `"warn"` once, `"ignore"` it,
                or `"raise"` an error. Efficiency is logged in any case.
            log_extras: What loggers get besides scalars. `"charts"`: TensorBoard gets charts that
                lay efficiency, aIQ and accuracy over each other, MLflow gets parameters, a table
                and a figure. `"figures"`: TensorBoard also gets, with each recorded epoch, a heat
                map of the layers' efficiencies over the epochs, and how often each layer's states
                occur; needs the extra `plot`. None: nothing. With `neurons=True` both also get
                figures of the neurons of the first six layers (see `plot_neurons`), TensorBoard
                with `"figures"` only, and MLflow a table of neurons.
        """
        super().__init__()
        self.attach_to = attach_to
        self.exclude = exclude
        self.method = method
        self.beta = beta
        self.accuracy = accuracy
        self.threshold = threshold
        self.alpha = alpha
        self.group_size = group_size
        self.positions = positions
        self.max_memory = max_memory
        self.channel_axis = channel_axis
        self.mask = mask
        self.neurons = neurons
        self.classes = classes
        self.probe_data = probe_data
        self.every_n_epochs = every_n_epochs
        self.on = on
        self.every_n_train_steps = every_n_train_steps
        self.window = window
        self.prefix = prefix
        self.layer_metrics = layer_metrics
        self.missing_accuracy = missing_accuracy
        self.log_extras = log_extras
        self.history = History()
        self.train_history = History()
        self._forget_the_run()
        self._check_framework()

    @property
    def last(self) -> EfficiencyReport:
        """The latest report.

        Raises:
            StatesNotAvailableError: No evaluation has been recorded yet.
        """
        if not self.history:
            raise StatesNotAvailableError(
                "there is no report yet, since this callback has recorded no evaluation: give it "
                "to a fit that validates, or to an evaluation"
            )
        return self.history[-1]

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy keeps: arguments and history, nothing of a model or a run."""
        kept = {name: value for name, value in vars(self).items() if name not in self._NOT_COPIED}
        # Also of a shallow copy: each callback goes on by itself.
        histories = {"history": self.history, "train_history": self.train_history}
        return {**kept, **{name: History(reports) for name, reports in histories.items()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget_the_run()

    def _check_framework(self) -> None:
        """Raise an error where the framework is set up in a way that can't be recorded."""

    def _forget_the_run(self) -> None:
        """Be as before the first fit, but for the history."""
        self._take_settings()
        self._warn = WarnOnce()
        self._probe = FollowedProbe(self._warn)
        # Layers of the latest report of this run.
        self._reported: tuple[str, ...] | None = None
        self._begin_windows()

    def _begin_windows(self) -> None:
        """Begin to follow the training of a fit, of which nothing is recorded yet."""
        self._window = StateWindow(self._settings.window)
        # The report of the latest window.
        self._window_report: EfficiencyReport | None = None

    def _take_settings(self) -> None:
        """Check the arguments as they are now, and keep them for the run that begins."""
        names = [field.name for field in dataclasses.fields(Settings)]
        self._settings = Settings(**{name: getattr(self, name) for name in names})

    def _find_accuracy(self, logs: Mapping[str, Any], stage: str | None = None) -> FoundAccuracy:
        return find_accuracy(self._settings.accuracy, logs, stage)

    def _conclude(
        self,
        recorder: Recorder | PassCounts,
        found: FoundAccuracy,
        info: PassInfo,
        *,
        compare: bool = True,
        changes: Mapping[str, ProbeChange] = MappingProxyType({}),
    ) -> EfficiencyReport | None:
        """Put the report of a pass into the history; see `conclude`.

        Args:
            recorder: The pass.
            found: Its accuracy, or why there is none.
            info: Its epoch, step and stage.
            compare: Whether the layers are to be those of the report before.
            changes: How the layers' states of `probe_data` have changed.
        """
        before = self._reported if compare else None
        report = conclude(recorder, found, self._settings, self._warn, info, before=before)
        if report is not None:
            report = report.with_probe(changes) if changes else report
            # A long training has many, and pairs of a hundred classes take megabytes.
            self.history[-1:] = [each.without_pairs() for each in self.history[-1:]]
            self.history.append(report)
            if compare:
                self._reported = tuple(report.layers)
        return report

    def _conclude_window(self, counts: PassCounts, info: PassInfo) -> EfficiencyReport | None:
        """Put the report of a window into its history; see `conclude_window`.

        Args:
            counts: What was counted in the window: `self._window.counts()`, over all processes.
            info: Its epoch and step.
        """
        settings, before = self._settings, self._window_report
        report = conclude_window(
            counts,
            self._warn,
            dataclasses.replace(info, stage="train", alpha=settings.alpha, beta=settings.beta),
            is_full=self._window.is_full,
            before=None if before is None else tuple(before.layers),
        )
        if report is not None:
            self._window_report = report
            if self.train_history:
                # A long training has many windows, and a spectrum may have thousands of entries.
                self.train_history[-1] = self.train_history[-1].without_states()
            self.train_history.append(report)
            del self.train_history[:-_MOST_WINDOWS]
        return report

    def _end_windows(self) -> None:
        """End a fit whose training was to be recorded, and say so if there was nothing to."""
        report, is_full = self._window_report, self._window.is_full
        self._begin_windows()
        if report is None:
            every = self._settings.every_n_train_steps
            self._warn(
                "windows",
                "no training batch was recorded in this fit, so no train_efficiency was logged: of "
                f"every {every} batches one was to be, and there were fewer, or none of them ran a "
                "layer that is probed. Give a smaller every_n_train_steps",
            )
        elif not is_full:
            warn_of_low_coverage(report, self._warn)


def conclude(
    recorder: Recorder | PassCounts,
    found: FoundAccuracy,
    settings: Settings,
    warn: WarnOnce,
    info: PassInfo,
    *,
    before: Collection[str] | None = None,
) -> EfficiencyReport | None:
    """Turn one recorded pass into its report.

    Args:
        recorder: The pass, or what several processes recorded of it, summed up.
        found: Its accuracy, or why there is none.
        settings: What the callback was given.
        warn: Takes the warnings: a probe that saw nothing, an accuracy that is missing, a layer of
            which too little was seen, other layers than in the report before.
        info: Its epoch, step and stage; accuracy, alpha and beta are filled in here.
        before: Layers of the report before, of the same fit and stage; None where there is none.

    Returns:
        The report, without aIQ where there is no accuracy; None where no probe saw anything.

    Raises:
        ProbeError: A layer could not be counted.
        ValueError: There is no accuracy, and `missing_accuracy` is `"raise"`.
    """
    if isinstance(recorder, PassCounts):
        counts = recorder
    elif recorder.error is not None:
        raise recorder.error
    else:
        counts = recorder.counts()
    if counts.thinned:
        warn(f"memory {sorted(counts.thinned)}", describe_thinned(counts.thinned))
    unclassed = counts.class_warning()
    if unclassed is not None:
        warn("classes", unclassed)
    unseen = counts.unseen()
    if counts.probes and before is not None:
        # What the report before had is told of as a change.
        unseen = [name for name in unseen if name not in before]
    if unseen:
        warn(
            "unseen",
            f"no activations came from {', '.join(unseen)}: the evaluation saw no data or doesn't "
            "call these layers, or they run where a probe can't see them (a compiled function of "
            "their own). They are left out; attach to other layers, or exclude them",
        )
    if not counts.probes:
        return None
    if found.problem is not None:
        problem = f"aIQ can't be computed: {found.problem}. Efficiency is logged without it"
        if settings.missing_accuracy == "raise":
            raise ValueError(problem)
        if settings.missing_accuracy == "warn":
            warn("accuracy", problem)
    report = counts.report(
        dataclasses.replace(info, accuracy=found.value, alpha=settings.alpha, beta=settings.beta)
    )
    if before is not None and set(before) != set(report.layers):
        warn.each_time(_describe_change(report, before))
    limited = describe_low_coverage(report.layers, report.alpha)
    if limited is not None:
        warn("coverage", limited)
    return report


def _describe_change(report: EfficiencyReport, before: Collection[str]) -> str:
    added = [name for name in report.layers if name not in before]
    missing = [name for name in before if name not in report.layers]
    # With its time, since Python gives a text only once, and layers may come and go.
    when = "" if report.epoch is None else f" in epoch {report.epoch}"
    when += "" if report.step is None else f" after {report.step} steps"
    changes = [f"added: {', '.join(added)}"] * bool(added)
    changes += [f"missing: {', '.join(missing)}"] * bool(missing)
    return (
        f"the evaluation{when} saw other layers than the one before ({'; '.join(changes)}): "
        "efficiency and aIQ of the network are of these layers now, and can't be compared with "
        "those before. Compare layer by layer, or attach to layers that every evaluation calls"
    )
