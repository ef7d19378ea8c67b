"""Draw the pictures of "What is a state space?" from the states of a network that was just trained.

LeNet-5 learns 4,000 handwritten digits for 15 epochs, and its states on 1,000 others are counted.
Run it with `python docs/pictures.py`, which takes some minutes on a busy machine: it writes into
`docs/images`, and prints the numbers of LeNet-5 that this page and the one on TensorState 0.6 give.
"""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from tensorstate_callbacks import EfficiencyReport, StateCounter, efficiency, entropy
from tensorstate_callbacks.display.plot_style import COLORS, new_figure
from tensorstate_callbacks.torch import record

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent / "examples"))

from digits import small_digits  # noqa: E402
from sklearn.model_selection import train_test_split  # noqa: E402
from torch_lenet5 import LeNet5, loader, optimizer_of  # noqa: E402

Bits = npt.NDArray[np.bool_]

N_EPOCHS = 15
N_SHOWN = 1000  # digits that the states are counted on
GROUP = 8
# The digit that is shown, and where its states are read: row and column in the map of `conv_1`.
DIGIT = 1
PLACES = ((1, 1), (7, 8), (12, 12), (17, 13))
PATCH = 5  # pixels that a position of `conv_1` sees, each way
# The groups that are compared: the layer, and which of its groups of eight neurons.
UNEVEN, EVEN = ("conv_1", 0), ("conv_2", 4)


class Seen:
    """What a trained network showed on the validation digits.

    Attributes:
        images: The digits, shape `(N_SHOWN, 28, 28)`.
        bits: Layer name to which neurons fired, shape `(N, H, W, n_neurons)`.
        whole: The report of whole layers.
        in_groups: The report of groups of eight neurons.
    """

    def __init__(self, model: nn.Module, images: npt.NDArray[np.float32]) -> None:
        self.images = images
        self.bits: dict[str, Bits] = {}
        self.whole = self._report(model, None)
        self.in_groups = self._report(model, GROUP)
        hooks = [
            model.get_submodule(name).register_forward_hook(self._keep(name))
            for name in self.whole.layers
        ]
        self._run(model)
        for hook in hooks:
            hook.remove()

    def _keep(self, name: str) -> Callable[..., None]:
        def keep(module: nn.Module, args: Any, output: torch.Tensor) -> None:
            self.bits[name] = (output > 0).movedim(1, -1).numpy()

        return keep

    def _report(self, model: nn.Module, group_size: int | None) -> EfficiencyReport:
        with record(model, group_size=group_size) as recording:
            self._run(model)
        return recording.report()

    @torch.no_grad()
    def _run(self, model: nn.Module) -> None:
        model(torch.from_numpy(self.images)[:, None])

    def states(self, layer: str, group: int | None = None) -> Bits:
        """Return the states of a layer or of one of its groups, one a row."""
        rows = self.bits[layer].reshape(-1, self.bits[layer].shape[-1])
        return rows if group is None else rows[:, GROUP * group : GROUP * (group + 1)]


def train() -> tuple[Seen, Seen]:
    """Look at the states of LeNet-5 before it is trained and after."""
    images, labels = small_digits()
    x_train, x_val, y_train, _ = train_test_split(
        images, labels, test_size=N_SHOWN, stratify=labels, random_state=0
    )
    torch.manual_seed(0)
    model = LeNet5()
    untrained = Seen(model.eval(), x_val)
    model.train()
    optimizer = optimizer_of(model)
    for _ in range(N_EPOCHS):
        for x, y in loader(x_train, y_train, 200, shuffle=True):
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return untrained, Seen(model.eval(), x_val)


def counts_of(states: Bits) -> npt.NDArray[np.uint64]:
    """Return how often each distinct state occurs, the most frequent first."""
    counter = StateCounter(states.shape[1])
    counter.update(states, -1)
    return np.sort(counter.counts())[::-1]


def efficiency_by_batch(states: Bits, batch_size: int) -> float:
    """Return the efficiency of a layer whose states are counted once for each batch that has them.

    Args:
        states: What was seen, shape `(samples, ..., n_neurons)`.
        batch_size: Samples of a batch.
    """
    n_neurons = states.shape[-1]
    total = StateCounter(n_neurons)
    for start in range(0, len(states), batch_size):
        batch = StateCounter(n_neurons)
        batch.update(states[start : start + batch_size], -1)
        total.update_packed(batch.states())
    return efficiency(entropy(total.counts()), n_neurons)


