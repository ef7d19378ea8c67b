"""Long layer names in, short ones out that still differ."""

from collections.abc import Iterable


def short(name: str, length: int = 40) -> str:
    """Return the name, something in its middle left out if it is longer than `length`.

    Example:
        >>> short("encoder.layer.11.attention.output.dense", 30)
        'encoder.la…ention.output.dense'
    """
    if len(name) <= length:
        return name
    head = length // 3
    return f"{name[:head]}…{name[head + 1 - length :]}"


def short_names(names: Iterable[str], length: int) -> list[str]:
    """Return the names, shortened; those that would become alike have their number in front.

    Example:
        >>> short_names(["encoder.1.attention.dense", "encoder.2.attention.dense", "head"], 16)
        ['1:enco…ion.dense', '2:enco…ion.dense', 'head']
    """
    originals = list(names)
    shortened = [short(name, length) for name in originals]
    found: list[str] = []
    for number, (name, brief) in enumerate(zip(originals, shortened, strict=True), start=1):
        if shortened.count(brief) > 1:
            mark = f"{number}:"
            brief = mark + short(name, length - len(mark))
        found.append(brief)
    return found
