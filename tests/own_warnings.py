"""Which warnings of this package's came, told apart from those of low coverage."""

import warnings
from collections.abc import Iterable

from tensorstate_callbacks import TensorStateWarning


def ours(caught: Iterable[warnings.WarningMessage]) -> list[str]:
    """The texts of this package's warnings, but for those that too little data was seen."""
    return [text for text in _texts(caught) if not text.startswith("Coverage")]


def of_coverage(caught: Iterable[warnings.WarningMessage]) -> list[str]:
    """The texts of the warnings that too little data was seen."""
    return [text for text in _texts(caught) if text.startswith("Coverage")]


def _texts(caught: Iterable[warnings.WarningMessage]) -> list[str]:
    return [str(w.message) for w in caught if issubclass(w.category, TensorStateWarning)]