def draw_digit(seen: Seen) -> Any:
    """Draw four places of a digit, the states of a layer there, and how often each is seen."""
    bits, rows = seen.bits["conv_1"], seen.states("conv_1")
    counts = counts_of(rows)
    figure = new_figure(5.8, 6.2)
    above, below = figure.subfigures(2, 1, height_ratios=(3, 3.2))
    digit, states = above.subplots(1, 2, width_ratios=(1, 1.5))
    digit.imshow(seen.images[DIGIT], cmap="Greys")
    digit.set_title("four places of a digit", fontsize=10)
    ranks = below.subplots()
    ranks.plot(range(1, len(counts) + 1), counts, color=COLORS[7], linewidth=2)
    for number, (row, column) in enumerate(PLACES):
        look = {"color": COLORS[number], "weight": "bold"}
        sign = chr(ord("A") + number)
        outline(digit, column - 0.5, row - 0.5, PATCH, look["color"])
        digit.text(column - 1, row + 1, sign, ha="right", **look)
        state = bits[DIGIT, row, column]
        for neuron, fires in enumerate(state):
            square(states, neuron, number, 0.55, fires, look["color"])
        often = int((rows == state).all(axis=1).sum())
        states.text(-1, number, sign, ha="right", va="center", **look)
        states.text(0, number + 0.55, f"seen {often:,} times", fontsize=9)
        rank = int((counts > often).sum()) + 1
        ranks.plot([rank], [often], "o", color=look["color"], markersize=8)
        offset = {"xytext": (7, 5), "textcoords": "offset points"}
        ranks.annotate(sign, (rank, often), **offset, **look)
        print(f"{sign}: {''.join('.#'[int(b)] for b in state)} {often:,} times, rank {rank:,}")
    states.set(xlim=(-2.4, bits.shape[-1]), ylim=(len(PLACES) - 0.2, -0.5))
    states.set_title("their states: 20 neurons, filled if they fire", fontsize=10)
    for axes in (digit, states):
        axes.set_axis_off()
    ranks.set(xscale="log", yscale="log", ylabel="times seen")
    ranks.set_xlabel("states, the most frequent first")
    for axis in (ranks.xaxis, ranks.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    ranks.set_title(f"{len(rows):,} states seen, {len(counts):,} of them distinct", fontsize=10)
    ranks.grid(alpha=0.3)
    return figure


def square(axes: Any, x: float, y: float, height: float, fires: bool, color: str) -> None:
    """Draw a neuron: filled if it fires."""
    face = color if fires else "white"
    axes.bar(x, height, 0.8, y - height / 2, linewidth=1, facecolor=face, edgecolor=color)


def outline(axes: Any, left: float, top: float, size: float, color: str) -> None:
    """Draw a square around what a position sees."""
    right, bottom = left + size, top + size
    corners = [left, right, right, left, left], [top, top, bottom, bottom, top]
    axes.plot(*corners, color=color, linewidth=2.5)


def draw_doubling(seen: Seen) -> Any:
    """Draw all states of one to four neurons, and the number of states of up to sixteen."""
    figure = new_figure(5.8, 5.6)
    above, below = figure.subfigures(2, 1, height_ratios=(3, 2.6))
    axes = above.subplots()
    top = 0.0
    for n_neurons in range(1, 5):
        n_states = 2**n_neurons
        for state in range(n_states):
            for neuron in range(n_neurons):
                square(axes, state, top + neuron, 0.8, bool(state >> neuron & 1), COLORS[0])
        name = f"{n_neurons} neuron{'s' * (n_neurons > 1)}: {n_states} states"
        axes.text(n_states, top + (n_neurons - 1) / 2, name, va="center")
        top += n_neurons + 0.8
    axes.set(xlim=(-0.6, 21.5), ylim=(top - 1, -0.7))
    axes.set_axis_off()
    axes = below.subplots()
    neurons = range(1, 17)
    bars = axes.bar(neurons, [2**n for n in neurons], color=COLORS[0])
    bars[-1].set_color(COLORS[1])
    for n in (8, 12):
        axes.text(n + 0.4, 2**n + 800, f"{2**n:,}", ha="right")
    for n in (14, 15, 16):
        axes.text(n - 0.5, 2**n, f"{2**n:,}", ha="right", va="center")
    axes.set(xlabel="neurons", ylabel="possible states", xticks=list(neurons), ylim=(0, 70_000))
    axes.set_yticks([0, 20_000, 40_000, 60_000], ["0", "20,000", "40,000", "60,000"])
    return figure


def draw_use(seen: Seen) -> Any:
    """Draw how often each state of two groups of eight neurons is seen."""
    figure = new_figure(5.8, 5.2)
    panels = figure.subplots(2, 1, sharex=True)
    for number, (axes, (layer, group)) in enumerate(zip(panels, (UNEVEN, EVEN), strict=True)):
        states = seen.states(layer, group)
        counts = counts_of(states)
        bits = entropy(counts)
        percents = 100 * counts / len(states)
        axes.bar(range(1, len(counts) + 1), percents, width=1, color=COLORS[number])
        axes.axhline(100 / 2**GROUP, color="black", linestyle=":", label="if all were used evenly")
        words = (
            f"{len(counts)} of {2**GROUP} states seen\n"
            f"the most frequent one: {percents[0]:.1f} %\n"
            f"H = {bits:.2f} bits, η = {efficiency(bits, GROUP):.2f}\n"
            f"worth {2**bits:.0f} states used evenly"
        )
        place = {"transform": axes.transAxes, "ha": "right", "va": "top", "linespacing": 1.5}
        axes.text(0.97, 0.92, words, **place)
        axes.set_title(f"8 neurons of {layer}", fontsize=10)
        axes.set(ylabel="% of what was seen", xlim=(0, 2**GROUP + 1))
        print(f"{layer}, group {group}: {words}".replace("\n", ", "))
    panels[1].legend(loc="center right", bbox_to_anchor=(1, 0.38), frameon=False)
    panels[1].set_xlabel("states, the most frequent first")
    return figure


def draw_ceiling(seen: Seen) -> Any:
    """Draw the most that so many states can show, by neurons, and where LeNet-5's layers lie."""
    figure = new_figure(5.8, 4.6)
    axes = figure.subplots()
    neurons = np.unique(np.geomspace(1, 1024, 400).astype(int))
    # Where no curve is.
    sides = {"conv_1": (-9, -13, "right"), "conv_2": (9, 3, "left"), "conv_3": (-9, -13, "right")}
    for number, (name, whole) in enumerate(seen.whole.layers.items()):
        color, n_states = COLORS[number], whole.n_states
        ceiling = np.minimum(neurons, math.log2(n_states)) / neurons
        axes.plot(neurons, ceiling, color=color, label=f"{n_states:,} states, as {name} has")
        right, up, side = sides[name]
        beside = {"textcoords": "offset points", "color": color}
        at = (whole.n_neurons, whole.efficiency)
        axes.plot(*at, "s", color=color, markersize=8)
        axes.annotate(name, at, xytext=(right, up), ha=side, **beside)
        at = (GROUP, seen.in_groups.layers[name].efficiency)
        axes.plot(*at, "o", color=color, markersize=8)
        axes.annotate(name, at, xytext=(-9, 0), ha="right", va="center", **beside)
    axes.plot([], [], "s", color="black", label="whole layer")
    axes.plot([], [], "o", color="black", label="groups of 8 neurons")
    axes.legend(loc="upper right", frameon=False)
    axes.set(xscale="log", xlabel="neurons of a unit", ylabel="efficiency", ylim=(0, 1.04))
    ticks = (1, 2, 4, 8, 20, 50, 100, 1000)
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    return figure


def main(folder: Path = DOCS / "images") -> None:
    """Train, draw all, and print what the page says."""
    untrained, seen = train()
    for name, draw in {
        "states_of_a_digit": draw_digit,
        "states_double": draw_doubling,
        "states_used": draw_use,
        "states_ceiling": draw_ceiling,
    }.items():
        draw(seen).savefig(folder / f"{name}.png")
    for title, of in (("Trained", seen), ("Before the training", untrained)):
        for report in (of.whole, of.in_groups):
            print(f"\n{title}:\n\n{report.table()}")
    print("\nTrained, each state counted once for each batch of 1, 10, 50, 200, 1000:\n")
    for name, states in seen.bits.items():
        print(name, *(f"{efficiency_by_batch(states, n):.4f}" for n in (1, 10, 50, 200, 1000)))


if __name__ == "__main__":
    main()
