"""Several processes, of Lightning or of a loop of one's own, give the very numbers of one."""

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import rank_models
import rank_runs
import torch
from lightning_models import QUIET
from planted import found_by_numpy, neurons_of
from rank_processes import TESTS, run

from tensorstate_callbacks import LayerReport

pytestmark = [pytest.mark.filterwarnings(text) for text in QUIET]


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    return json.loads(json.dumps(rank_runs.two_ranks()))


@pytest.fixture(scope="module")
def two() -> list[dict[str, Any]]:
    return run("two_ranks", 2)


@pytest.fixture(scope="module")
def four() -> list[dict[str, Any]]:
    return run("four_ranks", 4)


def test_fit_and_test_of_ddp_are_those_of_one_process(
    one: dict[str, Any], two: list[dict[str, Any]]
) -> None:
    expected = copy.deepcopy(one["fit"])
    # Two processes make half the steps.
    for report in expected["first"] + expected["second"]:
        report["step"] = report["step"] and report["step"] // 2
    assert [r["stage"] for r in expected["first"]] == ["val", "val", "val", "test"]
    assert [r["epoch"] for r in expected["second"]] == [1, None]
    assert expected["first"][0]["layers"]["net.0"]["n_states"] == rank_models.N_ODD
    assert 0 < expected["logged"]["test_aiq"] < 1
    # The first rank says for all that coverage is low: for both callbacks, in fit and in test.
    coverage = expected.pop("coverage")
    assert len(coverage) == 4
    fits = [dict(rank["fit"]) for rank in two]
    assert [fit.pop("coverage") for fit in fits] == [coverage, []]
    # Floats too, to the last bit; and nothing else to warn of.
    assert fits == [expected, expected]


@pytest.mark.parametrize(
    "what", ["validate", "no_data", "sharded", "side_group", "many_rounds", "sampled"]
)
def test_two_ranks_give_what_one_gives(
    what: str, one: dict[str, Any], two: list[dict[str, Any]]
) -> None:
    assert one[what]
    assert [rank[what] for rank in two] == [one[what]] * 2


@pytest.mark.parametrize("what", ["images", "sequence_first", "wide", "flat"])
def test_loop_of_ones_own_gives_what_one_process_gives(
    what: str, one: dict[str, Any], two: list[dict[str, Any]]
) -> None:
    reports = [rank["loops"][what]["report"] for rank in two]
    assert reports == [one["loops"][what]["report"]] * 2


def test_windows_of_a_fit_are_those_of_one_process(
    one: dict[str, Any], two: list[dict[str, Any]]
) -> None:
    expected = one["windows"]["fit"]
    assert [report["step"] for report in expected["history"]] == [2, 5, 8, 11]
    assert [report["layers"]["net.0"]["n_states"] for report in expected["history"]] == [
        16,
        *[32] * 3,
    ]
    assert "train_w_efficiency/net.2.input" in expected["logged"]
    (text,) = expected["told"]
    assert text.startswith("In windows of training batches: Coverage is below 0.5 in net.0")
    assert two[0]["windows"]["fit"] == expected
    # The first rank says it for all.
    assert two[1]["windows"]["fit"] == {**expected, "told": []}


def test_windows_of_loops_are_those_of_one_process_also_where_memory_is_short(
    one: dict[str, Any], two: list[dict[str, Any]]
) -> None:
    expected = one["windows"]["loops"]
    whole, *_, shortest = [[len(report["layers"]) for report in reports] for reports in expected]
    assert whole == [4] * 4
    n_read = [
        reports[-1]["layers"]["2"]["n_states"]
        for reports in expected
        if len(reports[-1]["layers"]) > 2
    ]
    assert len({*n_read}) > 3
    assert shortest
    for rank in two:
        assert rank["windows"]["loops"] == expected


def test_ranks_of_a_window_may_see_nothing_or_other_layers(
    one: dict[str, Any], two: list[dict[str, Any]]
) -> None:
    expected = one["windows"]["without_data"]
    assert {name: layer["n_states"] for name, layer in expected["layers"].items()} == {
        "a": 18,
        "b": 27,
        "c": 9,
    }
    assert [rank["windows"]["without_data"] for rank in two] == [expected] * 2


