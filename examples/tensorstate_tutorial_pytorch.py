"""TensorState's tutorial on today's PyTorch: train LeNet-5, then read its efficiency and aIQ.

What follows the training is what one writes with TensorState; only the import has another name.
The network and its training are the tutorial's: SGD with Nesterov momentum, until the accuracy on
the validation digits has not risen for some epochs. Run it with
`python examples/tensorstate_tutorial_pytorch.py`.
"""

import time

import torch
from digits import EpochProgress, load_digits, parse_arguments
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torch_lenet5 import LeNet5, load_full, loader, optimizer_of

import tensorstate_callbacks.tensorstate as ts


def train(
    model: nn.Module,
    digits: DataLoader[tuple[Tensor, Tensor]],
    validation: DataLoader[tuple[Tensor, Tensor]],
    epochs: int,
    patience: int,
) -> None:
    """Train until the validation accuracy has not risen for `patience` epochs."""
    optimizer = optimizer_of(model)
    best, since = 0.0, 0
    for epoch in range(epochs):
        progress = EpochProgress(epoch, len(digits))
        model.train()
        for images, labels in digits:
            optimizer.zero_grad()
            functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            progress.update()
        accuracy = evaluate(model, validation)
        progress.close({"val_accuracy": accuracy})
        best, since = (accuracy, 0) if accuracy > best else (best, since + 1)
        if since >= patience:
            break


@torch.no_grad()
def evaluate(model: nn.Module, digits: DataLoader[tuple[Tensor, Tensor]]) -> float:
    """Return the accuracy on some digits, a share."""
    model.eval()
    right = [(model(images).argmax(1) == labels) for images, labels in digits]
    return torch.cat(right).double().mean().item()


def main() -> None:
    """Train, attach, evaluate, read."""
    arguments = parse_arguments(__doc__ or "")
    torch.manual_seed(arguments.seed)
    digits = load_digits(arguments, load_full)
    training = loader(digits.x_train, digits.y_train, arguments.batch_size, shuffle=True)
    validation = loader(digits.x_val, digits.y_val, arguments.batch_size, shuffle=False)
    model = LeNet5()
    train(model, training, validation, arguments.epochs, arguments.patience)

    # Hooks on the convolutions: whatever the model is given from here on, they capture its states.
    efficiency_model = ts.build_efficiency_model(model, attach_to=["Conv2d"], method="after")
    accuracy = evaluate(efficiency_model, validation)

    print()
    for layer in efficiency_model.efficiency_layers:
        print(f"Layer {layer.name} number of states: {layer.state_count}")

    print()
    for layer in efficiency_model.efficiency_layers:
        started = time.perf_counter()
        efficiency = layer.efficiency()
        seconds = time.perf_counter() - started
        print(f"Layer {layer.name} efficiency: {100 * efficiency:.1f}% ({seconds:.2f} s)")

    beta = 2  # how much more accuracy weighs than efficiency
    network_efficiency = ts.network_efficiency(efficiency_model)
    aiq = ts.aIQ(network_efficiency, accuracy, weight=beta)
    print()
    print("Network metrics...")
    print(f"Beta: {beta}")
    print(f"Network efficiency: {100 * network_efficiency:.1f}%")
    print(f"Network accuracy: {100 * accuracy:.1f}%")
    print(f"aIQ: {100 * aiq:.1f}%")


if __name__ == "__main__":
    main()
