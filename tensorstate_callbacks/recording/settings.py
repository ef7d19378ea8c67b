"""Check the arguments that all callbacks take, and keep them together."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, Literal, TypeAlias

from tensorstate_callbacks.metrics.efficiency import check_beta
from tensorstate_callbacks.recording.budget import Sampling
from tensorstate_callbacks.recording.channel_axis import ChannelAxis, check_channel_axis
from tensorstate_callbacks.recording.class_labels import (
    Classes,
    check_classes,
)
from tensorstate_callbacks.recording.class_labels import is_array as is_array_of_labels
from tensorstate_callbacks.recording.class_labels import is_on as counts_classes
from tensorstate_callbacks.recording.machine import machine_memory
from tensorstate_callbacks.recording.masks import Mask, check_mask, has_rows, is_array
from tensorstate_callbacks.recording.selection import Patterns, check_patterns
from tensorstate_callbacks.reports.metric_keys import (
    NEED_CLASSES,
    PROBE_METRICS,
    check_layer_metrics,
)
from tensorstate_callbacks.states.spectrum import check_alpha

Method: TypeAlias = Literal["after", "before", "both"]
Watched: TypeAlias = Literal["val", "train"]
Accuracy: TypeAlias = str | Callable[[Mapping[str, Any]], float | None] | None

MOST_IN_GROUP = 22
METHODS = ("after", "before", "both")
MISSING_ACCURACY = ("warn", "ignore", "raise")
WATCHED = ("val", "train")
LOG_EXTRAS = ("charts", "figures", None)
# Which layers are probed shows in the probes' names; what is shown may differ from rank to rank,
# and so may the machines.
_NOT_COMPARED = ("attach_to", "exclude", "layer_metrics", "log_extras", "max_memory")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What to probe, how to weigh it, when, and under which keys it is logged.

    Args:
        attach_to: Which layers to probe; see `selection.select_layers`.
        exclude: Which of them not to.
        method: `"after"` probes outputs, `"before"` inputs, `"both"` both.
        beta: Weight of accuracy in aIQ, above 0.
        accuracy: Log key of the accuracy, a callable on the logs, or None for the usual names.
        threshold: A neuron fires where its activation is above it; finite.
        alpha: Order of the Rényi entropy, 0 to infinity; 1 is Shannon's.
        group_size: Neurons of a unit, 1 to 22; None makes each layer one unit.
        positions: At most that many positions of each sample are read, at least 1; None reads all.
        max_memory: Bytes that the counters may hold together, at least 1, or infinity; None is a
            quarter of the machine's memory.
        every_n_epochs: Record in the evaluation of every n-th epoch only, at least 1.
        on: What to record: `"val"` (evaluations), `"train"` (batches of the training) or both.
        every_n_train_steps: Record every n-th training batch only, at least 1.
        window: Recorded training batches that are reported together, at least 1.
        prefix: Put before the metrics' names.
        layer_metrics: Metrics logged for each layer; see `metric_keys.check_layer_metrics`.
        missing_accuracy: `"warn"`, `"ignore"` or `"raise"` where no accuracy is found.
        channel_axis: Axis of the neurons where the rules are wrong; see `check_channel_axis`.
        mask: Which positions count; see `masks.check_mask`.
        neurons: Whether to find the neurons that agree or oppose each other, and to keep how often
            each fired.
        classes: The labels of the samples that states are counted by too; see `check_classes`.
        probe_data: A few samples that the change of states is followed on, or None; read by each
            framework's own part.
        log_extras: What TensorBoard and MLflow get besides scalars: `"charts"`, `"figures"`, None.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: An argument is out of its range.
    """

    attach_to: Patterns | None = None
    exclude: Patterns = ()
    method: Method = "after"
    beta: float = 2
    accuracy: Accuracy = None
    threshold: float = 0.0
    alpha: float = 1
    group_size: int | None = None
    positions: int | None = None
    max_memory: float | None = None
    every_n_epochs: int = 1
    on: Watched | Sequence[Watched] = ("val",)
    every_n_train_steps: int = 50
    window: int = 20
    prefix: str = ""
    layer_metrics: bool | Sequence[str] = True
    missing_accuracy: Literal["warn", "ignore", "raise"] = "warn"
    channel_axis: ChannelAxis = None
    mask: Mask = None
    neurons: bool = False
    classes: Classes = None
    probe_data: Any = None
    log_extras: Literal["charts", "figures"] | None = "charts"

    def __post_init__(self) -> None:
        if self.attach_to is not None and not check_patterns("attach_to", self.attach_to):
            raise ValueError("attach_to is empty: name at least one layer, or leave it out")
        check_patterns("exclude", self.exclude)
        _check_choice("method", self.method, METHODS)
        _check_choice("missing_accuracy", self.missing_accuracy, MISSING_ACCURACY)
        _check_choice("log_extras", self.log_extras, LOG_EXTRAS)
        check_beta(_real("beta", self.beta))
        check_alpha(_real("alpha", self.alpha))
        check_threshold(self.threshold)
        check_layer_metrics(self.layer_metrics)
        if not (self.accuracy is None or isinstance(self.accuracy, str) or callable(self.accuracy)):
            raise TypeError(
                f"accuracy takes a log key, a callable on the logs, or None; got {self.accuracy!r}"
            )
        if not isinstance(self.prefix, str):
            raise TypeError(f"prefix takes a string; got {self.prefix!r}")
        check_channel_axis(self.channel_axis)
        check_mask(self.mask)
        if not isinstance(self.neurons, bool):
            raise TypeError(
                "neurons takes True, to find the neurons that agree or oppose each other, or "
                f"False; got {self.neurons!r}"
            )
        _check_watched(self.on)
        if self.records("train") and has_rows(self.mask):
            raise ValueError(
                "mask is an array of the samples of an evaluation, in their order, and on has "
                '"train", whose samples come in another: give the key of a mask in the batch, or '
                "(name, batch) -> mask"
            )
        self._check_classes()
        self._check_probe_data()
        for argument in ("every_n_epochs", "every_n_train_steps", "window"):
            _check_number(argument, getattr(self, argument))
        if self.group_size is not None:
            _check_number("group_size", self.group_size, MOST_IN_GROUP)
        if self.positions is not None:
            _check_number("positions", self.positions)
        if self.max_memory is not None and self.max_memory != math.inf:
            given = self.max_memory
            # A config that is read by the annotation has 8e9 where it says 8000000000.
            whole = int(given) if isinstance(given, float) and given.is_integer() else given
            _check_number("max_memory, in bytes,", whole)

    def _check_classes(self) -> None:
        check_classes(self.classes)
        if not counts_classes(self.classes):
            needing = [n for n in check_layer_metrics(self.layer_metrics) if n in NEED_CLASSES]
            if needing:
                raise ValueError(
                    f"layer_metrics has {', '.join(needing)}, which needs classes: give classes=, "
                    "such as classes=True"
                )
        elif not self.records("val"):
            raise ValueError(
                f"classes are of evaluations, and on is {self.on!r}, which records none: add "
                '"val" to on, or leave classes out'
            )

    def _check_probe_data(self) -> None:
        if isinstance(self.probe_data, (str, bytes, bool, int, float)):
            raise TypeError(
                "probe_data takes a few samples as the model takes them, or an iterable of their "
                f"batches; got {self.probe_data!r}"
            )
        if self.probe_data is None:
            asked = [n for n in check_layer_metrics(self.layer_metrics) if n in PROBE_METRICS]
            if asked:
                raise ValueError(
                    f"layer_metrics has {asked[0]!r}, which is of probe_data: give probe_data, a "
                    "few samples to follow the states of"
                )
        elif not self.records("val"):
            raise ValueError(
                'probe_data is followed from one evaluation to the next, and on has no "val": '
                "record evaluations too, or leave it out"
            )

    def is_due(self, epoch: int) -> bool:
        """Tell whether the evaluation of `epoch`, counted from 0, is to be recorded."""
        return (epoch + 1) % self.every_n_epochs == 0

    def records(self, what: Watched) -> bool:
        """Tell whether evaluations are to be recorded (`"val"`), or training (`"train"`)."""
        return what in ((self.on,) if isinstance(self.on, str) else self.on)

    def is_step_due(self, step: int) -> bool:
        """Tell whether a training batch, counted from 1, is to be recorded."""
        return step % self.every_n_train_steps == 0

    def sampling(self) -> Sampling:
        """Return what of a layer's states is counted."""
        most: int | None
        if self.max_memory is None:
            most = machine_memory() // 4
        else:
            most = None if self.max_memory == math.inf else int(self.max_memory)
        by_class = counts_classes(self.classes)
        return Sampling(self.group_size, self.positions, most, self.neurons, by_class)

    def of_train_batch(self) -> "Settings":
        """Return what one batch of a window is recorded with: the same, with its share of memory.

        All batches have equal shares of one half, so that what is read of a batch depends on
        nothing but that batch; what all of them have counted together needs no more than the other.
        Classes are counted in evaluations only.
        """
        most = self.sampling().max_memory
        share = math.inf if most is None else max(most // (2 * self.window), 1)
        return dataclasses.replace(self, max_memory=share, classes=None, layer_metrics=False)

    def of_probe(self) -> "ProbeSettings":
        """Return what a run over the probe data is recorded with: its states are kept in order.

        The rows of a mask are of other samples.
        """
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        mask = None if has_rows(self.mask) else self.mask
        changed = {"mask": mask, "neurons": False, "classes": None, "group_size": None}
        return ProbeSettings(**{**values, **changed, "layer_metrics": False})

    def comparable(self) -> dict[str, str]:
        """Return what processes that merge their counts must have in common, as texts."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if is_array(self.mask):
            # Each process has one of its own samples.
            values["mask"] = "an array"
        if self.probe_data is not None:
            # What it holds is told of by a digest.
            values["probe_data"] = "given"
        if is_array_of_labels(self.classes):
            values["classes"] = "an array"
        return {
            name: describe_value(value)
            for name, value in values.items()
            if name not in _NOT_COMPARED
        }

    def probe_names(self, layer: str) -> tuple[str | None, str | None]:
        """Return the names of a layer's input and output probes, None where there is none."""
        before = f"{layer}.input" if self.method in ("before", "both") else None
        after = layer if self.method in ("after", "both") else None
        return before, after


class ProbeSettings(Settings):
    """How a run over the probe data is recorded: the states are kept in their order, not counted.

    Of layers and of groups these are the same.
    """

    def sampling(self) -> Sampling:
        """Return what of a layer's states is kept."""
        return Sampling(positions=self.positions, keeps_rows=True)


def describe_value(value: Any) -> str:
    """Return an argument as a text that is the same in each process which was given the same.

    Examples:
        >>> describe_value({"conv": (-2, -1), int: 2.0}), describe_value(math.log2)
        ('{conv: (-2, -1), builtins.int: 2}', 'math.log2')
    """
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        pairs = (f"{describe_value(k)}: {describe_value(v)}" for k, v in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, Sequence):
        return f"({', '.join(map(describe_value, value))})"
    if isinstance(value, Real) and not isinstance(value, bool):
        # A number counts, not its type; as few digits as tell it from others.
        return repr(float(value)).removesuffix(".0")
    if callable(value):
        # An object without a name of its own has its class's: addresses differ in each process.
        named = value if hasattr(value, "__qualname__") else type(value)
        return f"{named.__module__}.{named.__qualname__}"
    return repr(value)


def check_threshold(threshold: float) -> float:
    """Return the firing threshold, or raise `ValueError` if it is not finite."""
    if not math.isfinite(_real("threshold", threshold)):
        raise ValueError(
            f"threshold, above which a neuron fires, must be a finite number; got {threshold}"
        )
    return threshold


def _real(argument: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{argument} must be a number; got {value!r}") from None


def _check_number(argument: str, value: object, most: int | None = None) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or value < 1
        or value > (most or value)
    ):
        up_to = "at least 1" if most is None else f"1 to {most}"
        raise ValueError(f"{argument} must be a whole number, {up_to}; got {value!r}")


def _check_watched(on: Any) -> None:
    names = (on,) if isinstance(on, str) else on
    if not isinstance(names, Sequence) or not names or any(n not in WATCHED for n in names):
        raise ValueError(
            'on takes "val" (evaluations), "train" (batches of the training), or both, '
            f'("val", "train"); got {on!r}'
        )


def _check_choice(argument: str, value: Any, choices: Sequence[str | None]) -> None:
    if value not in choices:
        raise ValueError(f"{argument} must be one of {', '.join(map(str, choices))}; got {value!r}")