def test_neurons_that_agree_are_those_of_all_ranks_data(
    one: dict[str, Any], two: list[dict[str, Any]]
) -> None:
    expected = one["neurons"]
    # Each rank has seen states in which more of them agree.
    for found in (*(rank["neurons"] for rank in two), *run("three_ranks", 3)):
        assert found == expected
    with torch.no_grad():
        inputs = torch.randn(26, 6, generator=torch.Generator().manual_seed(6))
        fires = rank_runs.planted_net()(inputs).numpy() > 0
    whole, groups = (LayerReport.from_dict(report["layers"]["0"]) for report in expected["loops"])
    assert neurons_of(whole) == found_by_numpy(fires)
    assert {(2, 7), (4, 10)} <= {*whole.agreeing}
    assert ((2, 7), (9,)) in whole.opposing
    assert neurons_of(groups) == found_by_numpy(fires, 8)
    for n_batches, report in enumerate(expected["windows"], start=1):
        last = slice(max(0, n_batches - 2) * 6, n_batches * 6)
        layer = LayerReport.from_dict(report["layers"]["0"])
        assert neurons_of(layer) == found_by_numpy(fires[last])


def test_samples_that_a_sampler_repeats_in_training_count(
    one: dict[str, Any], two: list[dict[str, Any]]
) -> None:
    assert one["windows_uneven"] == [8] * 6 + [1]
    assert [rank["windows_uneven"] for rank in two] == [[16] * 3 + [2]] * 2


def test_a_rank_whose_batch_fails_ends_the_others_with_its_name(two: list[dict[str, Any]]) -> None:
    told = [rank["windows_that_fail"] for rank in two]
    assert told[1] == "ArithmeticError: this batch is bad"
    assert re.match(r"RankError: .* without rank 1: it failed with ArithmeticError: this", told[0])


def test_low_coverage_in_a_loop_of_ones_own_is_told_by_the_first_rank(
    one: dict[str, Any], two: list[dict[str, Any]]
) -> None:
    (text,) = one["loops"]["wide"]["told"]
    assert text.startswith("Coverage is below 0.5 in 0 (0.00)")
    assert [rank["loops"]["wide"]["told"] for rank in two] == [[text], []]


def test_four_ranks_give_what_one_gives(one: dict[str, Any], four: list[dict[str, Any]]) -> None:
    # Rank 2 ended on purpose, later.
    assert [rank.get("validate") for rank in four] == [
        one["validate"],
        one["validate"],
        None,
        one["validate"],
    ]


def test_rows_of_flattened_samples_are_one_warning(two: list[dict[str, Any]]) -> None:
    told = [[text for text in r["loops"]["flat"]["told"] if "divide" in text] for r in two]
    assert len(told[0]) == 1
    assert "linear (21, 9), of 3 samples: its axis 0 was taken to hold" in told[0][0]
    assert told[1] == []


def test_data_that_nobody_deals_is_counted_as_it_comes_with_one_warning_a_run(
    one: dict[str, Any], two: list[dict[str, Any]]
) -> None:
    # The first rank has no data, the other all.
    assert [r["stream"]["history"] for r in two] == [one["stream"]["history"]] * 2
    told = two[0]["stream"]["told"]
    assert len(told) == 2
    assert "Stream, is an IterableDataset" in told[0]
    assert two[1]["stream"]["told"] == []


def test_accuracy_of_each_ranks_own_samples_is_averaged_by_their_number(
    one: dict[str, Any], two: list[dict[str, Any]]
) -> None:
    # Lightning keeps float32.
    for rank in two:
        assert rank["alone"]["accuracy"] == pytest.approx(one["alone"]["accuracy"], rel=1e-7)
    assert two[0]["alone"] == two[1]["alone"]


def test_accuracies_of_ranks_are_averaged_and_checked(two: list[dict[str, Any]]) -> None:
    for place, rank in enumerate(two):
        mean, percentage, above = rank["accuracies"]
        assert mean == pytest.approx((3 + 1) / (4 + 2))
        for told, value in ((percentage, "97.0"), (above, "2.0")):
            kind = ("ValueError", "RankError: rank 0 can't merge its counts")[place]
            assert told.startswith(kind)
            assert value in told


