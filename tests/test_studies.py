"""The studies, run as a user runs them, and the files that they write."""

import json
import math
import re
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SMALL = ["--digits", "200", "100", "100"]
T_OF_TWO_SEEDS = 12.706  # 97.5 % quantile of Student's t with one degree of freedom


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


def test_label_noise(tmp_path):
    output = tmp_path / "runs/label_noise"
    words = run("label_noise", tmp_path, "--seeds", "2", "--epochs", "3", "--patience", "1")
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
        etas = [x["efficiency"] for x in epoch["layers"].values()]
        assert epoch["efficiency"] == pytest.approx(math.prod(etas) ** (1 / 3))
        aiq = (epoch["efficiency"] * epoch["val_accuracy"] ** 2) ** (1 / 3)
        assert epoch["aiq"] == pytest.approx(aiq)

    stops, patiences = read_tables(output)
    for framework, name in (("keras", "Keras"), ("torch", "PyTorch")):
        chosen = sorted(
            (x for x in runs if x["training"]["framework"] == framework),
            key=lambda x: x["training"]["seed"],
        )
        tested = [[epoch["test_accuracy"] for epoch in x["epochs"]] for x in chosen]
        found = {}
        for rule, figure, sign in (
            ("aIQ", "aiq", 1),
            ("validation accuracy", "val_accuracy", 1),
            ("validation loss", "val_loss", -1),
        ):
            best, last = [], []
            for x in chosen:
                one, two, three = (sign * epoch[figure] for epoch in x["epochs"])
                # With a patience of 1, training ends with the first epoch that is no better.
                best.append(0 if two <= one else 1 if three <= two else 2)
                last.append(1 if two <= one else 2)
            found[rule] = [tested[i][epoch] for i, epoch in enumerate(best)]
            row = next(x for x in stops if x[:2] == [name, rule])
            assert float(row[2]) == pytest.approx(np.mean(best) + 1, abs=0.051)
            assert_interval(row[3], found[rule])
            assert float(row[4]) == pytest.approx(np.mean(last) + 1, abs=0.051)
            assert_interval(row[5], [tested[i][epoch] for i, epoch in enumerate(last)])
            if rule != "aIQ":
                gains = np.subtract(found["aIQ"], found[rule])
                assert_interval(row[6], gains)
                (line,) = [x for x in patiences if x[:2] == [name, "1"]]
                assert_interval(line[2 if rule == "validation accuracy" else 3], gains)
        for rule, epochs in (
            ("no stopping", [2, 2]),
            ("best epoch by test accuracy", [int(np.argmax(x)) for x in tested]),
        ):
            row = next(x for x in stops if x[:2] == [name, rule])
            assert_interval(row[3], [tested[i][epoch] for i, epoch in enumerate(epochs)])
    assert (output / "label_noise.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in output.iterdir()) == [
        "label_noise.png",
        "runs.jsonl",
        "table.md",
    ]


def assert_interval(text, values):
    """Assert that a cell holds the mean of two seeds and its 95 % interval."""
    mean, half = map(float, text.split(" ± "))
    assert mean == pytest.approx(statistics.mean(values), abs=6e-4)
    assert half == pytest.approx(T_OF_TWO_SEEDS * statistics.stdev(values) / math.sqrt(2), abs=6e-4)


def test_batch_norm_and_dropout(tmp_path):
    output = tmp_path / "runs/batch_norm_dropout"
    small = ["--epochs", "2"]
    run("batch_norm_dropout", tmp_path, *small, "--seeds", "2", "--framework", "torch")
    runs = read_runs(output)
    assert len(runs) == 16
    effects = {
        "batch normalization, without dropout": ((True, 0.0), (False, 0.0)),
        "batch normalization, with dropout": ((True, 0.5), (False, 0.5)),
        "dropout, without batch normalization": ((False, 0.5), (False, 0.0)),
        "dropout, with batch normalization": ((True, 0.5), (True, 0.0)),
    }
    tables = read_tables(output)
    for neurons, cells, changes in (
        ([20, 50, 100], *tables[:2]),
        ([8, 8, 8], *tables[2:]),
    ):
        found = {}
        for x in runs:
            training = x["training"]
            if training["neurons"] == neurons:
                key = training["batch_norm"], training["dropout"]
                found.setdefault(key, {})[training["seed"]] = x["epochs"]
        states = [57_600, 6_400, 100]
        ceilings = [min(1, math.log2(n) / k) for n, k in zip(states, neurons, strict=True)]
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
        assert [row[1] for row in changes] == list(effects)

    # What is in the file already is not trained again.
    small += ["--network", "narrow"]
    words = run("batch_norm_dropout", tmp_path, *small, "--seeds", "1")
    assert "8 trainings, 4 of them in" in words
    assert "; 8 epochs to go." in words
    more = read_runs(output)
    assert more[:16] == runs
    for x in more[16:]:
        assert (x["training"]["framework"], x["training"]["neurons"]) == ("keras", [8, 8, 8])
    cells, _ = read_tables(output)
    ends = [x["epochs"][-1] for x in more[16:]]
    # One seed has no interval.
    assert [float(row[2]) for row in cells[1:5]] == pytest.approx(
        [x["efficiency"] for x in ends], abs=6e-4
    )
    assert (output / "batch_norm_dropout.png").read_bytes().startswith(b"\x89PNG")
