"""The studies, run as a user runs them, and the files that they write."""

import importlib
import json
import math
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SMALL = ["--digits", "200", "100", "100"]


def run(name, folder, *arguments):
    command = [sys.executable, EXAMPLES / f"{name}.py", *SMALL, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def read_runs(folder):
    return [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]


def read_tables(folder):
    """Return each table's rows as lists of cells, without header and rule."""
    parts = re.findall(r"(?:^\|.*\n?)+", (folder / "table.md").read_text(), re.MULTILINE)
    return [
        [[cell.strip() for cell in line.split("|")[1:-1]] for line in part.splitlines()[2:]]
        for part in parts
    ]


def planned(name, arguments, monkeypatch):
    """Return what a study would train, told by the command line."""
    monkeypatch.syspath_prepend(EXAMPLES)
    study = importlib.import_module(name)
    trainings = []
    monkeypatch.setattr(study, "run_all", lambda plan, path: trainings.extend(plan))
    monkeypatch.setattr(study, "write", lambda runs, arguments: None)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    study.main()
    return trainings


@pytest.mark.parametrize(
    ("name", "n_settings", "n_seeds", "n_epochs"),
    [
        ("label_noise", 4, 10, 10),  # shares of random labels
        ("batch_norm_dropout", 2 * 4, 5, 6),  # networks, with or without each of two layers
    ],
)
def test_a_study_is_a_taste_unless_make_asks_for_what_the_page_tells(
    name, n_settings, n_seeds, n_epochs, monkeypatch
):
    taste = planned(name, [], monkeypatch)
    assert sum(training.epochs for training in taste) <= 48
    assert {training.seed for training in taste} == {0, 1}

    command = ["make", "--dry-run", "--always-make", "--no-print-directory", "study"]
    environment = {key: value for key, value in os.environ.items() if key != "MAKEFLAGS"}
    said = subprocess.run(
        command, cwd=EXAMPLES.parent, env=environment, capture_output=True, text=True, check=True
    ).stdout
    (arguments,) = re.findall(rf"examples/{name}\.py (.*)$", said, re.MULTILINE)
    study = planned(name, arguments.split(), monkeypatch)
    assert len(study) == 2 * n_settings * n_seeds
    assert len(set(study)) == len(study)
    assert {training.framework for training in study} == {"keras", "torch"}
    assert {training.epochs for training in study} == {n_epochs}
    assert {training.seed for training in study} == set(range(n_seeds))
    assert {training.n_digits for training in study} == {(3000, 1000, 1000)}


def test_label_noise(tmp_path):
    output = tmp_path / "runs/label_noise"
    small = ["--seeds", "2", "--epochs", "3", "--patience", "1", "--framework", "both"]
    words = run("label_noise", tmp_path, *small)
    assert "4 trainings, 0 of them" in words
    runs = read_runs(output)
    assert sorted((x["training"]["framework"], x["training"]["seed"]) for x in runs) == [
        ("keras", 0),
        ("keras", 1),
        ("torch", 0),
        ("torch", 1),
    ]
    assert {x["training"]["noise"] for x in runs} == {0.75}
    for epoch in (epoch for x in runs for epoch in x["epochs"]):
        # 100 validation digits and nothing else were seen, at 24 x 24, 8 x 8 and 1 positions.
        expected = [math.log2(57_600) / 20, math.log2(6_400) / 50, math.log2(100) / 100]
        assert [x["ceiling"] for x in epoch["layers"].values()] == pytest.approx(expected)
        # Groups of 8: 2 and a half of them, 6 and a quarter, 12 and a half; 100 states of conv_3.
        ceilings = [x["ceiling"] for x in epoch["grouped"]["layers"].values()]
        assert ceilings == pytest.approx([1, 1, (12 * math.log2(100) + 4) / 100])
        for metrics in (epoch, epoch["grouped"]):
            etas = [x["efficiency"] for x in metrics["layers"].values()]
            assert metrics["efficiency"] == pytest.approx(math.prod(etas) ** (1 / 3))
            aiq = (metrics["efficiency"] * epoch["val_accuracy"] ** 2) ** (1 / 3)
            assert metrics["aiq"] == pytest.approx(aiq)
        for name, layer in epoch["layers"].items():
            groups = epoch["grouped"]["layers"][name]["efficiency"]
            assert layer["efficiency"] <= groups + 1e-9 <= layer["rate_bound"] + 2e-9

    reached, *rules, correlations, conv_3, network, stops, patiences = read_tables(output)
    for framework, name in (("keras", "Keras"), ("torch", "PyTorch")):
        chosen = sorted(
            (x for x in runs if x["training"]["framework"] == framework),
            key=lambda x: x["training"]["seed"],
        )
        tested = [[epoch["test_accuracy"] for epoch in x["epochs"]] for x in chosen]
        found = {}
        metrics = {
            "grouped aIQ": [[epoch["grouped"]["aiq"] for epoch in x["epochs"]] for x in chosen],
            "grouped efficiency": [
                [epoch["grouped"]["efficiency"] for epoch in x["epochs"]] for x in chosen
            ],
            "aIQ": [[epoch["aiq"] for epoch in x["epochs"]] for x in chosen],
            "validation accuracy": [
                [epoch["val_accuracy"] for epoch in x["epochs"]] for x in chosen
            ],
            "validation loss": [[-epoch["val_loss"] for epoch in x["epochs"]] for x in chosen],
        }
        (reached_row,) = [x for x in reached if x[0] == name]
        for column, (rule, curves) in enumerate(metrics.items(), start=2):
            best, last = [], []
            for one, two, three in curves:
                # With a patience of 1, training ends with the first epoch that is no better.
                best.append(0 if two <= one else 1 if three <= two else 2)
                last.append(1 if two <= one else 2)
            found[rule] = [tested[i][epoch] for i, epoch in enumerate(best)]
            assert_interval(reached_row[column], found[rule])
            (row,) = [x for x in stops if x[:3] == [name, "75%", rule]]
            assert float(row[3]) == pytest.approx(np.mean(best) + 1, abs=0.051)
            assert_interval(row[4], found[rule])
            assert float(row[5]) == pytest.approx(np.mean(last) + 1, abs=0.051)
            assert_interval(row[6], [tested[i][epoch] for i, epoch in enumerate(last)])
            assert_interval(row[7], np.subtract(found[rule], np.max(tested, axis=1)))
        for rule, epochs in (
            ("no stopping", [2, 2]),
            ("best epoch by test accuracy", [int(np.argmax(x)) for x in tested]),
        ):
            found[rule] = [tested[i][epoch] for i, epoch in enumerate(epochs)]
            (row,) = [x for x in stops if x[:3] == [name, "75%", rule]]
            assert_interval(row[4], found[rule])
        (line,) = [x for x in patiences if x[:3] == [name, "75%", "1"]]
        others = ("aIQ", "validation accuracy", "validation loss", "no stopping")
        for number, (rule, cells) in enumerate(zip(list(metrics)[:2], rules, strict=True)):
            (row,) = [x for x in cells if x[:2] == [name, "75%"]]
            for column, other in enumerate(others):
                gains = np.subtract(found[rule], found[other])
                # 2 frameworks, 2 rules of groups, 4 others.
                assert_interval(row[2 + column], gains, n_comparisons=16)
                if column < 3:
                    assert_interval(line[3 + 3 * number + column], gains)

        signals = [
            [
                [epoch["grouped"]["layers"]["conv_3"]["efficiency"] for epoch in x["epochs"]]
                for x in chosen
            ],
            metrics["grouped efficiency"],
            [[epoch["efficiency"] for epoch in x["epochs"]] for x in chosen],
            metrics["validation accuracy"],
            metrics["validation loss"],
        ]
        rhos = [
            [correlation_of_ranks(*pair) for pair in zip(signal, tested, strict=True)]
            for signal in signals
        ]
        (row,) = [x for x in correlations if x[:2] == [name, "75%"]]
        for cell, values in zip(row[2:], rhos, strict=True):
            # 2 frameworks, 5 signals and 6 differences.
            assert_interval(cell, values, n_comparisons=22)
        for cells, ours in ((conv_3, rhos[0]), (network, rhos[1])):
            (row,) = [x for x in cells if x[:2] == [name, "75%"]]
            for cell, values in zip(row[2:], rhos[2:], strict=True):
                assert_interval(cell, np.subtract(ours, values), n_comparisons=22)
    for picture in ("label_noise.png", "label_noise_stopping.png"):
        assert (output / picture).read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in output.iterdir()) == [
        "label_noise.png",
        "label_noise_stopping.png",
        "runs.jsonl",
        "table.md",
    ]


