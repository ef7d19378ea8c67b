"""Does aIQ know better when to stop, where three quarters of the labels are random?

Schaub and Hotaling (arXiv 2006.02909) report that networks of high aIQ resist memorizing, even with
75 % of the labels random. Here LeNet-5 learns digits of which 75 % have random labels, to train and
to validate on, in Keras and in PyTorch with each framework's defaults. Each training runs on to the
end; early stopping on aIQ, on validation accuracy and on validation loss is then applied to its
curves, and the accuracy on test digits with their true labels tells which stopped well.

Run it with `python examples/label_noise.py`, or `make study`.
"""

import argparse
import statistics
from collections.abc import Sequence
from typing import Any, Literal

from matplotlib.figure import Figure
from seed_intervals import Interval, bands_of, interval_of, markdown_table
from stopping import Stop, stop_early
from study import NAMES, frameworks_of, plan, run_all, select, study_parser

NOISE = 0.75
RULES: dict[str, tuple[str, Literal["min", "max"]]] = {
    "aIQ": ("aiq", "max"),
    "validation accuracy": ("val_accuracy", "max"),
    "validation loss": ("val_loss", "min"),
}
NO_STOP = "no stopping"
ORACLE = "best epoch by test accuracy"


def curve(run: dict[str, Any], metric: str) -> list[float]:
    """Return a metric of each epoch."""
    return [epoch[metric] for epoch in run["epochs"]]


def stops_of(run: dict[str, Any], patience: int) -> dict[str, Stop]:
    """Return where each rule stops a training, and the two it is measured by."""
    tested = curve(run, "test_accuracy")
    end = len(tested) - 1
    stops = {
        rule: stop_early(curve(run, metric), mode, patience)
        for rule, (metric, mode) in RULES.items()
    }
    stops[NO_STOP] = Stop(end, end, early=False)
    stops[ORACLE] = Stop(tested.index(max(tested)), end, early=False)
    return stops


def restored(runs: Sequence[dict[str, Any]], rule: str, patience: int) -> list[float]:
    """Return each seed's test accuracy with the weights that the rule restores."""
    return [curve(run, "test_accuracy")[stops_of(run, patience)[rule].best] for run in runs]


def gain(runs: Sequence[dict[str, Any]], rule: str, patience: int) -> Interval:
    """Return by how much stopping on aIQ beats a rule in test accuracy, paired over seeds."""
    pairs = zip(restored(runs, "aIQ", patience), restored(runs, rule, patience), strict=True)
    return interval_of([ours - theirs for ours, theirs in pairs])


def stop_rows(runs: Sequence[dict[str, Any]], patience: int) -> list[list[str]]:
    """Return a table row for each rule."""
    rows = []
    for rule in (*RULES, NO_STOP, ORACLE):
        stops = [stops_of(run, patience)[rule] for run in runs]
        at_stop = [
            curve(run, "test_accuracy")[stop.last] for run, stop in zip(runs, stops, strict=True)
        ]
        stopping = rule in RULES
        rows.append(
            [
                rule,
                f"{sum(stop.best + 1 for stop in stops) / len(stops):.1f}",
                str(interval_of(restored(runs, rule, patience))),
                f"{sum(stop.last + 1 for stop in stops) / len(stops):.1f}" if stopping else "",
                str(interval_of(at_stop)) if stopping else "",
                "" if rule == "aIQ" else gain(runs, rule, patience).signed(),
            ]
        )
    return rows


def table(runs: Sequence[dict[str, Any]], frameworks: Sequence[str], patience: int) -> str:
    """Return what came out, as Markdown."""
    header = [
        "",
        "stops on",
        "best epoch",
        "test accuracy there",
        "stopped after epoch",
        "test accuracy then",
        "aIQ's gain over it",
    ]
    rows, others = [], []
    for framework in frameworks:
        chosen = select(runs, framework=framework)
        rows += [[NAMES[framework], *row] for row in stop_rows(chosen, patience)]
        others += [
            [
                NAMES[framework],
                str(value),
                *(gain(chosen, rule, value).signed() for rule in list(RULES)[1:]),
            ]
            for value in sorted({2, patience, 10})
        ]
    patiences = ["", "patience", *(f"aIQ's gain over {rule}" for rule in list(RULES)[1:])]
    return f"{markdown_table(header, rows)}\n\n{markdown_table(patiences, others)}\n"


def draw(runs: Sequence[dict[str, Any]], frameworks: Sequence[str], patience: int) -> Figure:
    """Draw the curves over the epochs, and the test accuracy that each rule leads to."""
    figure = Figure(figsize=(5.2 * len(frameworks), 7.6), layout="constrained", dpi=150)
    panels = figure.subplots(2, len(frameworks), squeeze=False, sharey="row")
    for column, framework in zip(panels.T, frameworks, strict=True):
        chosen = select(runs, framework=framework)
        _draw_curves(column[0], chosen)
        column[0].set_title(NAMES[framework])
        _draw_rules(column[1], chosen, patience)
    panels[0, 0].set_ylabel("share (0 to 1)")
    panels[1, 0].set_ylabel("accuracy on true labels (test)")
    panels[0, 0].legend(loc="upper right", frameon=False)
    return figure


