"""The notebooks run from top to bottom, show what is stored in them, and are fit to be read.

After a change of what they show, `python tests/notebook_runs.py docs/notebooks/*.ipynb` stores
their outputs anew.
"""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
import pytest
from notebook_runs import NOTEBOOKS, code_cells, execute, store
from page_runs import differences

NAMES = sorted(path.name for path in NOTEBOOKS.glob("*.ipynb"))
NEEDED = {"keras": ("keras", "jax"), "pytorch": ("torch",)}
MOST_BYTES = 400_000


class _Cells(HTMLParser):
    """Collects tables of cells."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self._in_cell = False

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.tables[-1][-1][-1] += data.strip()


def tables_of(html: str) -> list[str]:
    """Return the tables of an output as text, but for those that name single neurons."""
    cells = _Cells()
    cells.feed(html)
    return [
        "\n".join("  ".join(row) for row in table)
        for table in cells.tables
        if "which" not in table[0]
    ]


def shown(notebook: Any, form: str) -> list[str]:
    """Return the outputs of a form, in their order."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    if form == "text":
        return [output.text for output in outputs if output.output_type == "stream"]
    return [output.data[form] for output in outputs if form in output.get("data", {})]


@pytest.fixture(scope="module", params=NAMES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a notebook's name, the notebook as it is stored, and executed."""
    path = NOTEBOOKS / request.param
    for name in NEEDED[path.stem]:
        pytest.importorskip(name, reason="the notebook's framework isn't installed")
    folder = tmp_path_factory.mktemp(path.stem)
    executed = execute(path, folder)
    assert list(folder.iterdir()) == []
    return path.stem, nbformat.read(path, as_version=4), executed


def test_a_notebook_shows_what_is_stored(both: Any) -> None:
    _, stored, executed = both
    for ours, theirs in zip(code_cells(stored), code_cells(executed), strict=True):
        kinds = [
            [(output.output_type, *output.get("data", {})) for output in cell.outputs]
            for cell in (ours, theirs)
        ]
        assert kinds[0] == kinds[1], ours.source
    for ours, theirs in zip(shown(stored, "text"), shown(executed, "text"), strict=True):
        # How many neurons die, and how much is known of classes, differs most.
        assert differences(ours, theirs, varies=True) == []
    tables = [
        [table for html in shown(notebook, "text/html") for table in tables_of(html)]
        for notebook in (stored, executed)
    ]
    assert len(tables[0]) > 1
    for one, other in zip(*tables, strict=True):
        assert differences(one, other) == []


def test_what_the_notebook_tells_is_so(both: Any) -> None:
    name, _, executed = both
    printed = "".join(shown(executed, "text"))
    if name == "keras":
        died, epoch = map(int, re.search(r"(\d+) neurons died in epoch (\d+)", printed).groups())
        assert epoch == 6
        assert died >= 5
        (history,) = tables_of(shown(executed, "text/html")[0])
        accuracies = [float(row.split()[1]) for row in history.splitlines()[1:]]
        assert accuracies[5] < accuracies[4] - 0.03
        assert accuracies[-1] > accuracies[4] - 0.02
    else:
        information = re.findall(r"(\d\.\d+) \((\d\.\d+)\)", printed)
        (untrained, chance), (trained, _) = [tuple(map(float, pair)) for pair in information[-2:]]
        assert trained > 2 * untrained > 2 * chance


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_fit_to_be_read(name: str) -> None:
    path = NOTEBOOKS / name
    text = path.read_text(encoding="utf-8")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert len(text) < MOST_BYTES
    assert notebook.metadata.kernelspec.name == "python3"
    assert [cell.execution_count for cell in code_cells(notebook)] == [
        *range(1, len(code_cells(notebook)) + 1)
    ]
    assert "# %pip install" in code_cells(notebook)[0].source
    assert not re.search(r"(/home/|/tmp/|/work/|/Users/|site-packages|\\Users\\)", text)
    assert "Warning" not in text
    assert all(
        output.output_type != "error" and output.get("name") != "stderr"
        for cell in code_cells(notebook)
        for output in cell.outputs
    )
    assert len(shown(notebook, "image/png")) >= 3
    for picture in shown(notebook, "image/png"):
        assert base64.b64decode(picture).startswith(b"\x89PNG")
    # Wide tables scroll by themselves, and don't widen the page.
    for html in shown(notebook, "text/html"):
        assert html.count("<table>") == html.count('<div style="overflow-x:auto"><table>')


def test_a_notebook_is_stored_without_traces_of_the_machine(tmp_path: Path) -> None:
    path = tmp_path / "small.ipynb"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    sources = ["import sys\nprint('out')\nprint('err', file=sys.stderr)", "2 + 2"]
    notebook = nbformat.v4.new_notebook(
        metadata={"kernelspec": kernel}, cells=[nbformat.v4.new_code_cell(x) for x in sources]
    )
    nbformat.write(notebook, path)
    store(path)
    stored = nbformat.read(path, as_version=4)
    assert stored.metadata == {"kernelspec": kernel}
    assert [cell.execution_count for cell in stored.cells] == [1, 2]
    first, second = (cell.outputs for cell in stored.cells)
    assert [output.text for output in first] == ["out\n"]
    assert second[0].data == {"text/plain": "4"}
    assert all(cell.metadata == {} for cell in stored.cells)
