"""Reports with known counts, for tests of what shows them."""

import numpy as np

from tensorstate_callbacks import EfficiencyReport, History, LayerReport
from tensorstate_callbacks.states.spectrum import Spectrum


def layer(name="conv", counts=(4, 2, 1, 1), fired=(8, 7, 0, 0)):
    return LayerReport.from_spectrum(
        name, Spectrum.from_counts(counts), np.array(fired, dtype=np.uint64)
    )


def report(names=("conv", "fc"), *, accuracy=0.5, epoch=0, **fields):
    """The first layer has states of several counts, the others two states seen as often."""
    first, *others = names
    layers = {first: layer(first), **{name: layer(name, (4, 4), (4, 8)) for name in others}}
    return EfficiencyReport(layers, accuracy=accuracy, epoch=epoch, **fields)


def history(n_epochs=3, names=("conv", "fc")):
    """The second evaluation has the highest accuracy, and so the best aIQ."""
    accuracies = [0.5, 0.9, 0.7, 0.6, 0.55]
    return History(report(names, accuracy=accuracies[i], epoch=i) for i in range(n_epochs))
