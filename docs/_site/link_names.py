"""Link the names of the package that pages and docstrings write as code to the reference.

So that docstrings stay readable in a terminal, they name things in backticks and hold no links.
"""

import re
from pathlib import Path
from typing import Any

_REFERENCE = Path(__file__).parents[1] / "reference"
_NAMES = re.compile(r"^::: tensorstate_callbacks\.(\S+)$", re.MULTILINE)
# What may stand for something else: a metric, a method, either framework's callback.
_AMBIGUOUS = {"EfficiencyCallback", "network_efficiency"}
# On other pages it is as often the one that Keras's `fit` returns.
_OURS_IN_REFERENCE = "History"
_SHORT = {"record": "torch.Recording", "record_training": "torch.TrainingRecording"}
# Code, but not in links, headings and blocks.
_PARTS = re.compile(r"(<(a|h\d|pre|autoref)\b.*?</\2>)|<code>([\w.]+)</code>", re.DOTALL)


def find_paths(page: str) -> list[str]:
    """Return what a page of the reference shows, as paths within the package."""
    return _NAMES.findall(page)


def find_names() -> dict[str, str]:
    """Return what can be linked, as it may be written, and where to in the reference."""
    names = {}
    for page in sorted(_REFERENCE.glob("*.md")):
        for path in find_paths(page.read_text(encoding="utf-8")):
            name = path.rpartition(".")[2]
            names |= {path: path, f"tensorstate_callbacks.{path}": path}
            if name not in _AMBIGUOUS:
                names[name] = path
    # A word like `entropy` is a metric as often as the function.
    names = {name: path for name, path in names.items() if not re.fullmatch("[a-z]+|aIQ", name)}
    for name, path in _SHORT.items():
        names |= dict.fromkeys((name, f"torch.{name}", f"tensorstate_callbacks.torch.{name}"), path)
    return names


def link(html: str, names: dict[str, str]) -> str:
    """Return HTML in which the names are links that autorefs resolves."""

    def linked(found: re.Match[str]) -> str:
        path = names.get(found[3] or "")
        if path is None:
            return found[0]
        return f'<autoref identifier="tensorstate_callbacks.{path}" optional>{found[0]}</autoref>'

    return _PARTS.sub(linked, html)


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Link the names of a page."""
    names = find_names()
    if not page.file.src_uri.startswith("reference/"):
        del names[_OURS_IN_REFERENCE]
    return link(html, names)
