"""Prune the neurons that never fired, and all but one of those that are copies of each other.

A small network is trained on handwritten digits with a learning rate so high that some of its ReLUs
die. The states of the validation digits tell which; PyTorch's own pruning removes them, and the
outputs on these digits stay as they were. Then the network is widened by copies of some neurons,
as in Net2Net (Chen, Goodfellow and Shlens, arXiv 1511.05641), and the copies are found again: they
fire in exactly the same states as what they were made from. Firing together isn't enough, though: a
neuron of twice the strength does so too, and on a few digits many do by chance. So the example
compares activations before it removes anything. Look at the last two parts of what it prints: they
remove neurons without that, and the outputs change. Run it with `python examples/pruning.py`.
"""

import argparse
import warnings
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from digits import small_digits
from torch import Tensor, nn
from torch.nn.utils import prune

from tensorstate_callbacks import LayerReport, TensorStateWarning
from tensorstate_callbacks.torch import record

N_COPIES = 5
N_FEW = 12


def make_network(width: int = 64) -> nn.Sequential:
    """Return a network of two hidden layers: `0` and `2` are probed, behind each is a ReLU."""
    return nn.Sequential(
        nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, 10)
    )


def train(network: nn.Sequential, images: Tensor, labels: Tensor, epochs: int) -> None:
    """Train with a learning rate that some neurons don't survive."""
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(200):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()


@torch.no_grad()
def record_layer(network: nn.Sequential, images: Tensor, name: str = "0") -> LayerReport:
    """Return what the neurons of a layer do on some images."""
    with record(network, name, neurons=True) as recording:
        network(images)
    return recording.report().layers[name]


def remove(layer: nn.Linear, neurons: Iterable[int]) -> None:
    """Prune neurons of a layer: whole rows of its weights, and their biases.

    Behind a ReLU they give 0 from then on, whatever the input.
    """
    mask = torch.ones(layer.out_features)
    mask[list(neurons)] = 0
    prune.custom_from_mask(layer, "weight", mask[:, None].expand(-1, layer.in_features))
    prune.custom_from_mask(layer, "bias", mask)
    for name in ("weight", "bias"):
        prune.remove(layer, name)


class Widened(NamedTuple):
    """A network with copies of neurons in its first layer.

    Attributes:
        network: The network.
        copies: Pairs of a neuron and its copy, by index.
    """

    network: nn.Sequential
    copies: Sequence[tuple[int, int]]


@torch.no_grad()
def widen(network: nn.Sequential, neurons: Sequence[int], strength: float = 1) -> Widened:
    """Return a network that computes the same, with copies of some neurons of the first layer.

    Args:
        network: The network; it stays as it is.
        neurons: What to copy.
        strength: What a copy's activations are multiplied by. What it sends on is divided by that,
            and halved, as is what the original sends on.
    """
    first, second = network[0], network[2]
    width, chosen = first.out_features, list(neurons)
    wide = make_network(width + len(chosen))
    wide[4].load_state_dict(network[4].state_dict())
    wide[0].weight.copy_(torch.cat([first.weight, strength * first.weight[chosen]]))
    wide[0].bias.copy_(torch.cat([first.bias, strength * first.bias[chosen]]))
    sent = second.weight.clone()
    sent[:, chosen] /= 2
    wide[2].weight.copy_(torch.cat([sent, sent[:, chosen] / strength], dim=1))
    wide[2].bias.copy_(second.bias)
    return Widened(wide, [(neuron, width + number) for number, neuron in enumerate(chosen)])


@torch.no_grad()
def keep_first(network: nn.Sequential, groups: Iterable[Sequence[int]]) -> int:
    """Remove all but the first of each group, which sends on what the others did; return how many.

    Right where they are copies, that is, where their activations are equal.
    """
    removed = []
    for kept, *others in groups:
        network[2].weight[:, kept] += network[2].weight[:, others].sum(dim=1)
        removed += others
    remove(network[0], removed)
    return len(removed)


