"""Say why a layer's states could not be counted by class."""

from collections.abc import Mapping

from tensorstate_callbacks.errors import list_some

NO_LABELS = "came without labels"
UNFIT = "don't lie sample after sample"
SHORT = "need more memory than there is for classes"
THINNED = "are read at fewer positions"
MANY = "have more than 1,000 classes"
FEWER = "not all were counted by class"


def describe_problems(problems: Mapping[str, str]) -> str:
    """Return the warning of layers that have no metrics of classes.

    Args:
        problems: Why the states of each could not all be counted by class.
    """
    by_reason: dict[str, list[str]] = {}
    for name, problem in problems.items():
        by_reason.setdefault(problem, []).append(name)
    parts = [f"{list_some(names)} ({reason})" for reason, names in by_reason.items()]
    advice = []
    if any(reason in (SHORT, THINNED) for reason in by_reason):
        advice.append(
            "give more max_memory, of which classes have one half, or read fewer positions of all "
            "layers (positions=16)"
        )
    if NO_LABELS in by_reason or FEWER in by_reason:
        advice.append(
            "run the model on batches with labels only: those of recording.batches(loader), or of "
            "the callback's evaluation"
        )
    if MANY in by_reason:
        advice.append("give a callable batch -> labels that puts several of them together")
    if any(UNFIT in reason for reason in by_reason):
        advice.append("exclude layers whose activations are not sample after sample")
    return (
        f"there are no metrics of classes of {'; '.join(parts)}. All else of these layers is "
        f"counted. For their classes: {'; or '.join(advice)}"
    )
