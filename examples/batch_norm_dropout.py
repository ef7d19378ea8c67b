"""Do batch normalization and dropout raise a network's efficiency?

What to look for: which of the differences in the first table are bold, since they keep their sign
after the correction. By default that is a taste of a minute, two seeds of the narrow network in
PyTorch, whose intervals are too wide to decide much. `make study` trains five seeds of both
networks in Keras and in PyTorch: docs/studies/does_it_help.md.

Schaub and Hotaling (arXiv 2006.02909) report that both do. Here LeNet-5 learns digits with and
without each of them, in Keras and in PyTorch with each framework's defaults, and so does a LeNet-5
of 8 neurons a layer: 1,000 validation digits can't show more than log2(1000) bits of a layer that
gives one state per digit, which LeNet-5's last convolutions reach whatever is done to them, and 8
neurons don't. For the same reason LeNet-5's efficiency is measured in groups of 8 neurons too. All
four networks of a seed share digits and seed, so that differences are paired. Run it with
`python examples/batch_norm_dropout.py`.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from seed_intervals import describe_difference, interval_of, markdown_table
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
# What the first table judges: the metric, and whether it is that of groups.
JUDGED = {
    "efficiency": ("efficiency", False),
    "grouped efficiency": ("efficiency", True),
    "grouped conv_3": ("conv_3", True),
}

# The trainings of each of a seed's four networks.
Cells = dict[str, list[dict[str, Any]]]


def networks_of(arguments: argparse.Namespace) -> dict[str, tuple[int, int, int]]:
    """Return the networks that the command line asks for, and their layers' neurons."""
    if arguments.network == "both":
        return NETWORKS
    return {arguments.network: NETWORKS[arguments.network]}


def title_of(network: str) -> str:
    """Return what tables and figures call a network."""
    return f"{network} ({', '.join(map(str, NETWORKS[network]))} neurons)"


def has_groups(cells: Cells) -> bool:
    """Return whether a layer has more neurons than a group, so that both efficiencies differ."""
    training = cells["neither"][0]["training"]
    return bool(max(training["neurons"]) > training["group_size"])


def metrics_at(run: dict[str, Any], *, grouped: bool, best: bool = False) -> dict[str, float]:
    """Return the validation metrics of one epoch of a training.

    Args:
        run: The training.
        grouped: Efficiency and aIQ of groups of neurons, in place of whole layers.
        best: The epoch of the best validation accuracy, in place of the last.
    """
    epochs = run["epochs"]
    epoch = max(epochs, key=lambda epoch: epoch["val_accuracy"]) if best else epochs[-1]
    states = epoch["grouped"] if grouped else epoch
    return {
        "efficiency": states["efficiency"],
        **{name: states["layers"][name]["efficiency"] for name in LAYERS},
        "accuracy": epoch["val_accuracy"],
        "aIQ": states["aiq"],
    }


def cells_of(
    runs: Sequence[dict[str, Any]], framework: str, neurons: tuple[int, ...], dropout: float
) -> Cells:
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
    cells: Cells, added: str, metric: str, *, grouped: bool, best: bool = False
) -> list[float]:
    """Return what an addition does to a metric, seed by seed."""
    with_it, without = (
        [metrics_at(run, grouped=grouped, best=best)[metric] for run in cells[cell]]
        for cell in EFFECTS[added]
    )
    return [one - other for one, other in zip(with_it, without, strict=True)]


def ceilings_of(cells: Cells, *, grouped: bool) -> dict[str, float]:
    """Return each layer's ceiling, which all trainings of a network share."""
    epoch = cells["neither"][0]["epochs"][-1]
    layers = (epoch["grouped"] if grouped else epoch)["layers"]
    return {name: layers[name]["ceiling"] for name in LAYERS}


def judged_effects(
    by_network: dict[str, dict[str, Cells]],
) -> dict[tuple[str, str, str, str], list[float]]:
    """Return the effects that are judged, by network, framework, addition and name."""
    return {
        (network, framework, added, name): effect(cells, added, metric, grouped=grouped)
        for network, by_framework in by_network.items()
        for framework, cells in by_framework.items()
        for added in EFFECTS
        for name, (metric, grouped) in JUDGED.items()
        if has_groups(cells) or not grouped
    }


def judged_table(by_network: dict[str, dict[str, Cells]]) -> str:
    """Return the effects that are judged, then those on accuracy and aIQ, as Markdown."""
    judged = judged_effects(by_network)
    rows = []
    for network, by_framework in by_network.items():
        for framework, cells in by_framework.items():
            for added in EFFECTS:
                keys = [(network, framework, added, name) for name in JUDGED]
                changes = [
                    describe_difference(judged[key], len(judged)) if key in judged else ""
                    for key in keys
                ]
                others = [
                    interval_of(effect(cells, added, metric, grouped=False)).signed()
                    for metric in ("accuracy", "aIQ")
                ]
                rows.append([network, NAMES[framework], added, *changes, *others])
    header = ["network", "", "adding", *JUDGED, "accuracy", "aIQ"]
    title = f"What is judged, corrected for {len(judged)} comparisons; accuracy and aIQ are not"
    return f"{title}\n\n{markdown_table(header, rows)}\n"