def correlation_of_ranks(xs, ys):
    """Return Spearman's correlation, each rank the number of values below and half of the equal."""
    ranks = [
        np.sum(np.less.outer(x, x), axis=0) + np.sum(np.equal.outer(x, x), axis=0) / 2
        for x in (np.array(xs), np.array(ys))
    ]
    if min(np.ptp(rank) for rank in ranks) == 0:
        return 0.0
    return np.corrcoef(*ranks)[0, 1]


def assert_interval(text, values, n_comparisons=None):
    """Assert that a cell holds the mean of two seeds and its 95 % interval.

    Where it is corrected for a number of comparisons, the uncorrected one follows in parentheses.
    """
    numbers = [float(number) for number in re.findall(r"[-+]?\d+\.\d+", text)]
    error = statistics.stdev(values) / math.sqrt(2)
    expected = [statistics.mean(values)]
    if n_comparisons:
        expected.append(student_quantile(n_comparisons) * error)
    expected.append(student_quantile(1) * error)
    assert numbers == pytest.approx(expected, abs=6e-4)
    if n_comparisons:
        assert text.startswith("**") == (abs(expected[0]) > expected[1])


def student_quantile(n_comparisons):
    """Return the two-sided quantile of Student's t with one degree of freedom, a Cauchy's."""
    return 1 / math.tan(math.pi * 0.05 / (2 * n_comparisons))


