"""States with dead, busy, equal and inverted neurons, and NumPy's word on which they are."""

import numpy as np


def planted(n_states=200, n_neurons=24, seed=0):
    """Firing of neurons, (n_states, n_neurons) bool, some of which say the same as others.

    With 14 neurons or more: 3 never fires, 5 always does; 7 is 2, 9 is 2 inverted, 10 and 11 are
    4, 12 is 13 inverted.
    """
    rng = np.random.default_rng(seed)
    fires = rng.random((n_states, n_neurons)) < rng.uniform(0.2, 0.8, n_neurons)
    if n_neurons >= 14:
        fires[:, 3], fires[:, 5] = False, True
        fires[:, 7], fires[:, 9] = fires[:, 2], ~fires[:, 2]
        fires[:, 10] = fires[:, 11] = fires[:, 4]
        fires[:, 12] = ~fires[:, 13]
    return fires


def activations(fires):
    """Numbers that are above 0 where a neuron fires."""
    return np.where(fires, 1.0, -1.0)


def found_by_numpy(fires, group_size=None):
    """Never fired, always fired, agreeing, opposing, by whole columns; of units within each."""
    n_neurons = fires.shape[1]
    often = fires.sum(axis=0)
    never, always = (tuple(np.flatnonzero(often == n).tolist()) for n in (0, len(fires)))
    agreeing, opposing = [], []
    for start in range(0, n_neurons, group_size or n_neurons):
        columns = {}
        for neuron in range(start, min(start + (group_size or n_neurons), n_neurons)):
            if neuron not in never + always:
                columns.setdefault(fires[:, neuron].tobytes(), []).append(neuron)
        agreeing += [tuple(group) for group in columns.values() if len(group) > 1]
        for group in columns.values():
            other = columns.get((~fires[:, group[0]]).tobytes())
            if other and group[0] < other[0]:
                opposing.append((tuple(group), tuple(other)))
    return never, always, tuple(sorted(agreeing)), tuple(sorted(opposing))


def neurons_of(layer):
    """What a layer's report says of the same."""
    return layer.never_fired, layer.always_fired, layer.agreeing, layer.opposing
