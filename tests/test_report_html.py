"""What reports are as HTML: in notebooks, and as a page of their own."""

import base64
import re
from xml.etree import ElementTree

import html5lib
import pytest
from reports import history, layer, report

import tensorstate_callbacks
from tensorstate_callbacks import EfficiencyReport, History, write_page

HOSTILE = "<script>alert(1)</script>&\"'"


def parsed(text):
    """Return the page's elements, or raise on anything that isn't valid HTML."""
    parser = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False)
    return parser.parse(text)


def fragment(text):
    return html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parseFragment(text)


def text_of(element):
    return "".join(element.itertext())


def rows(table):
    return [[text_of(cell).strip() for cell in row] for row in table.iter("tr")]


def figures(page):
    """Return the alternative text and the SVG element of each picture."""
    start = "data:image/svg+xml;base64,"
    for image in page.iter("img"):
        assert image.get("src").startswith(start)
        svg = base64.b64decode(image.get("src").removeprefix(start))
        yield image.get("alt"), ElementTree.fromstring(svg)  # noqa: S314


def saved(reports, tmp_path, name="run.html"):
    write_page(reports, tmp_path / name)
    return (tmp_path / name).read_text(encoding="utf-8")


def test_notebooks_show_every_metric():
    (table,) = fragment(report()._repr_html_()).iter("table")
    heading, conv, fc = rows(table)
    assert dict(zip(heading, conv, strict=True)) == {
        "layer": "conv",
        "neurons": "4",
        "states": "8",
        "distinct": "4",
        "singletons": "2",
        "coverage": "0.7500",
        "max share": "0.5000",
        "entropy": "1.750",
        "efficiency": "0.4375",
        "ceiling": "0.7500",
        "rate bound": "0.1359",
        "reached": "0.5833",
        "redundancy": "0.0000",
        "firing": "0.4688",
        "never": "2",
        "always": "1",
    }
    assert fc[0] == "fc"
    assert f"aIQ {report().aiq:.4f}" in report()._repr_html_()


def test_notebooks_are_told_what_limits_the_metrics():
    thin = EfficiencyReport({"thin": layer("thin", [1] * 8)}, accuracy=0.5)
    assert thin.notes()[0] in text_of(fragment(thin._repr_html_()))


def test_notebooks_show_a_history():
    shown = history()
    (table,) = fragment(shown._repr_html_()).iter("table")
    heading, *epochs = rows(table)
    assert heading == ["epoch", "accuracy", "efficiency", "aIQ", "conv", "fc"]
    for number, (cells, one) in enumerate(zip(epochs, shown, strict=True), start=1):
        figures = [one.accuracy, one.efficiency, one.aiq, 1.75 / 4, 0.5]
        assert cells == [str(number), *(f"{x:.4f}" for x in figures)]
    strong = [text_of(element).strip() for element in table.iter("strong")]
    assert strong[0] == "2"  # the best aIQ
    assert len(strong) == 6
    assert History()._repr_html_() == "<p>no evaluation yet</p>"


def test_names_of_layers_are_escaped(tmp_path):
    shown = history(names=(HOSTILE, "fc"))
    for text in (shown[0]._repr_html_(), shown._repr_html_(), saved(shown, tmp_path)):
        elements = list(fragment(text).iter() if "<html" not in text else parsed(text).iter())
        assert not [element for element in elements if element.tag == "script"]
        cells = [text_of(element).strip() for element in elements if element.tag in ("th", "td")]
        assert HOSTILE in cells


def test_page_holds_the_metrics_of_each_epoch_and_of_the_best_and_the_last(tmp_path):
    shown = history()
    page = parsed(saved(shown, tmp_path))
    epochs, *layers = page.iter("table")
    assert [row[0] for row in rows(epochs)] == ["epoch", "1", "2", "3"]
    assert rows(epochs)[2] == ["2", "0.9000", *(f"{x:.4f}" for x in (
        shown[1].efficiency, shown[1].aiq))]  # fmt: skip
    assert [text_of(table.find("caption")) for table in layers] == [
        *["Epoch 2 (best aIQ)"] * 2,
        *["Epoch 3 (last)"] * 2,
    ]
    assert rows(layers[0])[1] == ["conv", "4", "8", "4", "2", "0.7500", "0.5000"]
    assert rows(layers[1])[1][:3] == ["conv", "1.750", "0.4375"]
    tiles = {text_of(div.find("dt")): text_of(div.find("dd")) for div in page.iter("div")
             if div.find("dt") is not None}  # fmt: skip
    assert tiles == {
        "best aIQ": f"{shown[1].aiq:.4f} epoch 2",
        "aIQ": f"{shown[2].aiq:.4f} epoch 3",
        "network efficiency": f"{shown[2].efficiency:.4f} epoch 3",
        "accuracy": "0.7000 epoch 3",
    }


def test_page_says_what_it_was_made_from_and_with(tmp_path):
    text = text_of(parsed(saved(report(beta=3, alpha=0, epoch=4, step=1200), tmp_path)))
    assert "β = 3 (weight of accuracy in aIQ) · α = 0 (order of the entropy) · 2 layers" in text
    assert "1 evaluation · epoch 5 · stage val · step 1,200 · β = 3" in text
    version = tensorstate_callbacks.__version__
    assert re.search(rf"tensorstate_callbacks {version} on \d\d \w+ \d{{4}}, \d\d:\d\d UTC", text)


