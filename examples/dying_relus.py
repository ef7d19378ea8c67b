"""A learning rate that kills neurons, and how it shows: accuracy recovers, they don't.

Two trainings of one network on handwritten digits differ in one epoch, in which the learning rate
of the second is five times too high. In the end both have the same accuracy. That nearly half of a
layer has died, and when, is seen in the firing rates of its neurons. Run it with
`python examples/dying_relus.py`.
"""

from collections.abc import Sequence

import torch
from digits import Digits, load_digits, parse_arguments
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional
from torch_lenet5 import load_full

from tensorstate_callbacks import EfficiencyReport, History, plot_neurons
from tensorstate_callbacks.torch import ProbeSet, record

RATE, TOO_HIGH, BAD_EPOCH = 0.1, 0.5, 5
LAYERS = ("fc_1", "fc_2")
N_PROBED = 64


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


def train(digits: Digits, rates: Sequence[float], batch_size: int, seed: int) -> History:
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
        for batch in torch.randperm(len(x)).split(batch_size):
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
        f"{name}: {layer.n_never:3} of {layer.n_neurons} never fire, efficiency "
        f"{layer.efficiency:.3f}"
        for name, layer in report.layers.items()
    )
    epoch = (report.epoch or 0) + 1
    return f"epoch {epoch:2}  rate {rate}  accuracy {report.accuracy:.3f}  {layers}"
