import pytest
from reports import history, report

from tensorstate_callbacks import History
from tensorstate_callbacks.display.tables import Table
from tensorstate_callbacks.display.view import short_names

RESNET = [f"stages.{stage}.blocks.{block}.conv" for stage in range(4) for block in range(5)]


def test_table_shows_each_layer_in_one_line_and_the_network_below():
    lines = report().table().splitlines()
    assert lines[0].split() == [
        *("layer", "neurons", "states", "distinct", "efficiency"),
        *("ceiling", "rate", "bound", "reached", "coverage", "never"),
    ]
    # 1.75 bits of 4, of at most 3; 2 of 8 states seen once; two neurons never fired, and one fired
    # 7 times of 8.
    conv = ["conv", "4", "8", "4", "0.4375", "0.7500", "0.1359", "0.5833", "0.7500", "2"]
    fc = ["fc", "2", "8", "2", "0.5000", "1.0000", "0.5000", "0.5000", "1.0000", "0"]
    assert [line.split() for line in lines[1:3]] == [conv, fc]
    assert len({len(line) for line in lines[:3]}) == 1
    assert lines[3:] == [
        f"efficiency {report().efficiency:.4f}, accuracy 0.5000, aIQ {report().aiq:.4f}"
    ]


def test_full_table_shows_every_metric():
    states, neurons = report().table(full=True).split("\n\n")
    heading, conv, _ = states.splitlines()
    assert heading.split("  ")[-1] == "max share"
    assert conv.split() == ["conv", "4", "8", "4", "2", "0.7500", "0.5000"]
    heading, conv, _, network = neurons.splitlines()
    assert heading.split() == [
        *("layer", "entropy", "efficiency", "ceiling", "rate", "bound", "reached", "redundancy"),
        *("firing", "never", "always"),
    ]
    # Fired 15 of 32 times; one neuron in all eight states.
    assert conv.split() == [
        *("conv", "1.750", "0.4375", "0.7500", "0.1359", "0.5833", "0.0000"),
        *("0.4688", "2", "1"),
    ]
    assert network.startswith("efficiency ")


def test_table_without_accuracy_has_no_aiq():
    line = report(accuracy=None).table().splitlines()[-1]
    assert line == f"efficiency {report().efficiency:.4f}"


@pytest.mark.parametrize("full", [False, True])
def test_tables_keep_to_100_columns(full):
    names = [f"encoder.blocks.{i}.attention.self.output.dense_with_a_long_name" for i in range(20)]
    lines = report(names).table(full=full).splitlines()
    assert max(map(len, lines)) <= 100
    cells = [line.split()[0] for line in lines if "…" in line]
    assert len(set(cells)) == 20


def test_history_has_a_line_for_each_evaluation():
    shown = history()
    lines = shown.table().splitlines()
    assert lines[0].split() == ["epoch", "accuracy", "efficiency", "aIQ", "conv", "fc"]
    for line, number, one in zip(lines[1:4], "123", shown, strict=True):
        figures = [one.accuracy, one.efficiency, one.aiq, 1.75 / 4, 0.5]
        assert line.split() == [number, *(f"{x:.4f}" for x in figures)]
    assert lines[4:] == [f"best aIQ {shown[1].aiq:.4f} in epoch 2"]


def test_history_of_many_layers_says_what_it_leaves_out():
    lines = history(names=RESNET).table().splitlines()
    assert max(map(len, lines)) <= 100
    shown = len(lines[0].split()) - 4
    assert 0 < shown < 20
    assert lines[4] == f"and {20 - shown} more layers, too many for one line"


def test_history_without_accuracy_or_layers_known_in_all_epochs():
    mixed = History([report(("conv",), accuracy=None), report(("conv", "fc"), epoch=1)])
    lines = mixed.table().splitlines()
    assert lines[1].split() == ["1", "–", "0.4375", "–", "0.4375", "–"]
    assert lines[-1] == f"best aIQ {mixed[1].aiq:.4f} in epoch 2"
    assert "best" not in History([report(accuracy=None)]).table()
    assert History().table() == "no evaluation yet"


def test_short_names_differ():
    names = [f"{'a' * 20}{i}{'b' * 20}" for i in range(3)]
    assert len(set(short_names(names, 16))) == 3
    assert max(map(len, short_names(names, 16))) == 16
    assert short_names(["conv", "fc"], 16) == ["conv", "fc"]


def test_a_table_is_text_markdown_and_html():
    table = Table(["layer", "efficiency"], [["a|b", "0.5"], ["<c>", "0.25"]], "Two", bold=1)
    assert table.text().splitlines() == [
        "layer  efficiency",
        "a|b           0.5",
        "<c>          0.25",
    ]
    assert table.width == len(table.text().splitlines()[0])
    lines = table.markdown().splitlines()
    assert lines[1] == "|:--------|-------------:|"
    assert [line.replace(" ", "") for line in lines[2:]] == [
        "|a\\|b|0.5|",
        "|**<c>**|**0.25**|",
    ]
    html = table.html().replace("\n", "").replace(" ", "")
    assert html.startswith("<table><caption>Two</caption><thead><tr><th>layer")
    assert "<strong>&lt;c&gt;</strong>" in html
    assert "<strong>0.25</strong></td></tr></tbody></table>" in html


def test_any_name_is_one_line_of_a_table():
    names = ["a\nb", "\udc80", "c\0", "x" * 5000, "\x01", "--", " "]
    shown = report(names)
    text = shown.table()
    text.encode()
    assert len(text.splitlines()) == len(names) + 2
    assert [line.split()[0] for line in text.splitlines()[1:4]] == ["a\\nb", "\\udc80", "c\\x00"]
    assert max(map(len, text.splitlines())) <= 100
    assert len(History([shown]).table().splitlines()) >= 2


def test_a_name_in_markdown_is_no_markup():
    cells = ["a|b\\", "__init__", "conv_1", "$x$ `y` *z*"]
    table = Table(["layer"], [[cell] for cell in cells])
    lines = [line.strip("| ") for line in table.markdown().splitlines()[2:]]
    assert lines == ["a\\|b\\\\", "\\_\\_init\\_\\_", "conv_1", "\\$x\\$ \\`y\\` \\*z\\*"]
