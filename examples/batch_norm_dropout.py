"""Do batch normalization and dropout raise a network's efficiency?

Schaub and Hotaling (arXiv 2006.02909) report that both do. Here LeNet-5 learns digits with and
without each of them, in Keras and in PyTorch with each framework's defaults, and so does a LeNet-5
of 8 neurons a layer: 1,000 validation digits can't show more than log2(1000) bits of a layer that
gives one state per digit, which LeNet-5's last convolutions reach whatever is done to them, and 8
neurons don't. All four networks of a seed share digits and seed, so that differences are paired.

Run it with `python examples/batch_norm_dropout.py`, or `make study`.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from seed_intervals import Interval, interval_of, markdown_table
from study import LENET5, NAMES, frameworks_of, plan, run_all, select, study_parser

NETWORKS = {"LeNet-5": LENET5, "narrow": (8, 8, 8)}
CELLS = {
    "neither": (False, False),
    "batch normalization": (True, False),
    "dropout": (False, True),
    "both": (True, True),
}
# What is added to what: the cell with it, the cell without.
EFFECTS = {
    "batch normalization, without dropout": ("batch normalization", "neither"),
    "batch normalization, with dropout": ("both", "dropout"),
    "dropout, without batch normalization": ("dropout", "neither"),
    "dropout, with batch normalization": ("both", "batch normalization"),
}
LAYERS = ("conv_1", "conv_2", "conv_3")
METRICS = ("efficiency", *LAYERS, "accuracy", "aIQ")


def networks_of(arguments: argparse.Namespace) -> dict[str, tuple[int, int, int]]:
    """Return the networks that the command line asks for, and their layers' neurons."""
    if arguments.network == "both":
        return NETWORKS
    return {arguments.network: NETWORKS[arguments.network]}


def title_of(network: str) -> str:
    """Return what tables and figures call a network."""
    return f"{network} ({', '.join(map(str, NETWORKS[network]))} neurons)"


def metrics_at(run: dict[str, Any], *, best: bool) -> dict[str, float]:
    """Return the validation metrics of one epoch of a training.

    Args:
        run: The training.
        best: The epoch of the best validation accuracy, in place of the last.
    """
    epochs = run["epochs"]
    epoch = max(epochs, key=lambda epoch: epoch["val_accuracy"]) if best else epochs[-1]
    layers = {name: epoch["layers"][name]["efficiency"] for name in LAYERS}
    return {
        "efficiency": epoch["efficiency"],
        **layers,
        "accuracy": epoch["val_accuracy"],
        "aIQ": epoch["aiq"],
    }


def cells_of(
    runs: Sequence[dict[str, Any]], framework: str, neurons: tuple[int, ...], dropout: float
) -> dict[str, list[dict[str, Any]]]:
    """Return the trainings of each of the four networks, in the order of the seeds."""
    return {
        cell: select(
            runs,
            framework=framework,
            neurons=list(neurons),
            batch_norm=batch_norm,
            dropout=dropout if drops else 0.0,
        )
        for cell, (batch_norm, drops) in CELLS.items()
    }


def effect(
    cells: dict[str, list[dict[str, Any]]], added: str, metric: str, *, best: bool
) -> Interval:
    """Return what an addition does to a metric, paired over seeds."""
    with_it, without = (cells[cell] for cell in EFFECTS[added])
    return interval_of(
        [
            metrics_at(one, best=best)[metric] - metrics_at(other, best=best)[metric]
            for one, other in zip(with_it, without, strict=True)
        ]
    )


