"""Train LeNet-5 on handwritten digits with Keras, and stop when its aIQ no longer rises.

Two callbacks watch: one takes each layer as one unit, as the paper does, the other groups of eight
neurons, whose efficiency moves where the paper's stands at its ceiling.

The network and its training are those of TensorState's tutorials: three convolutions of 20, 50 and
100 neurons with ELU and batch normalization, SGD with Nesterov momentum. Run it with `make demo`,
or `python examples/keras_mnist.py --help`.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import mlflow
from digits import load_digits, parse_arguments, print_commands, print_result, run_name
from keras_lenet5 import EpochLines, lenet5, load_full

import tensorstate_callbacks


def main() -> None:
    """Train, watch, stop, draw."""
    arguments = parse_arguments(__doc__ or "", "runs/keras_mnist")
    output = arguments.output_dir
    output.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(arguments.seed)
    digits = load_digits(arguments, load_full)
    model = lenet5()

    mlflow.set_tracking_uri(f"sqlite:///{output / 'mlflow.db'}")
    if mlflow.get_experiment_by_name("keras_mnist") is None:
        # Its files stay with the rest.
        mlflow.create_experiment("keras_mnist", (output / "artifacts").resolve().as_uri())
    mlflow.set_experiment("keras_mnist")
    efficiency = tensorstate_callbacks.keras.EfficiencyCallback(beta=2)
    groups = tensorstate_callbacks.keras.EfficiencyCallback(group_size=8, prefix="g8_")
    stop = keras.callbacks.EarlyStopping("val_aiq", mode="max", patience=arguments.patience)
    run = run_name()
    # The callback logs to the run that it finds.
    with mlflow.start_run(run_name=run):
        mlflow.log_params({"batch_size": arguments.batch_size, "seed": arguments.seed})
        model.fit(
            digits.x_train[..., None],
            digits.y_train,
            batch_size=arguments.batch_size,
            epochs=arguments.epochs,
            validation_data=(digits.x_val[..., None], digits.y_val),
            validation_batch_size=arguments.batch_size,
            verbose=0,
            callbacks=[
                efficiency,
                groups,
                stop,
                keras.callbacks.TensorBoard(output / "tensorboard" / run, write_graph=False),
                EpochLines(),
            ],
        )

    stopped = len(efficiency.history) if stop.stopped_epoch else None
    print_result(efficiency.history, groups.history, stopped, output)
    print_commands(output)


if __name__ == "__main__":
    main()
