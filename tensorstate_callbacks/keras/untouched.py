"""Keep the state of a Keras model, and put it back after a run aside."""

import random
from typing import Any

import keras
import numpy as np
from keras.src.backend.common import global_state

from tensorstate_callbacks.keras.backends import current_backend

_SEED = 0
# As Keras names them, which older releases have no constants for.
_GLOBAL_SEEDS = "global_seed_generator"
_SEED_STATE = "seed_generator_state"


class Untouched:
    """Puts back what running a model without training it may change.

    That is: variables that no gradient trains, those of metrics and seed generators among them,
    Keras's own seed generator, Python's and NumPy's, and the losses that layers have added. In
    between all generators begin at one seed, so that a model which draws numbers draws the same
    ones each time.

    In `with untouched, untouched:` all is put back twice, and so also if an interrupt arrives while
    it is put back; nothing is changed before `begin`.

    Args:
        model: The model.
    """

    def __init__(self, model: keras.Model) -> None:
        states = (*model.variables, *model.metrics_variables)
        self._variables = [each for each in states if not each.trainable]
        # Held: it would be missed otherwise if the run makes another.
        self._global = global_state.get_global_attribute(_GLOBAL_SEEDS)
        if self._global is not None:
            self._variables.append(self._global.state)
        self._put_back = current_backend().keep_values(model, self._variables)
        self._python, self._numpy = random.getstate(), np.random.get_state()
        self._losses = [
            (layer, list(layer._losses), set(layer._loss_ids))
            for layer in model._flatten_layers()
            if hasattr(layer, "_loss_ids")
        ]

    def __enter__(self) -> "Untouched":
        """Do nothing yet."""
        return self

    def begin(self) -> None:
        """Let all generators begin at one seed."""
        random.seed(_SEED)
        np.random.seed(_SEED)
        for variable in self._variables:
            if variable.name == _SEED_STATE:
                variable.assign(keras.ops.zeros(variable.shape, variable.dtype))

    def __exit__(self, *_: object) -> None:
        """Put all back; may be called again."""
        self._put_back()
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        made: Any = global_state.get_global_attribute(_GLOBAL_SEEDS)
        if made is not self._global:
            global_state.set_global_attribute(_GLOBAL_SEEDS, self._global)
        for layer, losses, ids in self._losses:
            # In place, past the trackers of attributes.
            layer._losses[:] = losses
            layer._loss_ids.clear()
            layer._loss_ids.update(ids)