def _draw_curves(axes: Any, runs: Sequence[dict[str, Any]]) -> None:
    labels = {
        "test_accuracy": "accuracy on true labels (test)",
        "val_accuracy": "accuracy on noisy labels (validation)",
        "aiq": "aIQ (validation)",
    }
    styles = zip(labels.items(), "os^", ("-", "--", "-."), ("C0", "C1", "C2"), strict=True)
    for (name, label), marker, line, color in styles:
        mean, half = bands_of([curve(run, name) for run in runs])
        epochs = range(1, len(mean) + 1)
        axes.plot(epochs, mean, line, marker=marker, markersize=4, color=color, label=label)
        axes.fill_between(epochs, mean - half, mean + half, color=color, alpha=0.2, linewidth=0)
    axes.set_ylim(0, 1)
    axes.set_xlabel("epoch")
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.3)


def _draw_rules(axes: Any, runs: Sequence[dict[str, Any]], patience: int) -> None:
    rules = (*RULES, NO_STOP, ORACLE)
    by_rule = [restored(runs, rule, patience) for rule in rules]
    # Thin lines join what one seed's training came to.
    axes.plot(range(len(rules)), by_rule, "-", color="0.75", linewidth=0.8, zorder=1)
    for x, values in enumerate(by_rule):
        mean, half = interval_of(values)
        axes.plot([x] * len(values), values, ".", color="0.6", zorder=2)
        axes.errorbar(x, mean, half, fmt="o", color="black", capsize=5, zorder=3)
    words = ["aIQ", "validation\naccuracy", "validation\nloss", "no\nstopping", "best by\ntest"]
    axes.set_xticks(range(len(rules)), words)
    axes.set_xlim(-0.5, len(rules) - 0.5)
    axes.set_ylim(0, 1)
    axes.set_xlabel("stopped on")
    axes.grid(axis="y", alpha=0.3)


def sentences(runs: Sequence[dict[str, Any]], frameworks: Sequence[str], patience: int) -> str:
    """Return in words whether aIQ stopped better, and what moves it from epoch to epoch."""
    lines = []
    said = {"higher": "better", "lower": "worse", "undecided": "not told apart"}
    for framework in frameworks:
        chosen = select(runs, framework=framework)
        for rule in list(RULES)[1:]:
            same = sum(
                stops_of(run, patience)["aIQ"].best == stops_of(run, patience)[rule].best
                for run in chosen
            )
            difference = gain(chosen, rule, patience)
            verdict = "identical" if same == len(chosen) else said[difference.verdict()]
            lines.append(
                f"{NAMES[framework]}: aIQ against {rule}: {difference.signed()} test accuracy, "
                f"{verdict}; the same epoch for {same} of {len(chosen)} seeds."
            )
        spreads = [
            f"{metric} by {interval_of([spread(run, key) for run in chosen]).mean:.1%}"
            for metric, key in (
                ("efficiency", "efficiency"),
                ("validation accuracy", "val_accuracy"),
            )
        ]
        lines.append(
            f"{NAMES[framework]}: what aIQ is made of varies over the epochs: {', '.join(spreads)}."
        )
    return "\n".join(lines)


def spread(run: dict[str, Any], metric: str) -> float:
    """Return the standard deviation of a metric over the epochs, as a share of its mean."""
    values = curve(run, metric)
    return statistics.pstdev(values) / statistics.mean(values)


def write(runs: Sequence[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """Print what came out, and write the table and the figure."""
    output_dir = arguments.output_dir
    frameworks = frameworks_of(arguments)
    words = table(runs, frameworks, arguments.patience)
    (output_dir / "table.md").write_text(words)
    draw(runs, frameworks, arguments.patience).savefig(output_dir / "label_noise.png")
    print(f"\n{words}\n{sentences(runs, frameworks, arguments.patience)}")
    print(f"\nTable, figure and each epoch's metrics (runs.jsonl) are in {output_dir}.")


def main() -> None:
    """Train, stop, compare."""
    parser = study_parser(__doc__ or "", "runs/label_noise", epochs=20)
    parser.add_argument(
        "--patience", type=int, default=5, help="stop after so many epochs without progress"
    )
    arguments = parser.parse_args()
    trainings = plan(arguments, [{"noise": NOISE}])
    runs = run_all(trainings, arguments.output_dir / "runs.jsonl")
    write(runs, arguments)


if __name__ == "__main__":
    main()
