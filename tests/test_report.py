import copy
import dataclasses
import json
import math
import pickle

import numpy as np
import pytest

from tensorstate_callbacks import EfficiencyReport, History, LayerReport, aIQ
from tensorstate_callbacks.reports.metric_keys import safe_key
from tensorstate_callbacks.states.spectrum import Spectrum


def layer(name="conv", counts=(4, 2, 1, 1), fired=(8, 7, 0, 0), alpha=1):
    return LayerReport.from_spectrum(
        name, Spectrum.from_counts(counts), np.array(fired, dtype=np.uint64), alpha
    )


# Of the neuron that fired 7 times of 8, the only one that tells anything.
RATE_BOUND = (7 / 8 * math.log2(8 / 7) + 1 / 8 * 3) / 4
# Counts 4, 2, 1, 1; neurons that fired 8, 7, 8 and 0 times of 8.
LAYER = {
    "efficiency": 1.75 / 4,
    "entropy": 1.75,
    "coverage": 0.75,
    "mean_coverage": 0.75,
    "ceiling": 3 / 4,
    "rate_bound": RATE_BOUND,
    "redundancy": 0,
    "ceiling_share": 1.75 / 3,
    "dead": 1 / 4,
    "always": 2 / 4,
    "firing_rate": 23 / 32,
    "max_share": 4 / 8,
    "states": 8,
    "distinct": 4,
    "singletons": 2,
}


def report(**changes):
    figures = {"layers": {"conv": layer(), "fc": layer("fc", (4, 4), (4, 8))}, "accuracy": 0.5}
    return EfficiencyReport(**{**figures, **changes})


def test_layer_report_of_a_hand_calculation():
    # Shares 1/2, 1/4, 1/8, 1/8: 0.5 + 0.5 + 2 * 3/8 bits.
    expected = LayerReport(
        name="conv",
        n_neurons=4,
        n_states=8,
        n_distinct=4,
        n_singletons=2,
        entropy=1.75,
        efficiency=1.75 / 4,
        ceiling=3 / 4,
        coverage=0.75,
        firing_rate=15 / 32,
        n_never=2,
        n_always=1,
        rate_bound=layer().rate_bound,
        spectrum=Spectrum.from_counts([1, 1, 2, 4]),
        mean_coverage=0.75,
    )
    assert layer() == expected
    assert layer().rate_bound == pytest.approx(RATE_BOUND)
    assert layer() != layer(counts=(3, 3, 1, 1))
    assert layer().ceiling_share == (1.75 / 4) / (3 / 4)
    assert layer().max_share == 4 / 8


def test_a_single_state_reaches_its_ceiling_of_nothing():
    single = layer(counts=[1], fired=[1, 0])
    assert (single.ceiling, single.efficiency, single.ceiling_share) == (0, 0, 1)
    assert single.max_share == 1


def test_ceiling_is_set_by_the_number_of_states():
    assert layer(counts=[1] * 16, fired=[8] * 100).ceiling == pytest.approx(4 / 100)


def test_layer_report_uses_the_order_asked_for():
    assert layer(alpha=math.inf).entropy == 1.0
    assert layer(alpha=0).entropy == 2.0


def test_report_works_out_efficiency_and_aiq():
    both = report(beta=3)
    assert both.efficiency == pytest.approx(math.sqrt(1.75 / 4 * 0.5))
    assert both.aiq == aIQ(both.efficiency, 0.5, 3)


def test_report_without_accuracy_has_no_aiq():
    assert report(accuracy=None).aiq is None
    assert "val_aiq" not in report(accuracy=None).scalars()


def test_reports_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        report().accuracy = 1.0
    with pytest.raises(TypeError):
        report().layers["conv"] = layer()


def test_reports_hash_as_they_compare():
    assert hash(layer()) == hash(layer())
    other_order = dict(reversed(report().layers.items()))
    assert report(layers=other_order) == report()
    assert len({report(), report(layers=other_order), report(epoch=1), report(beta=3)}) == 3


def test_parts_and_sums_of_a_history_are_histories():
    reports = [report(epoch=epoch) for epoch in range(4)]
    history = History(reports)
    for part in (history[:2] + history[2:], history[:2] + reports[2:], history.copy(), history[:]):
        assert isinstance(part, History)
        assert part == reports
        assert part is not history
    assert history[1::2] == [reports[1], reports[3]]
    assert history[-1] is reports[3]


def test_report_keeps_no_hold_of_what_it_was_given():
    layers = {"conv": layer()}
    built = EfficiencyReport(layers)
    layers.clear()
    assert list(built.layers) == ["conv"]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r))])  # noqa: S301
def test_reports_can_be_copied(copied):
    assert copied(report(epoch=3)) == report(epoch=3)


def test_report_survives_its_dict():
    original = report(epoch=3, step=120, stage="test")
    assert EfficiencyReport.from_dict(original.to_dict()) == original
    assert original.to_dict()["aiq"] == original.aiq
    assert json.loads(json.dumps(original.to_dict())) == original.to_dict()


