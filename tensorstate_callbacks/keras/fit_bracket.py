"""See each call of `model.evaluate` while a fit goes on.

Keras tells callbacks neither that an evaluation or a fit ended in an error, nor whose evaluation it
is. Both can be seen where `model.evaluate` is called.
"""

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import keras

from tensorstate_callbacks.keras.evaluation import close, fail
from tensorstate_callbacks.recording.overrides import Overrides

# By the model's id: what they hold is kept alive by the model's own entries, and dies with it.
_brackets: "weakref.WeakValueDictionary[int, FitBracket]" = weakref.WeakValueDictionary()


class RunningEvaluate(NamedTuple):
    """A call of `model.evaluate` while a fit goes on.

    Attributes:
        callbacks: What was given as `callbacks`.
    """

    callbacks: Any

    @property
    def is_of_fit(self) -> bool:
        """Whether fit made the call: it passes the list that it made of its callbacks."""
        return isinstance(self.callbacks, keras.callbacks.CallbackList)


class FitBracket:
    """Sees each call of `model.evaluate` while a fit goes on, and closes what is left of it.

    It stays on the model of a fit that ends in an error, without effect, until the next fit.

    Args:
        model: The model in training.
    """

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        self._running: RunningEvaluate | None = None
        self._entry = Overrides()

    @classmethod
    def put_on(cls, model: keras.Model) -> None:
        """Bracket the model's evaluations anew, and close what an earlier one may have left."""
        cls.take_off(model)
        bracket = _brackets[id(model)] = cls(model)
        bracket._entry.wrap(model, "evaluate", partial(partial, bracket._run))
        bracket._entry.activate()

    @classmethod
    def keep_on(cls, model: keras.Model) -> None:
        """Bracket the model's evaluations if a fit within this fit has ended that."""
        bracket = _brackets.get(id(model))
        if bracket is None or not bracket._entry.active:
            cls.put_on(model)

    @classmethod
    def take_off(cls, model: keras.Model) -> None:
        """Leave the model as it was; may be called again."""
        close(model)
        bracket = _brackets.get(id(model))
        if bracket is not None:
            bracket._entry.take_off()
            _brackets.pop(id(model), None)

    @classmethod
    def running(cls, model: keras.Model) -> "RunningEvaluate | None":
        """Return the call of `model.evaluate` that runs, None where none is seen."""
        bracket = _brackets.get(id(model))
        return bracket._running if bracket is not None and bracket._entry.active else None

    def _run(self, evaluate: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        before = self._running
        try:
            try:
                self._running = RunningEvaluate(kwargs.get("callbacks"))
                return evaluate(*args, **kwargs)
            except BaseException as failure:
                fail(self._model, failure)
                raise
            finally:
                self._end(before)
        finally:
            # Again, should an interrupt have arrived in the line above.
            self._end(before)

    def _end(self, before: RunningEvaluate | None) -> None:
        self._running = before
        close(self._model)
