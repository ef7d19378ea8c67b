"""What a report says of its own limits."""

import numpy as np

from tensorstate_callbacks import EfficiencyReport, LayerReport
from tensorstate_callbacks.reports.limits import describe_low_coverage
from tensorstate_callbacks.states.spectrum import Spectrum

WELL_SEEN, RARE, HALF = [9, 8, 7, 8], [1, 1, 1, 2], [2, 1, 1]


def layer(name, counts, fired=(3, 3, 3, 3), alpha=1):
    spectrum = Spectrum.from_counts(counts)
    return LayerReport.from_spectrum(name, spectrum, np.array(fired, dtype=np.uint64), alpha)


def report(*layers, accuracy=0.5, **options):
    return EfficiencyReport({x.name: x for x in layers}, accuracy=accuracy, **options)


def test_nothing_limits_a_layer_seen_well():
    assert report(layer("conv", WELL_SEEN)).notes() == []


def test_layers_of_low_coverage_are_named_with_what_to_do():
    limited = report(layer("a", WELL_SEEN), layer("b", RARE), layer("c", [1] * 4))
    (note,) = limited.notes()
    assert note.startswith("Coverage is below 0.5 in b (0.40), c (0.00): ")
    ways = ["(group_size=8)", "more validation data", "report.layers['b'].interval()"]
    assert [note.index(way) for way in ways] == sorted(note.index(way) for way in ways)
    assert "Shannon" not in note


def test_coverage_of_one_half_is_enough():
    half = report(layer("conv", HALF))
    assert describe_low_coverage(half.layers, half.alpha) is None


def test_other_orders_are_told_that_the_estimate_is_shannons():
    (note,) = report(layer("conv", RARE, alpha=2), alpha=2).notes()
    assert "it estimates the efficiency by Shannon entropy, unseen" in note


def test_a_layer_of_one_state_is_named():
    (note,) = report(layer("dead", [20], fired=(0, 0, 20, 0)), layer("conv", WELL_SEEN)).notes()
    assert note.startswith("Only one state was seen in dead: efficiency 0")


def test_neurons_that_tell_nothing_are_counted():
    some = layer("some", WELL_SEEN, fired=(0, 32, 4, 5))
    (note,) = report(some, layer("most", WELL_SEEN, fired=(0, 32, 0, 5))).notes()
    assert note.endswith("in most (2 never, 1 always, of 4).")


def test_a_missing_accuracy_is_said():
    assert report(layer("conv", WELL_SEEN), accuracy=None).notes() == [
        "There is no accuracy, so there is no aIQ."
    ]
