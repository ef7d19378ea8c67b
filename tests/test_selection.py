import pytest

from tensorstate_callbacks import NoLayerMatchedError, TensorStateWarning
from tensorstate_callbacks.recording.selection import select_layers


class Conv2D:
    pass


class SpecialConv(Conv2D):
    pass


class Dense:
    pass


LAYERS = {
    "stem": Conv2D(),
    "block_1.conv": SpecialConv(),
    "block_2.conv": Conv2D(),
    "block_2.gate": Dense(),
    "head": Dense(),
}


def picked(attach_to, exclude=(), **options):
    return list(select_layers(LAYERS, attach_to, exclude, **options))


@pytest.mark.parametrize(
    ("attach_to", "names"),
    [
        ("Conv2D", ["stem", "block_1.conv", "block_2.conv"]),
        ("SpecialConv", ["block_1.conv"]),
        ("head", ["head"]),
        ("block_*.conv", ["block_1.conv", "block_2.conv"]),
        ("block_[2].*", ["block_2.conv", "block_2.gate"]),
        (Dense, ["block_2.gate", "head"]),
        (lambda name, layer: name.startswith("b") and isinstance(layer, Dense), ["block_2.gate"]),
        (["head", "stem"], ["stem", "head"]),
        ({"head": 0}.keys(), ["head"]),
    ],
)
def test_every_form_of_pattern(attach_to, names):
    assert picked(attach_to) == names


def test_a_string_is_one_pattern_and_no_part_of_a_name():
    with pytest.raises(NoLayerMatchedError, match="attach_to='Conv'"):
        picked("Conv")


def test_exclude_takes_away():
    assert picked("Conv2D", exclude=["block_*", SpecialConv]) == ["stem"]


def test_none_takes_the_default():
    assert picked(None, default=["stem", "head"]) == ["stem", "head"]


def test_nothing_matched_lists_what_there_is():
    with pytest.raises(NoLayerMatchedError) as raised:
        picked(["Conv3D"])
    message = str(raised.value)
    assert "attach_to='Conv3D' matched no layer" in message
    assert "Conv2D (2), SpecialConv (1), Dense (2)" in message
    assert "block_1.conv" in message


def test_everything_excluded_says_so():
    with pytest.raises(NoLayerMatchedError, match="exclude=Dense leaves out every layer.*head"):
        picked("Dense", exclude=Dense)


def test_a_model_without_layers_is_told_to_be_built():
    with pytest.raises(NoLayerMatchedError, match="build it first"):
        select_layers({}, "Conv2D")


def test_one_pattern_of_several_that_matches_nothing_is_warned_about():
    with pytest.warns(TensorStateWarning, match="attach_to: 'Lstm' matched no layer") as given:
        assert picked(["head", "Lstm"]) == ["head"]
    assert len(given) == 1


def test_an_exclude_that_matches_nothing_is_warned_about():
    with pytest.warns(TensorStateWarning, match="exclude: 'haed' matched no layer"):
        assert picked("Dense", exclude="haed") == ["block_2.gate", "head"]


@pytest.mark.parametrize("attach_to", [3, [3], ["head", None]])
def test_patterns_of_no_form(attach_to):
    with pytest.raises(TypeError, match="attach_to takes a class name.*got"):
        picked(attach_to)
