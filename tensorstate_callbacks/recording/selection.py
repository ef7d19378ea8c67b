"""Pick the layers to probe, and say which weights the default choice leaves uncounted."""

import fnmatch
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from tensorstate_callbacks.errors import NoLayerMatchedError, TensorStateWarning, list_some

Pattern: TypeAlias = str | type | Callable[[str, Any], bool]
# Written out with strings first: LightningCLI saves a value as the first type that takes it.
Patterns: TypeAlias = str | Sequence[str] | type | Callable[[str, Any], bool] | Sequence[Pattern]

_GLOB = frozenset("*?[")
# Below this share of the weights the network's efficiency is that of another, smaller network.
_ENOUGH = 0.9
_WORTH_NAMING = 0.01


def check_patterns(argument: str, patterns: Patterns) -> tuple[Pattern, ...]:
    """Return `patterns` as a tuple; a string is one pattern, never a set of letters.

    Raises:
        TypeError: A pattern is neither a string, a type nor a predicate; the message names the
            argument.
    """
    alone = isinstance(patterns, (str, type)) or callable(patterns)
    # A sequence, by what its type says: a layer is none, though it may have __getitem__.
    if not alone and not isinstance(patterns, Iterable):
        raise TypeError(_pattern_message(argument, patterns))
    found: tuple[Any, ...] = (patterns,) if alone else tuple(patterns)  # type: ignore[arg-type]
    for pattern in found:
        if not (isinstance(pattern, (str, type)) or callable(pattern)):
            raise TypeError(_pattern_message(argument, pattern))
    return found


def select_layers(
    layers: Mapping[str, Any],
    attach_to: Patterns | None,
    exclude: Patterns = (),
    *,
    default: Iterable[str] = (),
) -> dict[str, Any]:
    """Pick the layers to probe, in the order the model has them.

    Args:
        layers: Every layer of the model under its name.
        attach_to: A class name (`"Conv2D"`, also of a base class), a layer name or glob
            (`"block_*.conv"`), a type, a predicate `(name, layer) -> bool`, or a sequence of
            these. None takes the layers named in `default`.
        exclude: Which of them to leave out, in the same forms.
        default: Names of the layers that `attach_to=None` stands for.

    Returns:
        The picked layers under their names.

    Raises:
        NoLayerMatchedError: No layer is left; the message lists what the model has.
        TypeError: A pattern is neither a string, a type nor a predicate.

    Warns:
        TensorStateWarning: One of several patterns matched no layer.
    """
    defaults = frozenset(default)
    if attach_to is None:
        picked = {name for name in layers if name in defaults}
        asked = "the default (every convolution and dense layer except the one of the output)"
    else:
        wanted = check_patterns("attach_to", attach_to)
        picked = _match_all("attach_to", wanted, layers)
        asked = f"attach_to={_describe(wanted)}"
    if not picked:
        raise NoLayerMatchedError(f"{asked} matched no layer. {inventory(layers)}")
    unwanted = check_patterns("exclude", exclude)
    left_out = _match_all("exclude", unwanted, layers)
    chosen = {name: layer for name, layer in layers.items() if name in picked - left_out}
    if not chosen:
        raise NoLayerMatchedError(
            f"exclude={_describe(unwanted)} leaves out every layer that {asked} matched: "
            f"{list_some(sorted(picked))}. Exclude less, or attach to more."
        )
    return chosen


def inventory(layers: Mapping[str, Any]) -> str:
    """Return a sentence that lists the class names and some layer names there are."""
    if not layers:
        return "The model has no layers; build it first, by calling it once on some data."
    classes = Counter(type(layer).__name__ for layer in layers.values())
    counted = [f"{name} ({number})" for name, number in classes.items()]
    return (
        f"The model has layers of the classes {list_some(counted, 12)}, named {list_some(layers)}."
    )


def matches(pattern: Pattern, name: str, layer: Any) -> bool:
    """Tell whether one pattern, in the forms of `select_layers`, matches one layer."""
    if isinstance(pattern, str):
        if _GLOB & set(pattern):
            return fnmatch.fnmatchcase(name, pattern)
        return name == pattern or any(base.__name__ == pattern for base in type(layer).__mro__)
    if isinstance(pattern, type):
        return isinstance(layer, pattern)
    return bool(pattern(name, layer))


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

    Examples:
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


def _match_all(argument: str, patterns: Sequence[Pattern], layers: Mapping[str, Any]) -> set[str]:
    found: set[str] = set()
    for pattern in patterns:
        hits = {name for name, layer in layers.items() if matches(pattern, name, layer)}
        # attach_to that matched nothing at all is the caller's error, not a warning.
        if not hits and (argument == "exclude" or len(patterns) > 1):
            warnings.warn(
                f"{argument}: {_describe((pattern,))} matched no layer. {inventory(layers)}",
                TensorStateWarning,
                stacklevel=2,
            )
        found |= hits
    return found


def _describe(patterns: Sequence[Pattern]) -> str:
    names = [repr(p) if isinstance(p, str) else getattr(p, "__name__", repr(p)) for p in patterns]
    return names[0] if len(names) == 1 else f"[{', '.join(names)}]"


def _pattern_message(argument: str, pattern: object) -> str:
    return (
        f"{argument} takes a class name, a layer name or glob, a type, a predicate "
        f"(name, layer) -> bool, or a sequence of these; got {pattern!r}"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 or not share else "less than 1 %"
