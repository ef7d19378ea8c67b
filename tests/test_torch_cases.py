"""The axis of neurons follows the data: through crops, transposes, sums, gates and pools."""

from typing import Any

import pytest
import torch
from axis_cases import CASES, Shape
from axis_cases_remade import REMADE
from axis_oracle import check_axes
from torch import nn

ALL = {**CASES, **REMADE}


@pytest.mark.parametrize(
    ("case", "shape"),
    [(name, shape) for name, (_, shapes, _) in ALL.items() for shape in shapes],
    ids=lambda value: value if isinstance(value, str) else "x".join(map(str, value)),
)
def test_axis_follows_the_data(case: str, shape: Shape) -> None:
    layers, _, axes = ALL[case]
    torch.manual_seed(0)
    model = nn.Sequential(*layers()).eval()
    data = torch.randn(*shape)
    # A second, smaller batch: what the first told holds for it too.
    with torch.no_grad():
        check_axes(model, axes, data, torch.randn(2, *shape[1:]))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("case", ["crop", "transposed", "in place", "to channels last and back"])
def test_axis_follows_the_data_with_and_without_gradients(case: str, mode: Any) -> None:
    layers, shapes, axes = CASES[case]
    torch.manual_seed(0)
    with mode():
        check_axes(nn.Sequential(*layers()).eval(), axes, torch.randn(*shapes[1]))


@pytest.mark.parametrize("case", ["crop", "transposed", "attention", "norm that permutes"])
def test_axis_follows_the_data_under_autocast(case: str) -> None:
    layers, shapes, axes = CASES[case]
    torch.manual_seed(0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        check_axes(nn.Sequential(*layers()).eval(), axes, torch.randn(*shapes[1]))


@pytest.mark.parametrize("case", ["interpolated", "norm that permutes", "channels shuffled"])
def test_axis_does_not_depend_on_the_layout_in_memory(case: str) -> None:
    layers, shapes, axes = CASES[case]
    torch.manual_seed(0)
    model = nn.Sequential(*layers()).eval().to(memory_format=torch.channels_last)
    data = torch.randn(*shapes[1]).to(memory_format=torch.channels_last)
    with torch.no_grad():
        check_axes(model, axes, data)
