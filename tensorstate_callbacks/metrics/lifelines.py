"""Follow the neurons of a layer over a training: which died when, and which came back."""

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclasses.dataclass(frozen=True, eq=False)
class Lifelines:
    """How often each neuron of a layer fired, evaluation by evaluation.

    A neuron is dead in an evaluation if it fired in none of its states. On other data, and between
    the evaluations, it may fire: whether it is dead for good shows only afterwards.

    Attributes:
        layer: The layer's name.
        unit: What `evaluations` counts: `"epoch"`, from 1 as frameworks print them, or
            `"evaluation"`, where there are several of an epoch or none.
        evaluations: Its number for each evaluation, shape `(evaluations,)`, int64, read-only.
        rates: Share of the states in which each neuron fired, 0 to 1, shape
            `(n_neurons, evaluations)`, float64, read-only; NaN where the layer wasn't seen.

    Examples:
        >>> import numpy as np
        >>> rates = np.array([[0.5, 0.25, 0.5], [0.5, 0.0, 0.0], [0.25, 0.0, 0.5]])
        >>> lines = Lifelines("fc", "epoch", np.array([1, 2, 3]), rates)
        >>> lines.died, lines.came_back
        ({1: 2}, {2: (3,)})
    """

    layer: str
    unit: str
    evaluations: npt.NDArray[np.int64]
    rates: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        for name, kind in (("evaluations", np.int64), ("rates", np.float64)):
            owned: npt.NDArray[Any] = np.array(getattr(self, name), kind)
            owned.flags.writeable = False
            object.__setattr__(self, name, owned)

    @property
    def last_fired(self) -> npt.NDArray[np.int64]:
        """The last evaluation in which each neuron fired, `(n_neurons,)` int64; 0 for none."""
        fires = self.rates > 0
        last = fires.shape[1] - 1 - np.argmax(fires[:, ::-1], axis=1)
        return np.where(fires.any(axis=1), self.evaluations[last], 0)

    @property
    def died(self) -> dict[int, int]:
        """For each neuron that was dead in the end, the first evaluation in which it stayed dead.

        It died between that one and the one before. A neuron that never fired was dead in the first
        evaluation already.
        """
        seen = ~np.isnan(self.rates).all(axis=0)
        if not seen.any():
            return {}
        where, rates = self.evaluations[seen], self.rates[:, seen]
        dead = np.flatnonzero(rates[:, -1] == 0)
        # As many evaluations as it was dead in at the end.
        ends = np.cumsum(rates[dead, ::-1] > 0, axis=1) == 0
        first = rates.shape[1] - ends.sum(axis=1)
        return dict(zip(dead.tolist(), where[first].tolist(), strict=True))

    @property
    def came_back(self) -> dict[int, tuple[int, ...]]:
        """For each neuron that fired again after it was dead, the evaluations in which it did."""
        seen = ~np.isnan(self.rates).all(axis=0)
        where, rates = self.evaluations[seen], self.rates[:, seen]
        neurons, places = np.nonzero((rates[:, :-1] == 0) & (rates[:, 1:] > 0))
        found: dict[int, tuple[int, ...]] = {}
        for neuron, place in zip(neurons.tolist(), places.tolist(), strict=True):
            found[neuron] = (*found.get(neuron, ()), int(where[place + 1]))
        return found
