"""Turn a recorded pass and its accuracy into a report, or say why there is none."""

import dataclasses
from collections.abc import Collection

from tensorstate_callbacks.errors import WarnOnce
from tensorstate_callbacks.recording.accuracy import FoundAccuracy
from tensorstate_callbacks.recording.recorder import PassFigures, PassInfo, Recorder
from tensorstate_callbacks.recording.settings import Settings
from tensorstate_callbacks.reports.layer_report import describe_low_coverage
from tensorstate_callbacks.reports.report import EfficiencyReport


def conclude(
    recorder: Recorder | PassFigures,
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
    if isinstance(recorder, PassFigures):
        figures = recorder
    elif recorder.error is not None:
        raise recorder.error
    else:
        figures = recorder.figures()
    unseen = figures.unseen()
    if figures.seen() and before is not None:
        # What the report before had is told of as a change.
        unseen = [name for name in unseen if name not in before]
    if unseen:
        warn(
            "unseen",
            f"no activations came from {', '.join(unseen)}: the evaluation saw no data or doesn't "
            "call these layers, or they run where a probe can't see them (a compiled function of "
            "their own). They are left out; attach to other layers, or exclude them",
        )
    if not figures.seen():
        return None
    if found.problem is not None:
        problem = f"aIQ can't be computed: {found.problem}. Efficiency is logged without it"
        if settings.missing_accuracy == "raise":
            raise ValueError(problem)
        if settings.missing_accuracy == "warn":
            warn("accuracy", problem)
    report = figures.report(
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
