import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorstate_callbacks import aIQ, efficiency, network_efficiency, tensorstate

SHARES = st.floats(0, 1)


def test_efficiency_is_bits_per_neuron():
    assert efficiency(6.5, 26) == 0.25


def test_efficiency_at_its_bounds():
    assert efficiency(0.0, 4) == 0.0
    assert efficiency(4.0 + 1e-13, 4) == 1.0


@pytest.mark.parametrize(("bits", "neurons"), [(4.1, 4), (-0.1, 4), (math.nan, 4), (1, 0)])
def test_efficiency_refuses_what_no_layer_has(bits, neurons):
    with pytest.raises(ValueError, match="neurons"):
        efficiency(bits, neurons)


def test_network_efficiency_is_the_geometric_mean():
    assert network_efficiency([0.1, 0.4, 0.2]) == pytest.approx(0.2, rel=1e-15)


def test_network_efficiency_of_a_dead_layer_is_zero():
    assert network_efficiency([0.9, 0.0]) == 0.0


def test_network_efficiency_of_many_layers_does_not_underflow():
    assert network_efficiency([1e-3] * 500) == pytest.approx(1e-3, rel=1e-12)


@given(st.lists(SHARES, min_size=1), st.randoms(use_true_random=False))
def test_network_efficiency_does_not_depend_on_the_order_of_layers(shares, random):
    shuffled = list(shares)
    random.shuffle(shuffled)
    assert network_efficiency(shuffled) == network_efficiency(shares)


@pytest.mark.parametrize("shares", [[], [1.2], [-0.1, 0.5], [math.nan]])
def test_network_efficiency_refuses_what_are_no_shares(shares):
    with pytest.raises(ValueError, match=r"efficiency"):
        network_efficiency(shares)


class Model(list):
    """What build_efficiency_model gives: here one that can be iterated over, like Sequential."""

    def __init__(self, efficiencies):
        super().__init__(["layer"])
        self.efficiency_layers = [
            SimpleNamespace(efficiency=lambda value=value: value) for value in efficiencies
        ]


def test_network_efficiency_of_a_model():
    of_shares = network_efficiency([0.1, 0.4, 0.2])
    assert tensorstate.network_efficiency(Model([0.1, 0.4, 0.2])) == of_shares
    assert tensorstate.network_efficiency([0.1, 0.4, 0.2]) == of_shares
    assert network_efficiency(share for share in (0.25, 1.0)) == 0.5


@pytest.mark.parametrize("model", [object(), [object()], ["0.5x"], 0.5, None])
def test_network_efficiency_of_something_else(model):
    with pytest.raises((TypeError, ValueError), match="network_efficiency takes|0.5x"):
        network_efficiency(model)
    with pytest.raises((TypeError, ValueError), match="network_efficiency takes|0.5x"):
        tensorstate.network_efficiency(model)


def test_aiq_of_a_hand_calculation():
    # (0.25 * 0.8**2) ** (1/3)
    assert aIQ(0.25, 0.8) == pytest.approx(0.16 ** (1 / 3), rel=1e-15)
    assert aIQ(0.25, 0.64, beta=1) == pytest.approx(0.4, rel=1e-15)


def test_aiq_with_a_large_beta_approaches_accuracy():
    assert aIQ(0.2, 0.5, beta=1e6) == pytest.approx(0.5, rel=1e-4)


@given(SHARES, SHARES, st.floats(0.01, 100))
def test_aiq_lies_between_efficiency_and_accuracy(eta, accuracy, beta):
    low, high = sorted((eta, accuracy))
    assert low - 1e-12 <= aIQ(eta, accuracy, beta) <= high + 1e-12


@pytest.mark.parametrize("beta", [0, -1, math.nan, math.inf])
def test_aiq_needs_a_beta_above_zero(beta):
    with pytest.raises(ValueError, match="beta"):
        aIQ(0.5, 0.5, beta)


def test_aiq_has_its_old_weight_in_the_old_interface_only():
    assert tensorstate.aIQ(0.25, 0.64, weight=1) == aIQ(0.25, 0.64, beta=1)
    assert tensorstate.aIQ(0.25, 0.64, 3) == aIQ(0.25, 0.64, 3)
    assert tensorstate.aIQ(0.25, 0.64) == aIQ(0.25, 0.64)
    with pytest.raises(TypeError, match="weight"):
        aIQ(0.25, 0.64, weight=1)


def test_aiq_tells_percentages_from_shares():
    with pytest.raises(ValueError, match="accuracy must be a share.*97.*divide a percentage"):
        aIQ(0.5, 97)
