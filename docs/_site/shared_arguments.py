"""Show the arguments of the callbacks in the reference in full.

The callbacks share most of their arguments, which `RecordingCallback.__init__` describes once:
without this, the page of each would show its own ones only. And the types that signatures name,
such as `Patterns`, stand there written out, since a reader can't know them.
"""

from typing import Any

import griffe

_SHARED = "recording.callback.RecordingCallback.__init__"
# What has the shared arguments, and what only gives one of these another base class.
_CALLBACKS = ("keras.callback.EfficiencyCallback", "lightning.callback.EfficiencyHooks")
_SAME = (
    "lightning.pytorch_lightning_callback.EfficiencyCallback",
    "lightning.lightning_callback.EfficiencyCallback",
)
_TYPES = (
    "recording.channel_axis.Axis",
    "recording.channel_axis.ChannelAxis",
    "recording.class_labels.Classes",
    "recording.masks.Mask",
    "recording.selection.Pattern",
    "recording.selection.Patterns",
    "recording.settings.Accuracy",
    "recording.settings.Method",
    "recording.settings.Watched",
    "metrics.entropy.Estimator",
    "tensorstate.torch_hook.HookAxis",
    "torch.activations.OutputFn",
)


class SharedArguments(griffe.Extension):
    """Completes the docstrings and the types of the callbacks' arguments."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Change them once the whole package is read."""
        shared = pkg[_SHARED]
        arguments = section(shared.docstring.value, "Args")
        for path in _CALLBACKS:
            docstring = pkg[path].docstring
            docstring.value = with_arguments(docstring.value, arguments)
        for path in _SAME:
            described = pkg[_CALLBACKS[1]].docstring.value
            pkg[path].docstring = griffe.Docstring(described, parent=pkg[path])
        # It stands in the classes' own now.
        shared.docstring = None
        types = {path.rpartition(".")[2]: pkg[path].value for path in _TYPES}
        for function in functions(pkg):
            for parameter in function.parameters:
                parameter.annotation = written_out(parameter.annotation, types)


def section(docstring: str, name: str) -> str:
    """Return the indented lines of a section of a docstring in Google style."""
    _, _, rest = docstring.partition(f"\n{name}:\n")
    lines = []
    for line in rest.splitlines():
        if line and not line.startswith(" "):
            break
        lines.append(line)
    return "\n".join(lines).rstrip()


def with_arguments(docstring: str, arguments: str) -> str:
    """Return a docstring whose arguments begin with the shared ones."""
    head, own, rest = docstring.partition("\nArgs:\n")
    if own:
        return f"{head}\nArgs:\n{arguments}\n{rest}"
    head, attributes, rest = docstring.partition("\nAttributes:\n")
    return f"{head}\nArgs:\n{arguments}\n{attributes}{rest}"


def functions(scope: griffe.Module | griffe.Class) -> list[griffe.Function]:
    """Return all functions and methods of a module and those in it."""
    found = []
    for member in scope.members.values():
        if member.is_alias:
            continue
        if member.is_function:
            found.append(member)
        elif member.is_module or member.is_class:
            found += functions(member)
    return found


def written_out(annotation: Any, types: dict[str, Any]) -> Any:
    """Return an annotation with what the named types stand for."""
    if isinstance(annotation, griffe.ExprName) and annotation.name in types:
        return written_out(types[annotation.name], types)
    if isinstance(annotation, griffe.ExprBinOp):
        annotation.left = written_out(annotation.left, types)
        annotation.right = written_out(annotation.right, types)
    if isinstance(annotation, griffe.ExprSubscript):
        annotation.slice = written_out(annotation.slice, types)
    if isinstance(annotation, griffe.ExprTuple):
        annotation.elements = [written_out(each, types) for each in annotation.elements]
    return annotation
