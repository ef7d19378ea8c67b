"""Which states does each class of digits use, and how much of them do two classes share?

LeNet-5 is trained on handwritten digits, and the states of its convolutions on the validation
digits are counted by class. Look at how many bits of the digit a state tells, layer by layer, and
at the same number for shuffled labels beside it: that much comes of having seen few states. How far
apart two classes lie is drawn the same way. Run it with `python examples/class_states.py`.
"""

import torch
from digits import load_digits, parse_arguments
from tensorstate_tutorial_pytorch import train
from torch_lenet5 import LeNet5, load_full, loader

from tensorstate_callbacks import EfficiencyReport, LayerReport, plot_classes
from tensorstate_callbacks.torch import record


def print_classes(layer: LayerReport) -> None:
    """Print a line for each class: its states, its efficiency, and that of shuffled labels."""
    classes = layer.classes
    if classes is None:
        return
    told = f"{classes.information:.2f} bits of {classes.label_entropy:.2f}"
    print(
        f"\n{layer.name}: a state tells {told} of the digit; of shuffled labels "
        f"{classes.shuffled_information:.2f}"
    )
    print("digit    states  distinct  efficiency  shuffled")
    columns = (
        classes.labels,
        classes.n_states,
        classes.n_distinct,
        classes.efficiency,
        classes.shuffled_efficiency,
    )
    for digit, n_states, n_distinct, own, shuffled in zip(*columns, strict=True):
        print(f"{digit:5} {n_states:9,} {n_distinct:9,} {own:11.4f} {shuffled:9.4f}")


def main() -> None:
    """Train, count by class, print and draw, for whole layers and in groups."""
    arguments = parse_arguments(__doc__ or "", "runs/class_states")
    torch.manual_seed(arguments.seed)
    digits = load_digits(arguments, load_full)
    training = loader(digits.x_train, digits.y_train, arguments.batch_size, shuffle=True)
    validation = loader(digits.x_val, digits.y_val, arguments.batch_size, shuffle=False)
    model = LeNet5()
    train(model, training, validation, arguments.epochs, arguments.patience)

    def report_of(group_size: int | None) -> EfficiencyReport:
        recorded = record(model.eval(), classes=True, group_size=group_size)
        with recorded as recording, torch.no_grad():
            for images, _ in recording.batches(validation):
                model(images)
        return recording.report()

    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    for title, group_size, name in (
        ("Each layer as one unit", None, "class_states.png"),
        ("In groups of 8 neurons, mean of the groups", 8, "class_states_groups.png"),
    ):
        report = report_of(group_size)
        print(f"\n{title}")
        for layer in report.layers.values():
            print_classes(layer)
        plot_classes(report).savefig(arguments.output_dir / name)
    print(f"\nHow far apart the classes lie is drawn in {arguments.output_dir}.")


if __name__ == "__main__":
    main()