def test_rows_carry_the_networks_metrics_and_the_layers():
    rows = report(epoch=3).to_dicts()
    assert [row["name"] for row in rows] == ["conv", "fc"]
    assert rows[0]["epoch"] == 3
    assert rows[0]["network_efficiency"] == report().efficiency
    assert rows[1]["efficiency"] == 0.5
    assert rows[0]["ceiling_share"] == layer().ceiling_share
    assert rows[0]["max_share"] == 0.5
    assert "spectrum" not in rows[0]


def test_rows_of_a_history_make_a_data_frame():
    history = History([report(epoch=0), report(epoch=1, accuracy=None)])
    assert history.to_dicts() == [*history[0].to_dicts(), *history[1].to_dicts()]
    frame = history.to_frame()
    assert frame["name"].tolist() == ["conv", "fc"] * 2
    assert frame["epoch"].tolist() == [0, 0, 1, 1]
    assert frame["efficiency"].tolist() == [1.75 / 4, 0.5] * 2
    assert frame["aiq"].isna().tolist() == [False, False, True, True]


def test_keys_and_values_that_are_logged():
    both = report()
    assert both.scalars() == {
        "val_aiq": both.aiq,
        "val_efficiency": both.efficiency,
        "val_efficiency/conv": 1.75 / 4,
        "val_efficiency/fc": 0.5,
    }


def test_prefix_and_stage_in_keys():
    assert list(report(stage="test").scalars("x_", layer_metrics=False)) == [
        "test_x_aiq",
        "test_x_efficiency",
    ]
    assert "x_aiq" in report().scalars("x_", with_stage=False)


def test_metrics_of_layers_that_can_be_asked_for():
    asked = report().scalars(layer_metrics=("entropy", "coverage", "dead", "distinct"))
    assert asked["val_entropy/conv"] == 1.75
    assert asked["val_coverage/conv"] == 0.75
    assert asked["val_dead/conv"] == 0.5
    assert asked["val_distinct/fc"] == 2.0
    assert "val_efficiency/conv" not in asked


def test_every_metric_of_a_layer_can_be_logged():
    one = EfficiencyReport({"conv": layer(fired=(8, 7, 8, 0))})
    asked = one.scalars(layer_metrics=tuple(LAYER), with_stage=False)
    del asked["efficiency"]
    assert asked == pytest.approx({f"{name}/conv": value for name, value in LAYER.items()})


def test_unknown_metric_of_layers_is_named():
    with pytest.raises(ValueError, match="'entorpy'.*there are efficiency, entropy"):
        report().scalars(layer_metrics=("entorpy",))


def test_layers_whose_keys_become_alike_stay_apart():
    scalars = EfficiencyReport({n: layer(n) for n in ("a[0]", "a(0)")}).scalars()
    assert list(scalars) == ["val_efficiency", "val_efficiency/a_0_", "val_efficiency/a_0__2"]


@pytest.mark.parametrize(
    ("key", "safe"),
    [
        ("val_efficiency/block.0/conv", "val_efficiency/block.0/conv"),
        ("/a//b/", "a/b"),
        ("a[0]|b=c", "a_0__b_c"),
        ("a/../b/./c", "a/__/b/_/c"),
        ("größe", "gr__e"),
    ],
)
def test_keys_are_safe_for_every_logger(key, safe):
    assert safe_key(key) == safe


def test_long_keys_are_cut_and_stay_distinct():
    first, second = safe_key("a" * 300 + "1"), safe_key("a" * 300 + "2")
    assert len(first) == len(second) == 250
    assert first != second


def test_mlflow_takes_safe_keys():
    from mlflow.utils.validation import _validate_metric_name

    for key in ("/a//b", "a[0]|b=c", "a/../b", "x" * 400, "ab/conv:0"):
        _validate_metric_name(safe_key(key))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers": {}}, "at least one layer"),
        ({"beta": 0}, "beta"),
        ({"accuracy": 1.5}, "accuracy must be a share"),
        ({"accuracy": None, "beta": -1}, "beta"),
    ],
)
def test_reports_that_cannot_be(changes, words):
    with pytest.raises(ValueError, match=words):
        report(**changes)


def test_no_name_takes_the_key_of_the_network():
    names = ["/", "//", "", ".", "\udc80", "\0", "a" * 400 + "\udc80", "efficiency", "a//b", "a/b"]
    shown = EfficiencyReport({name: layer(name) for name in names})
    scalars = shown.scalars()
    assert scalars["val_efficiency"] == shown.efficiency
    assert len(scalars) == len(names) + 1
    assert list(scalars)[1:7] == [
        f"val_efficiency/{key}" for key in ("_", "__2", "__3", "__4", "__5", "__6")
    ]
    for key in scalars:
        key.encode()
