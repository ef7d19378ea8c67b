"""What is known of classes is kept, saved, shown and drawn with the report."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from class_oracle import packed

from tensorstate_callbacks import EfficiencyReport, LayerReport, plot_classes, write_page
from tensorstate_callbacks.metrics.class_sums import MOST_PAIRED
from tensorstate_callbacks.metrics.classes import ClassMetrics, class_metrics
from tensorstate_callbacks.recording.budget import Sampling
from tensorstate_callbacks.recording.recorder import Recorder
from tensorstate_callbacks.reports.packed_history import HistoryPacker, unpack_history
from tensorstate_callbacks.runs.finished_run import RunEvaluation, RunLayer
from tensorstate_callbacks.states.class_counter import ClassCounter


def recorded(
    n_classes: int = 3,
    names: str = "ab",
    group_size: int | None = None,
    n_neurons: int = 10,
    n_samples: int = 120,
) -> EfficiencyReport:
    rng = np.random.default_rng(0)
    recorder = Recorder(names, sampling=Sampling(group_size, by_class=True))
    labels = np.arange(n_samples) % n_classes * 10
    recorder.begin_batch(labels)
    for name in names:
        shift = (labels[:, None, None] == 0) * (ord(name) - 96) / 2
        recorder.observe(name, rng.normal(size=(n_samples, 5, n_neurons)) + shift, -1)
    return recorder.report()


REPORT = recorded()


def classes_of(report: EfficiencyReport, layer: str = "a") -> ClassMetrics:
    found = report.layers[layer].classes
    assert found is not None
    return found


def test_reports_with_classes_are_saved_copied_and_compared(tmp_path: Path) -> None:
    REPORT.save(tmp_path / "run.json")
    for other in (
        EfficiencyReport.load(tmp_path / "run.json"),
        copy.deepcopy(REPORT),
        EfficiencyReport.from_dict(json.loads(json.dumps(REPORT.to_dict()))),
    ):
        assert other == REPORT
        assert hash(other) == hash(REPORT)
        assert classes_of(other).labels.dtype == np.int64
    changed = classes_of(REPORT)._replace(information=0.5)
    layers = {**REPORT.layers, "a": dataclasses.replace(REPORT.layers["a"], classes=changed)}
    assert EfficiencyReport(layers) != REPORT
    assert changed != classes_of(REPORT)


def test_metrics_alone_go_without_classes() -> None:
    assert classes_of(REPORT).n_classes == 3
    alone = REPORT.without_states()
    assert all(layer.classes is None for layer in alone.layers.values())
    packed_history = HistoryPacker().pack([REPORT, REPORT])
    first, last = unpack_history(packed_history)
    assert first.layers["a"].classes is None
    assert last == REPORT
    assert "classes" not in REPORT.to_dicts()[0]


def test_reports_that_were_written_before_have_no_classes() -> None:
    fields = REPORT.layers["a"].to_dict()
    del fields["classes"]
    assert LayerReport.from_dict(fields).classes is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("entropy", [1.0]),
        ("overlap", [[1.0, 2.0, 3.0]]),
        ("information", float("nan")),
        ("n_states", [1, 2, 3]),
        ("labels", None),
    ],
)
def test_a_file_of_other_classes_is_refused(tmp_path: Path, field: str, value: Any) -> None:
    fields = json.loads(json.dumps(REPORT.to_dict()))
    fields["layers"]["a"]["classes"][field] = value
    path = tmp_path / "run.json"
    path.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="does not hold reports"):
        EfficiencyReport.load(path)


def test_tables_and_pages_show_classes(tmp_path: Path) -> None:
    classes = classes_of(REPORT)
    text = REPORT.table(full=True)
    assert f"{classes.information:.4f}" in text
    assert f"{classes.shuffled_information:.4f}" in text
    assert f"{classes.mean_divergence:.4f}" in REPORT._repr_html_()
    assert "information" not in REPORT.table()
    assert max(map(len, text.splitlines())) <= 100
    write_page(REPORT, tmp_path / "run.html")
    page = (tmp_path / "run.html").read_text()
    assert "<h2>Classes</h2>" in page
    efficiency, shuffled = classes.efficiency[0], classes.shuffled_efficiency[0]
    assert f"{efficiency:.4f} ({shuffled:.4f})" in page
    assert "Jensen-Shannon divergence of the states of each two classes" in page
    write_page(REPORT.without_states(), tmp_path / "without.html")
    assert "<h2>Classes</h2>" not in (tmp_path / "without.html").read_text()


def test_many_classes_have_tables_and_no_picture(tmp_path: Path) -> None:
    many = recorded(MOST_PAIRED + 1, "a", n_samples=300)
    assert classes_of(many).divergence is None
    assert "–" in many.table(full=True)
    write_page(many, tmp_path / "run.html")
    assert "<h2>Classes</h2>" in (tmp_path / "run.html").read_text()
    with pytest.raises(ValueError, match="nothing to draw.*at most 100 classes"):
        plot_classes(many)


def test_keys_of_classes_are_logged_where_they_are_known() -> None:
    names = ["class_information", "shuffled_class_information", "class_divergence"]
    classes = classes_of(REPORT)
    found = REPORT.scalars(layer_metrics=names, with_stage=False)
    assert found["class_information/a"] == classes.information
    assert found["shuffled_class_information/a"] == classes.shuffled_information
    assert found["class_divergence/a"] == classes.mean_divergence
    assert [*REPORT.without_states().scalars(layer_metrics=names)] == ["val_efficiency"]


def test_too_little_data_to_tell_classes_apart_is_noted() -> None:
    wide = recorded(n_neurons=60)
    (note,) = [note for note in wide.notes() if "shuffled" in note]
    assert note.startswith("Even of shuffled labels the states tell most in a (1.5")
    assert "groups of 8 neurons (group_size=8)" in note
    grouped = recorded(n_neurons=60, group_size=4)
    assert not [note for note in grouped.notes() if "shuffled" in note]
    few = recorded(n_neurons=60, group_size=16, n_samples=12)
    assert any("groups of 8 neurons" in note for note in few.notes() if "shuffled" in note)
    # One class tells nothing, with few data or many.
    assert not [note for note in recorded(1, n_neurons=60).notes() if "shuffled" in note]


@pytest.mark.parametrize("metric", ["divergence", "overlap"])
def test_the_picture_shows_pairs_of_classes_beside_shuffled_ones(metric: Any) -> None:
    figure = plot_classes(REPORT, metric=metric)
    panels = [axes for axes in figure.axes if axes.images and axes.get_xlabel() == "class"]
    titles = ["a", "a, labels shuffled", "b", "b, labels shuffled"]
    assert [axes.get_title() for axes in panels] == titles
    for axes, layer in zip(panels[::2], "ab", strict=True):
        drawn = np.ma.filled(axes.images[0].get_array(), np.nan)
        values = getattr(classes_of(REPORT, layer), metric).copy()
        np.fill_diagonal(values, np.nan)
        np.testing.assert_array_equal(drawn, values)
        assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "10", "20"]
    shuffled = np.ma.filled(panels[1].images[0].get_array(), np.nan)
    expected = getattr(classes_of(REPORT), f"shuffled_{metric}").copy()
    np.fill_diagonal(expected, np.nan)
    np.testing.assert_array_equal(shuffled, expected)
    # On one scale.
    for pair in (panels[:2], panels[2:]):
        assert pair[0].images[0].get_clim() == pair[1].images[0].get_clim()
    (only,) = {axes.get_title() for axes in plot_classes(REPORT, "b").axes if axes.images} & {"b"}
    assert only == "b"


def test_many_layers_and_classes_are_drawn_in_part() -> None:
    report = recorded(20, "abcdefghijk")
    figure = plot_classes(report)
    titles = [axes.get_title() for axes in figure.axes if axes.get_xlabel() == "class"]
    # Those that differ most from shuffled labels.
    assert titles[::2] == list("defghijk")
    first = next(axes for axes in figure.axes if axes.get_xlabel() == "class")
    assert len(first.get_xticklabels()) <= 12
    assert not first.texts


def test_what_can_not_be_drawn_is_told() -> None:
    with pytest.raises(ValueError, match="of 'c'; there are of a, b: record with classes="):
        plot_classes(REPORT, "c")
    with pytest.raises(ValueError, match="metric takes 'divergence' or 'overlap'; got 'jsd'"):
        plot_classes(REPORT, metric="jsd")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_classes(REPORT.without_states())
    finished = RunEvaluation(0, 0.5, 0.5, 0.5, {"a": RunLayer({"efficiency": 0.5})})
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_classes(finished)


def test_two_names_of_a_class_never_mark_up_a_picture() -> None:
    report = recorded(2, "a")
    layer = dataclasses.replace(report.layers["a"], name="a$_{x}$")
    figure = plot_classes(EfficiencyReport({layer.name: layer}))
    assert figure.axes[0].get_title() == "a$_{x}$"
    figure.canvas.draw()


def test_figures_of_a_class_are_those_of_a_report_of_it_alone() -> None:
    rng = np.random.default_rng(1)
    fires, labels = rng.random((40, 6, 9)) < 0.4, rng.integers(0, 3, 40)
    counter = ClassCounter(9)
    counter.update_packed(packed(fires), labels)
    found = class_metrics(counter)
    for at, label in enumerate(found.labels.tolist()):
        recorder = Recorder(["a"])
        recorder.observe("a", fires[labels == label], -1)
        layer = recorder.report().layers["a"]
        assert found.n_states[at] == layer.n_states
        assert found.n_distinct[at] == layer.n_distinct
        assert found.efficiency[at] == pytest.approx(layer.efficiency, abs=1e-14)