def test_page_says_what_limits_the_metrics(tmp_path):
    thin = EfficiencyReport({"thin": layer("thin", [1] * 8)})
    found = [text_of(item) for item in parsed(saved(thin, tmp_path)).iter("li")]
    assert found == thin.notes()
    assert len(found) == 3  # coverage, constant neurons, and no accuracy
    even = EfficiencyReport({"even": layer("even", (4, 4), (4, 4))}, accuracy=0.5)
    assert "What limits" not in saved(even, tmp_path)


def test_page_draws_curves_bars_and_states(tmp_path):
    names = [f"block_{number}" for number in range(3)]
    drawn = list(figures(parsed(saved(history(names=names), tmp_path))))
    assert [alt for alt, _ in drawn] == [
        "Accuracy, efficiency and aIQ of the network, and the efficiency of its layers, by epoch",
        "Efficiency of the layers under their ceilings",
        "Share of each distinct state, by rank",
    ]
    for _, svg in drawn:
        words = [text_of(x) for x in svg.iter("{http://www.w3.org/2000/svg}text")]
        assert set(names) <= set(words)
    assert "rank of the state (1: most frequent)" in words
    single = parsed(saved(report(), tmp_path))
    assert len(list(figures(single))) == 2


def test_figures_are_black_on_white_in_dark_mode_too(tmp_path):
    text = saved(history(), tmp_path)
    assert re.search(r"img \{[^}]*background: #fff", text)
    for _, svg in figures(parsed(text)):
        ground = next(svg.iter("{http://www.w3.org/2000/svg}path"))
        assert "fill: #ffffff" in ground.get("style")


def test_page_needs_nothing_else(tmp_path):
    page = parsed(saved(history(), tmp_path))
    for element in page.iter():
        assert element.tag not in ("script", "link", "iframe", "object", "embed", "base")
        for name, value in element.attrib.items():
            assert not str(name).startswith("on")
            if str(name).endswith(("href", "src")):
                assert value.startswith("data:image/svg+xml;base64,")
    style = "".join(text_of(element) for element in page.iter() if element.tag == "style")
    assert "@import" not in style
    assert "http" not in style
    policies = [x.get("content") for x in page.iter("meta") if x.get("http-equiv")]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_json_is_read_back(tmp_path):
    shown = history()
    shown.save(tmp_path / "run.json")
    assert History.load(tmp_path / "run.json") == shown
    assert isinstance(History.load(tmp_path / "run.json"), History)
    shown[1].save(str(tmp_path / "one.JSON"))
    assert EfficiencyReport.load(tmp_path / "one.JSON") == shown[1]
    assert History.load(tmp_path / "one.JSON") == [shown[1]]
    with pytest.raises(ValueError, match="holds 3 reports: use History.load"):
        EfficiencyReport.load(tmp_path / "run.json")


@pytest.mark.parametrize("content", ["{", "3", '[{"layers": {}}]', "[[1]]", '{"a": 1}'])
def test_other_json_is_refused(tmp_path, content):
    (tmp_path / "other.json").write_text(content)
    with pytest.raises(ValueError, match=r"other.json' does not hold reports that save"):
        History.load(tmp_path / "other.json")


def test_a_page_that_is_there_is_replaced(tmp_path):
    (tmp_path / "run.htm").write_text("old")
    assert saved(report(), tmp_path, "run.htm").startswith("<!DOCTYPE html>")


@pytest.mark.parametrize("name", ["run.pdf", "run", "run.html.gz"])
def test_other_names_are_refused_with_what_is_possible(tmp_path, name):
    with pytest.raises(ValueError, match=rf"'{name}'.*\.json.*write_page.*savefig"):
        report().save(tmp_path / name)
    with pytest.raises(ValueError, match=rf"'{name}'.*\.html or \.htm"):
        write_page(report(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_pages_are_not_saved_by_the_reports(tmp_path):
    for shown in (report(), history()):
        with pytest.raises(ValueError, match=r"'run.html'.*write_page\(reports, 'run.html'\)"):
            shown.save(tmp_path / "run.html")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"runs/run.html"):
        write_page(report(), tmp_path / "runs" / "run.html")
    with pytest.raises(FileNotFoundError, match=r"runs/run.json"):
        report().save(tmp_path / "runs" / "run.json")


def test_an_empty_history_makes_no_page(tmp_path):
    with pytest.raises(ValueError, match="nothing to write"):
        write_page(History(), tmp_path / "run.html")
    assert not (tmp_path / "run.html").exists()


def test_any_name_goes_through_pages_and_notebooks(tmp_path):
    names = ("a\udc80\0", "</td>\n$x$", "\u202efc", "|*_x_`")
    shown = history(names=names)
    text = saved(shown, tmp_path)
    for written in (text, shown[0]._repr_html_(), shown._repr_html_()):
        written.encode()
        assert "\0" not in written
    cells = [text_of(cell).strip() for cell in parsed(text).iter("td")]
    assert {"a\\udc80\\x00", "</td>\\n$x$", "\\u202efc", "|*_x_`"} <= set(cells)
    note = shown[0].notes()[0]
    assert names[0] in note
    assert "a\\udc80\\x00" in text_of(parsed(text))


def test_any_name_goes_through_files(tmp_path):
    names = ("a\udc80\0", "b\n,;\"'", "\u202efc", " ")
    shown = history(2, names=names)
    shown.save(tmp_path / "run.json")
    assert History.load(tmp_path / "run.json") == shown
    frame = shown.to_frame()
    frame.to_csv(tmp_path / "run.csv")
    assert list(frame["name"]) == ["a\\udc80\0", *names[1:]] * 2