def network_tables(by_framework: dict[str, Cells], *, grouped: bool) -> str:
    """Return what came out for one network, as Markdown: the cells, then the effects."""
    ceilings = ceilings_of(next(iter(by_framework.values())), grouped=grouped)
    header = ["", "added", *METRICS]
    rows = [["", "(ceiling)", "", *(f"{ceilings[layer]:.3f}" for layer in LAYERS), "", ""]]
    effects = []
    for framework, cells in by_framework.items():
        for cell, runs in cells.items():
            values = [metrics_at(run, grouped=grouped) for run in runs]
            means = [str(interval_of([x[metric] for x in values])) for metric in METRICS]
            rows.append([NAMES[framework], cell, *means])
        for added in EFFECTS:
            changes = [effect(cells, added, metric, grouped=grouped) for metric in METRICS]
            changes.append(effect(cells, added, "efficiency", grouped=grouped, best=True))
            signed = [interval_of(values).signed() for values in changes]
            effects.append([NAMES[framework], added, *signed])
    changed = ["", "adding", *METRICS, "efficiency, best epoch"]
    return f"{markdown_table(header, rows)}\n\n{markdown_table(changed, effects)}\n"


def variants_of(by_network: dict[str, dict[str, Cells]]) -> dict[tuple[str, bool], str]:
    """Return titles by network and whether it is measured in groups."""
    titles = {}
    for network, by_framework in by_network.items():
        titles[network, False] = title_of(network)
        if has_groups(next(iter(by_framework.values()))):
            titles[network, True] = f"{title_of(network)}, in groups of 8"
    return titles


def draw(by_network: dict[str, dict[str, Cells]]) -> Figure:
    """Draw the efficiencies of the four networks: a row for each size, a column per framework."""
    variants = variants_of(by_network)
    n_columns = len(next(iter(by_network.values())))
    size = (max(5.2 * n_columns, 8), 3.5 * len(variants))  # or the legend is cut
    figure = Figure(figsize=size, layout="constrained", dpi=150)
    panels = figure.subplots(len(variants), n_columns, squeeze=False, sharey="row")
    for row, ((network, grouped), title) in zip(panels, variants.items(), strict=True):
        row[0].set_ylabel("efficiency (bits per neuron)")
        for axes, (framework, cells) in zip(row, by_network[network].items(), strict=True):
            _draw_cells(axes, cells, grouped=grouped)
            axes.set_title(f"{NAMES[framework]}, {title}", fontsize="medium")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def _draw_cells(axes: Any, cells: Cells, *, grouped: bool) -> None:
    places = ("efficiency", *LAYERS)
    styles = zip(cells.items(), "osD^", ("white", "C0", "C1", "black"), strict=True)
    for number, ((cell, runs), marker, fill) in enumerate(styles):
        values = [metrics_at(run, grouped=grouped) for run in runs]
        intervals = [interval_of([x[place] for x in values]) for place in places]
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
    for x, ceiling in enumerate(ceilings_of(cells, grouped=grouped).values(), start=1):
        label = "ceiling" if x == 1 else None
        axes.plot([x - 0.42, x + 0.42], [ceiling, ceiling], ":", color="black", label=label)
    axes.set_xticks(range(len(places)), ("network", *LAYERS))
    axes.set_ylim(0, 1.02)
    axes.grid(axis="y", alpha=0.3)


def sentences(by_network: dict[str, dict[str, Cells]]) -> str:
    """Return in words which of the effects that are judged are decided."""
    judged = judged_effects(by_network)
    said = {"higher": "raises it", "lower": "lowers it", "undecided": "undecided"}
    lines = []
    for (network, framework, added, name), values in judged.items():
        change = interval_of(values, len(judged))
        lines.append(
            f"{NAMES[framework]}, {network}: {added}: {name} {change.signed()}, "
            f"{said[change.verdict()]}."
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
    parts = [judged_table(by_network)]
    for (network, grouped), title in variants_of(by_network).items():
        parts.append(f"{title}\n\n{network_tables(by_network[network], grouped=grouped)}")
    words = "\n".join(parts)
    output_dir = arguments.output_dir
    (output_dir / "table.md").write_text(words)
    draw(by_network).savefig(output_dir / "batch_norm_dropout.png")
    print(f"\n{words}\n{sentences(by_network)}")
    print(f"\nTables, figure and each epoch's metrics (runs.jsonl) are in {output_dir}.")


def main() -> None:
    """Train, compare."""
    parser = study_parser(__doc__ or "", "runs/batch_norm_dropout", epochs=6)
    parser.add_argument("--network", choices=(*NETWORKS, "both"), default="narrow")
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
