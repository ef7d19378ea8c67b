"""The documentation as a site: what it holds, and whether its pages fit a desk and a phone."""

import functools
import http.server
import json
import os
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import pytest

griffe = pytest.importorskip("griffe", reason="the extra docs isn't installed")
pytest.importorskip("material", reason="the extra docs isn't installed")

from browser import chromium, in_browser, wait_for  # noqa: E402
from mkdocs.exceptions import PluginError  # noqa: E402
from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "docs" / "_site"))

import benchmark_tables  # noqa: E402
import link_names  # noqa: E402

BASE = "/tensorstate_callbacks/"
# Where public names are, besides the package itself.
MODULES = ("huggingface", "keras", "lightning", "plots", "tensorstate", "torch")
# No public names, but what attributes of public ones are.
PARTS = {
    "metrics.classes.ClassMetrics",
    "metrics.units.UnitMetrics",
    "tensorstate.state_readings.StateReadings",
}
# Of reports: what only the package itself calls.
INTERNAL = {"from_metrics", "from_spectrum", "from_tables", "facts"} | {
    f"with{end}" for end in ("_probe", "out_pairs", "out_states")
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def package() -> Any:
    return griffe.load("tensorstate_callbacks", search_paths=[ROOT])


class Tags(HTMLParser):
    """Collects a page's tags with their attributes."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))

    def values(self, attribute: str, *tags: str) -> list[str]:
        return [a[attribute] for tag, a in self.found if attribute in a and tag in (tags or (tag,))]


def pages_of(site: Path) -> list[str]:
    """Addresses of all pages, relative to the site's."""
    found = sorted(page.parent.relative_to(site).as_posix() for page in site.rglob("index.html"))
    return ["" if page == "." else f"{page}/" for page in found]


def resolved(package: Any, path: str) -> str:
    """The path at which a public name is defined."""
    found = package[path]
    if found.is_module:
        # `torch.record` is the class; its module has the same name.
        found = found[found.name]
    if found.is_alias:
        found = found.final_target
    if found.is_attribute:
        # A short name: `record = Recording`.
        found = found.module[str(found.value)]
    return str(found.path.partition(".")[2])


def documented() -> list[str]:
    """What the pages of the reference ask for."""
    pages = (ROOT / "docs" / "reference").glob("*.md")
    return [name for page in pages for name in link_names.find_paths(page.read_text("utf-8"))]


def test_each_public_name_stands_in_the_reference_once(package: Any) -> None:
    public = set(map(str, package.exports or ())) | {"StateCapture", "StateCaptureHook"}
    for module in MODULES:
        inside = {"plots": "display.plots"}.get(module, module)
        public |= {f"{inside}.{name}" for name in package[inside].exports}
    assert len(public) > 60
    found = Counter(resolved(package, path) for path in documented())
    assert set(found) == {resolved(package, path) for path in public} | PARTS
    assert set(found.values()) == {1}


@pytest.mark.parametrize("name", ["EfficiencyReport", "LayerReport", "History"])
def test_the_reference_shows_what_users_call_of_reports(
    name: str, site: Path, package: Any
) -> None:
    shown = set(Tags(site / "reference/reports/index.html").values("id"))
    described = {
        member.name
        for member in package[name].all_members.values()
        if not member.name.startswith("_") and (member.is_function or "property" in member.labels)
    }
    assert "to_dicts" in described or name == "LayerReport"
    missing = {each for each in described if f"tensorstate_callbacks.{name}.{each}" not in shown}
    assert missing == described & INTERNAL


def arguments_on(page: Path, name: str) -> list[str]:
    """Names in the list of arguments of the first object of that name."""
    html = page.read_text(encoding="utf-8")
    _, _, rest = html.partition(f'id="{name}"')
    terms = rest.partition('<dl class="doc-terms">')[2].partition("</dl>")[0]
    return re.findall(r"<dt>\s*<b><code>([\w*]+)</code>", terms)


def parameters(package: Any, path: str) -> list[str]:
    return [each.name for each in package[path].parameters if each.name != "self"]


def test_the_pages_of_callbacks_describe_all_their_arguments(site: Path, package: Any) -> None:
    shared = parameters(package, "recording.callback.RecordingCallback.__init__")
    assert {"attach_to", "group_size", "log_extras"} < set(shared)
    name = "tensorstate_callbacks.keras.EfficiencyCallback"
    assert arguments_on(site / "reference/keras/index.html", name) == shared
    name = "tensorstate_callbacks.lightning.EfficiencyCallback"
    own = ["output_fn", "dataloader_idx"]
    assert arguments_on(site / "reference/lightning/index.html", name) == [*shared, *own]


def test_what_a_function_returns_is_one_type_and_one_paragraph(site: Path) -> None:
    found = {}
    for page in sorted((site / "reference").rglob("index.html")):
        for part in page.read_text(encoding="utf-8").split(">Returns:</span>")[1:]:
            terms = part.partition("</dl>")[0]
            found[terms] = re.findall(r"<dt>(.*?)</dt>", terms, re.DOTALL)
    assert len(found) > 15
    for terms, types in found.items():
        (text,) = (re.sub("<.*?>", "", each).strip() for each in types)
        # What stands before a colon in the description would be taken for the type.
        assert re.fullmatch(r"[\w.]+(\[.+\]| \| None)?", text), terms


def test_what_options_takes_is_listed_by_name(package: Any) -> None:
    shared = set(parameters(package, "recording.callback.RecordingCallback.__init__"))
    recording = "huggingface.recording"
    not_taken = set(re.findall(r"\w+", str(package[f"{recording}._NOT_TAKEN"].value)))
    own = set(parameters(package, f"{recording}.EvaluationRecording.__init__"))
    listed = options_of(package, f"{recording}.EvaluationRecording")
    assert shared - not_taken - own == listed & shared - own
    recorded = set(parameters(package, "torch.record.Recording.__init__"))
    training = "torch.record_training.TrainingRecording"
    own = set(parameters(package, f"{training}.__init__")) | {"classes", "probe_data"}
    assert options_of(package, training) & recorded == recorded - own


def options_of(package: Any, path: str) -> set[str]:
    text = package[path].docstring.value.partition("**options: ")[2].partition("\n\n")[0]
    return set(re.findall(r"`(\w+)`", text))


def test_names_in_text_are_links_to_the_reference(site: Path) -> None:
    links = Tags(site / "reference/keras/index.html").values("href", "a")
    assert "../reports/#tensorstate_callbacks.ProbeChange" in links
    # Elsewhere it is as often Keras's own.
    for path, is_linked in (("reference/reports.md", True), ("how_to/training.md", False)):
        page = SimpleNamespace(file=SimpleNamespace(src_uri=path))
        html = link_names.on_page_content("<p><code>History</code></p>", page)
        assert ("tensorstate_callbacks.History" in html) == is_linked
    names = {"plot_history": "plot_history", "torch.record": "torch.Recording"}
    assert link_names.find_names().items() >= names.items()
    there = '<autoref identifier="tensorstate_callbacks.plot_history" optional>'
    html = "<p><code>plot_history</code></p>"
    assert link_names.link(html, names) == f"<p>{there}<code>plot_history</code></autoref></p>"
    for html in (
        '<a href="x"><code>plot_history</code></a>',
        "<h2><code>plot_history</code></h2>",
        "<pre><code>plot_history</code></pre>",
        "<code>plot_history(x)</code>",
    ):
        assert link_names.link(html, names) == html


def test_nothing_is_asked_of_third_parties(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        tags = Tags(page)
        loaded = [
            *tags.values("src"),
            *tags.values("data"),
            *(value.split()[0] for value in tags.values("srcset")),
            *(a["href"] for tag, a in tags.found if tag == "link" and a["rel"] != "canonical"),
        ]
        assert any(each.endswith(".css") for each in loaded)
        outside = [each for each in loaded if urlsplit(each).netloc]
        assert not outside, page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )[\"']?(https?:)?//", sheet.read_text("utf-8")), sheet


def test_links_lead_somewhere(site: Path) -> None:
    known: dict[Path, set[str]] = {}
    for page in pages_of(site):
        tags = Tags(site / page / "index.html")
        edit = [link for link in tags.values("href", "a") if "/edit/main/" in link]
        for link in edit:
            assert (ROOT / link.partition("/edit/main/")[2]).is_file(), link
        for link in tags.values("href", "a"):
            if urlsplit(link).netloc or link.startswith(("mailto:", "javascript:")):
                continue
            parts = urlsplit(urljoin(f"{BASE}{page}", link))
            target = site / unquote(parts.path).removeprefix(BASE)
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{page}: {link}"
            if parts.fragment and target.suffix == ".html":
                if target not in known:
                    known[target] = set(Tags(target).values("id"))
                assert unquote(parts.fragment) in known[target] | {"__top"}, f"{page}: {link}"


def test_the_map_lists_the_pages_and_nothing_else_is_published(site: Path) -> None:
    listed = re.findall(r"<loc>(.*?)</loc>", (site / "sitemap.xml").read_text("utf-8"))
    assert sorted(urlsplit(each).path.removeprefix(BASE) for each in listed) == pages_of(site)
    assert not [path for path in site.rglob("*.py") if path.is_file()]


def test_the_page_for_what_is_not_there_works_at_any_depth(site: Path) -> None:
    tags = Tags(site / "404.html")
    for link in [*tags.values("src"), *tags.values("href", "link", "a")]:
        assert urlsplit(link).path.startswith(BASE) or urlsplit(link).netloc, link
    assert f"https://tensorstate-callbacks.github.io{BASE}reference/" in tags.values("href", "a")


RESULTS = """\
- quick: 2026-01-02. A machine

| part  | case    | ours | against | theirs | ratio | target |              |
| ----- | ------- | ---- | ------- | ------ | ----- | ------ | ------------ |
| quick | a, one  | 1 ms | b       | 2 ms   | 2.000 | ≥ 1    | met          |
| quick | a, two  | 3 ms | b       | 2 ms   | 0.667 | ≥ 1    | missed; oh   |
| slow  | c       |      | d       |        |       | ≤ 2    | no GPU       |
| slow  | e       | 4 MB | d       | 2 MB   | 1.250 |        |              |
"""


def test_the_benchmarks_page_holds_each_row_and_counts_the_targets() -> None:
    page = "<!-- targets -->\n<!-- machines -->\n<!-- rows: quick -->\n<!-- rows: slow -->\n"
    text = benchmark_tables.fill(f"{page}<!-- more: slow: e -->\n", RESULTS).replace("\xa0", " ")
    assert "Of 3 targets, **1 are met and 1 are missed**; 1 could not be judged" in text
    assert "| [quick](#quick) | 1 | 1 | 0 |\n| [slow](#slow) | 0 | 0 | 1 |" in text
    assert "- quick: 2026-01-02. A machine" in text
    assert "| a, two | 3 ms | b | 2 ms | 0.667 | ≥ 1 **missed** | oh |" in text
    assert text.endswith("\n25.0 %\n")
    for wrong in (
        page.replace("slow", "slower"),
        page.replace("<!-- rows: slow -->", ""),
        page + "<!-- more: slow: f -->",
    ):
        with pytest.raises(PluginError, match="slow"):
            benchmark_tables.fill(wrong, RESULTS)


def test_many_rows_without_a_target_are_folded_by_network() -> None:
    rows = benchmark_tables.read_rows(RESULTS) * 9
    text = benchmark_tables.part_tables(rows)
    assert '??? note "All 36 rows"' in text
    head, _, folded = text.partition("???")
    assert head.count("\n| ") == 9 * 3 + 1
    assert re.findall(r"\*\*(\w)\*\*", folded) == ["a", "c", "e"]
    assert folded.count("\n    | ") == 36 + 2 * 3


def test_the_benchmarks_page_names_each_part_that_missed_a_target(site: Path) -> None:
    rows = benchmark_tables.read_rows(benchmark_tables.RESULTS.read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    told = page.partition("What was missed:")[2].partition("\n## ")[0]
    missed = {row.part for row in rows if row.verdict == "missed"}
    parts = {row.part for row in rows}
    assert {part for part in parts if f"`{part}`" in told} == missed
    html = (site / "benchmarks/index.html").read_text(encoding="utf-8")
    # Those with a target stand above the folded ones too.
    assert html.count("<tr>") >= len(rows)


class Pages(http.server.SimpleHTTPRequestHandler):
    """Serves the site under its path, as GitHub Pages does, and says nothing."""

    def translate_path(self, path: str) -> str:
        if not path.startswith(BASE):
            return str(Path(self.directory) / "not there")
        return super().translate_path(f"/{path.removeprefix(BASE)}")

    def send_error(self, code: int, *_: object) -> None:
        self.send(code, (Path(self.directory) / "404.html").read_bytes())

    def send(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        # Each page has its search read the index of all, which takes longer than the rest of it.
        name = "search/search_index.json"
        if self.path == f"{BASE}{name}" and not self.server.searches:  # type: ignore[attr-defined]
            index = json.loads((Path(self.directory) / name).read_text(encoding="utf-8"))
            self.send(200, json.dumps({**index, "docs": index["docs"][:1]}).encode())
        else:
            super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    """Serves the site at its address.

    Attributes:
        searches: Whether the search has anything to find.
    """

    searches = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}{BASE}"


@pytest.fixture(scope="module")
def server(site: Path) -> Iterator[Server]:
    handler = functools.partial(Pages, directory=str(site))
    with Server(("127.0.0.1", 0), handler) as started:
        thread = threading.Thread(target=started.serve_forever, daemon=True)
        thread.start()
        yield started
        started.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def driver() -> Iterator[webdriver.Chrome]:
    with chromium(1280, 900) as started:
        yield started


# What the window shows: [width of the page, width of the window, images that aren't there].
LOOK = """
const images = [...document.images];
images.forEach(image => { image.loading = "eager"; });
return Promise.all(images.map(image => image.decode().catch(() => null))).then(() => [
  document.documentElement.scrollWidth,
  window.innerWidth,
  images.filter(image => image.naturalWidth === 0).map(image => image.src),
]);
"""
LOADED = 'return performance.getEntriesByType("resource").map(entry => entry.name)'


def emulate(driver: webdriver.Chrome, width: int) -> None:
    """Give the window a width, of a phone if it is narrow."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


@in_browser
def test_pages_fit_a_desk_and_a_phone_and_load_without_errors(
    site: Path, server: Server, driver: webdriver.Chrome, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems = {}
    monkeypatch.setattr(server, "searches", False)
    for page in pages_of(site):
        driver.get(server.url + page)
        wrong = []
        for width in (1280, 390):
            emulate(driver, width)
            page_width, window_width, broken = driver.execute_script(LOOK)
            wrong += broken
            if page_width > window_width:
                wrong.append(f"{page_width} px wide in a window of {window_width} px")
        loaded = driver.execute_script(LOADED)
        wrong += [each for each in loaded if not each.startswith((server.url, "data:", "blob:"))]
        wrong += [entry["message"] for entry in driver.get_log("browser")]
        if wrong:
            problems[page] = wrong
    assert not problems


@in_browser
@pytest.mark.parametrize(("scheme", "name"), [("light", "default"), ("dark", "slate")])
def test_colours_follow_the_system(
    scheme: str, name: str, server: Server, driver: webdriver.Chrome
) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    driver.get(server.url)
    # What was shown before is remembered.
    driver.execute_script("localStorage.clear()")
    driver.get(server.url)
    body = driver.find_element(By.TAG_NAME, "body")
    assert body.get_attribute("data-md-color-scheme") == name


@in_browser
def test_search_finds_an_argument(server: Server, driver: webdriver.Chrome) -> None:
    driver.get(server.url)
    box = driver.find_element(By.CSS_SELECTOR, "input[data-md-component=search-query]")
    driver.execute_script(
        "document.querySelector('#__search').checked = true; arguments[0].focus()", box
    )
    box.send_keys("group_size")

    def found() -> list[str]:
        links = driver.find_elements(By.CSS_SELECTOR, ".md-search-result__link")
        return [urlsplit(link.get_attribute("href") or "").path for link in links]

    results = wait_for(found, "results of the search", 20)
    assert f"{BASE}reference/keras/" in results


@in_browser
def test_what_is_not_there_leads_back(server: Server, driver: webdriver.Chrome) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{server.url}how_to/nothing/")  # noqa: S310 - loopback
    driver.get(f"{server.url}how_to/nothing/")
    assert driver.find_element(By.TAG_NAME, "h1").text == "There is no such page"
    header = driver.find_element(By.CSS_SELECTOR, ".md-header")
    assert header.value_of_css_property("background-color") == "rgba(28, 46, 64, 1)"
