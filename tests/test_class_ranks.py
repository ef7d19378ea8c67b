"""What several processes count by class is what one would, to the bit, shuffled figures too."""

import json
from typing import Any

import class_rank_runs
import pytest
from lightning_models import QUIET
from rank_processes import run

pytestmark = [pytest.mark.filterwarnings(text) for text in QUIET]


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    return json.loads(json.dumps(class_rank_runs.by_class()))


@pytest.fixture(scope="module", params=[2, 3])
def several(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return run("by_class", request.param)


@pytest.mark.parametrize("number", range(len(class_rank_runs.OPTIONS)), ids=str)
def test_loops_give_what_one_process_gives(
    number: int, one: dict[str, Any], several: list[dict[str, Any]]
) -> None:
    expected = one["loops"][number]
    assert [rank["loops"][number]["report"] for rank in several] == [expected["report"]] * len(
        several
    )
    # The first rank says for all which layers have no metrics of classes.
    told = [rank["loops"][number]["told"] for rank in several]
    assert told == [expected["told"], *[[]] * (len(several) - 1)]


def test_memory_is_short_for_some_layers_first(one: dict[str, Any]) -> None:
    numbers = [
        sum(layer["classes"] is not None for layer in each["report"]["layers"].values())
        for each in one["loops"]
    ]
    assert numbers[:3] == [3, 3, 6]
    assert numbers[3:] == sorted(numbers[3:], reverse=True)
    assert {*numbers[3:]} & {1, 2}
    classes = one["loops"][0]["report"]["layers"]["0"]["classes"]
    assert classes["labels"] == [-1, 0, 1, 2]
    assert classes["n_states"] == [49 * n for n in (4, 4, 3, 2)]


def test_ranks_without_data_change_nothing(
    one: dict[str, Any], several: list[dict[str, Any]]
) -> None:
    assert one["one_only"]["layers"]["0"]["classes"]["labels"] == [0, 1]
    assert [rank["one_only"] for rank in several] == [one["one_only"]] * len(several)


def test_lightning_gives_what_one_process_gives(
    one: dict[str, Any], several: list[dict[str, Any]]
) -> None:
    assert one["lightning"][0]["layers"]["net.0"]["classes"]["labels"] == [0, 1, 2]
    assert [rank["lightning"] for rank in several] == [one["lightning"]] * len(several)