def test_ranks_with_other_arguments_end_all_before_counts_are_added(
    two: list[dict[str, Any]],
) -> None:
    names = ["attach_to", "exclude", "method", "threshold", "alpha", "beta", "channel_axis"]
    names += ["neurons"]
    names += ["output_fn", "fit attach_to", "fit every_n_epochs", "fit dataloader_idx"]
    names += ["fit window"]
    for name in names:
        (first,) = {rank["unlike"][name] for rank in two}
        key = name.removeprefix("fit ")
        key = "probes that others don't have" if key in ("attach_to", "exclude") else key
        assert re.search(rf"RankError: the ranks don't record alike.* {key}: .* on rank 0; ", first)
        assert first.endswith("on rank 1. Give all ranks the same arguments")
    assert "threshold: 0 on rank 0; 0.5 on rank 1" in two[0]["unlike"]["threshold"]
    assert "have: 0, 2 on rank 0; none on rank 1" in two[0]["unlike"]["attach_to"]
    # A layer that is named in another way is the same one.
    assert [rank["unlike"]["same"] for rank in two] == ["without an error"] * 2
    assert "without rank 1: it failed with ValueError: beta" in two[0]["unlike"]["fit beta"]


def test_layers_are_in_the_order_of_the_lowest_rank(two: list[dict[str, Any]]) -> None:
    assert [rank["one_sided"] for rank in two] == [["first", "last", "second"]] * 2


def test_layers_of_tensor_parallelism_are_refused_by_name(two: list[dict[str, Any]]) -> None:
    for rank in two:
        columns, bare, rows, whole = rank["tensor_parallel"]
        assert "tensor parallelism splits the parameters of 0:" in columns
        assert "tensor parallelism splits the parameters of 2:" in rows
        assert re.match("1 can't be counted: .* of layers without parameters", bare)
        assert whole == "4"


def test_rank_that_fails_ends_the_others_with_its_name(four: list[dict[str, Any]]) -> None:
    expected = (
        "RankError: the counts of states can't be merged without rank 1: it failed with "
        "ArithmeticError: this batch is bad"
    )
    assert four[0]["raised"] == four[3]["raised"] == expected
    assert four[1]["raised"] == "ArithmeticError: this batch is bad"
    # And the next evaluation is merged again.
    assert [four[rank]["again"] for rank in (0, 1, 3)] == [4 * 2 * 49] * 3


def test_rank_that_dies_ends_the_others_with_its_name(four: list[dict[str, Any]]) -> None:
    for rank in (0, 1, 3):
        assert re.match(
            r"RankError: .* without rank 2: it did not come within .* \(0:00:03\)",
            four[rank]["died"],
        )


def test_rank_that_holds_the_store_is_named(four: list[dict[str, Any]]) -> None:
    assert re.match("RankError: .*rank 0", four[1]["no_store"])


def test_process_outside_of_the_group_is_told(four: list[dict[str, Any]]) -> None:
    assert four[3]["outside"].startswith("ValueError: rank 3 is not in the process group")


def test_spawned_processes_give_what_one_gives(one: dict[str, Any], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, TESTS / "rank_spawn.py", tmp_path],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (expected,) = one["validate"]["history"]
    reports = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert reports == [expected, expected]
    logged = json.loads((tmp_path / "logged.json").read_text())
    assert logged["val_aiq"] == pytest.approx(expected["aiq"], abs=1e-7)


def test_probe_data_has_the_same_changes_on_all_ranks(
    one: dict[str, Any], two: list[dict[str, Any]]
) -> None:
    first, second = (rank["probes"] for rank in two)
    for loops in (first, second):
        # Of what the inverted layer shows all has changed.
        assert loops["loop"] == loops["sharded"] == one["probes"]["loop"]
        assert loops["loop"]["0"]["since_previous"] == 1.0
    fit, told = first["fit"]
    assert told == []
    assert second["fit"] == [fit, told]
    assert fit[0].keys() == {"net.0", "net.2"}
    assert all(report["net.0"]["since_first"] > 0 for report in fit)


def test_probe_data_that_differs_or_fails_on_one_rank_is_said(two: list[dict[str, Any]]) -> None:
    first, second = (rank["probes"] for rank in two)
    assert first["unlike"] == second["unlike"]
    assert re.match(r"RankError: .*probe_data: \w+ on rank 0; \w+ on rank 1", first["unlike"])
    no_changes = [{"net.0": None, "net.2": None}] * 2
    assert first["failed"][0] == second["failed"][0] == no_changes
    (text,) = first["failed"][1]
    assert "on rank 1, the run over it failed with FloatingPointError: not here" in text
    assert second["failed"][1] == []
