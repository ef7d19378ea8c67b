"""How far estimates are off, and how often intervals hold: `python -m benchmarks.estimators`.

Draws states many times from distributions whose entropy is known: uniform, Zipf, and the states of
LeNet-5's layers on 5,000 digits taken for the whole population. `--save` writes both tables into
`docs/how_to/estimators.md`. The same seeds give the same tables.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.states import lenet5_states
from tensorstate_callbacks import EfficiencyReport, LayerReport
from tensorstate_callbacks.metrics.entropy import ESTIMATORS, estimate_entropy
from tensorstate_callbacks.metrics.intervals import Interval, entropy_interval
from tensorstate_callbacks.states.spectrum import Spectrum

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "how_to" / "estimators.md"
SEEDS = 200
NEURONS = {"conv_1": 20, "conv_2": 50, "conv_3": 100}
SIZES = (250, 1_000, 4_000, 16_000, 64_000)
IMAGES = (100, 500, 2_000, 5_000)

Counts = NDArray[np.int64]
Draw = Callable[[np.random.Generator], Counts]


class Row(NamedTuple):
    """What many draws of one kind showed: means over the seeds, entropies in bits."""

    coverage: float
    truth: float
    bias: dict[str, float]
    held: float
    width: float


def uniform() -> NDArray[np.float64]:
    """Return the shares of 4,096 states that are all as likely."""
    return np.full(2**12, 2.0**-12)


def zipf() -> NDArray[np.float64]:
    """Return the shares of 16,384 states, the k-th of them in proportion to 1 / k."""
    shares = 1 / np.arange(1, 2**14 + 1)
    return shares / shares.sum()


def measure(draw: Draw, truth: float, seeds: int) -> Row:
    """Draw with each seed, estimate, and compare with the true entropy in bits."""
    coverages, estimates, intervals = [], [], []
    for seed in range(seeds):
        spectrum = Spectrum.from_counts(draw(np.random.default_rng(seed)))
        coverages.append(1 - spectrum.n_singletons / spectrum.n_states)
        estimates.append([estimate_entropy(spectrum, name) for name in ESTIMATORS])
        intervals.append(entropy_interval(spectrum))
    bias = np.mean(estimates, axis=0) - truth
    named = dict(zip(ESTIMATORS, bias.tolist(), strict=True))
    return Row(float(np.mean(coverages)), truth, named, *judge(intervals, truth))


def judge(intervals: list[Interval], truth: float) -> tuple[float, float]:
    """Return the share of the intervals that hold the truth, and their mean width."""
    held = [low <= truth <= high for _, low, high in intervals]
    return float(np.mean(held)), float(np.mean([high - low for _, low, high in intervals]))


def independent(states: Mapping[str, Counts], seeds: int) -> Iterator[str]:
    """Yield the lines of the first table: states drawn one by one."""
    yield (
        "| states | N | coverage | true H | plug-in | Miller-Madow | Chao-Shen | Grassberger "
        "| jackknife | interval holds | its width |"
    )
    yield "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    shares = {"uniform": uniform(), "Zipf": zipf()}
    for layer, ids in states.items():
        counts = np.bincount(ids.ravel())
        shares[layer] = counts / counts.sum()
    for name, share in tqdm(shares.items(), desc="states"):
        truth = -math.fsum(share * np.log2(share))
        for n in SIZES:
            row = measure(lambda rng, n=n, p=share: rng.multinomial(n, p), truth, seeds)
            bias = " | ".join(f"{value:+.3f}" for value in row.bias.values())
            yield (
                f"| {name} | {n:,} | {row.coverage:.2f} | {row.truth:.2f} | {bias} "
                f"| {row.held:.0%} | {row.width:.3f} |"
            )


def by_image(states: Mapping[str, Counts], right: NDArray[np.bool_], seeds: int) -> Iterator[str]:
    """Yield the lines of the second table: whole images drawn, with all their states."""
    yield (
        "| metric | images | true value | mean value | mean estimate "
        "| holds, states independent | its width | holds, `n_samples` given | its width |"
    )
    yield "|---|--:|--:|--:|--:|--:|--:|--:|--:|"
    n_images = len(right)
    true = report(states, right, np.arange(n_images))
    for m in tqdm(IMAGES, desc="images"):
        drawn = [
            report(states, right, np.random.default_rng(seed).integers(0, n_images, m))
            for seed in range(seeds)
        ]
        for name in NEURONS:
            layers = [one.layers[name] for one in drawn]
            yield _line(
                f"η of {name}",
                m,
                true.layers[name].efficiency,
                [layer.efficiency for layer in layers],
                [layer.interval(n_samples=m) for layer in layers],
                [layer.interval() for layer in layers],
            )
        yield _line(
            "network η",
            m,
            true.efficiency,
            [one.efficiency for one in drawn],
            [one.interval(n_samples=m) for one in drawn],
            [one.interval() for one in drawn],
        )
        intervals = [one.aiq_interval(n_samples=m) for one in drawn]
        yield _line("aIQ", m, true.aiq, [one.aiq for one in drawn], intervals)


def report(
    states: Mapping[str, Counts], right: NDArray[np.bool_], images: NDArray[np.int64]
) -> EfficiencyReport:
    """Return what a validation pass over these images would have reported."""
    layers = {}
    for name, ids in states.items():
        spectrum = Spectrum.from_counts(np.bincount(ids[images].ravel()))
        # Which neurons fired plays no part here.
        fired = np.ones(NEURONS[name], np.uint64)
        layers[name] = LayerReport.from_spectrum(name, spectrum, fired)
    return EfficiencyReport(layers, accuracy=float(right[images].mean()))


def population() -> tuple[dict[str, Counts], NDArray[np.bool_]]:
    """Return LeNet-5's states on the digits, and which of these it gets right.

    For each layer the numbers of its states, `(5000, positions)` int64.
    """
    sys.path.append(str(ROOT / "tests"))  # it has the trained LeNet-5 and its digits
    import torch
    from lenet5_torch import digits, trained_lenet5

    states = {}
    for layer in NEURONS:
        _, rows = lenet5_states(layer)
        keys = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.shape[1]))).ravel()
        numbers = np.unique(keys, return_inverse=True)[1]
        states[layer] = numbers.astype(np.int64).reshape(5000, -1)
    images, labels = digits()
    with torch.inference_mode():
        right = trained_lenet5()(images).argmax(1) == labels
    return states, right.numpy()


def save(tables: Mapping[str, list[str]], page: Path = PAGE) -> None:
    """Write each table between the two comments of its name."""
    text = page.read_text(encoding="utf-8")
    for name, lines in tables.items():
        start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, _, rest = text.partition(start)
        _, _, after = rest.partition(end)
        text = f"{before}{start}" + "\n".join(lines) + f"\n{end}{after}"
    page.write_text(text, encoding="utf-8")


def _line(
    metric: str,
    images: int,
    truth: Any,
    values: list[Any],
    by_sample: list[Any],
    by_state: list[Any] | None = None,
) -> str:
    estimate = np.mean([interval.estimate for interval in by_sample])
    means = [f"{value:.4f}" for value in (truth, np.mean(values), estimate)]
    ends = []
    for intervals in (by_state, by_sample):
        held, width = judge(intervals, truth) if intervals else (None, None)
        ends += ["", ""] if held is None else [f"{held:.0%}", f"{width:.4f}"]
    return f"| {' | '.join([metric, f'{images:,}', *means, *ends])} |"


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.estimators", description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="draws per row")
    parser.add_argument("--save", action="store_true", help=f"write the tables of {PAGE.name}")
    arguments = parser.parse_args()
    states, right = population()
    tables = {
        "states drawn one by one": list(independent(states, arguments.seeds)),
        "images drawn": list(by_image(states, right, arguments.seeds)),
    }
    for name, lines in tables.items():
        print(name, *lines, "", sep="\n")
    if arguments.save:
        save(tables)


if __name__ == "__main__":
    main()
