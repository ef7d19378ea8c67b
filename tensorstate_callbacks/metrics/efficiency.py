"""Compute efficiency, network efficiency and aIQ from entropies and accuracy."""

import math
from collections.abc import Iterable


def efficiency(entropy_bits: float, n_neurons: int) -> float:
    """Return a layer's efficiency: the share of its capacity that its states use.

    Source: Schaub and Hotaling, "Assessing Intelligence in Artificial Neural Networks",
    arXiv 2006.02909.

    Args:
        entropy_bits: Entropy of the layer's states, in bits.
        n_neurons: Number of neurons (channels); each can carry at most one bit.

    Returns:
        `entropy_bits / n_neurons`, a share between 0 and 1.

    Raises:
        ValueError: `n_neurons` is below 1, or the entropy is not between 0 and `n_neurons` bits.

    Examples:
        >>> efficiency(5.0, 20)
        0.25
    """
    if n_neurons < 1:
        raise ValueError(f"n_neurons must be 1 or more; got {n_neurons}")
    # Entropy is a difference of logarithms: it can pass the bound by a rounding error.
    if not 0 <= entropy_bits <= n_neurons * (1 + 1e-12):
        raise ValueError(
            f"the entropy of {n_neurons} neurons lies between 0 and {n_neurons} bits; "
            f"got {entropy_bits}"
        )
    return min(entropy_bits / n_neurons, 1.0)


def network_efficiency(efficiencies: Iterable[float]) -> float:
    """Return the network efficiency: the geometric mean of its layers' efficiencies.

    Args:
        efficiencies: One share (0 to 1) per layer.

    Returns:
        A share between 0 and 1; 0 as soon as one layer's efficiency is 0.

    Raises:
        TypeError: `efficiencies` is not an iterable of numbers.
        ValueError: There is no layer, or a value is not a share.

    Examples:
        >>> network_efficiency([0.25, 1.0])
        0.5
    """
    try:
        values = [float(value) for value in efficiencies]
    except TypeError as error:
        raise TypeError(
            "network_efficiency takes the layers' efficiencies; got "
            f"{type(efficiencies).__name__}. For a model with capture points there is "
            "tensorstate_callbacks.tensorstate.network_efficiency"
        ) from error
    if not values:
        raise ValueError("network efficiency needs at least one layer's efficiency; got none")
    for value in values:
        if not 0 <= value <= 1:
            raise ValueError(f"an efficiency is a share between 0 and 1; got {value}")
    if min(values) == 0:
        return 0.0
    return min(math.exp(math.fsum(map(math.log, values)) / len(values)), 1.0)


def check_beta(beta: float) -> float:
    """Return the weight `beta` of accuracy in aIQ, or raise `ValueError` if it isn't above 0."""
    if not (math.isfinite(beta) and beta > 0):
        raise ValueError(
            f"beta, the weight of accuracy in aIQ, must be a finite number above 0; got {beta}"
        )
    return beta


def aIQ(network_efficiency: float, accuracy: float, beta: float = 2) -> float:
    """Return the artificial intelligence quotient of a network.

    It weighs how much of the network is used against how often it is right.

    Source: Schaub and Hotaling, "Assessing Intelligence in Artificial Neural Networks",
    arXiv 2006.02909.

    Args:
        network_efficiency: Geometric mean of the layers' efficiencies, a share (0 to 1).
        accuracy: The network's accuracy on the same data, a share (0 to 1).
        beta: Weight of accuracy against efficiency, above 0.

    Returns:
        `(network_efficiency * accuracy**beta) ** (1 / (beta + 1))`, a share between 0 and 1.

    Raises:
        ValueError: `beta` is not above 0, or one of the others is not a share.

    Examples:
        >>> aIQ(0.125, 1.0, beta=2)
        0.5
    """
    check_beta(beta)
    for name, value in (("network_efficiency", network_efficiency), ("accuracy", accuracy)):
        if not 0 <= value <= 1:
            hint = "; divide a percentage by 100" if 1 < value <= 100 else ""
            raise ValueError(f"{name} must be a share between 0 and 1; got {value}{hint}")
    # Roots before the product: accuracy**beta alone would underflow for a large beta.
    return float(network_efficiency ** (1 / (beta + 1)) * accuracy ** (beta / (beta + 1)))
