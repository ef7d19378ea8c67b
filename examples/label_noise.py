"""Does efficiency know when to stop, where up to three quarters of the labels are random?

What to look for: in label_noise.png the accuracy on true labels falls while the network learns its
random ones by heart. Does the efficiency in groups of 8 fall with it? By default that is a taste
of a minute, two seeds in PyTorch with three quarters of the labels random. `make study` trains ten
seeds in Keras and in PyTorch, with four shares of random labels: docs/studies/does_it_help.md.

Schaub and Hotaling (arXiv 2006.02909) report that networks of high aIQ resist memorizing, even with
75 % of the labels random. Here LeNet-5 learns digits of which none to 75 % have random labels, to
train and to validate on, in Keras and in PyTorch with each framework's defaults. The accuracy on
test digits with their true labels then answers two questions. Early stopping is applied to the
curves of each training: on aIQ and on efficiency of groups of 8 neurons, on the paper's aIQ, on
validation accuracy and on validation loss; which of them restores the best weights? And which of
these metrics goes with test accuracy over the epochs, so that it shows when a network begins to
learn its noise by heart? Run it with `python examples/label_noise.py`.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from epoch_metrics import curve
from label_noise_plots import draw_curves, draw_stops
from rank_correlation import (
    GROUPED_CONV_3,
    GROUPED_NETWORK,
    RIVALS,
    SIGNALS,
    correlate,
    correlation_gains,
)
from seed_intervals import describe_difference, interval_of, markdown_table
from stopping import (
    GROUPED_AIQ,
    GROUPED_EFFICIENCY,
    NO_STOP,
    ORACLE,
    OTHERS,
    RULES,
    describe_stops,
    gains,
    restored,
    stop_by,
)
from study import NAMES, frameworks_of, plan, run_all, select, study_parser

# The trainings of each framework and share of random labels.
Groups = Mapping[tuple[str, float], Sequence[dict[str, Any]]]


def names_of(group: tuple[str, float]) -> list[str]:
    """Return a group's framework and share of random labels, as tables call them."""
    framework, noise = group
    return [NAMES[framework], f"{noise:.0%}"]


def stop_differences(groups: Groups, patience: int) -> dict[tuple[str, ...], list[float]]:
    """Return each rule of groups minus each other rule, by group, rule and other."""
    return {
        (*names_of(group), rule, other): gains(runs, rule, other, patience)
        for group, runs in groups.items()
        for rule in (GROUPED_AIQ, GROUPED_EFFICIENCY)
        for other in OTHERS
    }


def stop_tables(groups: Groups, patience: int) -> str:
    """Return what stopping by each rule leads to, as Markdown."""
    rules = (*RULES, NO_STOP, ORACLE)
    reached = [
        [*names_of(group), *(str(interval_of(restored(runs, rule, patience))) for rule in rules)]
        for group, runs in groups.items()
    ]
    parts = [
        "Test accuracy with the weights restored",
        markdown_table(["", "random", *rules], reached),
    ]
    differences = stop_differences(groups, patience)
    cells = {key: describe_difference(x, len(differences)) for key, x in differences.items()}
    for rule in (GROUPED_AIQ, GROUPED_EFFICIENCY):
        rows = [
            [
                *names_of(group),
                *(cells[(*names_of(group), rule, other)] for other in OTHERS),
            ]
            for group in groups
        ]
        parts.append(f"{rule} minus others, corrected for {len(differences)} comparisons")
        parts.append(markdown_table(["", "random", *(f"minus {other}" for other in OTHERS)], rows))
    return "\n\n".join(parts)


def correlations_of(groups: Groups) -> dict[tuple[str, ...], list[float]]:
    """Return each signal's correlation with test accuracy, then the differences to rivals."""
    alone = {
        (*names_of(group), signal): correlate(runs, signal)
        for group, runs in groups.items()
        for signal in SIGNALS
    }
    against = {
        (*names_of(group), signal, rival): correlation_gains(runs, signal, rival)
        for group, runs in groups.items()
        for signal in (GROUPED_CONV_3, GROUPED_NETWORK)
        for rival in RIVALS
    }
    return alone | against


