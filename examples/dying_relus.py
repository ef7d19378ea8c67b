"""A learning rate that kills neurons, and how it shows: accuracy recovers, they don't.

Two trainings of one network on handwritten digits differ in one epoch, in which the learning rate
of the second is seven times as high. In the end both have the same accuracy. Look at the dead
neurons of fc_1 in the sixth epoch: more than half of the layer dies there, and stays dead. Run it
with `python examples/dying_relus.py`.
"""

import argparse
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from digits import Digits, load_digits
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional
from torch_lenet5 import load_full

from tensorstate_callbacks import EfficiencyReport, History, plot_neurons
from tensorstate_callbacks.torch import ProbeSet, record

RATE, TOO_HIGH, BAD_EPOCH = 0.1, 0.7, 5
LAYERS = ("fc_1", "fc_2")
BATCH_SIZE, N_PROBED = 100, 64


class Perceptron(nn.Module):
    """Two layers of 100 ReLUs, and an output."""

    def __init__(self) -> None:
        super().__init__()
        self.fc_1, self.fc_2 = nn.Linear(784, 100), nn.Linear(100, 100)
        self.pred = nn.Linear(100, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Turn images of shape `(N, 28, 28)` into logits of shape `(N, 10)`."""
        x = functional.relu(self.fc_1(images.flatten(1)))
        logits: torch.Tensor = self.pred(functional.relu(self.fc_2(x)))
        return logits


def train(digits: Digits, rates: Sequence[float], seed: int) -> History:
    """Train with a learning rate for each epoch, and report each epoch's validation."""
    torch.manual_seed(seed)
    model = Perceptron()
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    x, y = torch.from_numpy(digits.x_train), torch.from_numpy(digits.y_train)
    x_val, y_val = torch.from_numpy(digits.x_val), torch.from_numpy(digits.y_val)
    probe, history = ProbeSet(x_val[:N_PROBED]), History()
    for epoch, rate in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for batch in torch.randperm(len(x)).split(BATCH_SIZE):
            optimizer.zero_grad()
            functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
        watching = record(model, LAYERS, group_size=8, neurons=True, probe_data=probe)
        with watching as recording, torch.no_grad():
            accuracy = (model(x_val).argmax(1) == y_val).double().mean().item()
        history.append(recording.report(accuracy=accuracy, epoch=epoch))
        print(line_of(history[-1], rate))
    return history


def line_of(report: EfficiencyReport, rate: float) -> str:
    """Return what an epoch has come to, in a line."""
    layers = "  ".join(
        f"{name}: {layer.n_never:2} dead, efficiency {layer.efficiency:.3f}"
        for name, layer in report.layers.items()
    )
    epoch = (report.epoch or 0) + 1
    return f"epoch {epoch:2}  rate {rate:.1f}  accuracy {report.accuracy:.3f}  {layers}"


def draw(runs: Mapping[str, History], layer: str, rows: int = 2, columns: int = 2) -> Figure:
    """Draw what of a layer follows from the learning rate, over the epochs of each training.

    Args:
        runs: The trainings by name.
        layer: The layer.
        rows: Rows of panels; in all there are four, of which the first ones are drawn.
        columns: Panels in a row.
    """
    panels: dict[str, Callable[[EfficiencyReport], float | None]] = {
        "accuracy": lambda report: report.accuracy,
        f"{layer}: dead neurons": lambda report: report.layers[layer].n_never,
        f"{layer}: efficiency, groups of 8": lambda report: report.layers[layer].efficiency,
        f"{layer}: turnover": lambda report: turnover_of(report, layer),
    }
    figure = Figure(figsize=(9, 2.75 * rows), layout="constrained", dpi=150)
    every_axes = figure.subplots(rows, columns).flat
    for axes, (title, value) in zip(every_axes, panels.items(), strict=False):
        for number, (name, history) in enumerate(runs.items()):
            epochs = range(1, len(history) + 1)
            values = [math.nan if (y := value(each)) is None else y for each in history]
            axes.plot(epochs, values, f"C{number}{'-o'[number]}-", label=name, markersize=4)
        axes.axvline(BAD_EPOCH + 1, color="0.6", linewidth=0.8, linestyle=":")
        axes.set_title(title, fontsize=10)
        axes.set_ylim(0)
        axes.locator_params(axis="x", integer=True)
        axes.grid(alpha=0.3)
    figure.supxlabel("epoch", fontsize=10)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    return figure


def turnover_of(report: EfficiencyReport, layer: str) -> float | None:
    """Return the share of the probe's bits that changed since the epoch before."""
    probe = report.layers[layer].probe
    return None if probe is None else probe.since_previous


def main() -> None:
    """Train twice, and draw both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--seed", type=int, default=0, help="for the split and the weights")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/dying_relus"))
    parser.set_defaults(data="small")
    arguments = parser.parse_args()
    output = arguments.output_dir
    output.mkdir(parents=True, exist_ok=True)
    digits = load_digits(arguments, load_full)
    rates = [RATE] * arguments.epochs
    with_a_peak = [TOO_HIGH if epoch == BAD_EPOCH else RATE for epoch in range(arguments.epochs)]
    runs = {}
    for name, each in (("steady", rates), ("seven times the rate in one epoch", with_a_peak)):
        print(f"\nLearning rate: {name}")
        runs[name] = train(digits, each, arguments.seed)
    harmed = runs["seven times the rate in one epoch"]
    died = harmed.lifelines("fc_1").died
    print(f"\nOf the neurons of fc_1 {len(died)} are dead in the end. They died in the epochs")
    print(", ".join(f"{at} ({n} of them)" for at, n in sorted(Counter(died.values()).items())))
    draw(runs, "fc_1").savefig(output / "dying_relus.png")
    draw(runs, "fc_1", rows=1, columns=3).savefig(output / "in_short.png")
    plot_neurons(harmed, "fc_1").savefig(output / "neurons.png", dpi=150)
    print(f"The pictures are dying_relus.png, in_short.png and neurons.png in {output}.")


if __name__ == "__main__":
    main()