def ceilings_of(cells: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Return each layer's ceiling, which all trainings of a network share."""
    layers = cells["neither"][0]["epochs"][-1]["layers"]
    return {name: layers[name]["ceiling"] for name in LAYERS}


def network_tables(by_framework: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """Return what came out for one network, as Markdown: the cells, then the effects."""
    ceilings = ceilings_of(next(iter(by_framework.values())))
    header = ["", "added", *METRICS]
    rows = [["", "(ceiling)", "", *(f"{ceilings[layer]:.3f}" for layer in LAYERS), "", ""]]
    effects = []
    for framework, cells in by_framework.items():
        for cell, runs in cells.items():
            values = [metrics_at(run, best=False) for run in runs]
            means = [str(interval_of([x[metric] for x in values])) for metric in METRICS]
            rows.append([NAMES[framework], cell, *means])
        for added in EFFECTS:
            changes = [effect(cells, added, metric, best=False).signed() for metric in METRICS]
            at_best = effect(cells, added, "efficiency", best=True).signed()
            effects.append([NAMES[framework], added, *changes, at_best])
    changed = ["", "adding", *METRICS, "efficiency, best epoch"]
    return f"{markdown_table(header, rows)}\n\n{markdown_table(changed, effects)}\n"


def draw(by_network: dict[str, dict[str, dict[str, list[dict[str, Any]]]]]) -> Figure:
    """Draw the efficiencies of the four networks: a row for each size, a column per framework."""
    n_columns = len(next(iter(by_network.values())))
    figure = Figure(figsize=(5.2 * n_columns, 3.8 * len(by_network)), layout="constrained", dpi=150)
    panels = figure.subplots(len(by_network), n_columns, squeeze=False, sharey="row")
    for row, (network, by_framework) in zip(panels, by_network.items(), strict=True):
        row[0].set_ylabel("efficiency (bits per neuron)")
        for axes, (framework, cells) in zip(row, by_framework.items(), strict=True):
            _draw_cells(axes, cells)
            axes.set_title(f"{NAMES[framework]}, {title_of(network)}", fontsize="medium")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def _draw_cells(axes: Any, cells: dict[str, list[dict[str, Any]]]) -> None:
    places = ("network", *LAYERS)
    styles = zip(cells.items(), "osD^", ("white", "C0", "C1", "black"), strict=True)
    for number, ((cell, runs), marker, fill) in enumerate(styles):
        values = [metrics_at(run, best=False) for run in runs]
        intervals = [
            interval_of([x["efficiency" if place == "network" else place] for x in values])
            for place in places
        ]
        axes.errorbar(
            [x + 0.17 * (number - 1.5) for x in range(len(places))],
            [interval.mean for interval in intervals],
            [interval.half for interval in intervals],
            fmt=marker,
            color="black",
            markerfacecolor=fill,
            markersize=6,
            capsize=3,
            label=cell,
        )
    for x, ceiling in enumerate(ceilings_of(cells).values(), start=1):
        label = "ceiling" if x == 1 else None
        axes.plot([x - 0.42, x + 0.42], [ceiling, ceiling], ":", color="black", label=label)
    axes.set_xticks(range(len(places)), places)
    axes.set_ylim(0, 1.02)
    axes.grid(axis="y", alpha=0.3)


def sentences(by_network: dict[str, dict[str, dict[str, list[dict[str, Any]]]]]) -> str:
    """Return in words whether network efficiency rose."""
    lines = []
    said = {"higher": "raises it", "lower": "lowers it", "undecided": "undecided"}
    for network, by_framework in by_network.items():
        for framework, cells in by_framework.items():
            for added in EFFECTS:
                change = effect(cells, added, "efficiency", best=False)
                lines.append(
                    f"{NAMES[framework]}, {network}: {added}: network efficiency "
                    f"{change.signed()}, {said[change.verdict()]}."
                )
    return "\n".join(lines)


def write(runs: Sequence[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """Print what came out, and write the tables and the figure."""
    by_network = {
        network: {
            framework: cells_of(runs, framework, neurons, arguments.dropout)
            for framework in frameworks_of(arguments)
        }
        for network, neurons in networks_of(arguments).items()
    }
    words = "\n".join(
        f"{title_of(network)}\n\n{network_tables(by_framework)}"
        for network, by_framework in by_network.items()
    )
    output_dir = arguments.output_dir
    (output_dir / "table.md").write_text(words)
    draw(by_network).savefig(output_dir / "batch_norm_dropout.png")
    print(f"\n{words}\n{sentences(by_network)}")
    print(f"\nTables, figure and each epoch's metrics (runs.jsonl) are in {output_dir}.")


def main() -> None:
    """Train, compare."""
    parser = study_parser(__doc__ or "", "runs/batch_norm_dropout", seeds=5, epochs=6)
    parser.add_argument("--network", choices=(*NETWORKS, "both"), default="both")
    parser.add_argument("--dropout", type=float, default=0.5, help="PyTorch's default is 0.5")
    arguments = parser.parse_args()
    variants = [
        {
            "neurons": neurons,
            "batch_norm": batch_norm,
            "dropout": arguments.dropout if drops else 0.0,
        }
        for neurons in networks_of(arguments).values()
        for batch_norm, drops in CELLS.values()
    ]
    runs = run_all(plan(arguments, variants), arguments.output_dir / "runs.jsonl")
    write(runs, arguments)


if __name__ == "__main__":
    main()
