"""Which states does each class of digits use, and how much of them do two classes share?

LeNet-5 is trained on handwritten digits, its convolutions capture the states of the validation
digits, and each class's share of them is looked at on its own. Two classes overlap by the sum over
all states of the smaller of their two shares: 1 if they use the same states equally often, 0 if
they have none in common. Run it with `python examples/class_states.py`.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from digits import load_digits, parse_arguments
from matplotlib.figure import Figure
from tensorstate_tutorial_pytorch import evaluate, train
from torch_lenet5 import LeNet5, load_full, loader

import tensorstate_callbacks.tensorstate as ts

N_CLASSES = 10


def overlaps(counts: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """Return how much of their states each two classes share.

    Args:
        counts: How often each class was in each state, shape `(classes, distinct)`.

    Returns:
        Shares from 0 to 1, shape `(classes, classes)`.
    """
    shares = counts / counts.sum(axis=1, keepdims=True)
    return np.array([[np.minimum(a, b).sum() for a in shares] for b in shares])


def draw(by_layer: dict[str, npt.NDArray[np.uint64]]) -> Figure:
    """Draw the overlap of each two classes, a panel for each layer."""
    figure = Figure(figsize=(4 * len(by_layer) + 1, 4.5), layout="constrained")
    panels = figure.subplots(1, len(by_layer), squeeze=False)[0]
    for panel, (name, counts) in zip(panels, by_layer.items(), strict=True):
        image = panel.imshow(overlaps(counts), cmap="gray_r", vmin=0, vmax=1)
        panel.set_title(name)
        panel.set_xlabel("digit")
        panel.set_ylabel("digit")
        panel.set_xticks(range(N_CLASSES))
        panel.set_yticks(range(N_CLASSES))
    figure.colorbar(image, ax=panels, label="overlap of states (share)")
    return figure


def print_classes(layer: Any, counts: npt.NDArray[np.uint64]) -> None:
    """Print a line for each class: its states, those that only it uses, its efficiency."""
    used = counts > 0
    alone = used.sum(axis=0) == 1
    print(f"\n{layer.name}: {layer.state_count:,} states, {used.shape[1]:,} distinct")
    print("digit    states  distinct  of these its own  efficiency")
    for digit, row in enumerate(counts):
        distinct = int(used[digit].sum())
        own = int((used[digit] & alone).sum())
        efficiency = ts.efficiency(ts.entropy(row), int(layer.max_entropy()))
        print(f"{digit:5} {row.sum():9,} {distinct:9,} {own / distinct:17.4f} {efficiency:11.4f}")


def main() -> None:
    """Train, capture, tell the classes apart, draw."""
    arguments = parse_arguments(__doc__ or "", "runs/class_states")
    torch.manual_seed(arguments.seed)
    digits = load_digits(arguments, load_full)
    training = loader(digits.x_train, digits.y_train, arguments.batch_size, shuffle=True)
    validation = loader(digits.x_val, digits.y_val, arguments.batch_size, shuffle=False)
    model = LeNet5()
    train(model, training, validation, arguments.epochs, arguments.patience)

    # The states in the order observed tell which sample, so which class, each belongs to.
    ts.build_efficiency_model(model, attach_to="Conv2d", keep_raw=True)
    evaluate(model, validation)
    by_layer = {}
    for layer in model.efficiency_layers:
        counts = np.array([layer.counts(digits.y_val == digit) for digit in range(N_CLASSES)])
        print_classes(layer, counts)
        by_layer[layer.name.removesuffix("_post_states")] = counts

    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    path = arguments.output_dir / "class_states.png"
    draw(by_layer).savefig(path)
    print(f"\nThe overlaps of the classes are drawn in {path}.")


if __name__ == "__main__":
    main()