@torch.no_grad()
def are_copies(network: nn.Sequential, images: Tensor, group: Sequence[int]) -> bool:
    """Tell whether neurons of the first layer have the same activations, but for rounding."""
    active = torch.relu(network[0](images))[:, list(group)]
    return torch.allclose(active, active[:, :1].expand_as(active), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def compare(network: nn.Sequential, images: Tensor, before: Tensor) -> str:
    """Return how far the outputs are from those before."""
    after = network(images)
    if torch.equal(after, before):
        return "outputs exactly as before"
    changed = int((after.argmax(1) != before.argmax(1)).sum())
    difference = float((after - before).abs().max())
    return f"outputs differ by up to {difference:.2g}, {changed} of {len(images)} answers change"


def prune_never_fired(network: nn.Sequential, seen: Tensor, others: Tensor) -> None:
    """Remove what never fired on the images seen, and look at the outputs on those and others."""
    before = network(seen), network(others)
    for name in ("0", "2"):
        layer = record_layer(network, seen, name)
        print(f"Layer {name}: {len(layer.never_fired)} of {layer.n_neurons} never fired")
        print(f"  indices {layer.never_fired}")
        remove(network[int(name)], layer.never_fired)
    print(
        f"  Without them, on the digits that they were found with: "
        f"{compare(network, seen, before[0])}"
    )
    print(f"  On digits that they were not found with: {compare(network, others, before[1])}")


def prune_copies(network: nn.Sequential, seen: Tensor, neurons: Sequence[int]) -> None:
    """Plant copies, find them, remove them; then the same with copies of twice the strength."""
    for strength in (1, 2):
        wide, copies = widen(network, neurons, strength)
        before = wide(seen)
        agreeing = record_layer(wide, seen).agreeing
        print(f"\n{len(copies)} copies planted, {strength} times as strong: {copies}")
        print(f"  Agreeing: {agreeing}")
        real = [group for group in agreeing if are_copies(wide, seen, group)]
        print(f"  With equal activations: {len(real)} of {len(agreeing)} groups")
        n_removed = keep_first(wide, real or agreeing)
        careful = "" if real else ", though their activations differ"
        print(f"  {n_removed} removed{careful}: {compare(wide, seen, before)}")


def prune_by_chance(network: nn.Sequential, seen: Tensor) -> None:
    """Remove what agrees on a few images."""
    before = network(seen)
    agreeing = record_layer(network, seen[:N_FEW]).agreeing
    print(
        f"\nOn {N_FEW} digits {len(agreeing)} groups agree, on {len(seen)} "
        f"{len(record_layer(network, seen).agreeing)}"
    )
    print(f"  {keep_first(network, agreeing)} removed: {compare(network, seen, before)}")


@torch.no_grad()
def main() -> None:
    """Train, then prune by what never fired, by what agrees, and by too little."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    # Of so few images the efficiency tells little; which neurons agree is exact all the same.
    warnings.filterwarnings("ignore", "Coverage is below", TensorStateWarning)
    torch.manual_seed(arguments.seed)
    pixels, labels = map(torch.from_numpy, small_digits())
    order = torch.randperm(len(pixels))
    images, labels = pixels.flatten(1)[order], labels[order]
    seen, others = images[:1000], images[1000:]
    network = make_network()
    with torch.enable_grad():
        train(network, others, labels[1000:], arguments.epochs)
    right = (network(seen).argmax(1) == labels[:1000]).float().mean()
    print(f"Accuracy {right:.3f}\n")

    prune_never_fired(network, seen, others)
    rates = torch.tensor(record_layer(network, seen).firing_rates)
    busiest = rates.argsort(descending=True, stable=True)[:N_COPIES].tolist()
    prune_copies(network, seen, sorted(busiest))
    prune_by_chance(network, seen)


if __name__ == "__main__":
    main()
