"""Say which layers hold weights that the default selection of layers leaves uncounted."""

from collections.abc import Mapping

from tensorstate_callbacks.errors import list_some

# Below this share of the weights the network's efficiency is that of another, smaller network.
_ENOUGH = 0.9
_WORTH_NAMING = 0.01


def uncovered_message(owned: Mapping[str, int], covered: int) -> str | None:
    """Return what to warn of where the probed layers hold too few of the weights.

    Leave out of the account what has no neurons to count or is left out on purpose: lookup tables,
    normalizations, the layer that makes the output.

    Args:
        owned: Weights of each layer that ran and was not probed, each weight in one layer only.
        covered: Weights in the probed layers.

    Returns:
        A sentence that names the share and the layers which own 1 % or more, largest first; None
        where the probed layers hold 90 % or more.

    Example:
        >>> uncovered_message({"lstm": 600, "scale": 2}, 400)
        'the default selection covers 40 % of the weights; not probed: lstm (60 %). Efficiency and \
aIQ say nothing of these layers: name the layers to probe with attach_to'
        >>> uncovered_message({"lstm": 50}, 950)
    """
    total = covered + sum(owned.values())
    if not total or covered >= _ENOUGH * total:
        return None
    ranked = sorted(owned.items(), key=lambda item: -item[1])
    # Many small layers may hold much together: then the largest speaks for them.
    named = [item for item in ranked if item[1] >= _WORTH_NAMING * total] or ranked[:1]
    listed = list_some(f"{name} ({_percent(size / total)})" for name, size in named)
    return (
        f"the default selection covers {_percent(covered / total)} of the weights; not probed: "
        f"{listed}. Efficiency and aIQ say nothing "
        "of these layers: name the layers to probe with attach_to"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 or not share else "less than 1 %"
