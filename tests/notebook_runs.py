"""Execute a notebook, and keep of it what its readers see.

To execute notebooks and store their outputs anew, after a change of what they show, run

    python tests/notebook_runs.py docs/notebooks/*.ipynb

and look at them: the sentences around the outputs have to fit.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "docs" / "notebooks"
# What a reader sees, where an output comes in several forms.
_SHOWN = ("image/png", "text/html")


def execute(path: Path, folder: Path, *, timeout: int = 300) -> Any:
    """Return the notebook, executed in a folder, with the outputs that a reader sees.

    Raises:
        CellExecutionError: A cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=timeout, resources=resources, record_timing=False).execute()
    # Of the machine.
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"]}
    for number, cell in enumerate(code_cells(notebook), start=1):
        cell.execution_count, cell.metadata = number, {}
        # TensorFlow's, which Keras loads where it is installed.
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            if "metadata" in output:
                output.metadata = {}
            if "execution_count" in output:
                output.execution_count = number
            data = output.get("data", {})
            for form in _SHOWN:
                if form in data:
                    output.data = {form: data[form]}
                    break
    return notebook


def code_cells(notebook: Any) -> list[Any]:
    """Return the cells that hold code."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def store(path: Path) -> None:
    """Execute a notebook and store it with its outputs."""
    with tempfile.TemporaryDirectory() as folder:
        notebook = execute(path, Path(folder))
    text = nbformat.writes(notebook, indent=1)
    path.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        store(Path(name))
