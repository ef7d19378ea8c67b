"""TensorState's tutorials and the states of classes, run as a user runs them."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import tensorstate_callbacks as ts

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name, folder, *arguments):
    command = [sys.executable, EXAMPLES / f"{name}.py", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("framework", ["keras", "pytorch"])
def test_tutorial_tells_counts_efficiencies_and_aiq(framework, tmp_path):
    words = run(f"tensorstate_tutorial_{framework}", tmp_path, "--epochs", "1")
    counts = dict(re.findall(r"Layer (\S+) number of states: (\d+)", words))
    # 1,000 digits, 24 x 24, 8 x 8 and 1 positions.
    assert counts == {
        "conv_1_post_states": "576000",
        "conv_2_post_states": "64000",
        "conv_3_post_states": "1000",
    }
    layers = re.findall(r"Layer (\S+) efficiency: ([\d.]+)% \([\d.]+ s\)", words)
    assert [name for name, _ in layers] == list(counts)
    efficiencies = [float(percent) / 100 for _, percent in layers]
    # Nearly all of the 1,000 states of conv_3 differ: log2(1000) of 100 bits.
    assert efficiencies[2] == pytest.approx(0.0997, abs=6e-4)
    network, accuracy, aiq = (
        float(re.search(rf"^{name}: ([\d.]+)%$", words, re.MULTILINE)[1]) / 100
        for name in ("Network efficiency", "Network accuracy", "aIQ")
    )
    assert network == pytest.approx(np.prod(efficiencies) ** (1 / 3), abs=1e-3)
    assert "Beta: 2" in words
    assert aiq == pytest.approx((network * accuracy**2) ** (1 / 3), abs=1e-3)
    printed = re.search(r"epoch +1  accuracy ([\d.]+)  \(", words)
    assert float(printed[1]) == pytest.approx(accuracy, abs=6e-4)
    assert list(tmp_path.iterdir()) == []


def test_ten_thousand_images_have_the_tutorials_numbers_of_states(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    from torch_lenet5 import LeNet5

    model = ts.build_efficiency_model(LeNet5().eval(), attach_to=["Conv2d"], method="after")
    with torch.no_grad():
        for _ in range(10):
            model(torch.rand(1000, 1, 28, 28))
    counts = [layer.state_count for layer in model.efficiency_layers]
    assert counts == [5_760_000, 640_000, 10_000]


def test_states_of_classes_are_told_and_drawn(tmp_path):
    words = run("class_states", tmp_path, "--epochs", "1")
    whole, groups = words.split("In groups of 8 neurons")
    for part in (whole, groups):
        for layer, positions in (("conv_1", 576), ("conv_2", 64), ("conv_3", 1)):
            told = re.search(
                rf"{layer}: a state tells ([\d.]+) bits of 3.32 of the digit; of shuffled labels "
                r"([\d.]+)\n.*\n((?: +\d .*\n)+)",
                part,
            )
            assert 0 <= float(told[1]) <= 3.32
            # All whole states of conv_3 differ, which tells nothing of the digit.
            if layer == "conv_3":
                assert (float(told[1]) - float(told[2]) < 0.1) == (part is whole)
            rows = [line.replace(",", "").split() for line in told[3].splitlines()]
            # The validation digits are 100 of each class.
            assert [tuple(map(int, row[:2])) for row in rows] == [
                (digit, 100 * positions) for digit in range(10)
            ]
    for name in ("class_states", "class_states_groups"):
        drawn = tmp_path / f"runs/class_states/{name}.png"
        assert drawn.read_bytes().startswith(b"\x89PNG")


def test_neurons_that_a_learning_rate_kills_are_told_and_drawn(tmp_path):
    words = run("dying_relus", tmp_path, "--epochs", "8")
    runs = words.split("Learning rate: ")[1:]
    dead = [[int(n) for n in re.findall(r"fc_1: +(\d+) dead", each)] for each in runs]
    assert [len(each) for each in dead] == [8, 8]
    steady, harmed = dead
    assert max(steady) < 10
    assert harmed[:5] == steady[:5]
    assert min(harmed[5:]) > 30
    assert re.search(r"6 \((\d+) of them\)", words)[1] == str(harmed[5])
    left = sorted(path.name for path in (tmp_path / "runs/dying_relus").iterdir())
    assert left == ["dying_relus.png", "in_short.png", "neurons.png"]


def test_pruning_tells_what_stays_and_what_does_not(tmp_path):
    words = run("pruning", tmp_path)
    never = re.findall(
        r"^Layer (\d): (\d+) of (\d+) never fired\n  indices (.*)$", words, re.MULTILINE
    )
    assert [(name, int(width)) for name, _, width, _ in never] == [("0", 64), ("2", 32)]
    for _, number, _, indices in never:
        assert len(re.findall(r"\d+", indices)) == int(number)
    assert int(never[0][1]) > 0
    assert "on the digits that they were found with: outputs exactly as before" in words
    # Copies go without a difference but that of rounding, twice as strong ones don't.
    planted = re.findall(r"^5 copies planted, (\d) times as strong: (.*)$", words, re.MULTILINE)
    equal = re.findall(r"With equal activations: (\d+) of (\d+) groups", words)
    changes = [
        float(x) for x in re.findall(r"removed.*: outputs differ by up to ([\d.e-]+)", words)
    ]
    assert [strength for strength, _ in planted] == ["1", "2"]
    for _, pairs in planted:
        copies = {tuple(map(int, pair)) for pair in re.findall(r"\((\d+), (\d+)\)", pairs)}
        assert len(copies) == 5
    assert equal == [("5", "5"), ("0", "5")]
    assert changes[0] < 1e-4 < 0.1 < min(changes[1:])
    assert len(changes) == 3


@pytest.mark.parametrize("strength", [1, 2])
def test_widened_networks_compute_the_same_and_their_copies_agree(monkeypatch, strength):
    monkeypatch.syspath_prepend(EXAMPLES)
    from pruning import are_copies, keep_first, make_network, record_layer, widen

    torch.manual_seed(0)
    network, images = make_network(), torch.randn(500, 784)
    wide, copies = widen(network, [3, 8], strength)
    with torch.no_grad():
        torch.testing.assert_close(wide(images), network(images), rtol=1e-4, atol=1e-5)
        assert copies == [(3, 64), (8, 65)]
        assert record_layer(wide, images).agreeing == ((3, 64), (8, 65))
        assert are_copies(wide, images, (3, 64)) is (strength == 1)
        before = wide(images)
        assert keep_first(wide, copies) == 2
        assert not wide[0].weight[64:].any()
        difference = float((wide(images) - before).abs().max())
    assert (difference < 1e-5) is (strength == 1)
