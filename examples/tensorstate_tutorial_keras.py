"""TensorState's tutorial on Keras 3: train LeNet-5, then read its efficiency and aIQ.

What follows the training is what one writes with TensorState; only the import has another name.
The network and its training are the tutorial's: SGD with Nesterov momentum, until the accuracy on
the validation digits has not risen for some epochs. Run it with
`python examples/tensorstate_tutorial_keras.py`.
"""

import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
from digits import load_digits, parse_arguments
from keras_lenet5 import EpochLines, lenet5, load_full

import tensorstate_callbacks.tensorstate as ts


def main() -> None:
    """Train, attach, evaluate, read."""
    arguments = parse_arguments(__doc__ or "")
    keras.utils.set_random_seed(arguments.seed)
    digits = load_digits(arguments, load_full)
    validation = (digits.x_val[..., None], digits.y_val)
    model = lenet5()
    model.fit(
        digits.x_train[..., None],
        digits.y_train,
        batch_size=arguments.batch_size,
        epochs=arguments.epochs,
        validation_data=validation,
        callbacks=[
            keras.callbacks.EarlyStopping("val_accuracy", mode="max", patience=arguments.patience),
            EpochLines(),
        ],
        verbose=0,
    )

    # A model of the same layers, with capture layers behind the convolutions.
    efficiency_model = ts.build_efficiency_model(model, attach_to=["Conv2D"], method="after")
    results = efficiency_model.evaluate(
        *validation, batch_size=arguments.batch_size, verbose=0, return_dict=True
    )
    accuracy = results["accuracy"]

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