def correlation_tables(groups: Groups) -> str:
    """Return which metrics go with test accuracy over the epochs, as Markdown."""
    found = correlations_of(groups)
    cells = {key: describe_difference(values, len(found)) for key, values in found.items()}
    rows = [
        [*names_of(group), *(cells[(*names_of(group), signal)] for signal in SIGNALS)]
        for group in groups
    ]
    parts = [
        f"Rank correlation with test accuracy, corrected for {len(found)} comparisons",
        markdown_table(["", "random", *SIGNALS], rows),
    ]
    for signal in (GROUPED_CONV_3, GROUPED_NETWORK):
        rows = [
            [*names_of(group), *(cells[(*names_of(group), signal, rival)] for rival in RIVALS)]
            for group in groups
        ]
        parts.append(f"Correlation of {signal} minus that of others, by the same correction")
        parts.append(markdown_table(["", "random", *(f"minus {rival}" for rival in RIVALS)], rows))
    return "\n\n".join(parts)


def detail_tables(groups: Groups, patience: int) -> str:
    """Return where each rule stops, and what other patiences lead to, as Markdown."""
    header = ["", "random", "stops on", "best epoch", "test accuracy there"]
    header += ["stopped after epoch", "test accuracy then", "minus best epoch"]
    stops = [
        [*names_of(group), rule, *describe_stops(runs, rule, patience)]
        for group, runs in groups.items()
        for rule in (*RULES, NO_STOP, ORACLE)
    ]
    pairs = [(rule, other) for rule in (GROUPED_AIQ, GROUPED_EFFICIENCY) for other in OTHERS[:3]]
    patiences = [
        [
            *names_of(group),
            str(value),
            *(interval_of(gains(runs, *pair, value)).signed() for pair in pairs),
        ]
        for group, runs in groups.items()
        for value in sorted({2, patience, 10})
    ]
    return "\n\n".join(
        [
            "Where each rule stops, without correction",
            markdown_table(header, stops),
            "Other patiences, without correction",
            markdown_table(
                ["", "random", "patience", *(f"{rule} minus {other}" for rule, other in pairs)],
                patiences,
            ),
        ]
    )


def sentences(groups: Groups, patience: int) -> str:
    """Return in words which comparisons are decided, and what moves aIQ from epoch to epoch."""
    lines = []
    differences = stop_differences(groups, patience)
    for words, found in (
        ("differences in test accuracy", differences),
        ("correlations and their differences", correlations_of(groups)),
    ):
        verdicts = [interval_of(values, len(found)).verdict() for values in found.values()]
        decided = len(verdicts) - verdicts.count("undecided")
        lines.append(f"{decided} of {len(found)} {words} keep one sign after the correction.")
    for group, runs in groups.items():
        same = sum(
            stop_by(run, "aIQ", patience).best == stop_by(run, "validation accuracy", patience).best
            for run in runs
        )
        spreads = ", ".join(
            f"{metric} by {statistics.mean(spread(run, metric) for run in runs):.1%}"
            for metric in ("efficiency", "grouped/efficiency", "val_accuracy")
        )
        lines.append(
            f"{', '.join(names_of(group))}: the paper's aIQ and validation accuracy restore the "
            f"same epoch for {same} of {len(runs)} seeds; over the epochs vary {spreads}."
        )
    return "\n".join(lines)


def spread(run: dict[str, Any], metric: str) -> float:
    """Return the standard deviation of a metric over the epochs, as a share of its mean."""
    values = curve(run, metric)
    return statistics.pstdev(values) / statistics.mean(values)


def write(runs: Sequence[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """Print what came out, and write the tables and the figures."""
    output_dir, patience = arguments.output_dir, arguments.patience
    groups = {
        (framework, noise): select(runs, framework=framework, noise=noise)
        for framework in frameworks_of(arguments)
        for noise in arguments.noise
    }
    parts = [
        stop_tables(groups, patience),
        correlation_tables(groups),
        detail_tables(groups, patience),
    ]
    words = "\n\n".join(parts) + "\n"
    (output_dir / "table.md").write_text(words)
    draw_curves(groups).savefig(output_dir / "label_noise.png")
    draw_stops(groups, patience).savefig(output_dir / "label_noise_stopping.png")
    print(f"\n{words}\n{sentences(groups, patience)}")
    print(f"\nTables, figures and each epoch's metrics (runs.jsonl) are in {output_dir}.")


def main() -> None:
    """Train, stop, compare."""
    parser = study_parser(__doc__ or "", "runs/label_noise", epochs=10)
    parser.add_argument(
        "--patience", type=int, default=5, help="stop after so many epochs without progress"
    )
    parser.add_argument(
        "--noise", type=float, nargs="+", default=[0.75], help="shares of random labels, 0 to 1"
    )
    arguments = parser.parse_args()
    trainings = plan(arguments, [{"noise": noise} for noise in arguments.noise])
    runs = run_all(trainings, arguments.output_dir / "runs.jsonl")
    write(runs, arguments)


if __name__ == "__main__":
    main()