def test_batch_norm_and_dropout(tmp_path):
    output = tmp_path / "runs/batch_norm_dropout"
    small = ["--epochs", "2"]
    run("batch_norm_dropout", tmp_path, *small, "--seeds", "2", "--network", "both")
    runs = read_runs(output)
    assert len(runs) == 16
    effects = {
        "batch normalization, without dropout": ((True, 0.0), (False, 0.0)),
        "batch normalization, with dropout": ((True, 0.5), (False, 0.5)),
        "dropout, without batch normalization": ((False, 0.5), (False, 0.0)),
        "dropout, with batch normalization": ((True, 0.5), (True, 0.0)),
    }
    judged, *tables = read_tables(output)
    for neurons, grouped, cells, changes in (
        ([20, 50, 100], False, *tables[:2]),
        ([20, 50, 100], True, *tables[2:4]),
        # Groups of 8 are the whole layers here.
        ([8, 8, 8], False, *tables[4:]),
    ):
        found = {}
        for x in runs:
            training = x["training"]
            if training["neurons"] == neurons:
                key = training["batch_norm"], training["dropout"]
                found.setdefault(key, {})[training["seed"]] = [
                    epoch | epoch["grouped"] if grouped else epoch for epoch in x["epochs"]
                ]
        ceilings = [
            sum(min(unit, math.log2(states)) for unit in units) / sum(units)
            for states, units in zip(
                [57_600, 6_400, 100],
                [[8] * (k // 8) + [k % 8] if grouped else [k] for k in neurons],
                strict=True,
            )
        ]
        assert list(map(float, cells[0][3:6])) == pytest.approx(ceilings, abs=6e-4)
        for row, key in zip(
            cells[1:], [(False, 0), (True, 0), (False, 0.5), (True, 0.5)], strict=True
        ):
            ends = [found[key][seed][-1] for seed in (0, 1)]
            assert_interval(row[2], [x["efficiency"] for x in ends])
            for column, layer in ((3, "conv_1"), (4, "conv_2"), (5, "conv_3")):
                assert_interval(row[column], [x["layers"][layer]["efficiency"] for x in ends])
            assert_interval(row[6], [x["val_accuracy"] for x in ends])
            assert_interval(row[7], [x["aiq"] for x in ends])
        for row in changes:
            one, other = (found[key] for key in effects[row[1]])
            pairs = [(one[seed], other[seed]) for seed in (0, 1)]
            assert_interval(row[2], [a[-1]["efficiency"] - b[-1]["efficiency"] for a, b in pairs])
            assert_interval(row[7], [a[-1]["aiq"] - b[-1]["aiq"] for a, b in pairs])
            best = [
                [x[int(x[1]["val_accuracy"] > x[0]["val_accuracy"])]["efficiency"] for x in pair]
                for pair in pairs
            ]
            assert_interval(row[8], [a - b for a, b in best])
            network = "narrow" if neurons == [8, 8, 8] else "LeNet-5"
            (summed,) = [x for x in judged if x[:3] == [network, "PyTorch", row[1]]]
            # 2 networks and 4 additions, and twice 4 of groups.
            gains = [a[-1]["efficiency"] - b[-1]["efficiency"] for a, b in pairs]
            assert_interval(summed[3 + grouped], gains, n_comparisons=16)
            if grouped:
                late = [[x[-1]["layers"]["conv_3"]["efficiency"] for x in pair] for pair in pairs]
                assert_interval(summed[5], [a - b for a, b in late], n_comparisons=16)
            else:
                assert_interval(
                    summed[6], [a[-1]["val_accuracy"] - b[-1]["val_accuracy"] for a, b in pairs]
                )
                assert_interval(summed[7], [a[-1]["aiq"] - b[-1]["aiq"] for a, b in pairs])
        assert [row[1] for row in changes] == list(effects)

    # What is in the file already is not trained again.
    small += ["--framework", "both"]
    words = run("batch_norm_dropout", tmp_path, *small, "--seeds", "1")
    assert "8 trainings, 4 of them in" in words
    assert "; 8 epochs to go." in words
    more = read_runs(output)
    assert more[:16] == runs
    for x in more[16:]:
        assert (x["training"]["framework"], x["training"]["neurons"]) == ("keras", [8, 8, 8])
    _, cells, _ = read_tables(output)
    ends = [x["epochs"][-1] for x in more[16:]]
    # One seed has no interval.
    assert [float(row[2]) for row in cells[1:5]] == pytest.approx(
        [x["efficiency"] for x in ends], abs=6e-4
    )
    assert (output / "batch_norm_dropout.png").read_bytes().startswith(b"\x89PNG")
