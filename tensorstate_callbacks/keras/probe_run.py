"""Run a Keras model on probe data, and leave it as it was."""

from collections.abc import Sequence
from typing import cast

import keras

from tensorstate_callbacks.errors import WarnOnce
from tensorstate_callbacks.keras.backends import current_backend
from tensorstate_callbacks.keras.picking import pick_probes
from tensorstate_callbacks.keras.probe_data import ProbeBatch
from tensorstate_callbacks.keras.probes import wrap_calls
from tensorstate_callbacks.keras.untouched import Untouched
from tensorstate_callbacks.keras.watch import Watch, new_flows
from tensorstate_callbacks.recording.overrides import Overrides
from tensorstate_callbacks.recording.probe_states import end_batch
from tensorstate_callbacks.recording.recorder import Recorder
from tensorstate_callbacks.recording.settings import Settings


def is_built(model: keras.Model) -> bool:
    """Tell whether a model has all its variables: else they would be made by running it."""
    return all(layer.built for layer in model._flatten_layers())


def run_probe(model: keras.Model, batches: Sequence[ProbeBatch], settings: Settings) -> Recorder:
    """Run a model on probe data, call by call, as in evaluations.

    Args:
        model: The model.
        batches: The samples.
        settings: What the callback was given.

    Returns:
        What has kept the states.
    """
    # An evaluation gives the same warnings.
    silent = WarnOnce()
    silent.reset(silent=True)
    watch = pick_probes(model, settings.of_probe(), settings.channel_axis, silent)
    watch.start_recording()
    recorder = cast(Recorder, watch.counting.recorder)
    untouched = Untouched(model)
    with untouched, untouched:
        untouched.begin()
        for batch in batches:
            _run_batch(model, batch, watch)
            end_batch(recorder, batch.n_samples)
    return watch.counted(recorder)


def _run_batch(model: keras.Model, batch: ProbeBatch, watch: Watch) -> None:
    flows, others = new_flows([watch])
    step = Overrides()
    # Nothing but calls inside: an interrupt at a `try` would pass by the ends of the block.
    with step, step:
        wrap_calls(step, model, watch.probes, others, flows)
        watch.counting.step = step
        step.activate()
        _call(model, batch, watch)
    watch.end_step(flows)


def _call(model: keras.Model, batch: ProbeBatch, watch: Watch) -> None:
    try:
        if watch.needs_batches:
            watch.begin_batch(batch.given)
        current_backend().run_aside(model, lambda: model(batch.x, training=False))
    finally:
        if watch.needs_batches:
            watch.begin_batch(None)
