"""The one-way flow of the package, and what importing it costs."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import tensorstate_callbacks

PACKAGE = Path(tensorstate_callbacks.__file__).parent
USES_FRAMEWORKS = ("torch", "keras", "lightning", "huggingface", "tensorstate")
FRAMEWORKS = {"torch", "tensorflow", "jax", "keras", "pytorch_lightning", "lightning"}
# From the source of the flow to its end: a file imports from lines above its own folder's, or from
# its own folder.
FLOW = [
    ["errors", "_version", "whole_file"],
    ["_native"],
    ["states"],
    ["metrics"],
    ["display"],
    ["reports"],
    ["recording"],
    ["loggers"],
    ["torch"],
    ["keras"],
    ["lightning"],
    ["huggingface"],
    ["runs"],
    ["tensorstate"],
    ["installation"],
    ["__main__"],
]
LEVEL = {name: level for level, names in enumerate(FLOW) for name in names}


def folder(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
NAMES = {
    path: ".".join(["tensorstate_callbacks", *path.relative_to(PACKAGE).with_suffix("").parts])
    for path in FILES
}
BY_NAME = {name.removesuffix(".__init__"): path for path, name in NAMES.items()}


def imported(path, *, late=True):
    """Yield the modules a file imports; without `late`, not those that functions import."""
    nodes = list(ast.parse(path.read_text()).body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            continue
        elif late or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            nodes.extend(ast.iter_child_nodes(node))


def own(modules):
    return {module for module in modules if module.startswith("tensorstate_callbacks.")}


def file_of(module):
    """Return the file that `module` names, or that holds the name which it ends in.

    None for the compiled counter.
    """
    return BY_NAME.get(module) or BY_NAME.get(module.rpartition(".")[0])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_flow(path):
    here = folder(path)
    assert here in LEVEL, f"{here} has no place in the flow"
    for module in imported(path):
        first, _, rest = module.partition(".")
        if first == "tensorstate_callbacks":
            there = rest.split(".")[0]
            assert there == here or LEVEL[there] < LEVEL[here], f"{path} imports {module}"
            assert there != "_native" or here in ("_native", "states"), f"{path} imports {module}"
        elif first in FRAMEWORKS:
            assert here in USES_FRAMEWORKS, f"{path} imports {module}"


def test_functions_import_none_of_our_modules():
    late = {
        path.relative_to(PACKAGE).as_posix()
        for path in FILES
        if own(imported(path)) != own(imported(path, late=False))
    }
    assert not late


def test_files_import_each_other_in_no_circle():
    graph = {
        path: {file_of(module) for module in own(imported(path, late=False))} - {None}
        for path in FILES
    }
    # Fails with the files of the circle.
    list(TopologicalSorter(graph).static_order())


def test_importing_the_package_loads_no_framework():
    code = (
        "import sys, tensorstate_callbacks as ts; "
        "assert ts.entropy([1, 1]) == 1.0; "
        "print([m for m in ('torch', 'tensorflow', 'keras', 'pytorch_lightning', 'matplotlib', "
        "'mlflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_all_names_needs_no_extra_and_binds_no_module():
    code = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {(*FRAMEWORKS, "matplotlib", "mlflow", "pandas", "rich")!r}:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)
sys.meta_path.insert(0, Absent())
names = {{}}
exec('from tensorstate_callbacks import *', names)
del names['__builtins__']
print(sorted(names))
print([name for name, value in names.items() if type(value) is type(sys)])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    bound, modules = map(ast.literal_eval, done.stdout.splitlines())
    assert bound == sorted(tensorstate_callbacks.__all__)
    assert modules == []
    assert {"Interval", "Spectrum", "RunError", "estimate_entropy", "plot_heat_map"} < {*bound}
    assert not FRAMEWORKS & {*bound}


def test_what_needs_a_framework_is_an_attribute_all_the_same():
    lazy = {"keras", "lightning", "torch", "StateCapture", "StateCaptureHook"}
    assert lazy <= {*dir(tensorstate_callbacks)}
    assert not lazy & {*tensorstate_callbacks.__all__}
    assert tensorstate_callbacks.StateCaptureHook is tensorstate_callbacks.torch.StateCaptureHook


@pytest.mark.parametrize(
    ("use", "missing", "extra"),
    [
        ("ts.keras", "keras", "keras"),
        ("ts.torch", "torch", "lightning"),
        ("ts.plot_history([report])", "matplotlib", "plot"),
        ("ts.History([report]).to_frame()", "pandas", "pandas"),
    ],
)
def test_a_missing_extra_is_named(use, missing, extra):
    code = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] == {missing!r}:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)
sys.meta_path.insert(0, Absent())
import tensorstate_callbacks as ts
import numpy as np
from tensorstate_callbacks.states.spectrum import Spectrum
layer = ts.LayerReport.from_spectrum('a', Spectrum.from_counts([2, 2]), np.uint64([2, 2]))
report = ts.EfficiencyReport({{'a': layer}})
try:
    {use}
except ts.MissingExtraError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"'{missing}', which is not installed" in done.stdout
    assert f"pip install 'tensorstate_callbacks[{extra}]'" in done.stdout


def test_unknown_attribute_of_the_package():
    with pytest.raises(AttributeError, match="no attribute 'lightening'"):
        _ = tensorstate_callbacks.lightening
