"""Train LeNet-5 on handwritten digits with Keras, and stop when its aIQ no longer rises.

Two callbacks watch: one takes each layer as one unit, as the paper does, the other groups of eight
neurons. Look at conv_3 in both tables at the end. As one unit it is at its ceiling, whatever the
network has learned: each of 1,000 digits gives a state of its own. In groups its efficiency rises,
then falls, epoch by epoch.

The network is that of TensorState's tutorials: three convolutions of 20, 50 and 100 neurons with
ELU and batch normalization, SGD with Nesterov momentum. Its learning rate is five times theirs, and
its batches half as large, since there are fewer digits. Run it with `make demo`.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # else it says four lines about them
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")

import keras
import mlflow
from digits import (
    load_digits,
    parse_arguments,
    print_commands,
    print_heading,
    print_result,
    run_name,
)
from keras_lenet5 import EpochLines, lenet5, load_full

import tensorstate_callbacks


def main() -> None:
    """Train, watch, stop, draw."""
    arguments = parse_arguments(__doc__ or "", "runs/keras_mnist", batch_size=100)
    output = arguments.output_dir
    output.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(arguments.seed)
    digits = load_digits(arguments, load_full)
    model = lenet5(learning_rate=0.005)

    mlflow.set_tracking_uri(f"sqlite:///{output / 'mlflow.db'}")
    if mlflow.get_experiment_by_name("keras_mnist") is None:
        # Its files stay with the rest.
        mlflow.create_experiment("keras_mnist", (output / "artifacts").resolve().as_uri())
    mlflow.set_experiment("keras_mnist")
    efficiency = tensorstate_callbacks.keras.EfficiencyCallback(beta=2)
    groups = tensorstate_callbacks.keras.EfficiencyCallback(group_size=8, prefix="g8_")
    stop = keras.callbacks.EarlyStopping("val_aiq", mode="max", patience=arguments.patience)
    run = run_name()
    print_heading(arguments, digits)
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
