"""Read of a layer's report how often each neuron fired, and which neurons agree."""

import numpy as np
import numpy.typing as npt

from tensorstate_callbacks.errors import StatesNotAvailableError
from tensorstate_callbacks.metrics.neurons import (
    Group,
    NeuronCounts,
    agreeing_groups,
    opposing_groups,
)


class NeuronReadings:
    """What a layer's report says of single neurons: base of `LayerReport`, which has the fields."""

    name: str
    neurons: NeuronCounts | None

    @property
    def firing_rates(self) -> npt.NDArray[np.float64]:
        """Share of the states in which each neuron fired, 0 to 1, `(n_neurons,)` float64.

        Raises:
            StatesNotAvailableError: It isn't known any more; says how to keep it.
        """
        return self._known_neurons().rates

    @property
    def never_fired(self) -> Group:
        """The neurons that fired in no state, by index.

        They may still fire on other data, or later in training: whether they are dead for good,
        this can't tell. See `History.lifelines`.

        Raises:
            StatesNotAvailableError: It isn't known any more; says how to keep it.
        """
        return self._known_neurons().never_fired

    @property
    def always_fired(self) -> Group:
        """The neurons that fired in every state, by index.

        Raises:
            StatesNotAvailableError: It isn't known any more; says how to keep it.
        """
        return self._known_neurons().always_fired

    @property
    def agreeing(self) -> tuple[Group, ...]:
        """Groups of two or more neurons that fired in exactly the same states, by index.

        It is exact for the states that were seen; in few states, neurons agree by chance. Neurons
        that never or always fired are in no group. With units smaller than the layer, neurons are
        compared within each unit only. How strongly they fire, it can't tell: before you replace
        one by another, look at their activations.

        Raises:
            StatesNotAvailableError: It wasn't asked for, or isn't known any more; says how to.

        Examples:
            >>> from tensorstate_callbacks import LayerReport
            >>> tables = np.array([0, 0, 0, 2, 1, 0, 0, 0], np.uint64)
            >>> fired = np.array([2, 2, 1], np.uint64)
            >>> layer = LayerReport.from_tables("a", tables, 3, fired, followed=True)
            >>> layer.agreeing, layer.opposing
            (((0, 1),), (((0, 1), (2,)),))
        """
        return agreeing_groups(self._known_sides())

    @property
    def opposing(self) -> tuple[tuple[Group, Group], ...]:
        """Pairs of groups of neurons, of which one fired exactly where the other did not.

        All neurons of a group agree; it may be a single neuron. The limits are those of `agreeing`.

        Raises:
            StatesNotAvailableError: It wasn't asked for, or isn't known any more; says how to.
        """
        return opposing_groups(self._known_sides())

    def _known_neurons(self) -> NeuronCounts:
        if self.neurons is None:
            raise StatesNotAvailableError(
                f"how often each neuron of {self.name!r} fired isn't known: checkpoints, files and "
                "copies keep that of recordings with neurons=True only. Give neurons=True to the "
                "callback or recording, or ask its report as long as it is fresh"
            )
        return self.neurons

    def _known_sides(self) -> list[tuple[Group, Group]]:
        neurons = self.neurons
        sides = None if neurons is None else neurons.sides()
        if sides is None:
            way_out = (
                "a checkpoint keeps that of its last evaluation only, and a train_history that of "
                "its last window; or there was no memory to find it. history.save('run.json') "
                "keeps all that it has"
                if neurons is not None and neurons.followed
                else "give neurons=True to the callback or recording"
            )
            raise StatesNotAvailableError(
                f"which neurons of {self.name!r} agree isn't known: {way_out}"
            )
        return sides
