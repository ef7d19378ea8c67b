"""Whole validation passes of today's networks in Keras: what groups and positions cost in time."""

import gc
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras.callbacks import Callback

from benchmarks.networks_keras import lenet5
from benchmarks.rows import Options, Row, Target, relative
from benchmarks.timing import timed_calls
from tensorstate_callbacks.keras import EfficiencyCallback
from tensorstate_callbacks.recording.probe_counter import ProbeCounter

PART = "scale-keras"
# Group size and positions, and what the processor's time is to be of that of the plain pass.
SETTINGS: dict[str, tuple[int | None, int | None, Target | None]] = {
    "layers at all positions": (None, None, None),
    "groups of 8 at 64 positions": (8, 64, Target(1.01, False)),
    "groups of 8 at all positions": (8, None, Target(1.04, False)),
}
PLAIN = "the plain pass"


class Pass(NamedTuple):
    """A compiled model, and the batches to validate it with."""

    model: keras.Model
    validation: tf.data.Dataset


class _Taken(NamedTuple):
    """What a pass took without its report: seconds of the processor, on the wall, of counting."""

    processor: float
    wall: float
    counting: float
    report: float


def run(options: Options) -> list[Row]:
    """Measure LeNet-5, and the networks of `keras.applications` at 224×224 with random weights."""
    networks: dict[str, Callable[[], Pass]] = {"LeNet-5": partial(_lenet5, options)}
    if not options.quick:
        applications = keras.applications
        networks["ResNet-50"] = partial(_untrained, applications.ResNet50, 8)
        # Its depthwise convolutions take TensorFlow a second an image.
        networks["ConvNeXt-tiny"] = partial(_untrained, applications.ConvNeXtTiny, 2)
    return [row for name, load in networks.items() for row in _compare(name, load(), options)]


def _lenet5(options: Options) -> Pass:
    setting = lenet5(options.quick)
    return Pass(setting.model, setting.validation)


def _untrained(build: Callable[..., keras.Model], n_images: int) -> Pass:
    keras.utils.set_random_seed(0)
    model = build(weights=None, input_shape=(224, 224, 3), classes=10)
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    data = tf.data.Dataset.from_tensor_slices((_smooth_images(n_images), np.zeros(n_images)))
    return Pass(model, data.batch(8).cache())


def _smooth_images(n: int) -> np.typing.NDArray[np.float32]:
    """Return noise whose amplitude falls with frequency, as `networks_torch.smooth_images`."""
    side = 224
    noise = np.random.default_rng(1).standard_normal((n, side, side, 3))
    frequency = np.fft.fftfreq(side)[:, None] ** 2 + np.fft.rfftfreq(side) ** 2
    amplitude = 1 / np.maximum(np.sqrt(frequency), 1 / side)
    spectrum = np.fft.rfft2(noise, axes=(1, 2)) * amplitude[:, :, None]
    images = np.fft.irfft2(spectrum, s=(side, side), axes=(1, 2))
    return (images / images.std((1, 2, 3), keepdims=True)).astype(np.float32)


def _compare(name: str, network: Pass, options: Options) -> list[Row]:
    callbacks: dict[str, list[Callback]] = {PLAIN: []}
    for setting, (group_size, positions, _) in SETTINGS.items():
        callbacks[setting] = [EfficiencyCallback(group_size=group_size, positions=positions)]
    taken: dict[str, list[_Taken]] = {setting: [] for setting in callbacks}
    # The first passes build the test functions.
    for number in range(-2, options.runs(9)):
        for setting, watching in callbacks.items():
            gc.collect()
            began, began_wall = time.process_time(), time.perf_counter()
            with (
                timed_calls(ProbeCounter, "update") as counting,
                timed_calls(EfficiencyCallback, "finish") as report,
            ):
                network.model.evaluate(network.validation, verbose=0, callbacks=watching)
            if number >= 0:
                processor, wall = time.process_time() - began, time.perf_counter() - began_wall
                times = processor - sum(report), wall - sum(report), sum(counting), sum(report)
                taken[setting].append(_Taken(*times))
    median = {
        setting: _Taken(*map(statistics.median, zip(*passes, strict=True)))
        for setting, passes in taken.items()
    }
    plain = median[PLAIN]
    rows = []
    for setting, (_, _, target) in SETTINGS.items():
        own = median[setting]
        share = own.counting / (own.processor - own.counting)
        note = f"counting {share:.2%}, report {own.report * 1e3:.0f} ms"
        target = None if name == "LeNet-5" else target
        for clock, ours, theirs, judged, said in (
            ("processor", own.processor, plain.processor, target, note),
            ("wall", own.wall, plain.wall, None, ""),
        ):
            case = f"{name}, {setting}, {clock}"
            rows.append(relative(PART, case, PLAIN, ours * 1e3, theirs * 1e3, "ms", judged, said))
    return rows
